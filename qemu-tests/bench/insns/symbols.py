# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Which function of the guest's kernel an address belongs to."""

import bisect
import re
from collections.abc import Iterable, Iterator


class Symbols:
    """The lines of a guest's /proc/kallsyms that are functions."""

    def __init__(self, lines: Iterable[str]) -> None:
        found: dict[int, str] = {}
        for line in lines:
            words = line.split()
            if len(words) < 3 or words[1] not in "tTwW":
                continue
            address = int(words[0], 16)
            # Bounds of sections have a function's name beside them, or none of use.
            if address and (address not in found or not words[2].endswith(("_start", "_end"))):
                found[address] = " ".join([demangle(words[2]), *words[3:4]])
        self._addresses = sorted(found)
        self._names = [found[address] for address in self._addresses]

    def name(self, address: int) -> str:
        """The function that an address lies in."""
        place = bisect.bisect_right(self._addresses, address) - 1
        if place < 0:
            return f"{address:#x}"
        return self._names[place]


# In Rust's mangled names: what tells crates apart, refers back, and tells other things apart.
_SKIPPED = re.compile(r"Cs[0-9A-Za-z]*_|B[0-9A-Za-z]*_|s[0-9A-Za-z]*_|[A-Za-z]")


def demangle(name: str) -> str:
    """The words of a Rust function's name, in their order; any other name as it is."""
    return "::".join(_words(name[2:])) if name.startswith("_R") else name


def _words(mangled: str) -> Iterator[str]:
    place = 0
    while place < len(mangled):
        if number := re.compile(r"(\d+)_?").match(mangled, place):
            end = number.end() + int(number[1])
            yield mangled[number.end() : end]
            place = end
        elif skipped := _SKIPPED.match(mangled, place):
            place = skipped.end()
        else:
            place += 1
