# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Disks of guests."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

MIB = 1 << 20

# Filesystems by the names that tests call them: how to make one.
MKFS: dict[str, list[str]] = {
    "ext4": ["mkfs.ext4", "-q", "-b", "4096", "-E", "lazy_itable_init=0,lazy_journal_init=0"],
    "ext4-1k": ["mkfs.ext4", "-q", "-b", "1024", "-E", "lazy_itable_init=0,lazy_journal_init=0"],
    "xfs": ["mkfs.xfs", "-q", "-m", "reflink=1", "-i", "exchange=1"],
    "btrfs": ["mkfs.btrfs", "-q"],
}


@dataclass(frozen=True)
class Disk:
    """A raw, sparse file that the guest sees as a virtio-blk disk.

    The guest knows it by `name`, which is its serial number.
    """

    name: str
    path: Path
    # Whether the guest cannot write to it.
    read_only: bool = False

    @classmethod
    def create(
        cls,
        folder: Path,
        name: str,
        mib: int,
        filesystem: str | None = None,
        content: Path | None = None,
        uuid: str | None = None,
    ) -> "Disk":
        """Makes one, with a filesystem on it if one is named.

        Ext4 can be made with a folder's content in it, and with a UUID.
        """
        path = folder / f"{name}.img"
        with path.open("wb") as file:
            file.truncate(mib * MIB)
        if filesystem is not None:
            options = [
                *(["-d", str(content)] if content else []),
                *(["-U", uuid] if uuid else []),
            ]
            subprocess.run(
                [*MKFS[filesystem], *options, str(path)],
                check=True,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=300 if content else 60,
            )
        return cls(name, path)

    def check(self) -> None:
        """Fails unless the ext4 filesystem on it is sound; nobody may have it mounted."""
        checked = subprocess.run(
            ["fsck.ext4", "-fn", str(self.path)],
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert checked.returncode == 0, checked.stdout + checked.stderr

    def qemu_options(self) -> list[str]:
        """What QEMU has to be told."""
        read_only = ",readonly=on" if self.read_only else ""
        return [
            "-drive",
            f"file={self.path},if=none,id={self.name},format=raw,cache=unsafe{read_only}",
            "-device",
            f"virtio-blk-pci,drive={self.name},serial={self.name}",
        ]
