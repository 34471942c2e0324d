# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""What the plugin has counted in one phase, by what it was for."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .symbols import Symbols

TASK, CALL, INTERRUPT, USER, ENTRY = range(5)

# The clock's interrupts come with the time that passes, not with pages.
TIMERS = ("asm_sysvec_apic_timer_interrupt", "asm_sysvec_irq_work")

# Tasks that work for the sake of pages. Others have their own reasons.
TASKS = ("tmem-workload", "virtio_tmem", "kswapd", "kworker/", "ksoftirqd/", "jbd2/")


@dataclass(frozen=True)
class Context:
    """How a node of the tree came about."""

    task: str
    functions: frozenset[str]
    user: bool = False
    # The innermost interrupt (no exception) that it lies in.
    interrupt: str = ""

    @property
    def idle(self) -> bool:
        """Whether the CPU had nothing to do."""
        return self.task.startswith("swapper/") and not self.interrupt

    @property
    def timer(self) -> bool:
        """Whether it is the clock's."""
        return self.interrupt in TIMERS


@dataclass
class Profile:
    """Instructions by function."""

    own: Counter[str] = field(default_factory=Counter)
    with_callees: Counter[str] = field(default_factory=Counter)
    calls: Counter[str] = field(default_factory=Counter)

    def top(self, counts: Counter[str], pages: int, lines: int) -> Iterator[str]:
        """The functions with the most of it, for each page."""
        for name, insns in counts.most_common(lines):
            calls = self.calls[name]
            yield f"{insns / pages:12,.1f} {calls / pages:10,.2f}  {name}"

    def text(self, pages: int, lines: int = 60) -> str:
        """The functions with the most instructions, for people."""
        head = f"{'insns/page':>12} {'calls/page':>10}  "
        return "\n".join(
            (
                f"{head}by functions themselves",
                *self.top(self.own, pages, lines),
                "",
                f"{head}with what they call",
                *self.top(self.with_callees, pages, 2 * lines),
            )
        )


class Record:
    """One phase."""

    def __init__(self, raw: dict[str, Any], symbols: Symbols) -> None:
        self.region: str = raw["region"]
        self._symbols = symbols
        self._names: dict[int, str] = {}
        contexts: list[Context] = []
        for parent, kind, site, entry in raw["nodes"]:
            contexts.append(self._context(raw, contexts, parent, kind, site, entry))
        self._counts: list[tuple[Context, str, int, int, int]] = [
            (contexts[node], self._name(block), block, times, insns)
            for node, block, times, insns in raw["counts"]
        ]
        self._entries = {entry for _, kind, _, entry in raw["nodes"] if kind in (CALL, ENTRY)}

    def _name(self, address: int) -> str:
        if address not in self._names:
            self._names[address] = self._symbols.name(address)
        return self._names[address]

    def _context(
        self,
        raw: dict[str, Any],
        contexts: list[Context],
        parent: int,
        kind: int,
        site: int,
        entry: int,
    ) -> Context:
        if kind == TASK:
            return Context(raw["tasks"][entry], frozenset())
        above = contexts[parent]
        if kind == USER:
            return Context(above.task, frozenset(), user=True)
        name = self._name(entry)
        functions = above.functions | {name}
        if site:
            functions |= {self._name(site)}
        interrupt = above.interrupt
        if kind == INTERRUPT and not name.startswith("asm_exc_"):
            interrupt = name
        return Context(above.task, functions, interrupt=interrupt)

    def _all(self) -> Iterator[tuple[Context, str, int]]:
        for context, name, _, _, insns in self._counts:
            yield context, name, insns

    def insns(self, which: Callable[[Context, frozenset[str]], bool]) -> int:
        """Instructions in contexts, and functions on the way there, that are meant."""
        return sum(
            insns
            for context, name, insns in self._all()
            if which(context, context.functions | {name})
        )

    def kernel(self) -> int:
        """All that the kernel did because of the phase."""
        return self.insns(lambda context, _: works(context))

    def by_task(self) -> Counter[str]:
        """Instructions by what they belong to."""
        found: Counter[str] = Counter()
        for context, _, insns in self._all():
            found[label(context)] += insns
        return found

    def profile(self) -> Profile:
        """The functions of the kernel's work."""
        profile = Profile()
        for context, name, block, times, insns in self._counts:
            if not works(context):
                continue
            profile.own[name] += insns
            if block in self._entries:
                profile.calls[name] += times
            for function in context.functions | {name}:
                profile.with_callees[function] += insns
        return profile


def works(context: Context) -> bool:
    """Whether the kernel works, and for the sake of pages."""
    if context.user or context.timer:
        return False
    return bool(context.interrupt) or context.task.startswith(TASKS)


def label(context: Context) -> str:
    """What it is, for a table of all that was counted."""
    if context.user:
        return f"{context.task}, user"
    if context.idle:
        return "idle"
    if context.interrupt:
        return context.interrupt.removeprefix("asm_")
    return context.task


def read(path: Path, symbols: Callable[[str], Symbols]) -> Iterator[Record]:
    """The records of a file; `symbols` gives the symbols for a region."""
    with path.open() as lines:
        for line in lines:
            raw = json.loads(line)
            yield Record(raw, symbols(raw["region"]))
