# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The checker of guests' logs, against samples of what kernels print."""

import pytest

from harness.guestlog import bad_lines

BAD = [
    "[    1.0] WARNING: CPU: 0 PID: 1 at mm/page_alloc.c:4321 __alloc_pages+0x1/0x2",
    "[    1.0] BUG: kernel NULL pointer dereference, address: 0000000000000008",
    "[    1.0] BUG: unable to handle page fault for address: ffffc90000000000",
    "[    1.0] Call Trace:",
    "[    1.0] Oops: 0000 [#1] PREEMPT SMP NOPTI",
    "[    1.0] Oops: general protection fault, probably for non-canonical address",
    "[    1.0] general protection fault: 0000 [#1] SMP",
    "[    1.0] traps: x general protection fault ip:1 sp:2 error:0",
    "[  245.0] INFO: task kswapd0:42 blocked for more than 122 seconds.",
    "[    1.0] kworker/0:1: page allocation failure: order:0, mode:0xa20(GFP_ATOMIC)",
    "[   60.0] rcu: INFO: rcu_preempt self-detected stall on CPU",
    "[   60.0] rcu: INFO: rcu_tasks detected stalls on tasks:",
    "[   60.0] rcu_tasks_wait_gp: rcu_tasks grace period number 5 stall",
    "[   60.0] watchdog: BUG: soft lockup - CPU#0 stuck for 26s! [cc1:1]",
    "[   60.0] NMI watchdog: Watchdog detected hard lockup on cpu 1",
    "[    1.0] Kernel panic - not syncing: Attempted to kill init!",
    "[    1.0] refcount_t: underflow; use-after-free.",
    "[    1.0] tmem-workload invoked oom-killer: gfp_mask=0x140dca",
    "[    1.0] Out of memory: Killed process 345 (tmem-workload)",
    "[    1.0] Page cache invalidation failure on direct I/O.  Possible data corruption",
    "[    1.0] Buffer I/O error on dev vda, logical block 0, async page read",
    "[    1.0] EXT4-fs error (device vda): ext4_lookup:1826: inode #2: comm ls: bad entry",
    "[    1.0] XFS (vda): Metadata corruption detected at xfs_agf_verify",
    "[    1.0] BTRFS warning (device vda): csum failed root 5 ino 257 off 0",
    "[    1.0] BUG: scheduling while atomic: cat/77/0x00000002",
    "[    1.0] BUG: KASAN: slab-use-after-free in virtio_tmem_init+0x1/0x2 [virtio_tmem]",
    "[    1.0] UBSAN: array-index-out-of-bounds in mm/swap.c:77:9",
    "[    1.0] kmemleak: unreferenced object 0xffff88800a0b4000 (size 192):",
    "[    1.0] kmemleak: Memory pool empty, consider increasing CONFIG_DEBUG_KMEMLEAK_MEM_POOL_SIZE",
    "[    1.0] kmemleak: Kernel memory leak detector disabled",
    "[    1.0] WARNING: possible circular locking dependency detected",
    "[    1.0] WARNING: inconsistent lock state",
    "[    1.0] WARNING: suspicious RCU usage",
    "[    1.0] INFO: trying to register non-static key.",
    "[    1.0] BUG: MAX_LOCKDEP_CHAINS too low!",
    "[    1.0] turning off the locking correctness validator.",
    "[    1.0] ODEBUG: WARNING: free active (active state 0) object: ffff88800a0b4000",
]

GOOD = [
    "[    1.0] virtio_tmem: loading out-of-tree module taints kernel.",
    "[    1.0] virtio_tmem: module verification failed: signature and/or required key missing - tainting kernel",
    "[    1.0] Linux version 7.3.4+deb13-cloud-amd64 (debian-kernel@lists.debian.org)",
    "[    1.0] rcu: RCU restricting CPUs from NR_CPUS=8192 to nr_cpu_ids=2.",
    "[    1.0] rcu: Hierarchical RCU implementation.",
    "[    1.0] EXT4-fs (vda): mounted filesystem 5c0e r/w with ordered data mode. Quota mode: none.",
    "[    1.0] XFS (vda): Ending clean mount",
    "[    1.0] BTRFS info (device vda): using free-space-tree",
    "[    1.0] DEBUG: something else",
    "[    1.0] kmemleak: Kernel memory leak detector initialized (mem pool available: 15999)",
    "[    1.0] kmemleak: 1 new suspected memory leaks (see /sys/kernel/debug/kmemleak)",
    "[    1.0] debugfs: BUGGY is a word of its own",
]


@pytest.mark.parametrize("line", BAD)
def test_bad_lines_are_found(line: str) -> None:
    assert bad_lines(["[    0.5] fine", line + "\r\n"]) == [line]


@pytest.mark.parametrize("line", GOOD)
def test_good_lines_pass(line: str) -> None:
    assert bad_lines([line]) == []


def test_a_line_is_allowed_only_by_its_own_pattern() -> None:
    log = [BAD[20], BAD[3]]
    assert bad_lines(log, [r"I/O error on dev vda"]) == [BAD[3]]


def test_harmless_words_do_not_excuse_another_line() -> None:
    assert bad_lines([GOOD[0], BAD[1]]) == [BAD[1]]
