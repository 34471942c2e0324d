# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Tables of what was measured: for terminals, for pages, and as JSON."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .sample import Sample

NATIVE = "native"
TCG = "emulated by TCG: counts are those of a real CPU, times are not"
NESTED = "real KVM in a guest emulated by TCG: exits are real, times mean nothing"

Cell = str | int | float | Sample | None


@dataclass(frozen=True)
class Missing:
    """A cell, or a row, that could not be measured, and why."""

    why: str

    def __str__(self) -> str:
        return f"not run: {self.why}"


@dataclass
class Table:
    """Rows beneath columns; the first column names the row."""

    name: str
    title: str
    columns: Sequence[str]
    how: str
    number: str = ",.1f"
    rows: list[tuple[str, Sequence[Cell] | Missing]] = field(default_factory=list)

    def add(self, row: str, *cells: Cell) -> None:
        """Adds a row."""
        assert len(cells) == len(self.columns), f"{row} has {len(cells)} cells"
        self.rows.append((row, cells))

    def cannot(self, row: str, why: str) -> None:
        """Adds a row for what could not be run, and why."""
        self.rows.append((row, Missing(why)))

    def _show(self, cell: Cell) -> str:
        match cell:
            case None:
                return "–"
            case str():
                return cell
            case int():
                return format(cell, ",d")
            case _:
                return format(cell, self.number)

    def _shown(self) -> list[tuple[str, list[str] | Missing]]:
        return [
            (row, cells if isinstance(cells, Missing) else [self._show(cell) for cell in cells])
            for row, cells in self.rows
        ]

    def text(self) -> str:
        """The table, for a terminal."""
        shown = self._shown()
        first = max((len(row) for row, _ in shown), default=0)
        widths = [
            max([len(column)] + [len(c[n]) for _, c in shown if not isinstance(c, Missing)])
            for n, column in enumerate(self.columns)
        ]
        head = [f"{column:>{width}}" for column, width in zip(self.columns, widths, strict=True)]
        title = [self.title, f"  ({self.how})"] if self.how else [self.title]
        lines = [*title, "  ".join([" " * first, *head])]
        for row, cells in shown:
            if isinstance(cells, Missing):
                lines.append(f"{row:<{first}}  {cells}")
                continue
            body = [f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True)]
            lines.append("  ".join([f"{row:<{first}}", *body]))
        return "\n".join(lines)

    def markdown(self) -> str:
        """The table, for a page, without its title."""
        lines = [_row("", *self.columns), _row(*["---"] + ["--:"] * len(self.columns))]
        for row, cells in self._shown():
            if isinstance(cells, Missing):
                cells = [f"*{cells}*", *[""] * (len(self.columns) - 1)]
            lines.append(_row(row, *cells))
        return "\n".join(lines)

    def as_json(self) -> dict[str, object]:
        """For programs."""
        return {
            "title": self.title,
            "how": self.how,
            "number": self.number,
            "columns": list(self.columns),
            # More than one row may have the same name.
            "rows": [
                {"row": row, "missing": cells.why}
                if isinstance(cells, Missing)
                else {
                    "row": row,
                    "cells": [c.as_json() if isinstance(c, Sample) else c for c in cells],
                }
                for row, cells in self.rows
            ],
        }

    @classmethod
    def from_json(cls, name: str, found: Mapping[str, Any]) -> "Table":
        """What `as_json()` has made."""
        table = cls(name, found["title"], found["columns"], found["how"], found["number"])
        for row in found["rows"]:
            if "missing" in row:
                table.cannot(row["row"], row["missing"])
            else:
                table.add(row["row"], *(sample_or(cell) for cell in row["cells"]))
        return table


def sample_or(value: Any) -> Any:
    """A sample from what its `as_json()` has made; anything else as it is."""
    return Sample.of(value["values"]) if isinstance(value, dict) else value


def _row(*cells: str) -> str:
    return f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |"


@dataclass(frozen=True)
class Mark:
    """What should be reached, and what was."""

    what: str
    figure: Sample | Missing
    how: str
    # What it may be at most, or has to be at least; neither where it only belongs beside those.
    most: float | None = None
    least: float | None = None
    number: str = ",.2f"

    @property
    def reached(self) -> bool | None:
        """Whether it is; None where nobody can say."""
        if isinstance(self.figure, Missing) or (self.most is None and self.least is None):
            return None
        if self.most is not None and self.figure.median > self.most:
            return False
        return self.least is None or self.figure.median >= self.least

    @property
    def bound(self) -> str:
        """The mark itself."""
        signs = {"≤": self.most, "≥": self.least}
        return " ".join(f"{sign} {n:,g}" for sign, n in signs.items() if n is not None) or "–"

    def cells(self) -> list[str]:
        """The figure, the mark and whether it is reached."""
        if isinstance(self.figure, Missing):
            return [str(self.figure), self.bound, "–"]
        reached = {None: "–", True: "yes", False: "no"}[self.reached]
        return [format(self.figure, self.number), self.bound, reached]

    def as_json(self) -> dict[str, object]:
        """For programs."""
        figure = self.figure
        return {
            "what": self.what,
            "figure": {"missing": figure.why} if isinstance(figure, Missing) else figure.as_json(),
            "how": self.how,
            "most": self.most,
            "least": self.least,
            "number": self.number,
        }

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> "Mark":
        """What `as_json()` has made."""
        figure = found["figure"]
        given = Missing(figure["missing"]) if "missing" in figure else sample_or(figure)
        return cls(**{**found, "figure": given})


def table_of(marks: Sequence[Mark]) -> Table:
    """Marks as a table."""
    table = Table("marks", "What should be reached", ["measured", "mark", "reached", "how"], "")
    for mark in marks:
        table.add(mark.what, *mark.cells(), mark.how.partition(":")[0])
    return table
