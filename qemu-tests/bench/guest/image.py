# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The disk with everything that the work in the guest reads.

Compiler, headers and data are on a disk of the guest's own, so that its counters see them read.
"""

import re
import shutil
import subprocess
from pathlib import Path

from harness import paths
from harness.disks import MIB, Disk

from .works import SETS

COMPILER = "x86_64-linux-gnu-gcc-14"

# Units of the kernel's XFS. Of all units in the kernel these need the most memory for the least
# work: some 80 MiB of their own for 0.4 s, natively.
UNITS = (
    "xfs_error xfs_mru_cache xfs_sysctl xfs_stats xfs_message xfs_pnfs"
    " xfs_quotaops xfs_itable xfs_xattr xfs_export xfs_sysfs xfs_globals"
).split()

# How often the compiler collects its garbage depends on the memory of the machine. These are the
# values of a large one, so that the work is the same however much memory there is.
SAME_EVERYWHERE = "--param ggc-min-expand=100 --param ggc-min-heapsize=131072"

# Where the units are built, as the guest sees it below the disk's root folder.
BUILD = "/build"


def make(folder: Path, units: int) -> Disk:
    """Makes the disk."""
    tree = folder / "tree"
    root = tree / "root"
    root.mkdir(parents=True)
    _compiler(root)
    _sources(root, folder / "kbuild", UNITS[:units])
    for name, files in SETS.items():
        subprocess.run(
            [paths.binary("tmem-workload"), "file-set", "create", *files.options(tree)],
            check=True,
            stdout=subprocess.DEVNULL,
        )
    used = sum(path.lstat().st_size for path in tree.rglob("*"))
    disk = Disk.create(folder, "files", round(used / MIB * 1.1) + 128, "ext4", tree)
    shutil.rmtree(tree)
    return disk


def _copy(path: Path, root: Path) -> None:
    to = root / path.relative_to("/")
    if not to.exists():
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, to)


def _output(*command: str | Path) -> str:
    return subprocess.run(
        [str(word) for word in command], check=True, capture_output=True, text=True
    ).stdout


def _program(path: Path, root: Path) -> None:
    """Copies a program, and the libraries that it needs."""
    _copy(path, root)
    for library in re.findall(r"(/\S+) \(0x", _output("ldd", path)):
        _copy(Path(library), root)


def _compiler(root: Path) -> None:
    """Copies what compiles."""
    for name in ("sh", "make", COMPILER):
        found = shutil.which(name)
        assert found is not None, f"there is no {name} in the toolbox"
        _program(Path(found), root)
    for name in ("cc1", "as"):
        path = _output(COMPILER, f"-print-prog-name={name}").strip()
        found = shutil.which(path)
        assert found is not None, f"{COMPILER} has no {name}"
        _program(Path(found), root)
    (root / "tmp").mkdir()


def _sources(root: Path, out: Path, units: list[str]) -> None:
    """Builds the units once, and copies what that took, and how it was done."""
    out.mkdir()
    source = Path(_output(paths.REPO / "scripts" / "kernel-tree", "--path").strip())
    subprocess.run(
        [
            paths.REPO / "scripts" / "kbuild",
            f"M={source / 'fs' / 'xfs'}",
            f"MO={out}",
            "CONFIG_XFS_FS=m",
            "-j2",
            *(f"{unit}.o" for unit in units),
        ],
        check=True,
        stdin=subprocess.DEVNULL,
        capture_output=True,
    )
    rules = [f".PHONY: all\nall: {' '.join(f'{unit}.o' for unit in units)}", "pound := \\#"]
    for unit in units:
        how = (out / f".{unit}.o.cmd").read_text()
        command = re.search(rf"^savedcmd_{unit}\.o := (.*?)(?: ; .*)?$", how, re.MULTILINE)
        assert command is not None, f"{unit} was built in a way that is not understood"
        rules.append(f"{unit}.o:\n\t@{command[1].strip()} {SAME_EVERYWHERE}")
        for needed in re.findall(r"^(?:source_\S+ := | {2})(/\S+)", how, re.MULTILINE):
            _copy(Path(needed), root)
    # Not among what the build notes: it depends on single options instead.
    _copy(source / "include" / "generated" / "autoconf.h", root)
    folder = root / BUILD.lstrip("/")
    folder.mkdir()
    (folder / "Makefile").write_text("\n".join(rules) + "\n")
    shutil.rmtree(out)
