# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Where the things are that tests need, and which make target builds them."""

import os
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
BUILD = REPO / "build"
LOGS = BUILD / "logs"
GUEST = REPO / "qemu-tests" / "guest"
MODULES = Path("/usr/lib/modules")

# Whether guests run the kernel with its checks on: see scripts/kernel-tree.
DEBUG = bool(os.environ.get("TMEM_DEBUG"))

# Where guests see the checkout, wherever it is: see scripts/in-toolbox.
REPO_IN_GUEST = Path("/mnt/virtio-tmem")


class Missing(Exception):
    """Something has not been built."""


def _built(path: Path, target: str) -> Path:
    if not path.exists():
        shown = path.relative_to(REPO) if path.is_relative_to(REPO) else path
        raise Missing(f"{shown} is missing: `make {target}` builds it")
    return path


def binary(name: str) -> Path:
    """A program of the workspace, as cargo built it."""
    folder = Path(os.environ.get("CARGO_TARGET_DIR", BUILD / "cargo"))
    return _built(folder / "release" / name, "daemon")


def plugin(name: str) -> Path:
    """A plugin of QEMU, as cargo built it."""
    folder = Path(os.environ.get("CARGO_TARGET_DIR", BUILD / "cargo"))
    return _built(folder / "release" / f"lib{name}.so", "programs")


def in_guest(path: Path) -> Path:
    """Where a guest sees a file of the checkout, and sees it change."""
    return REPO_IN_GUEST / path.relative_to(REPO) if path.is_relative_to(REPO) else path


def kernel_release() -> str:
    """The kernel that guests run: TMEM_KERNEL, or the only one in the toolbox."""
    if release := os.environ.get("TMEM_KERNEL"):
        return release
    releases = sorted(path.parent.name for path in MODULES.glob("*/vmlinuz"))
    if not releases:
        raise Missing("there is no kernel in the toolbox: `make toolbox` installs it")
    return releases[-1]


def kernel(release: str | None = None) -> Path:
    """A kernel's image."""
    target = "debug-kernel" if DEBUG else "toolbox"
    return _built(MODULES / (release or kernel_release()) / "vmlinuz", target)


def module() -> Path:
    """The module, as udev in the guest finds it."""
    updates = MODULES / kernel_release() / "updates"
    target = "debug-module" if DEBUG else "module-install"
    found = sorted(updates.rglob("virtio_tmem.ko*"))
    return found[0] if found else _built(updates / "virtio_tmem.ko", target)
