# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""How guests share memory: the daemon's policy beside equal parts, one list of pages, and what could
be had.

`tmem-sim` runs the policy that the daemon has, with guests that are made up:
`vhost-device-tmem/sim`.
"""

import json
import subprocess
from pathlib import Path
from typing import Any

from harness import paths

from .report import Report

COMMAND = ["cargo", "run", "--release", "--locked", "--quiet", "-p", "tmem-sim", "--"]
HOW = "simulated, by made-up traces; 64 MiB for each guest; half an hour, of which the last half counts"

SECONDS = 1800
EVERY = 10
GUESTS = (10, 100, 1000)
SHOWN = 8

WAYS = {"policy": "policy", "equal": "equal parts", "lru": "one LRU list"}
SCENARIOS = {
    "steady": "all do the same all the time",
    "mixed": "half of them change: phases, days, bursts",
}
ATTACKS = {
    "flood": "floods",
    "liar": "reports absurd figures",
    "boaster": "reports what could be true",
    "looper": "goes round a set that fits nowhere",
}

Figures = dict[str, Any]


def run(report: Report, folder: Path) -> None:
    """Simulates, and fills the report."""
    found = {}
    for scenario in (*SCENARIOS, "alike", "weights"):
        for guests in GUESTS:
            found[scenario, guests] = _simulate(report, scenario, guests)
    _hits(report, found)
    _course(report, found)
    _fairness(report, found)
    _attacks(report, {attack: _simulate(report, attack, 10) for attack in ATTACKS})


def _simulate(report: Report, scenario: str, guests: int) -> Figures:
    report.say(f"{scenario}, {guests} guests")
    asked = [scenario, "--guests", str(guests), "--seconds", str(SECONDS), "--every", str(EVERY)]
    printed = subprocess.run(
        [*COMMAND, *asked], cwd=paths.REPO, check=True, stdout=subprocess.PIPE, text=True
    )
    figures: Figures = json.loads(printed.stdout)
    return figures


def _later(values: list[float]) -> float:
    """The average over the half that counts."""
    later = values[len(values) // 2 :]
    return sum(later) / len(later)


def _hits(report: Report, found: dict[tuple[str, int], Figures]) -> None:
    table = report.table(
        "hits",
        "Hits, as percent of those that could be had",
        [*WAYS.values(), "reads that hit with the policy, %", "settled after, s"],
        f"{HOW}; settled is what stays within 5 % of the hits at the end",
    )
    groups = []
    bars: dict[str, list[float]] = {label: [] for label in WAYS.values()}
    for scenario, about in SCENARIOS.items():
        for guests in GUESTS:
            figures = found[scenario, guests]
            best = _later(figures["optimum"])
            ways = figures["ways"]
            parts = [100 * _later(ways[way]["hits"]) / best for way in WAYS]
            policy = ways["policy"]
            rate = 100 * _later(policy["hits"]) / _later(policy["reads"])
            settled = policy["converged"]
            # Needs that change have no end to be near to.
            settled = None if scenario != "steady" else settled
            table.add(f"{about}, {guests:,} guests", *parts, rate, settled)
            groups.append(f"{scenario}, {guests:,}")
            for label, part in zip(bars, parts, strict=True):
                bars[label].append(part)
    report.bars("hits", "Hits, of those that could be had", groups, bars, "%")


def _course(report: Report, found: dict[tuple[str, int], Figures]) -> None:
    few = found["steady", GUESTS[0]]
    shares = few["ways"]["policy"]["shares"]
    report.lines(
        "shares",
        f"Shares of {SHOWN} of {GUESTS[0]} steady guests",
        "seconds",
        {
            f"guest {n}": {(at + 1) * EVERY: of[n] / 2**20 for at, of in enumerate(shares)}
            for n in range(SHOWN)
        },
        "MiB",
    )
    moved = {}
    table = report.table(
        "moved",
        "Memory that moves, percent of all of it a minute",
        ["first minute", "last half", "turns"],
        f"{HOW}; turns are those of a share by more than a thirty-second of a guest's part, in the "
        "last half, by guest",
        ",.2f",
    )
    for scenario, about in {**SCENARIOS, "alike": "all need the same"}.items():
        for guests in GUESTS:
            figures = found[scenario, guests]
            policy = figures["ways"]["policy"]
            percent = [6000 * bytes_ / figures["capacity"] for bytes_ in policy["moved"]]
            first = percent[: 60 // EVERY]
            table.add(
                f"{about}, {guests:,} guests",
                sum(first) / len(first),
                _later(percent),
                policy["turns"],
            )
            if scenario == "steady":
                points = {(at + 1) * EVERY: value for at, value in enumerate(percent)}
                moved[f"{guests:,} guests"] = points
    report.lines(
        "moved", "Memory that moves between steady guests", "seconds", moved, "% of all a minute"
    )


def _fairness(report: Report, found: dict[tuple[str, int], Figures]) -> None:
    table = report.table(
        "fairness",
        "Jain's index of shares by weight: 1 is even",
        list(WAYS.values()),
        f"{HOW}; all guests need the same",
        ",.3f",
    )
    lines: dict[str, dict[float, float]] = {}
    for scenario, about in {"alike": "one weight", "weights": "weights 1, 2, 4"}.items():
        for guests in GUESTS:
            ways = found[scenario, guests]["ways"]
            even = [_later(ways[way]["jain"]) for way in WAYS]
            table.add(f"{about}, {guests:,} guests", *even)
            for label, value in zip(WAYS.values(), even, strict=True):
                lines.setdefault(f"{label}, {about}", {})[guests] = value
    report.lines("fairness", "Evenness of shares by weight", "guests", lines, "Jain's index", True)


def _attacks(report: Report, found: dict[str, Figures]) -> None:
    table = report.table(
        "attacks",
        "A guest's share at the end, of its part by weight, and the others' hits by the policy",
        [*WAYS.values(), "others' hits, % of those with equal parts"],
        f"{HOW}; 10 guests",
        ",.2f",
    )
    bars: dict[str, list[float]] = {label: [] for label in WAYS.values()}
    for attack, about in ATTACKS.items():
        figures = found[attack]
        part = figures["capacity"] * figures["weights"][0] / sum(figures["weights"])
        ways = figures["ways"]
        shares = [ways[way]["last"][0] / part for way in WAYS]
        hits = [_later(ways[way]["others"]) for way in ("policy", "equal")]
        table.add(about, *shares, 100 * hits[0] / hits[1])
        for label, share in zip(bars, shares, strict=True):
            bars[label].append(share)
    report.bars(
        "attacks", "What one guest of ten gets", list(ATTACKS.values()), bars, "of its part by weight"
    )
