# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Instructions go to whom they were executed for."""

from typing import Any

from bench.insns.record import count
from bench.insns.symbols import Symbols, demangle

SYMBOLS = Symbols(
    [
        "ffffffff81000000 T asm_common_interrupt",
        "ffffffff81000000 T __irqentry_text_start",
        "ffffffff81000100 T asm_sysvec_apic_timer_interrupt",
        "ffffffff81001000 T swap_writeout",
        "ffffffff81002000 t swap_bdev_submit_write",
        "ffffffff81003000 T submit_bio",
        "ffffffff81004000 t __remove_mapping",
        "ffffffffc0001000 t submit_write\t[virtio_tmem]",
    ]
)
INTERRUPT, TIMER, WRITEOUT, SUBMIT, BIO, REMOVE = (
    0xFFFFFFFF81000000 + place for place in (0x0, 0x100, 0x1000, 0x2000, 0x3000, 0x4000)
)
HOOK = 0xFFFFFFFFC0001000
NONE = 0xFFFFFFFF


def record(*nodes: tuple[int, int, int, int], counts: list[tuple[int, int, int]]) -> dict[str, Any]:
    """A record with the nodes after those of the workload's and an idle task."""
    return {
        "region": "test",
        "tasks": ["tmem-workload", "swapper/0"],
        "nodes": [(NONE, 0, 0, 0), (NONE, 0, 0, 1), (0, 3, 0, 0), *nodes],
        "counts": [(node, block, 1, insns) for node, block, insns in counts],
    }


def test_user_mode_the_idle_task_and_the_clock_do_not_count() -> None:
    raw = record(
        (1, 4, 0, WRITEOUT),
        (0, 2, 0, TIMER),
        (1, 2, 0, INTERRUPT),
        counts=[(2, 0x1000, 1), (3, WRITEOUT, 10), (4, TIMER, 100), (5, INTERRUPT, 1000)],
    )
    found = count(raw, SYMBOLS)
    assert found.kernel == 1000
    assert found.by_label["tmem-workload, user"] == 1
    assert found.by_label["idle"] == 10
    assert found.by_label["common_interrupt"] == 1000


def test_a_back_end_begins_where_memory_management_ends() -> None:
    raw = record(
        (0, 4, 0, WRITEOUT),
        (3, 1, WRITEOUT + 8, SUBMIT),
        (4, 1, SUBMIT + 8, BIO),
        counts=[(3, WRITEOUT, 1), (4, SUBMIT, 10), (5, BIO, 100)],
    )
    found = count(raw, SYMBOLS)
    assert (found.kernel, found.back_end, found.module) == (111, 110, 0)
    assert found.with_callees["swap_writeout"] == 111
    assert found.own["submit_bio"] == 100
    assert found.calls["submit_bio"] == 1


def test_what_a_hook_hands_back_is_not_the_modules() -> None:
    raw = record(
        (0, 4, 0, WRITEOUT),
        (3, 1, WRITEOUT + 8, SUBMIT),
        # The hook, which was jumped to, calls what it hooks.
        (4, 1, HOOK + 8, SUBMIT + 4),
        (5, 1, SUBMIT + 8, BIO),
        counts=[(4, HOOK, 1), (5, SUBMIT + 4, 10), (6, BIO, 100)],
    )
    found = count(raw, SYMBOLS)
    assert (found.back_end, found.module) == (111, 1)


def test_what_a_hook_hands_back_to_memory_management_is_no_back_ends() -> None:
    raw = record(
        (0, 4, 0, REMOVE),
        # The hook, which was jumped to, calls what it hooks; or it jumps there, and that calls.
        (3, 1, HOOK + 8, REMOVE + 4),
        (4, 1, REMOVE + 8, WRITEOUT),
        (3, 1, REMOVE + 8, WRITEOUT),
        counts=[
            (3, HOOK, 1),
            (3, REMOVE + 8, 10),
            (4, REMOVE + 4, 100),
            (5, WRITEOUT, 1000),
            (6, WRITEOUT, 10000),
        ],
    )
    found = count(raw, SYMBOLS)
    assert (found.kernel, found.back_end, found.module) == (11111, 1, 1)
    assert found.in_back_end == found.in_module == {"submit_write [virtio_tmem]": 1}


def test_rust_names_become_readable() -> None:
    mangled = "_RNvMs_NtNtCs64ud2KFZve2_11virtio_tmem5hooks9frontswapNtB4_7Builder4push"
    assert demangle(mangled) == "virtio_tmem::hooks::frontswap::Builder::push"
    assert demangle("kfree") == "kfree"
