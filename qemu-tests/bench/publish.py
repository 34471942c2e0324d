# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The results that are committed, and the pages that show them.

Whatever stands on a page between a line `<!-- results: WHAT -->` and the next `<!-- end -->` is
made of the results. WHAT is one of:

    marks              all that should be reached, and what was
    headlines          of these, what matters most
    table PART NAME    a table
    plot PART NAME     a plot
    machine            when, and on what, each part was measured
"""

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness import paths

from .report import RESULTS as MEASURED
from .table import Mark, Table, table_of

RESULTS = paths.REPO / "results"
PAGES = ("README.md", "PERFORMANCE.md")

# The marks that the front page has.
HEADLINES = (
    "building 6 units of a kernel module, -j 4: sectors, to disk swap",
    "building 6 units of a kernel module, -j 4: seconds, to zram, before disk swap",
    "building 6 units of a kernel module, -j 4: seconds, to 512 MiB more RAM",
    "instructions of a swap put, what keeps the page: to zram's (lz4)",
    "instructions of a swap get with a window, what keeps the page",
    "instructions of a clean page's put with a window: more than without, and than a copy",
    "exits a page, swap put",
    "exits a page, swap get",
    "the daemon's gets of 1 page, to those of a disk in memory",
    "bytes for each page that the module needs to find it",
)

_BLOCK = re.compile(r"(<!-- results: (.*?) -->\n).*?(<!-- end -->)", re.DOTALL)

HEAD = """# Results

What `make bench` measured last, as `scripts/bench --publish` has written it down: this page, and
for each part the tables as text, all figures as JSON, and the plots.
[PERFORMANCE.md](../PERFORMANCE.md) says what they mean. A figure is the median of the rounds, with
the least and the most of them in brackets.
"""

NOTHING = "*not published yet*"


class NotPublished(Exception):
    """There are no results that can be shown."""


class Results:
    """The results of all parts."""

    def __init__(self, folder: Path, parts: Sequence[str]) -> None:
        self._every = parts
        self.parts: dict[str, dict[str, Any]] = {}
        for part in parts:
            path = folder / part / "results.json"
            if path.exists():
                self.parts[part] = json.loads(path.read_text())

    def block(self, what: str, above: str) -> str:
        """What is to stand in a block of a page that has `above` between it and the results."""
        match what.split():
            case ["marks" | "headlines" | "machine"] if not self.parts:
                return NOTHING
            case ["marks"]:
                return table_of(self.marks()).markdown()
            case ["headlines"]:
                chosen = (mark for mark in self.marks() if mark.what in HEADLINES)
                return table_of(sorted(chosen, key=lambda mark: HEADLINES.index(mark.what))).markdown()
            case [_, part, *_] if part in self._every and part not in self.parts:
                return NOTHING
            case ["machine"]:
                return self._machine()
            case ["table", part, name] if name in self._of(part, "tables"):
                table = Table.from_json(name, self.parts[part]["tables"][name])
                return f"{table.title} ({table.how}):\n\n{table.markdown()}"
            case ["plot", part, name] if name in self._of(part, "plots"):
                return f"![{self.parts[part]['plots'][name]}]({above}{part}/{name}.svg)"
            case _:
                raise NotPublished(f"there is nothing published that is {what!r}")

    def _of(self, part: str, what: str) -> dict[str, Any]:
        return self.parts.get(part, {}).get(what, {})

    def marks(self) -> list[Mark]:
        """All that should be reached, and what was."""
        return [Mark.from_json(mark) for found in self.parts.values() for mark in found["marks"]]

    def _machine(self) -> str:
        columns = ["date", "took", "commit", "CPU", "kernel", "guest's kernel", "QEMU", "asked for"]
        table = Table("machine", "", columns, "")
        for part, found in self.parts.items():
            machine = found["machine"]
            asked = " ".join(f"{name}={value}" for name, value in found["asked"].items())
            table.add(
                part,
                found["date"],
                f"{found['seconds'] // 60}:{found['seconds'] % 60:02d} min",
                machine["commit"],
                f"{machine['cores']} cores of {machine['cpu']}, {machine['memory_gib']:g} GiB",
                machine["kernel"],
                machine["guest_kernel"],
                machine["qemu"],
                asked or "–",
            )
        return table.markdown()

    def page(self) -> str:
        """The page with all of it."""
        lines = [HEAD, "## Measured", "", self.block("machine", ""), ""]
        lines += ["## What should be reached", "", self.block("marks", ""), ""]
        for part, found in self.parts.items():
            about = found["about"]
            lines += [f"## {about[0].upper()}{about[1:]}", "", f"`make bench-{part}`", ""]
            for name in found["plots"]:
                lines += [self.block(f"plot {part} {name}", ""), ""]
            for name, table in found["tables"].items():
                lines += [self.block(f"table {part} {name}", ""), ""]
        return "\n".join(lines)

    def fill(self, page: str, above: str) -> str:
        """A page with all its blocks as they should be."""
        return _BLOCK.sub(
            lambda match: f"{match[1]}\n{self.block(match[2], above)}\n\n{match[3]}", page
        )


def pages(parts: Sequence[str]) -> dict[Path, str]:
    """All pages, as they should be."""
    results = Results(RESULTS, parts)
    found = {RESULTS / "README.md": results.page()}
    for name in PAGES:
        path = paths.REPO / name
        found[path] = results.fill(path.read_text(), f"{RESULTS.name}/")
    return found


def publish(parts: Sequence[str], every: Sequence[str]) -> None:
    """Takes what was measured last of some parts, and rewrites all pages."""
    for part in parts:
        source, folder = MEASURED / part, RESULTS / part
        if not measured([part]):
            raise NotPublished(f"{part} was not measured: `make bench-{part}` does so")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        plots = json.loads((source / "results.json").read_text())["plots"]
        kept = [f"{name}.{kind}" for name in plots for kind in ("svg", "png")]
        for name in ("results.json", "tables.txt", *kept):
            shutil.copyfile(source / name, folder / name)
    RESULTS.mkdir(exist_ok=True)
    for path, text in pages(every).items():
        path.write_text(text)


def measured(parts: Sequence[str]) -> list[str]:
    """The parts that have been measured."""
    return [part for part in parts if (MEASURED / part / "results.json").exists()]


def stale(parts: Sequence[str]) -> list[str]:
    """The pages that are not what the results make of them."""
    return [
        str(path.relative_to(paths.REPO))
        for path, text in pages(parts).items()
        if not path.exists() or path.read_text() != text
    ]
