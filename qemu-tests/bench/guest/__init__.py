# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Work that needs more memory than the guest has, beside what a user could choose instead.

One guest is booted; see `works` for what it does, how it is switched, and how far its disks are
slowed down: they would be as fast as the host's page cache is.
"""

import os
import time
from pathlib import Path

from harness import paths
from harness.daemon import Daemon
from harness.guest import Guest, Machine
from harness.lab import Lab
from harness.process import Deadline, cpu_seconds
from harness.qmp import Qmp

from ..report import Report
from . import image, results, works
from .works import EXTRA_MIB, MEMORY_MIB

LIMIT_SECONDS = float(os.environ.get("TMEM_BENCH_GUEST_SECONDS", 7200))

# What a guest so short of memory says of itself, with any swap and with none.
ALLOWED = ("page allocation failure", "Call Trace")


def run(report: Report, folder: Path) -> None:
    """Boots the guest, has it work, and reports."""
    paths.module()
    lab = Lab("bench-guest", folder)
    try:
        report.say("making a disk with a compiler, the source and data")
        disks = [image.make(folder, works.UNITS), lab.disk("swap", 1024)]
        daemon = lab.daemon(capacity=f"{EXTRA_MIB}MiB", window=f"{EXTRA_MIB}MiB")
        monitor = folder / "qmp"
        options = Qmp.qemu_options(monitor) + [
            "-m",
            f"slots=1,maxmem={4 * (MEMORY_MIB + EXTRA_MIB)}M",
            "-object",
            f"memory-backend-memfd,id=extra,size={EXTRA_MIB}M,share=on",
            "-device",
            "pc-dimm,id=dimm,memdev=extra",
        ]
        machine = Machine(
            MEMORY_MIB,
            disks=disks,
            devices=[daemon],
            append="modprobe.blacklist=virtio_tmem memhp_default_state=offline",
            options=options,
            allowed=ALLOWED,
        )
        report.say("booting the guest")
        where = str(paths.in_guest(Path(__file__).parent))
        guest = lab.boot(works.script(where, image.BUILD), machine)
        qmp = Qmp(monitor)
        cpu = _watch(report, guest, qmp, daemon)
        qmp.close()
        guest.finish(60)
        results.tell(report, guest, cpu)
    finally:
        lab.close()


def _watch(report: Report, guest: Guest, qmp: Qmp, daemon: Daemon) -> dict[str, float]:
    """Does for the guest what it asks for, and says how far it is, until it has ended.

    Returns what QEMU and the daemon had used of the host's CPUs whenever the guest asked.
    """
    cpu = {}
    runs = [run for _, _, visit in works.plan() for run in visit]
    end = time.monotonic() + LIMIT_SECONDS
    answered: set[str] = set()
    done = 0
    while guest.running:
        if time.monotonic() > end:
            raise Deadline(f"the guest was not done within {LIMIT_SECONDS:.0f} s")
        for mark in guest.transcript.marks - answered:
            answered.add(mark)
            match mark.partition(" ")[0]:
                case speed if speed in works.DISKS:
                    _limit(qmp, works.DISKS[speed])
                case "begin" | "end":
                    cpu[mark] = sum(map(cpu_seconds, [qmp.pid, *daemon.pids]))
                case _:
                    continue
            guest.tell(mark)
        while done < len(runs):
            run = runs[done]
            step = guest.transcript.steps.get(run.name)
            if step is None or step.status is None:
                break
            done += 1
            how = "" if step.status == 0 else f", ended with {step.status}"
            report.say(
                f"{done}/{len(runs)} round {run.round + 1}/{works.ROUNDS}:"
                f" {works.CONFIGURATIONS[run.configuration]}: {works.WORKS[run.work].title}:"
                f" {step.seconds:.1f} s{how}"
            )
        time.sleep(0.05)
    return cpu


def _limit(qmp: Qmp, disk: works.Disk) -> None:
    for name in ("files", "swap"):
        qmp.limit(name, disk.bytes_per_second, disk.requests_per_second)
