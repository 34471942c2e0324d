# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""A root of a few megabytes, for guests that boot in seconds, and are all in memory."""

import lzma
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from . import paths

BUSYBOX = Path("/usr/bin/busybox")
BASH = Path("/usr/bin/bash")
MODULES = ("virtio_blk", "virtio_tmem")

INIT = """#!/bin/bash
export PATH=/bin HOME=/
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t debugfs debug /sys/kernel/debug
mount -t cgroup2 cgroup /sys/fs/cgroup
mount -t tracefs trace /sys/kernel/tracing
stty -F /dev/ttyS1 raw -echo
exec >/dev/ttyS1 2>&1
RUN=/run
WORKLOAD=/bin/tmem-workload
. /lib.sh
trap 'leaks; mark finished; poweroff -f' EXIT
mark booted
. /script.sh
"""


def make(
    folder: Path,
    script: str,
    files: Mapping[str, Iterable[Path]] | None = None,
    modules: Sequence[str] = MODULES,
) -> Path:
    """Makes a root that runs a script, and returns the archive.

    What else is to be in it is named in `files`, by its folder.
    """
    root = folder / "root"
    for name in ("bin", "proc", "sys", "dev", "tmp", "run", "modules"):
        (root / name).mkdir(parents=True)
    for program in (BUSYBOX, BASH, paths.binary("tmem-workload")):
        shutil.copy(program, root / "bin" / program.name)
        for library in _libraries(program):
            target = root / library.relative_to("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(library, target)
    for applet in _run([BUSYBOX, "--list"]).split():
        link = root / "bin" / applet
        if not link.exists():
            link.symlink_to("busybox")
    for name, sources in (files or {}).items():
        (root / name).mkdir(parents=True)
        for path in sources:
            shutil.copy(path, root / name)
    order = _modules(modules)
    for number, path in enumerate(order):
        data = path.read_bytes()
        name = path.name.removesuffix(".xz")
        text = lzma.decompress(data) if path.suffix == ".xz" else data
        (root / "modules" / f"{number:02d}-{name}").write_bytes(text)
    shutil.copy(paths.GUEST / "lib.sh", root)
    (root / "script.sh").write_text(script)
    init = root / "init"
    init.write_text(INIT)
    init.chmod(0o755)
    archive = folder / "initramfs"
    names = "\n".join(str(path.relative_to(root)) for path in sorted(root.rglob("*")))
    with archive.open("wb") as file:
        subprocess.run(
            ["cpio", "--quiet", "-o", "-H", "newc", "-R", "0:0"],
            cwd=root,
            check=True,
            input=names.encode(),
            stdout=file,
        )
    shutil.rmtree(root)
    return archive


def _run(command: Iterable[str | Path]) -> str:
    done = subprocess.run(
        [str(word) for word in command], check=True, capture_output=True, text=True
    )
    return done.stdout


def _libraries(program: Path) -> list[Path]:
    """What a program is linked with; nothing if it is static."""
    found = subprocess.run(["ldd", program], capture_output=True, text=True, check=False)
    return [Path(path) for path in re.findall(r"(/\S+) \(0x", found.stdout)]


def _modules(names: Iterable[str]) -> list[Path]:
    """The files of modules, in the order in which they have to be loaded."""
    order: list[Path] = []
    for name in names:
        shown = _run(["modprobe", "-S", paths.kernel_release(), "--show-depends", name])
        for line in shown.splitlines():
            kind, _, path = line.partition(" ")
            if kind == "insmod" and Path(path.split()[0]) not in order:
                order.append(Path(path.split()[0]))
    return order
