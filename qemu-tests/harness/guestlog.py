# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""What must never be in a guest's kernel log."""

import re
from collections.abc import Iterable, Sequence

BAD = re.compile(
    "|".join(
        (
            r"\bWARNING\b",
            r"\bBUG\b",
            r"Call Trace",
            r"\bOops\b",
            r"Kernel panic",
            r"blocked for more than",
            r"page allocation failure",
            r"general protection",
            r"rcu\S* .*stall",
            r"(soft|hard) lockup",
            r"invalid opcode",
            r"refcount_t:",
            r"invoked oom-killer",
            r"Out of memory",
            r"Page cache invalidation failure",
            r"I/O error",
            r"EXT4-fs.*(error|warning)",
            r"XFS .*([Cc]orrupt|[Ee]rror|shut down)",
            r"BTRFS (error|critical|warning)",
            r"KTHREAD_IS_PER_CPU",
            r"scheduling while atomic",
            r"suspicious RCU usage",
            r"\bUBSAN:",
            r"kmemleak: unreferenced object",
            # Of a kernel with its checks on: that one is not in force any more.
            r"INFO: (lockdep is turned off|trying to register non-static key)",
            r"turning off the locking correctness validator",
            r"Disabling lock debugging",
            r"kmemleak: (.*disabled|Memory pool empty|Cannot)",
        )
    )
)

# Said of every module that is not the kernel's own.
HARMLESS = re.compile(
    "|".join(
        (
            r"loading out-of-tree module taints kernel",
            r"module verification failed: signature and/or required key missing",
        )
    )
)


def bad_lines(log: Iterable[str], allowed: Sequence[str] = ()) -> list[str]:
    """Returns the lines that fail a test, unless one of the patterns `allowed` matches them."""
    allow = [re.compile(pattern) for pattern in allowed]

    def is_bad(line: str) -> bool:
        if not BAD.search(line) or HARMLESS.search(line):
            return False
        return not any(pattern.search(line) for pattern in allow)

    return [line.rstrip("\r\n") for line in log if is_bad(line)]
