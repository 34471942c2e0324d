# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""What systemd is told of devices to swap to, of which a file says that there are to be some."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness.paths import REPO

GENERATOR = REPO / "debian" / "systemd" / "tmswap-generator"


@dataclass
class Made:
    """What the generator left."""

    folder: Path
    log: str

    def unit(self, name: str) -> list[str]:
        """The lines of a unit."""
        return (self.folder / name).read_text().splitlines()

    @property
    def names(self) -> set[str]:
        """All units, and who wants them."""
        found = (path for path in self.folder.rglob("*") if not path.is_dir())
        return {str(path.relative_to(self.folder)) for path in found}


def generate(root: Path, config: str | None) -> Made:
    """Runs the generator on a machine with such a file."""
    folder, log = root / "units", root / "log"
    folder.mkdir()
    log.touch()
    if config is not None:
        (root / "etc" / "virtio-tmem").mkdir(parents=True)
        (root / "etc" / "virtio-tmem" / "tmswap.conf").write_text(config)
    environment = {"PATH": "/usr/bin:/bin", "TMSWAP_ROOT": str(root), "TMSWAP_LOG": str(log)}
    command = [GENERATOR, folder, folder, folder]
    subprocess.run(command, check=True, env=environment, timeout=60)
    return Made(folder, log.read_text())


def test_a_line_is_a_device_and_a_swap_area(tmp_path: Path) -> None:
    made = generate(tmp_path, "# a comment\n\n/dev/disk/by-id/x-1 tmswap3 100\n")
    assert made.names == {
        "tmswap@tmswap3.service",
        "dev-tmswap3.swap",
        "swap.target.wants/dev-tmswap3.swap",
    }
    service = made.unit("tmswap@tmswap3.service")
    assert r"BindsTo=dev-disk-by\x2did-x\x2d1.device" in service
    files = "/sys/devices/faux/virtio_tmem/tmswap"
    assert f"ExecStart=/bin/sh -c 'echo \"/dev/disk/by-id/x-1 tmswap3\" >{files}/add'" in service
    assert f"ExecStop=/bin/sh -c 'echo tmswap3 >{files}/remove'" in service
    swap = made.unit("dev-tmswap3.swap")
    assert "What=/dev/tmswap3" in swap
    assert "Priority=100" in swap
    assert "Requires=tmswap@tmswap3.service" in swap
    assert made.log == ""


def test_a_priority_need_not_be_given(tmp_path: Path) -> None:
    swap = generate(tmp_path, "/dev/vdb tmswap0").unit("dev-tmswap0.swap")
    assert not any(line.startswith("Priority") for line in swap)


def test_no_file_is_no_devices(tmp_path: Path) -> None:
    assert generate(tmp_path, None).names == set()


def test_what_is_installed_says_nothing(tmp_path: Path) -> None:
    config = (GENERATOR.parent / "tmswap.conf").read_text()
    assert generate(tmp_path, config).names == set()


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("vdb tmswap0", '"vdb" is no device'),
        ("/dev/vd'b tmswap0", "a character that names of devices have not"),
        ("/dev/vdb swap0", '"swap0" is no name'),
        ("/dev/vdb tmswap16", '"tmswap16" is no name'),
        ("/dev/vdb", '"" is no name'),
        ("/dev/vdb tmswap0 high", '"high" is no priority'),
        ("/dev/vdb tmswap0 1 2", 'more than DEVICE NAME PRIORITY: "2"'),
        ("/dev/vdc tmswap9", "there is tmswap9 already"),
    ],
)
def test_what_makes_no_sense_is_said_and_left_out(tmp_path: Path, line: str, why: str) -> None:
    made = generate(tmp_path, f"/dev/vda tmswap9\n{line}\n/dev/vdz tmswap8\n")
    assert made.names == {
        "tmswap@tmswap9.service",
        "dev-tmswap9.swap",
        "swap.target.wants/dev-tmswap9.swap",
        "tmswap@tmswap8.service",
        "dev-tmswap8.swap",
        "swap.target.wants/dev-tmswap8.swap",
    }
    assert made.log.count("\n") == 1
    assert why in made.log
    assert "line 2" in made.log
