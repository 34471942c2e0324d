# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The Debian packages, on a machine that is installed, booted, upgraded and rid of them.

What a test leaves is what the next one begins with.
"""

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness import paths
from harness.daemon import Stat
from harness.guest import Guest
from harness.installed import InstalledMachine, Root
from harness.lab import Lab

PACKAGES = ("virtio-tmem-dkms", "vhost-device-tmem")
OTHER = "6.12.1-amd64"
CHECK_ORIGINALS = paths.REPO / "scripts" / "check_originals.py"

# In the machine both are tried: the module with the host's daemon, and the daemon that is installed
# there with something that stands for a guest.
SCRIPT = """
must loaded grep -q '^virtio_tmem ' /proc/modules
must swap swap_on swap
must mount mounted data /mnt
must "warm up" wait_for 60 warmed_up /mnt
must create "$WORKLOAD" file-set create --dir /mnt --mib 48
for round in 1 2; do
	drop_caches
	step "files $round" "$WORKLOAD" file-set verify --dir /mnt --mib 48
done
step anon confined 48 "$WORKLOAD" anon --mib 144 --passes 1
mark used
wait_for 60 told "go on"

edit() {
	sed -i 's/^capacity = .*/capacity = "64MiB"/; s/^window-size = .*/window-size = "16MiB"/' \\
		/etc/vhost-device-tmem/config.toml
}
must configured edit
must started systemctl start vhost-device-tmem.service
pid() {
	systemctl show -P MainPID vhost-device-tmem.service
}
step profile cat "/proc/$(pid)/attr/current"
load() {
	printf '%s\\n' \\
		'{"run":"tmem","operation":"put","first":0,"batch":32,"depth":2}' \\
		'{"run":"tmem","operation":"get","first":0,"batch":32,"depth":2}' |
		/run/tools/tmem-daemon-load --tmem /run/tmem/web.sock --pages 2048 --cpu 0 --device-cpu 1
}
step load load
step stat tmemctl stat --json
step upgrade tmemctl upgrade
step restart systemctl restart vhost-device-tmem.service
step "load again" load
step stop systemctl stop vhost-device-tmem.service
denied() {
	! dmesg | grep 'apparmor="DENIED"'
}
step denied denied
step failed systemctl --failed --no-legend
exit 0
"""


@dataclass
class Installed:
    """A machine that has the packages, and what was said when they were installed."""

    root: Root
    cloud: str
    # What apt would install for the module's package alone, on a machine without a kernel.
    planned: str
    said: str

    def modules(self, release: str) -> list[Path]:
        """The module, as the machine's kernel finds it."""
        folder = self.root.folder / "usr/lib/modules" / release
        return sorted(folder.rglob("virtio_tmem.ko*"))

    def initramfs(self, release: str) -> str:
        """What is in the initramfs."""
        return self.root.run("lsinitramfs", f"/boot/initrd.img-{release}")

    def status(self) -> list[str]:
        """What DKMS says of the module."""
        return self.root.run("dkms", "status", "virtio-tmem").splitlines()


def release_of(root: Root, ending: str) -> str:
    """The release of the installed kernel with that ending."""
    images = (root.folder / "boot").glob("vmlinuz-*")
    names = [image.name.removeprefix("vmlinuz-") for image in images]
    found = [name for name in names if re.fullmatch(rf"[^-]*{ending}", name)]
    assert len(found) == 1, f"{names} has not one {ending}"
    return found[0]


def kernel(flavour: str) -> list[str]:
    """The kernel of backports and its headers, as the README has them installed."""
    return [f"linux-{what}-{flavour}/trixie-backports" for what in ("image", "headers")]


def package(name: str) -> Path:
    """A package as it was built."""
    found = sorted((paths.BUILD / "deb").glob(f"{name}_*.deb"))
    if len(found) != 1:
        raise paths.Missing(f"there is no {name} in build/deb: `make deb` builds it")
    return found[0]


