# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Fixtures of all tests."""

import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from harness import paths  # noqa: E402
from harness.lab import Lab, Labs  # noqa: E402


def _lab(name: str) -> Iterator[Lab]:
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-")
    folder = paths.BUILD / "qemu" / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    lab = Lab(name, folder)
    try:
        yield lab
    finally:
        lab.close()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """A place for one test's guest, daemon and disks."""
    yield from _lab(request.node.name.removeprefix("test_"))


@pytest.fixture(scope="module")
def module_lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """The same for a guest that all tests of a file look at."""
    yield from _lab(Path(request.node.name).stem.removeprefix("test_"))


@pytest.fixture(scope="session")
def labs() -> Labs:
    """Makes places for fixtures that need several."""
    return contextmanager(_lab)
