# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Runs the measurements; `make bench` does so in the toolbox."""

import argparse
import importlib
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType
from typing import NoReturn

from harness import paths
from harness.process import Deadline

from .report import Report

# Each is a module of this package with a function `run(report, folder)`.
PARTS = {
    "exits": "exits of the guest for each page, by real KVM's own counters",
    "insns": "instructions of the guest for each page, counted by the emulator",
    "daemon": "throughput and latency of the daemon, over its real protocol",
    "guest": "work that needs more memory than the guest has, and what it costs",
}


def stopped(number: int, _frame: FrameType | None) -> NoReturn:
    """Lets a signal end everything in order."""
    sys.exit(128 + number)


def run(part: str) -> bool:
    """Runs a part in a folder that is gone afterwards; returns whether it came to its end."""
    parent = paths.BUILD / "qemu"
    parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f"bench-{part}-", dir=parent))
    report = Report(part, time.monotonic())
    report.say(PARTS[part])
    try:
        importlib.import_module(f"bench.{part}").run(report, folder)
        report.save()
    except (paths.Missing, AssertionError, Deadline, OSError) as error:
        report.say(f"error: {error}")
        return False
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return True


def main() -> int:
    """Runs the parts that are asked for."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    asked = parser.parse_args().parts
    for part in asked:
        if part not in PARTS:
            parser.error(f"there is no part {part}; the parts are: {', '.join(PARTS)}")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stopped)
    failed = [part for part in asked or PARTS if not run(part)]
    if failed:
        print(f"bench: error: not measured: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


sys.exit(main())
