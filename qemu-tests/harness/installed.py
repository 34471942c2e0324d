# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""A Debian machine in a folder, which packages are installed on, and which QEMU boots.

Nothing of the toolbox is in it: the kernel, the initramfs and the module are those that Debian's
own tools put there.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from . import paths
from .disks import Disk
from .small import SmallMachine

IMAGE = paths.BUILD / "deb-test" / "root"

# Where apt keeps what it has downloaded, for the next run.
ARCHIVES = Path(os.environ.get("TMEM_CACHE", "/var/cache/virtio-tmem")) / "debs"

# Each command has mounts of its own, so that none of them stays.
ENTER = """
set -e
root=$1
archives=$2
shift 2
mount -t proc proc "$root/proc"
mount --rbind /sys "$root/sys"
mount --rbind /dev "$root/dev"
if [ -d "$archives" ]; then
	mount --bind "$archives" "$root/var/cache/apt/archives"
fi
exec chroot "$root" "$@"
"""

# What the test runs in the machine, as a unit that is there while the disk is made.
UNIT = """
[Unit]
After=multi-user.target
[Service]
Type=oneshot
ExecStartPre=/bin/mkdir -p /run/tools
ExecStartPre=/bin/mount -o ro /dev/disk/by-id/virtio-tools /run/tools
ExecStart=/bin/bash /run/tools/init
"""
UNIT_PATH = "etc/systemd/system/tmem-test.service"
WANTED_PATH = "etc/systemd/system/multi-user.target.wants/tmem-test.service"

INIT = """
export HOME=/root
stty -F /dev/ttyS1 raw -echo
exec >/dev/ttyS1 2>&1
RUN=/run/test
WORKLOAD=/run/tools/tmem-workload
. /run/tools/lib.sh
hear &
trap 'mark finished; systemctl poweroff --no-block' EXIT
mark booted
. /run/tools/script.sh
"""


class Root:
    """The machine's root."""

    def __init__(self, folder: Path = IMAGE) -> None:
        if not (folder / "etc" / "debian_version").exists():
            raise paths.Missing(f"there is no {folder}: `make deb-test` makes it")
        self.folder = folder
        shutil.copy("/etc/resolv.conf", folder / "etc" / "resolv.conf")

    def try_run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Runs a command in it; with its errors among its output."""
        enter = ["unshare", "--mount", "--propagation", "private", "sh", "-c", ENTER, "enter"]
        passed = {name: of for name, of in os.environ.items() if name.lower().endswith("_proxy")}
        return subprocess.run(
            [*enter, str(self.folder), str(ARCHIVES), *command],
            env={
                "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
                "HOME": "/root",
                "LANG": "C.UTF-8",
                "DEBIAN_FRONTEND": "noninteractive",
                **passed,
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )

    def run(self, *command: str) -> str:
        """Runs a command in it that has to succeed; returns its output."""
        done = self.try_run(*command)
        assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout}"
        return done.stdout

    def apt(self, *words: str) -> str:
        """Runs apt in it, which has to succeed."""
        return self.run("apt-get", "-q", "-y", *words)

    def take(self, path: Path) -> str:
        """Puts a file into it; returns its name there."""
        shutil.copy(path, self.folder / "root")
        return f"/root/{path.name}"

    def exists(self, path: str) -> bool:
        """Whether it has a file."""
        return (self.folder / path.lstrip("/")).exists()

    @contextmanager
    def without(self, path: str) -> Iterator[None]:
        """It lacks a file as long as the block takes."""
        file = self.folder / path.lstrip("/")
        hidden = file.with_name(f"{file.name}.hidden")
        file.rename(hidden)
        try:
            yield
        finally:
            hidden.rename(file)

    def disk(self, folder: Path, mib: int) -> Disk:
        """Makes a disk of it, which runs the test once it has booted."""
        unit, wanted = self.folder / UNIT_PATH, self.folder / WANTED_PATH
        wanted.parent.mkdir(exist_ok=True)
        unit.write_text(UNIT)
        wanted.symlink_to(f"/{UNIT_PATH}")
        try:
            return Disk.create(folder, "system", mib, "ext4", self.folder)
        finally:
            unit.unlink()
            wanted.unlink()


@dataclass
class InstalledMachine(SmallMachine):
    """A machine that boots what is installed in a root, of which the first disk was made."""

    root: Path = IMAGE
    # Programs that its script needs, besides the workload.
    programs: Sequence[Path] = ()

    def wrap(self, folder: Path, script: str) -> str:
        return script

    def boots(self, script: Path) -> tuple[Path, Path]:
        boot = self.root / "boot"
        return boot / f"vmlinuz-{self.kernel}", boot / f"initrd.img-{self.kernel}"

    def options_of_kernel(self) -> str:
        return f"{super().options_of_kernel()} root=/dev/disk/by-id/virtio-system rw"

    def command(self, script: Path) -> list[str]:
        return [*super().command(script), *self._tools(script).qemu_options()]

    def _tools(self, script: Path) -> Disk:
        """The disk with what is run."""
        content = script.parent / "tools"
        content.mkdir()
        for path in (script, paths.GUEST / "lib.sh", paths.binary("tmem-workload"), *self.programs):
            shutil.copy(path, content)
        (content / "init").write_text(INIT)
        return Disk.create(script.parent, "tools", 256, "ext4", content)
