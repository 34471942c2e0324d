# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""What the measurement of a whole guest plans, and makes of what it is told."""

import json
from collections import Counter
from pathlib import Path

from bench.guest import results, works
from harness.guest import Guest, Machine
from harness.steps import Transcript


def test_every_round_has_every_configuration_once() -> None:
    visits = works.plan()
    for number in range(works.ROUNDS):
        names = [name for round_, name, _ in visits if round_ == number]
        assert sorted(names) == sorted(works.CONFIGURATIONS)


def test_no_configuration_is_always_first() -> None:
    first = [
        next(name for round_, name, _ in works.plan() if round_ == number)
        for number in range(works.ROUNDS)
    ]
    assert len(set(first)) == works.ROUNDS


def test_no_two_runs_have_the_same_name() -> None:
    names = Counter(run.name for _, _, runs in works.plan() for run in runs)
    assert names and set(names.values()) == {1}


def test_without_swap_only_what_needs_none_is_done() -> None:
    done = {run.work for _, name, runs in works.plan() for run in runs if name == "nothing"}
    needs_none = {name for name, work in works.WORKS.items() if work.without_swap}
    assert done == needs_none - set(works.LOSERS)


def test_what_cannot_gain_is_set_beside_the_module_and_none() -> None:
    for work in works.LOSERS:
        done = {name for _, name, runs in works.plan() for run in runs if run.work == work}
        assert done == {"swap", "tmem", "window", "tmem-all"}


def _snapshot(name: str, swap: int, stored: int) -> str:
    return json.dumps(
        {
            "snapshot": name,
            "driver": {"frontswap/stored": stored, "cleancache/hits": 2 * stored},
            "disks": {
                "swap": {"read": swap, "written": 0},
                "files": {"read": 5, "written": swap},
            },
            "vmstat": {},
        }
    )


def _guest(folder: Path, run: works.Run, status: int, said: str = "") -> Guest:
    guest = Guest("unit", folder, Machine(), "")
    guest.transcript = Transcript()
    for line in (
        _snapshot(f"begin {run.name}", 10, 1),
        json.dumps({"begin": run.name}),
        said,
        json.dumps({"end": run.name, "status": status, "seconds": 7.0}),
        _snapshot(f"end {run.name}", 18, 4),
    ):
        guest.transcript.add(line)
    return guest


RUN = works.Run(0, "tmem", "reread", 0)
CPU = {f"begin {RUN.name}": 1.0, f"end {RUN.name}": 3.5}


def test_a_cost_is_what_was_added(tmp_path: Path) -> None:
    cost = results.cost(_guest(tmp_path, RUN, 0), CPU, RUN)
    assert cost is not None
    assert (cost.seconds, cost.cpu) == (7.0, 2.5)
    assert (cost.swap, cost.files, cost.sectors) == (8, 8, 16)
    assert (cost.puts, cost.gets) == (3, 6)


def test_what_the_work_itself_timed_counts(tmp_path: Path) -> None:
    cost = results.cost(_guest(tmp_path, RUN, 0, '{"seconds":5.5}'), CPU, RUN)
    assert cost is not None and cost.seconds == 5.5


def test_what_failed_cost_nothing(tmp_path: Path) -> None:
    assert results.cost(_guest(tmp_path, RUN, 1), CPU, RUN) is None
