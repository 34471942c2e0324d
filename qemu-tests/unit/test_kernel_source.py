# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""What scripts read out of a kernel's configuration."""

import subprocess
from pathlib import Path

from harness.paths import REPO

SCRIPT = REPO / "scripts" / "kernel-source.sh"
CONFIG = """
# CONFIG_KASAN is not set
CONFIG_RUST=y
CONFIG_CC_VERSION_TEXT="x86_64-linux-gnu-gcc-14 (Debian 14.2.0-19) 14.2.0"
CONFIG_RUSTC_VERSION_TEXT="rustc 1.85.1 (4eb161250 2025-03-15) (built from a source tarball)"
"""


def call(function: str, *words: str | Path) -> str:
    """What a function of the script prints."""
    command = ["bash", "-euo", "pipefail", "-c", '. "$1"; shift; "$@"', "call", SCRIPT, function]
    done = subprocess.run([*command, *words], check=True, text=True, stdout=subprocess.PIPE)
    return done.stdout


def test_compilers(tmp_path: Path) -> None:
    config = tmp_path / ".config"
    config.write_text(CONFIG)
    assert call("c_compiler", config) == "x86_64-linux-gnu-gcc-14\n"
    assert call("config_text", config, "RUSTC_VERSION_TEXT").startswith("rustc 1.85.1 (4eb161250 ")
    assert call("config_text", config, "BINDGEN_VERSION_TEXT") == ""


def test_series() -> None:
    assert call("series", "7.3.4+deb13-cloud-amd64") == "7.3\n"
    assert call("series", "7.10-amd64") == "7.10\n"


def test_archive_of_the_series(tmp_path: Path) -> None:
    for name in ("linux-source-7.30.tar.xz", "linux-source-6.12.tar.xz"):
        (tmp_path / name).touch()
    assert call("source_archive", tmp_path, "7.3") == ""
    (tmp_path / "linux-source-7.3.tar.xz").touch()
    assert call("source_archive", tmp_path, "7.3") == f"{tmp_path}/linux-source-7.3.tar.xz\n"


def test_changes_of_the_configuration(tmp_path: Path) -> None:
    wanted, found = tmp_path / "wanted", tmp_path / "found"
    wanted.write_text(CONFIG)
    found.write_text(CONFIG + "CONFIG_NEW=y\n")
    assert call("lost_configuration", wanted, found) == ""
    found.write_text(
        CONFIG.replace("CONFIG_RUST=y\n", "").replace("# CONFIG_KASAN is not set", "CONFIG_KASAN=y")
    )
    assert call("lost_configuration", wanted, found) == "CONFIG_RUST=y\nCONFIG_KASAN=y\n"
