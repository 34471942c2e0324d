# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""What a guest's script says on its standard output.

Each step of a script is framed by a line {"begin": NAME} and a line {"end": NAME, "status": N,
"seconds": S}; what lies between is the output of the step's command. A snapshot of counters is
one line {"snapshot": NAME, ...} anywhere, and a sign of life one line {"beat": 1}.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Step:
    """A command that ran in the guest."""

    name: str
    status: int | None = None
    seconds: float = 0.0
    lines: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """Its output."""
        return "\n".join(self.lines)

    @property
    def objects(self) -> list[dict[str, Any]]:
        """The lines of its output that are JSON objects."""
        return [obj for line in self.lines if (obj := _object(line)) is not None]

    def describe(self) -> str:
        """For a human who wants to know what happened."""
        return f"step {self.name}: status {self.status}, {self.seconds:.1f} s\n{self.text}"


@dataclass
class Snapshot:
    """Counters of the guest at one moment."""

    driver: dict[str, int]
    disks: dict[str, dict[str, int]]
    vmstat: dict[str, int]

    def counted(self, half: str, counters: Iterable[str]) -> int:
        """What some of the driver's counters of one half come to."""
        return sum(self.driver[f"{half}/{counter}"] for counter in counters)

    def read(self, disk: str) -> int:
        """Sectors read from a disk."""
        return self.disks[disk]["read"]

    def written(self, disk: str) -> int:
        """Sectors written to a disk."""
        return self.disks[disk]["written"]


class Transcript:
    """All that a guest said, in steps."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.steps: dict[str, Step] = {}
        self.snapshots: dict[str, Snapshot] = {}
        self.marks: set[str] = set()
        self.beats = 0
        self._open: Step | None = None

    def add(self, line: str) -> None:
        """Takes the next line."""
        line = line.rstrip("\r\n")
        self.lines.append(line)
        obj = _object(line) or {}
        if "begin" in obj:
            self._open = Step(obj["begin"])
            self.steps[self._open.name] = self._open
        elif "end" in obj and obj["end"] in self.steps:
            step = self.steps[obj["end"]]
            step.status, step.seconds = obj["status"], obj["seconds"]
            self._open = None
        elif "snapshot" in obj:
            self.snapshots[obj["snapshot"]] = Snapshot(
                obj["driver"], obj["disks"], obj["vmstat"]
            )
        elif "mark" in obj:
            self.marks.add(obj["mark"])
        elif "beat" in obj:
            self.beats += 1
        elif self._open is not None:
            self._open.lines.append(line)


def _object(line: str) -> dict[str, Any] | None:
    if not line.startswith("{"):
        return None
    try:
        obj = json.loads(line)
    except ValueError:
        return None
    return obj if isinstance(obj, dict) else None