@pytest.fixture(scope="module")
def installed() -> Installed:
    """The machine, by the two lines of the README, and the daemon beside it."""
    root = Root()
    files = [root.take(package(name)) for name in PACKAGES]
    planned = root.apt("--simulate", "install", files[0])
    root.apt("install", *kernel("cloud-amd64"))
    # The headers of a kernel that the module is not for.
    other = root.folder / "usr/lib/modules" / OTHER
    (other / "build/include").mkdir(parents=True)
    (other / "build/.config").write_text("")
    said = root.apt("install", *files)
    shutil.rmtree(other)
    return Installed(root, release_of(root, "-cloud-amd64"), planned, said)


def has_the_module(machine: Installed, release: str) -> None:
    """Fails unless the module is built, signed, installed and in the initramfs."""
    assert any(f", {release}, x86_64: installed" in line for line in machine.status())
    (path,) = machine.modules(release)
    shown = machine.root.run("modinfo", "-k", release, "virtio_tmem")
    assert re.search(r"^signer: +DKMS module signing key$", shown, re.MULTILINE), shown
    assert f"vermagic:       {release} " in shown
    assert f"usr/lib/modules/{release}/updates/dkms/{path.name}" in machine.initramfs(release)
    object_file = path.with_suffix("") if path.suffix != ".ko" else path
    data = subprocess.run(["xz", "-dc", path], check=True, capture_output=True).stdout
    copy = paths.BUILD / "deb-test" / object_file.name
    copy.write_bytes(data)
    subprocess.run(["python3", CHECK_ORIGINALS, copy], check=True)


def test_the_module_is_built_for_the_kernel(installed: Installed) -> None:
    has_the_module(installed, installed.cloud)


def test_nothing_is_left_of_the_build(installed: Installed) -> None:
    assert not installed.root.exists("/var/lib/dkms/virtio-tmem/0.1.0/build")
    assert not list(installed.root.folder.glob("usr/src/virtio-tmem-*/linux"))


def test_the_package_alone_brings_what_it_needs(installed: Installed) -> None:
    for name in (rf"linux-headers-{re.escape(installed.cloud)}", "linux-source-7.3"):
        assert re.search(rf"^Inst {name} \(7\.3", installed.planned, re.MULTILINE), name
    for name in ("dkms", "rustc", "rust-src", "bindgen", "gcc-14"):
        assert f"\nInst {name} (" in installed.planned, name


def test_a_kernel_of_another_series_is_left_out(installed: Installed) -> None:
    assert not any(OTHER in line for line in installed.status())


def test_nothing_is_missing(installed: Installed) -> None:
    assert "cannot be built" not in installed.said


def test_the_daemon_is_installed_and_not_enabled(installed: Installed) -> None:
    root = installed.root
    config = "/etc/vhost-device-tmem/config.toml"
    root.run("vhost-device-tmem", "--config", config, "--check-config")
    enabled = root.try_run("systemctl", "is-enabled", "vhost-device-tmem.service")
    assert enabled.stdout == "disabled\n"
    assert re.search(r"^tmem:", (root.folder / "etc/passwd").read_text(), re.MULTILINE)
    for path in (
        "/usr/share/man/man8/tmemctl.8.gz",
        "/usr/share/bash-completion/completions/tmemctl",
        "/usr/share/doc/vhost-device-tmem/prometheus-alerts.yml",
    ):
        assert root.exists(path), path


def test_the_profile_is_one(installed: Installed) -> None:
    installed.root.run("apparmor_parser", "-Q", "-K", "/etc/apparmor.d/vhost-device-tmem")


@dataclass
class Boot:
    """What the machine did when it ran, and what the host's daemon counted."""

    guest: Guest
    counts: Stat


@pytest.fixture(scope="module")
def boot(installed: Installed, module_lab: Lab) -> Boot:
    """Boots the machine with a device, and nothing else to be done."""
    daemon = module_lab.daemon()
    disks = [
        installed.root.disk(module_lab.folder, 6144),
        module_lab.disk("swap", 512),
        module_lab.disk("data", 128, "ext4"),
    ]
    machine = InstalledMachine(
        640,
        disks=disks,
        devices=[daemon],
        kernel=installed.cloud,
        programs=[paths.binary("tmem-daemon-load")],
    )
    guest = module_lab.boot(SCRIPT, machine, with_module=False)
    guest.wait_for_mark("used", 600)
    counts = daemon.stat()
    guest.tell("go on")
    guest.finish(600)
    return Boot(guest, counts)


