# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""What a part has measured: as a table to read, as JSON for programs, and as plots."""

import json
import os
import platform
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness import paths

from .sample import Sample
from .table import Mark, Missing, Table, table_of

RESULTS = paths.BUILD / "bench"

# Where what is measured, and what measures, lies below the repository.
CODE = ("Cargo.toml", "Cargo.lock", "src", "virtio_tmem_abi", "vhost-device-tmem", "qemu-tests")


class Report:
    """All that one part has measured."""

    def __init__(self, part: str, about: str, start: float) -> None:
        self.part = part
        self.about = about
        self.folder = RESULTS / part
        self._start = start
        self._tables: list[Table] = []
        self._marks: list[Mark] = []
        self._plots: dict[str, str] = {}
        self._machine = machine()
        self.folder.mkdir(parents=True, exist_ok=True)
        for old in self.folder.iterdir():
            if old.is_file():
                old.unlink()

    def say(self, text: str) -> None:
        """Says how far it is."""
        seconds = int(time.monotonic() - self._start)
        print(f"{seconds // 60}:{seconds % 60:02d} {self.part}: {text}", flush=True)

    def table(
        self, name: str, title: str, columns: Sequence[str], how: str, number: str = ",.1f"
    ) -> Table:
        """Begins a table."""
        table = Table(name, title, columns, how, number)
        self._tables.append(table)
        return table

    def mark(self, what: str, figure: Sample | None, how: str, **bounds: Any) -> None:
        """Says what should be reached, and what was: see `Mark` for the bounds."""
        given = figure or Missing("one of the two was not measured")
        self._marks.append(Mark(what, given, how, **bounds))

    def bars(
        self,
        name: str,
        title: str,
        groups: Sequence[str],
        series: Mapping[str, Sequence[float | Sample | None]],
        unit: str,
        log: bool = False,
    ) -> None:
        """Draws bars: one of each series for each group."""
        plot = _Plot(title, unit)
        width = 0.8 / max(1, len(series))
        for n, (label, values) in enumerate(series.items()):
            at = [g - 0.4 + (n + 0.5) * width for g in range(len(groups))]
            plot.bars(at, values, width, label)
        # Names of many groups would lie over each other.
        slanted = {"rotation": 20, "ha": "right"} if sum(map(len, groups)) > 80 else {}
        plot.axes.set_xticks(range(len(groups)), groups, **slanted)
        if log:
            plot.axes.set_yscale("log")
        self._keep(name, title, plot)

    def lines(
        self,
        name: str,
        title: str,
        across: str,
        series: Mapping[str, Mapping[float, float | Sample]],
        unit: str,
        log: bool = False,
    ) -> None:
        """Draws lines: a value of each series at each place."""
        plot = _Plot(title, unit)
        for label, points in series.items():
            plot.line(points, label)
        plot.axes.set_xlabel(across)
        if log:
            plot.axes.set_xscale("log", base=2)
        self._keep(name, title, plot)

    def _keep(self, name: str, title: str, plot: "_Plot") -> None:
        for kind in ("svg", "png"):
            plot.save(self.folder / f"{name}.{kind}")
        self._plots[name] = title

    def save(self) -> None:
        """Writes everything down, and prints the tables."""
        shown = [*self._tables, table_of(self._marks)] if self._marks else self._tables
        text = "\n\n".join(table.text() for table in shown)
        (self.folder / "tables.txt").write_text(text + "\n")
        document = {
            "version": 2,
            "part": self.part,
            "about": self.about,
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
            "seconds": round(time.monotonic() - self._start),
            "machine": self._machine,
            "asked": {k: v for k, v in sorted(os.environ.items()) if k.startswith("TMEM_BENCH_")},
            "marks": [mark.as_json() for mark in self._marks],
            "tables": {table.name: table.as_json() for table in self._tables},
            "plots": self._plots,
        }
        path = self.folder / "results.json"
        path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
        print(f"\n{text}\n")
        print(f"The same as JSON, and plots: {self.folder.relative_to(paths.REPO)}/", flush=True)


def machine() -> dict[str, object]:
    """What the numbers are measured on, and what is measured."""
    model = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "memory_gib": round(memory / 2**30, 1),
        "kernel": platform.release(),
        "guest_kernel": paths.kernel_release(),
        "qemu": _output("qemu-system-x86_64", "--version").split()[3],
        "commit": _commit(),
    }


def _commit() -> str:
    """What is measured, and whether it is all of that."""
    commit = _output("git", "-C", str(paths.REPO), "rev-parse", "--short=12", "HEAD").strip()
    changed = _output("git", "-C", str(paths.REPO), "status", "--porcelain", "--", *CODE)
    return f"{commit}, with changes" if changed else commit


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


class _Plot:
    """A drawing, in a style that all have in common."""

    def __init__(self, title: str, unit: str) -> None:
        # Only what draws needs it, and it takes a second to load.
        import matplotlib

        matplotlib.use("Agg")
        # The same drawing is the same file, so that only what changed is a change.
        matplotlib.rcParams["svg.hashsalt"] = "virtio-tmem"
        from matplotlib.figure import Figure

        self._figure = Figure(figsize=(9, 4.5), layout="constrained")
        self.axes = self._figure.add_subplot()
        self.axes.set_title(title)
        self.axes.set_ylabel(unit)
        self.axes.grid(axis="y", alpha=0.3)
        self.axes.set_axisbelow(True)

    def bars(
        self,
        at: Sequence[float],
        values: Sequence[float | Sample | None],
        width: float,
        label: str,
    ) -> None:
        """Adds bars, with what they spread over where that is known."""
        there = [(x, value) for x, value in zip(at, values, strict=True) if value is not None]
        middles = [_median(value) for _, value in there]
        self.axes.bar(
            [x for x, _ in there], middles, width, label=label, yerr=_spread(there), capsize=2
        )

    def line(self, points: Mapping[float, float | Sample], label: str) -> None:
        """Adds a line, with what its points spread over where that is known."""
        there = sorted(points.items())
        middles = [_median(value) for _, value in there]
        self.axes.errorbar(
            [x for x, _ in there],
            middles,
            yerr=_spread(there),
            label=label,
            marker="o",
            markersize=3,
            capsize=2,
        )

    def save(self, path: Path) -> None:
        """Writes the drawing."""
        if len(self.axes.get_legend_handles_labels()[1]) > 1:
            self.axes.legend(fontsize="small")
        self.axes.set_ylim(bottom=None if self.axes.get_yscale() == "log" else 0)
        metadata = {"Date": None} if path.suffix == ".svg" else {"Software": None}
        self._figure.savefig(path, dpi=100, metadata=metadata)


def _median(value: float | Sample) -> float:
    return value.median if isinstance(value, Sample) else value


def _spread(there: Sequence[tuple[float, float | Sample]]) -> list[list[float]]:
    def both(value: float | Sample) -> tuple[float, float]:
        if isinstance(value, Sample):
            return value.median - value.least, value.most - value.median
        return 0.0, 0.0

    below_above = [both(value) for _, value in there]
    return [[low for low, _ in below_above], [high for _, high in below_above]]
