# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Which ephemeral pages the driver replaces in its window, beside what else it could do.

A program of the driver's own logic reads pages by made-up traces, through a page cache and a window
behind it, and counts what has to come from the disk: `src/client/logic/examples/replacement`.
"""

import subprocess
from collections import defaultdict
from pathlib import Path

from harness import paths

from .report import Report

HOW = "simulated, by made-up traces; a page cache of 1,024 pages, with an active and an inactive list"


def run(report: Report, folder: Path) -> None:
    """Measures, and fills the report."""
    command = ["cargo", "run", "--release", "--locked", "--quiet"]
    command += ["-p", "virtio_tmem_logic", "--example", "replacement"]
    printed = subprocess.run(command, cwd=paths.REPO, check=True, stdout=subprocess.PIPE, text=True)
    misses: dict[str, dict[str, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    costs: dict[str, dict[str, tuple[int, int]]] = defaultdict(dict)
    for line in printed.stdout.splitlines():
        match line.split("\t"):
            case ["misses", slots, policy, trace, figure]:
                misses[slots][policy][trace] = float(figure)
            case ["cost", slots, policy, size, nanoseconds]:
                costs[policy][slots] = (int(size), int(nanoseconds))
            case _:
                raise AssertionError(f"what is {line!r}?")

    for slots, policies in misses.items():
        traces = list(next(iter(policies.values())))
        table = report.table(
            f"misses-{slots}",
            f"Disk reads for each thousand of accesses, {int(slots):,} slots",
            traces,
            HOW,
        )
        for policy, figures in policies.items():
            table.add(policy, *(figures[trace] for trace in traces))

    sizes = list(next(iter(costs.values())))
    table = report.table(
        "costs",
        "What a policy costs",
        ["bytes a slot", *(f"ns a page, {int(slots):,} slots" for slots in sizes)],
        "native; a page put and gone again, least of seven rounds; what the other policies know of "
        "pages that are not there is in a hash table here, which costs more than it would have to",
        ",.0f",
    )
    for policy, figures in costs.items():
        size = next(iter(figures.values()))[0]
        table.add(policy, size, *(figures[slots][1] for slots in sizes))
