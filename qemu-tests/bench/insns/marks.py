# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""What the counts mean: beside the alternatives, and beside a kernel without the module."""

from collections.abc import Callable, Mapping, Sequence

from ..report import TCG, Report
from ..sample import Sample, ratios
from .record import Counted

# What was counted, by phase and by subject, once for each round.
Found = Mapping[str, Mapping[str, Sequence[Counted]]]
Insns = Callable[[Counted], int]


def kernel(counted: Counted) -> int:
    """All that the kernel did."""
    return counted.kernel


def back_end(counted: Counted) -> int:
    """What keeps the page, and interrupts."""
    return counted.back_end


def module(counted: Counted) -> int:
    """The module, and what it calls."""
    return counted.module


def marks(report: Report, found: Found, pages: int) -> None:
    """Makes the table."""
    table = report.table(
        "marks", "Instructions beside the alternatives", ["figure", "mark"], TCG, number=",.3f"
    )

    def values(phase: str, subject: str, insns: Insns) -> list[float]:
        return [insns(counted) / pages for counted in found[phase][subject]]

    for phase, mark in (("swap put", "≤ 0.100"), ("swap get", "≤ 0.333")):
        for peer in ("zram", "zswap", "disk"):
            for insns, what in ((back_end, "what keeps the page"), (kernel, "all of the kernel")):
                ours, theirs = (values(phase, name, insns) for name in ("tmem", peer))
                shown = mark if peer == "zram" else None
                table.add(f"{phase} to {peer}'s, {what}", ratios(ours, theirs), shown)
    for phase in ("file put", "file get readahead", "file get"):
        ours, theirs = (values(phase, name, kernel) for name in ("tmem", "disk"))
        shown = "≤ copy + 1,000" if phase == "file put" else None
        table.add(f"{phase}, more than without", _more(ours, theirs), shown)
    copy = [
        sum(n for label, n in counted.by_label.items() if label.endswith("user")) / pages
        for counted in found["copy movs"]["user"]
    ]
    table.add("a bare copy: rep counts once", Sample.of(copy), None)
    for phase, subject, what in (
        ("file first read", "tmem", "a miss"),
        ("file dirty", "tmem", "a flush of what is not there"),
        ("swap put", "refused", "a swapped page, the host being full"),
    ):
        table.add(f"{what}: in the module", Sample.of(values(phase, subject, module)), "≤ 200")
        ours, theirs = (values(phase, name, kernel) for name in (subject, "disk"))
        table.add(f"{what}: more than without", _more(ours, theirs), "≤ 200")


def _more(ours: Sequence[float], theirs: Sequence[float]) -> Sample:
    return Sample.of(a - b for a, b in zip(ours, theirs, strict=True))
