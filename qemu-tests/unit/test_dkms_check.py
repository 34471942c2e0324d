# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""What the package of the module says is missing to build it, on machines that are made up.

A machine is a folder with the files that the check looks at, and with programs that answer as those
of a machine with nothing missing, unless a test has them answer otherwise.
"""

import os
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest

from harness.paths import REPO

CHECK = REPO / "scripts" / "dkms" / "check"
KERNEL = "7.3.4+deb13-amd64"
VERSION = "7.3.4-1~bpo13+1"

RUSTC = "rustc 1.85.1 (4eb161250 2025-03-15) (built from a source tarball)"
BINDGEN = "bindgen 0.71.1"
GCC_14 = "x86_64-linux-gnu-gcc-14"
GCC = f"{GCC_14} (Debian 14.2.0-19) 14.2.0"
CONFIG = f"""
CONFIG_RUST=y
CONFIG_MODULES=y
CONFIG_KPROBES=y
CONFIG_KALLSYMS=y
CONFIG_DYNAMIC_FTRACE_WITH_ARGS=y
CONFIG_TRACEPOINTS=y
CONFIG_SWAP=y
CONFIG_ZSWAP=y
CONFIG_RUSTC_VERSION_TEXT="{RUSTC}"
CONFIG_BINDGEN_VERSION_TEXT="{BINDGEN}"
CONFIG_CC_VERSION_TEXT="{GCC}"
"""
FUNCTIONS = (
    "clear_inode",
    "truncate_inode_pages_range",
    "invalidate_inode_pages2_range",
    "filemap_invalidate_inode",
)
SECURE_BOOT = "sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"


class Machine:
    """A machine that lacks nothing."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.versions = {f"linux-headers-{KERNEL}": VERSION, "linux-source-7.3": VERSION}
        # MiB that are free, by folder.
        self.free = {"boot": 100, "usr": 5000, "var": 5000}
        self.headers = root / "lib" / "modules" / KERNEL / "build"
        self.hook_points = root / f"lib/modules/{KERNEL}/source/include/linux/swap_ops.h"
        self.source = root / "usr/src/linux-source-7.3.tar.xz"
        self.core = root / "usr/lib/rustlib/src/rust/library/core/src/lib.rs"
        self.configure(CONFIG)
        self.export(FUNCTIONS)
        for path in (self.hook_points, self.source, self.core):
            self.write(path)
        for folder in ("boot", "usr/lib/modules", "var/lib/dkms"):
            (root / folder).mkdir(parents=True)
        self.tool("usr/bin/rustc", RUSTC)
        self.tool("usr/bin/bindgen", BINDGEN)
        self.tool("usr/bin/x86_64-linux-gnu-gcc-14", GCC)
        self.tool("bin/mokutil", "/var/lib/dkms/mok.pub is not enrolled")

    def write(self, path: Path, text: str = "") -> None:
        """Makes a file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def program(self, name: str, body: str) -> None:
        """Makes a program."""
        self.write(self.root / name, f"#!/bin/sh\n{body}\n")
        (self.root / name).chmod(0o755)

    def tool(self, name: str, text: str) -> None:
        """Makes a program that says something."""
        self.program(name, f"echo '{text}'")

    def configure(self, text: str) -> None:
        """Gives the kernel's headers a configuration."""
        self.write(self.headers / ".config", text)

    def export(self, functions: Iterable[str]) -> None:
        """Has the kernel export these functions."""
        lines = (f"0x00000000\t{name}\tvmlinux\tEXPORT_SYMBOL\t\n" for name in functions)
        self.write(self.headers / "Module.symvers", "".join(lines))

    def secure_boot(self) -> None:
        """Turns Secure Boot on."""
        path = self.root / SECURE_BOOT
        path.parent.mkdir(parents=True)
        path.write_bytes(b"\x06\x00\x00\x00\x01")

    def check(self, kernel: str = KERNEL) -> tuple[int, str]:
        """Runs the check: how it ended, and what it said."""
        cases = "\n".join(f"{name}) echo 'installed {of}' ;;" for name, of in self.versions.items())
        cases += "\n*) exit 1 ;;"
        self.program("bin/dpkg-query", f"for name; do :; done\ncase $name in\n{cases}\nesac")
        cases = "\n".join(f"{self.root}/{name}*) echo {mib}M ;;" for name, mib in self.free.items())
        self.program("bin/df", f"for name; do :; done\necho Avail\ncase $name in\n{cases}\nesac")
        path = f"{self.root / 'bin'}:{os.environ['PATH']}"
        done = subprocess.run(
            [CHECK, kernel],
            env={**os.environ, "PATH": path, "TMEM_ROOT": str(self.root)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=60,
        )
        return done.returncode, done.stdout


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """One for each test."""
    return Machine(tmp_path)


def misses(machine: Machine, what: str, command: str) -> None:
    """Fails unless this alone is missing, and the command is named that mends it."""
    status, said = machine.check()
    assert status == 1, said
    assert f"cannot be built for the kernel {KERNEL}" in said
    problems = [line for line in said.splitlines() if line.startswith("  - ")]
    assert len(problems) == 1, said
    assert what in problems[0], said
    assert f"        {command}" in said.splitlines(), said
    assert f"dkms autoinstall -k {KERNEL}" in said


def test_nothing_is_said_of_a_machine_with_everything(machine: Machine) -> None:
    assert machine.check() == (0, "")


def test_no_headers(machine: Machine) -> None:
    (machine.headers / ".config").unlink()
    misses(machine, "there are no headers", f"apt install linux-headers-{KERNEL}")


def test_headers_of_no_package(machine: Machine) -> None:
    del machine.versions[f"linux-headers-{KERNEL}"]
    misses(machine, "of no Debian package", f"apt install linux-headers-{KERNEL}")


def test_no_source(machine: Machine) -> None:
    del machine.versions["linux-source-7.3"]
    machine.source.unlink()
    misses(machine, "there is no source of it", f"apt install linux-source-7.3={VERSION}")


def test_source_that_somebody_removed(machine: Machine) -> None:
    machine.source.unlink()
    misses(machine, "there is no source of it", f"apt install linux-source-7.3={VERSION}")


def test_source_that_is_older_than_the_kernel(machine: Machine) -> None:
    machine.versions["linux-source-7.3"] = "7.3.2-1~bpo13+1"
    misses(
        machine,
        "(linux-source-7.3) is of version 7.3.2-1~bpo13+1",
        f"apt install linux-source-7.3={VERSION}",
    )


def test_a_kernel_that_is_older_than_the_source_is_left_out(machine: Machine) -> None:
    machine.versions["linux-source-7.3"] = "7.3.5-1~bpo13+1"
    status, said = machine.check()
    assert status == 77
    assert f"the kernel {KERNEL} is left out" in said
    assert f"apt install linux-source-7.3={VERSION}" in said


@pytest.mark.parametrize("kernel", ["6.12.117+deb13-amd64", "7.4.1-amd64", "7.30.1-amd64"])
def test_another_series_is_left_out(machine: Machine, kernel: str) -> None:
    status, said = machine.check(kernel)
    assert status == 77
    assert said == (
        f"virtio-tmem: the kernel {kernel} is left out: the module is made for Linux 7.3\n"
    )


@pytest.mark.parametrize("option", ["RUST", "KPROBES", "DYNAMIC_FTRACE_WITH_ARGS", "SWAP"])
def test_a_kernel_without_what_the_module_needs(machine: Machine, option: str) -> None:
    machine.configure(CONFIG.replace(f"CONFIG_{option}=y", f"# CONFIG_{option} is not set"))
    misses(
        machine,
        f"built without CONFIG_{option}, ",
        "apt install linux-image-amd64/trixie-backports linux-headers-amd64/trixie-backports",
    )


def test_a_kernel_without_hook_points(machine: Machine) -> None:
    machine.hook_points.unlink()
    misses(
        machine,
        "it lacks hook points: struct swap_ops;",
        "apt install linux-image-amd64/trixie-backports linux-headers-amd64/trixie-backports",
    )


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_kernel_without_a_function_to_hook(machine: Machine, function: str) -> None:
    machine.export([f"{name}_now" if name == function else name for name in FUNCTIONS])
    misses(
        machine,
        f"it lacks hook points: {function};",
        "apt install linux-image-amd64/trixie-backports linux-headers-amd64/trixie-backports",
    )


def test_the_functions_are_those_that_are_hooked() -> None:
    points = (REPO / "src" / "hooks" / "points.rs").read_text()
    for function in FUNCTIONS:
        assert f'c"{function}"' in points


def test_a_kernel_without_the_hook_points_of_zswap(machine: Machine) -> None:
    machine.configure(CONFIG.replace("CONFIG_ZSWAP=y", "# CONFIG_ZSWAP is not set"))
    status, said = machine.check()
    assert status == 0
    assert "swapped pages will not be put" in said


def test_no_rustc(machine: Machine) -> None:
    (machine.root / "usr/bin/rustc").unlink()
    misses(machine, "there is no rustc", "apt install rustc rust-src rustfmt")


def test_another_rustc(machine: Machine) -> None:
    machine.tool("usr/bin/rustc", "rustc 1.97.1 (abcdef012 2026-10-10)")
    misses(
        machine,
        f'rustc is "rustc 1.97.1 (abcdef012 2026-10-10)", but the kernel was built by "{RUSTC}"',
        "apt install --allow-downgrades 'rustc=1.85.1*' 'rust-src=1.85.1*' 'rustfmt=1.85.1*'",
    )


def test_no_source_of_core(machine: Machine) -> None:
    machine.core.unlink()
    misses(machine, "no source of Rust's core library", "apt install rust-src")


def test_no_bindgen(machine: Machine) -> None:
    (machine.root / "usr/bin/bindgen").unlink()
    misses(machine, "there is no bindgen", "apt install bindgen")


def test_another_bindgen(machine: Machine) -> None:
    machine.tool("usr/bin/bindgen", "bindgen 0.72.0")
    misses(
        machine,
        'bindgen is "bindgen 0.72.0"',
        "apt install --allow-downgrades 'bindgen=0.71.1*'",
    )


def test_no_gcc(machine: Machine) -> None:
    (machine.root / "usr/bin/x86_64-linux-gnu-gcc-14").unlink()
    misses(machine, "there is no x86_64-linux-gnu-gcc-14", "apt install gcc-14")


def test_another_gcc(machine: Machine) -> None:
    machine.tool("usr/bin/x86_64-linux-gnu-gcc-14", f"{GCC_14} (Debian 14.3.0-1) 14.3.0")
    misses(
        machine,
        'is "x86_64-linux-gnu-gcc-14 (Debian 14.3.0-1) 14.3.0"',
        "apt install --allow-downgrades 'gcc-14=14.2.0*'",
    )


def test_another_revision_of_gcc_will_do(machine: Machine) -> None:
    machine.tool("usr/bin/x86_64-linux-gnu-gcc-14", f"{GCC_14} (Debian 14.2.0-19+deb13u1) 14.2.0")
    assert machine.check() == (0, "")


def test_no_room_in_boot(machine: Machine) -> None:
    machine.free["boot"] = 30
    assert machine.check() == (0, "")
    (machine.root / "boot" / f"initrd.img-{KERNEL}").write_bytes(bytes(40 << 20))
    misses(machine, "/boot has 30 MiB free, and an initramfs", "apt autoremove --purge")


def test_no_room_for_the_module(machine: Machine) -> None:
    machine.free["usr"] = 3
    misses(machine, "/usr/lib/modules has 3 MiB free, and the module", "apt autoremove --purge")


def test_no_room_for_the_kernel_tree(machine: Machine) -> None:
    machine.free["var"] = 300
    misses(machine, "/var/lib/dkms has 300 MiB free, and the kernel tree", "apt clean")


def test_all_that_is_missing_is_said_at_once(machine: Machine) -> None:
    machine.source.unlink()
    machine.core.unlink()
    machine.free["var"] = 300
    status, said = machine.check()
    assert status == 1
    assert said.count("  - ") == 3
    assert said.count("cannot be built") == 1


def test_secure_boot_without_a_key(machine: Machine) -> None:
    machine.secure_boot()
    status, said = machine.check()
    assert status == 0
    assert "Secure Boot is on" in said
    assert said.index("dkms generate_mok") < said.index("mokutil --import /var/lib/dkms/mok.pub")
    assert "Enroll MOK" in said


def test_secure_boot_with_a_key_that_is_not_enrolled(machine: Machine) -> None:
    machine.secure_boot()
    machine.write(machine.root / "var/lib/dkms/mok.pub")
    status, said = machine.check()
    assert status == 0
    assert "dkms generate_mok" not in said
    assert "mokutil --import /var/lib/dkms/mok.pub" in said


def test_secure_boot_with_an_enrolled_key(machine: Machine) -> None:
    machine.secure_boot()
    machine.write(machine.root / "var/lib/dkms/mok.pub")
    machine.tool("bin/mokutil", "/var/lib/dkms/mok.pub is already enrolled")
    assert machine.check() == (0, "")


def test_it_is_the_module_that_the_check_is_for() -> None:
    # What the check demands of a kernel's name is what DKMS does.
    conf = (REPO / "debian" / "virtio-tmem-dkms.dkms").read_text()
    source = (REPO / "scripts" / "kernel-source.sh").read_text()
    found = re.search(r"^made_for=(\d+)\.(\d+)$", source, re.MULTILINE)
    assert found is not None
    assert rf'BUILD_EXCLUSIVE_KERNEL="^{found[1]}\.{found[2]}\."' in conf
