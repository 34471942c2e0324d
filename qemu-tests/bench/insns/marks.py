# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""What the counts mean: beside the alternatives, and beside a kernel without the module."""

import re
import subprocess
from collections.abc import Callable, Mapping, Sequence

from harness import paths

from ..report import Report
from ..sample import Sample, ratios
from ..table import NATIVE, TCG
from .record import Counted

# How the subjects that are ours are told apart.
OURS = {"tmem": "", "window": " with a window"}

# What phases with clean pages are, and how many instructions they may take more than without, and
# than a copy.
CLEAN = {
    ("tmem", "file put"): ("put", 1000),
    ("window", "file put"): ("put", 400),
    ("window", "file get readahead"): ("get by readahead", 400),
}

# How many instructions what keeps a page may take, where the guest copies it by itself.
COPIED = {"swap put": 1200, "swap get": 900}

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
    """Says what is reached, and sets everything beside the alternatives."""
    table = report.table(
        "beside", "Instructions beside the alternatives", ["times, or more"], TCG, number=",.3f"
    )

    def values(phase: str, subject: str, insns: Insns) -> list[float]:
        return [insns(counted) / pages for counted in found[phase][subject]]

    for phase, most in (("swap put", 0.1), ("swap get", 0.333)):
        for peer in ("zram", "zswap", "disk"):
            for insns, what in ((back_end, "what keeps the page"), (kernel, "all of the kernel")):
                figure = ratios(*(values(phase, name, insns) for name in ("tmem", peer)))
                table.add(f"{phase} to {peer}'s, {what}", figure)
                if peer == "zram" and insns is back_end:
                    what = f"instructions of a {phase}, {what}: to zram's (lz4)"
                    report.mark(what, figure, TCG, most=most, number=",.3f")
    for phase, most in COPIED.items():
        for peer in ("tmem", "zram", "zswap", "disk"):
            for insns, what in ((back_end, "what keeps the page"), (kernel, "all of the kernel")):
                figure = ratios(*(values(phase, name, insns) for name in ("window", peer)))
                table.add(f"{phase}{OURS['window']} to {peer}'s, {what}", figure)
        what = f"instructions of a {phase}{OURS['window']}, what keeps the page"
        figure = Sample.of(values(phase, "window", back_end))
        report.mark(what, figure, TCG, most=most, number=",.0f")
    copy = [
        sum(n for label, n in counted.by_label.items() if label.endswith("user")) / pages
        for counted in found["copy movs"]["user"]
    ]
    for subject, how in OURS.items():
        for phase in ("file put", "file get readahead", "file get"):
            figure = _more(*(values(phase, name, kernel) for name in (subject, "disk")))
            table.add(f"{phase}{how}, more than without", figure)
            if (subject, phase) in CLEAN:
                done, most = CLEAN[subject, phase]
                what = f"instructions of a clean page's {done}{how}: more than without, and than a copy"
                bare = Sample.of(value - copy[0] for value in figure.values)
                report.mark(what, bare, TCG, most=most, number=",.0f")
    table.add("a bare copy: rep counts once", Sample.of(copy))
    for phase, subject, what in (
        ("file first read", "tmem", "a miss"),
        ("file dirty", "tmem", "a flush of what is not there"),
        ("swap put", "refused", "a swapped page, the host being full"),
    ):
        more = _more(*(values(phase, name, kernel) for name in (subject, "disk")))
        for title, figure in (
            ("in the module", Sample.of(values(phase, subject, module))),
            ("more than without", more),
        ):
            table.add(f"{what}: {title}", figure)
            report.mark(f"instructions of {what}: {title}", figure, TCG, most=200, number=",.0f")


def index(report: Report) -> None:
    """What the module needs to find a page, as the test of its index says."""
    command = "cargo test --quiet --release --locked -p virtio_tmem_logic --test memory cost"
    words = [*command.split(), "--", "--nocapture"]
    said = subprocess.run(words, cwd=paths.REPO, check=True, capture_output=True, text=True)
    found = re.search(r"([0-9.]+) bytes a page", said.stdout)
    assert found is not None, said.stdout
    what = "bytes for each page that the module needs to find it"
    report.mark(what, Sample.of([float(found[1])]), NATIVE, most=16)


def _more(ours: Sequence[float], theirs: Sequence[float]) -> Sample:
    return Sample.of(a - b for a, b in zip(ours, theirs, strict=True))
