# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""What the demonstration makes of its numbers."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from demo.load import PHASES
from demo.result import Result, less, table, write

WITHOUT = Result(
    seconds=dict.fromkeys(PHASES, 2.0),
    files_read_first=1000,
    files_read_second=800,
    files_written=1000,
    swap_read=4000,
    swap_written=5000,
    swapins_disk=500,
    swapins_host=0,
    pages_held=0,
    swap_hit_percent=None,
    files_hit_percent=None,
    notifications=0,
    interrupts=0,
    pages_moved=0,
    pages_by_window=0,
    balloon_sectors=20000,
    balloon_oom_kills=1,
)
WITH = replace(
    WITHOUT,
    files_read_second=80,
    swap_written=50,
    swap_hit_percent=99.9,
    balloon_sectors=1000,
    balloon_oom_kills=0,
)


@pytest.mark.parametrize(("without", "with_module", "percent"), [(100, 25, 75), (10, 20, -100), (0, 0, 0)])
def test_less_is_a_share_of_what_it_was(without: int, with_module: int, percent: float) -> None:
    assert less(without, with_module) == percent


def test_the_table_has_both_sides_and_what_they_come_to() -> None:
    lines = table(WITHOUT, WITH).splitlines()
    row = next(line for line in lines if "sectors read, second time" in line)
    assert row.split()[-2:] == ["800", "80"]
    row = next(line for line in lines if "swap-ins that the host answered" in line)
    assert row.split()[-2:] == ["–", "99.9"]
    row = next(line for line in lines if line.startswith("balloon: sectors"))
    assert row.split()[-2:] == ["20,000", "1,000"]
    row = next(line for line in lines if line.startswith("balloon: processes killed"))
    assert row.split()[-2:] == ["1", "0"]
    assert any("128 of 512 MiB under load: -95.0 % sectors" in line for line in lines)
    assert any("-90.0 % sectors read" in line for line in lines)
    assert any("-99.0 % sectors written" in line for line in lines)
    assert "TCG" in lines[-1]


def test_more_sectors_are_not_called_less() -> None:
    assert "+50.0 % sectors read" in table(WITHOUT, replace(WITH, files_read_second=1200))


def test_the_json_has_the_ratios(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "demo.json"
    write(path, WITHOUT, WITH, "7.3.4")
    document = json.loads(path.read_text())
    assert document["accelerator"] == "tcg"
    assert document["second_read_sectors_less_percent"] == 90.0
    assert document["balloon_sectors_less_percent"] == 95.0
    assert document["with_module"]["swap_written"] == 50
