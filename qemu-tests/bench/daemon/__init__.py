# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The daemon's throughput and latency, beside what could stand in its place.

All of it is native, over the real protocol: the daemon is a process of its own, and a driver in
userspace shares memory with it. The daemon, and whatever it is compared with, has one processor;
the driver has another.
"""

from pathlib import Path

from ..report import Report
from . import contents, tables
from .processes import Bench


def run(report: Report, folder: Path) -> None:
    """Measures, and fills the report."""
    kinds = contents.collect(folder)
    with Bench(folder) as bench:
        for part in (
            tables.peers,
            tables.batches,
            tables.queues,
            tables.waiting,
            tables.kinds,
            tables.guests,
        ):
            part(report, bench, kinds)
