# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Runs the measurements; `make bench` does so in the toolbox."""

import argparse
import importlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType
from typing import NoReturn

from harness import paths
from harness.process import Deadline

from . import publish
from .report import Report

# Each is a module of this package with a function `run(report, folder)`.
PARTS = {
    "exits": "exits of the guest for each page, by real KVM's own counters",
    "insns": "instructions of the guest for each page, counted by the emulator",
    "daemon": "throughput and latency of the daemon, over its real protocol",
    "policy": "which pages go first from the window, by made-up traces",
    "sim": "how guests share memory, simulated with up to a thousand of them",
    "tiers": "what share of swapped pages a window answers for that is too small",
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
    report = Report(part, PARTS[part], time.monotonic())
    report.say(PARTS[part])
    try:
        importlib.import_module(f"bench.{part}").run(report, folder)
        report.save()
    except (paths.Missing, AssertionError, Deadline, OSError, subprocess.SubprocessError) as error:
        report.say(f"error: {error}")
        return False
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return True


def measure(parts: list[str]) -> int:
    """Runs parts; returns the status to end with."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stopped)
    start = time.monotonic()
    took = {}
    failed = []
    for part in parts:
        begin = time.monotonic()
        if not run(part):
            failed.append(part)
        took[part] = time.monotonic() - begin
    if len(parts) > 1:
        each = ", ".join(f"{part} {seconds / 60:.1f}" for part, seconds in took.items())
        print(f"bench: {(time.monotonic() - start) / 60:.1f} minutes: {each}", flush=True)
    if failed:
        print(f"bench: error: not measured: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def main() -> int:
    """Does what is asked for."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--publish", action="store_true", help="write down what was measured last")
    what.add_argument("--check", action="store_true", help="see whether pages show the results")
    asked = parser.parse_args()
    for part in asked.parts:
        if part not in PARTS:
            parser.error(f"there is no part {part}; the parts are: {', '.join(PARTS)}")
    try:
        if asked.check:
            if stale := publish.stale(list(PARTS)):
                raise publish.NotPublished(
                    f"not what results/ says: {', '.join(stale)}; `scripts/bench --publish` helps"
                )
            return 0
        if asked.publish:
            parts = asked.parts or publish.measured(list(PARTS))
            publish.publish(parts, list(PARTS))
            print(f"bench: results/ has what was measured of: {' '.join(parts) or 'nothing new'}")
            return 0
    except publish.NotPublished as error:
        print(f"bench: error: {error}", file=sys.stderr)
        return 1
    return measure(asked.parts or list(PARTS))


sys.exit(main())
