# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Numbers that were measured several times."""

import os
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Sample:
    """One quantity, as often as it was measured."""

    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Iterable[float]) -> "Sample":
        """A sample of some values."""
        return cls(tuple(values))

    @property
    def median(self) -> float:
        """The middle one."""
        return statistics.median(self.values)

    @property
    def least(self) -> float:
        """The least of them."""
        return min(self.values)

    @property
    def most(self) -> float:
        """The most of them."""
        return max(self.values)

    def __format__(self, number: str) -> str:
        """The median, and how far the values spread, each as `number` says."""
        if len(self.values) == 1:
            return format(self.values[0], number)
        spread = f"{self.least:{number}}–{self.most:{number}}"
        return f"{self.median:{number}} ({spread})"

    def as_json(self) -> dict[str, object]:
        """For programs."""
        return {
            "median": self.median,
            "min": self.least,
            "max": self.most,
            "values": list(self.values),
        }


def how_often(usually: int) -> int:
    """How often everything is measured."""
    return int(os.environ.get("TMEM_BENCH_ROUNDS", usually))


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> Sample:
    """Ours to theirs, round by round: what slows a whole round down changes no ratio."""
    return Sample.of(a / b for a, b in zip(ours, theirs, strict=True))
