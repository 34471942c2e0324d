# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Guests that QEMU boots by itself, with nothing but an initramfs.

For what virtme-ng's root, which is a virtiofs, does not survive or does not allow: sleep, resets,
and memory of other kinds. The module is not loaded by itself there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from . import initramfs, paths
from .daemon import DRIVER
from .guest import Machine

# The machine of QEMU's that has no PCI, and what devices are called that it has instead.
MICROVM = "microvm"
WITHOUT_PCI = {
    DRIVER: "vhost-user-test-device",
    "virtio-blk-pci": "virtio-blk-device",
}

# Emulated, it has no clock that the kernel could tell the speed of the processor's by.
MICROVM_OPTIONS = "tsc_early_khz=2000000"

# What is told comes on the line that the output goes to.
PRELUDE = """
hear &

# modprobe [-r] NAME [PARAMETER=VALUE...]: there is no other; what modules need is loaded already.
modprobe() {
	if [ "$1" = -r ]; then
		rmmod "$2"
	else
		insmod /modules/*-"$1".ko "${@:2}"
	fi
}

for module in /modules/*; do
	case $module in
	*-virtio_tmem.ko) ;;
	*) insmod "$module" ;;
	esac
done
"""


@dataclass
class SmallMachine(Machine):
    """A machine without virtme-ng."""

    # Whether processes of the host can map the guest's memory.
    shared: bool = True
    # What comes after the size of the memory.
    memory: str = ""
    # Modules that are loaded besides those that every guest needs.
    modules: Sequence[str] = ()
    # What QEMU calls such a machine.
    board: str = "pc"

    listens: ClassVar[bool] = True

    def wrap(self, folder: Path, script: str) -> str:
        return f"{PRELUDE}\n{script}"

    def boots(self, script: Path) -> tuple[Path, Path]:
        """The kernel's image, and the initramfs."""
        modules = [*initramfs.MODULES, *self.modules]
        if self.board == MICROVM:
            modules.append("virtio_mmio")
        archive = initramfs.make(script.parent, script.read_text(), modules=modules)
        return paths.kernel(self.kernel), archive

    def options_of_kernel(self) -> str:
        options = super().options_of_kernel()
        return f"{options} {MICROVM_OPTIONS}" if self.board == MICROVM else options

    def parts(self) -> list[str]:
        parts = super().parts()
        if self.board != MICROVM:
            return [*parts, "-serial", "chardev:said"]
        # It has one serial line of its own.
        return [
            *("-global", "virtio-mmio.force-legacy=false"),
            *("-device", "isa-serial,chardev=said,index=1"),
            *(_without_pci(part) for part in parts),
        ]

    def command(self, script: Path) -> list[str]:
        """How QEMU is called."""
        kernel, archive = self.boots(script)
        kind = "memory-backend-memfd" if self.shared else "memory-backend-ram"
        share = "on" if self.shared else "off"
        return [
            "qemu-system-x86_64",
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-no-reboot",
            "-machine",
            f"{self.board},memory-backend=mem",
            "-accel",
            "tcg,thread=multi",
            "-cpu",
            "Nehalem",
            "-smp",
            str(self.cpus),
            "-m",
            f"{self.mib()}M{self.memory}",
            "-object",
            f"{kind},id=mem,size={self.mib()}M,share={share}",
            "-kernel",
            str(kernel),
            "-initrd",
            str(archive),
            "-append",
            f"console=ttyS0 {self.options_of_kernel()}",
            "-chardev",
            "file,id=console,path=/dev/stderr,append=on",
            "-serial",
            "chardev:console",
            "-chardev",
            "stdio,id=said,signal=off",
            *self.parts(),
        ]


def _without_pci(part: str) -> str:
    driver, comma, properties = part.partition(",")
    return WITHOUT_PCI.get(driver, driver) + comma + properties
