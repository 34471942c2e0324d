# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Instructions of the guest for each page, counted by a plugin of the emulator."""

import base64
import gzip
import os
from pathlib import Path

from harness import paths
from harness.guest import Guest, Machine
from harness.lab import Lab

from ..report import TCG, Report
from ..sample import Sample
from . import guest as work
from .record import Record, read
from .symbols import Symbols

ROUNDS = int(os.environ.get("TMEM_BENCH_ROUNDS", "3"))
PARAMETERS = os.environ.get("TMEM_BENCH_PARAMETERS", "")
SECONDS = 1800


def run(report: Report, folder: Path) -> None:
    """Counts, and makes tables of it."""
    out = folder / "records"
    lab = Lab("bench-insns", folder)
    try:
        guest = boot(report, lab, out)
    finally:
        lab.close()
    symbols = Known(guest)
    records: dict[str, dict[str, list[Record]]] = {}
    for record in read(out, symbols.of):
        subject, _, phase = record.region.split("/")
        records.setdefault(phase, {}).setdefault(subject, []).append(record)
    tables(report, records)
    profiles(report, records)


def boot(report: Report, lab: Lab, out: Path) -> Guest:
    """Runs the guest to its end."""
    paths.module()
    daemon = lab.daemon(capacity="1GiB")
    disks = [lab.disk("swap", 256), lab.disk("files", 128, "ext4")]
    plugin = paths.plugin("tmem_insn_plugin")
    machine = Machine(
        work.MEMORY_MIB,
        cpus=1,
        disks=disks,
        devices=[daemon],
        append="nokaslr modprobe.blacklist=virtio_tmem",
        options=["-plugin", f"{plugin},out={out}"],
    )
    report.say("booting a guest")
    guest = lab.prepare(work.script(ROUNDS, PARAMETERS), machine)
    guest.boot()
    report.say("it counts")
    guest.finish(SECONDS)
    return guest


class Known:
    """The symbols of the kernel, and of the module as it was loaded in each round."""

    def __init__(self, guest: Guest) -> None:
        packed = guest.step("symbols").lines[0]
        self._kernel = gzip.decompress(base64.b64decode(packed)).decode().splitlines()
        self._module = {
            name.removesuffix("symbols"): step.lines
            for name, step in guest.transcript.steps.items()
            if name.endswith("/symbols")
        }
        self._made: dict[str, Symbols] = {}

    def of(self, region: str) -> Symbols:
        """Those of a region."""
        prefix = region.rpartition("/")[0] + "/"
        lines = self._module.get(prefix, [])
        key = "\n".join(lines)
        if key not in self._made:
            self._made[key] = Symbols([*self._kernel, *lines])
        return self._made[key]


def tables(report: Report, records: dict[str, dict[str, list[Record]]]) -> None:
    """All instructions of the kernel."""
    subjects = ["disk", "zram", "zswap", "tmem"]
    table = report.table("kernel", "Instructions of the kernel for each page", subjects, TCG)
    for phase, by_subject in records.items():
        cells = [
            Sample.of(record.kernel() / work.PAGES for record in by_subject[subject])
            if subject in by_subject
            else None
            for subject in subjects
        ]
        if any(cells):
            table.add(phase, *cells)


def profiles(report: Report, records: dict[str, dict[str, list[Record]]]) -> None:
    """What they are, by function."""
    for phase, by_subject in records.items():
        for subject, samples in by_subject.items():
            record = samples[-1]
            tasks = "\n".join(
                f"{insns / work.PAGES:12,.1f}             {name}"
                for name, insns in record.by_task().most_common()
            )
            text = f"{tasks}\n\n{record.profile().text(work.PAGES)}\n"
            name = f"profile-{subject}-{phase.replace(' ', '-')}.txt"
            (report.folder / name).write_text(text)
