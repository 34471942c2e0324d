# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""What the plugin has counted in one phase, by what it was for."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .symbols import Symbols

TASK, CALL, INTERRUPT, USER, ENTRY = range(5)

# The clock's interrupts come with the time that passes, not with pages.
TIMERS = ("asm_sysvec_apic_timer_interrupt", "asm_sysvec_irq_work")

# Tasks that work for the sake of pages. Others have their own reasons.
OWN_TASKS = ("tmem-workload", "kswapd")
HELPERS = ("virtio_tmem", "kworker/", "ksoftirqd/", "jbd2/")

# Where memory management hands pages to whatever keeps them; what lies below is the back-end's.
BACK_END = frozenset(
    (
        "swap_bdev_can_merge",
        "swap_bdev_submit_write",
        "swap_bdev_submit_read",
        "zswap_store",
        "zswap_load",
        "zswap_invalidate",
        "zram_slot_free_notify",
        "blk_finish_plug",
        "__blk_flush_plug",
        "ext4_readahead",
        "ext4_read_folio",
    )
)
MODULE = " [virtio_tmem]"
TRAMPOLINE = " [__builtin__ftrace]"

# What the module hooks; where it calls one of these, others work again.
HOOKED = BACK_END | {
    "__remove_mapping",
    "clear_inode",
    "filemap_invalidate_inode",
    "invalidate_inode_pages2_range",
    "truncate_inode_pages_range",
    "zswap_swapoff",
}


@dataclass(frozen=True)
class Context:
    """How a node of the tree came about."""

    task: str
    functions: frozenset[str]
    user: bool = False
    # The innermost interrupt (no exception) that it lies in.
    interrupt: str = ""
    back_end: bool = False
    # In the module, or in what it calls.
    module: bool = False

    @property
    def idle(self) -> bool:
        """Whether the CPU had nothing to do."""
        return self.task.startswith("swapper/") and not self.interrupt

    @property
    def works(self) -> bool:
        """Whether the kernel works, and for the sake of pages."""
        if self.user or self.interrupt in TIMERS:
            return False
        return bool(self.interrupt) or self.task.startswith((*OWN_TASKS, *HELPERS))

    @property
    def label(self) -> str:
        """What it is, for a table of all that was counted."""
        if self.user:
            return f"{self.task}, user"
        if self.idle:
            return "idle"
        return self.interrupt.removeprefix("asm_") or self.task


@dataclass
class Counted:
    """What was counted in one phase; instructions, if nothing else is said."""

    kernel: int = 0
    back_end: int = 0
    module: int = 0
    by_label: Counter[str] = field(default_factory=Counter)
    own: Counter[str] = field(default_factory=Counter)
    in_back_end: Counter[str] = field(default_factory=Counter)
    in_module: Counter[str] = field(default_factory=Counter)
    with_callees: Counter[str] = field(default_factory=Counter)
    calls: Counter[str] = field(default_factory=Counter)

    def text(self, pages: int, lines: int = 80) -> str:
        """The functions with the most of it, for people."""
        head = f"{'insns/page':>12} {'calls/page':>10}  "

        def top(counts: Counter[str], lines: int) -> Iterator[str]:
            for name, insns in counts.most_common(lines):
                yield f"{insns / pages:12,.1f} {self.calls[name] / pages:10,.2f}  {name}"

        return "\n".join(
            (
                f"{head}all, by task or interrupt",
                *top(self.by_label, lines),
                "",
                f"{head}the kernel's work, by functions themselves",
                *top(self.own, lines),
                "",
                f"{head}what keeps the page, and interrupts, by functions themselves",
                *top(self.in_back_end, lines),
                "",
                f"{head}in the module and what it calls, by functions themselves",
                *top(self.in_module, lines),
                "",
                f"{head}with what they call",
                *top(self.with_callees, 2 * lines),
                "",
            )
        )


class _Tree:
    """The nodes of a record."""

    def __init__(self, raw: dict[str, Any], symbols: Symbols) -> None:
        self._symbols = symbols
        self._names: dict[int, str] = {}
        self.contexts: list[Context] = []
        for parent, kind, site, entry in raw["nodes"]:
            if kind == TASK:
                context = Context(raw["tasks"][entry], frozenset())
            else:
                context = self._below(self.contexts[parent], kind, site, entry)
            self.contexts.append(context)

    def name(self, address: int) -> str:
        """The function that an address lies in."""
        if address not in self._names:
            self._names[address] = self._symbols.name(address)
        return self._names[address]

    def _below(self, above: Context, kind: int, site: int, entry: int) -> Context:
        if kind == USER:
            return Context(above.task, frozenset(), user=True)
        name = self.name(entry)
        caller = self.name(site) if site else ""
        new = {name, caller} if caller else {name}
        if (MODULE in caller and name in HOOKED) or (caller in HOOKED and not is_module(name)):
            module = False
            # Not all that is hooked is a back-end's.
            back_end = not new.isdisjoint(BACK_END)
        else:
            module = above.module or any(is_module(function) for function in new)
            back_end = above.back_end or is_back_end(new)
        interrupt = above.interrupt
        if kind == INTERRUPT and name.startswith(("asm_common_interrupt", "asm_sysvec_")):
            interrupt = name
        return Context(
            above.task,
            above.functions | new,
            interrupt=interrupt,
            back_end=back_end,
            module=module,
        )


def is_module(function: str) -> bool:
    """Whether a function is the module's, or the way into it."""
    return MODULE in function or TRAMPOLINE in function


def is_back_end(functions: set[str]) -> bool:
    """Whether one of the functions is a back-end's."""
    return not functions.isdisjoint(BACK_END) or any(map(is_module, functions))


def count(raw: dict[str, Any], symbols: Symbols) -> Counted:
    """Sums a record up."""
    tree = _Tree(raw, symbols)
    entries = {entry for _, kind, _, entry in raw["nodes"] if kind in (CALL, ENTRY)}
    found = Counted()
    at_node: Counter[int] = Counter()
    for node, block, times, insns in raw["counts"]:
        context = tree.contexts[node]
        found.by_label[context.label] += insns
        if not context.works:
            continue
        name = tree.name(block)
        found.kernel += insns
        helps = context.interrupt or context.task.startswith(HELPERS)
        # The module may have jumped to what it hooks rather than called it.
        if helps or (context.back_end and name not in HOOKED) or is_back_end({name}):
            found.back_end += insns
            found.in_back_end[name] += insns
        if (context.module and name not in HOOKED) or is_module(name):
            found.module += insns
            found.in_module[name] += insns
        found.own[name] += insns
        if block in entries:
            found.calls[name] += times
        # The function may have been jumped to, and then the node does not know it.
        if name not in context.functions:
            found.with_callees[name] += insns
        at_node[node] += insns
    for node, insns in at_node.items():
        for name in tree.contexts[node].functions:
            found.with_callees[name] += insns
    return found


def read(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a file."""
    with path.open() as lines:
        for line in lines:
            yield json.loads(line)