def test_pages_are_in_the_host_with_no_other_step(boot: Boot) -> None:
    assert boot.guest.step("anon").objects[-1]["wrong"] == 0
    for name in ("files 1", "files 2"):
        assert boot.guest.step(name).objects[-1]["wrong"] == 0
    assert boot.counts.persistent.puts_stored > 10_000
    assert boot.counts.persistent.gets_hit > 10_000
    assert boot.counts.ephemeral.puts_stored > 5_000
    assert boot.counts.ephemeral.gets_hit > 5_000


def test_the_module_is_loaded_before_the_root_is_mounted(boot: Boot) -> None:
    log = boot.guest.console()

    def first(text: str) -> int:
        return next(number for number, line in enumerate(log) if text in line)

    assert first("frontswap on, cleancache on") < first("EXT4-fs (vda): mounted filesystem")


def test_the_installed_daemon_serves_within_its_profile(boot: Boot) -> None:
    assert "vhost-device-tmem (enforce)" in boot.guest.step("profile").text
    for name in ("load", "load again"):
        assert '"pages":2048' in boot.guest.step(name).text.replace(" ", "")
    for name in ("stat", "upgrade", "restart", "stop", "denied"):
        boot.guest.step(name)
    assert boot.guest.step("failed").text.strip() == ""


@dataclass
class Upgrade:
    """The machine with another kernel as well."""

    machine: Installed
    generic: str
    failed: subprocess.CompletedProcess[str]
    after_failure: str


@pytest.fixture(scope="module")
def upgrade(installed: Installed) -> Upgrade:
    """Another flavour of the kernel, whose module cannot be built at first."""
    root = installed.root
    with root.without("/usr/bin/bindgen"):
        failed = root.try_run("apt-get", "-q", "-y", "install", *kernel("amd64"))
        after_failure = installed.initramfs(installed.cloud)
    root.run("dpkg", "--configure", "-a")
    return Upgrade(installed, release_of(root, r"deb13-amd64"), failed, after_failure)


def test_a_build_that_fails_says_why_and_leaves_the_old_kernel_alone(upgrade: Upgrade) -> None:
    assert upgrade.failed.returncode != 0
    assert "there is no bindgen" in upgrade.failed.stdout
    assert "apt install bindgen" in upgrade.failed.stdout
    assert "virtio_tmem.ko" in upgrade.after_failure


def test_the_module_is_built_for_another_flavour(upgrade: Upgrade) -> None:
    assert upgrade.machine.root.run("dpkg", "--audit") == ""
    has_the_module(upgrade.machine, upgrade.generic)
    has_the_module(upgrade.machine, upgrade.machine.cloud)


def test_nothing_is_left_after_a_purge(upgrade: Upgrade) -> None:
    machine, root = upgrade.machine, upgrade.machine.root
    # What an operator has done meanwhile.
    units = ("vhost-device-tmem.service", "vhost-device-tmem-guest@db.socket")
    root.run("systemctl", "enable", *units)
    guest = root.folder / "etc/vhost-device-tmem/guests/db.toml"
    guest.write_text('socket = "/run/tmem/db.sock"\n')
    root.apt("purge", *PACKAGES)
    for release in (machine.cloud, upgrade.generic):
        assert "virtio_tmem" not in machine.initramfs(release)
        assert machine.modules(release) == []
        assert root.exists(f"/boot/vmlinuz-{release}")
    # The kernel's headers have names of their own with these letters.
    skipped = ["-path", "/var/log", "-o", "-path", "/root", "-o", "-path", "/usr/src/linux-*"]
    found = ["-name", "*tmem*", "-print"]
    left = root.run("find", "/", "-xdev", "(", *skipped, ")", "-prune", "-o", *found)
    assert left == ""
