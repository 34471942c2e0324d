# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Instructions of the guest for each page, counted by a plugin of the emulator."""

import base64
import gzip
import os
from pathlib import Path

from harness import paths
from harness.guest import Guest, Machine
from harness.lab import Lab

from ..pages import FULL, ROOMY, WINDOWED
from ..report import Report
from ..sample import Sample, how_often
from ..table import TCG
from . import guest as work
from .marks import Found, back_end, index, kernel, marks, module
from .record import Counted, count, read
from .symbols import Symbols

ROUNDS = how_often(3)
PARAMETERS = os.environ.get("TMEM_BENCH_PARAMETERS", "")
SECONDS = 1800

SUBJECTS = ("disk", "zram", "zswap", "tmem", "window", "refused")


def run(report: Report, folder: Path) -> None:
    """Counts, and makes tables of it."""
    out = folder / "records"
    lab = Lab("bench-insns", folder)
    try:
        guest = boot(report, lab, out)
    finally:
        lab.close()
    symbols = Known(guest)
    found: dict[str, dict[str, list[Counted]]] = {}
    for raw in read(out):
        subject, _, phase = raw["region"].split("/")
        counted = count(raw, symbols.of(raw["region"]))
        found.setdefault(phase, {}).setdefault(subject, []).append(counted)
    tables(report, found)
    marks(report, found, work.PAGES)
    index(report)
    plots(report, found)
    profiles(report, found)


def boot(report: Report, lab: Lab, out: Path) -> Guest:
    """Runs the guest to its end."""
    paths.module()
    daemons = [
        lab.daemon(name="roomy", slot=ROOMY),
        lab.daemon(name="full", slot=FULL, capacity="1MiB"),
        lab.daemon(name="windowed", slot=WINDOWED, window="1GiB"),
    ]
    disks = [lab.disk("swap", 256), lab.disk("files", 128, "ext4")]
    plugin = paths.plugin("tmem_insn_plugin")
    machine = Machine(
        work.MEMORY_MIB,
        cpus=1,
        disks=disks,
        devices=daemons,
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


def tables(report: Report, found: Found) -> None:
    """All instructions of the kernel, and those of them that are a back-end's."""
    which = {
        "kernel": ("all that the kernel does", kernel),
        "back_end": ("what keeps the page, and interrupts", back_end),
        "module": ("in virtio_tmem and what it calls", module),
    }
    for name, (title, insns) in which.items():
        table = report.table(name, f"Instructions for each page: {title}", SUBJECTS, TCG)
        for phase, by_subject in found.items():
            cells = [
                Sample.of(insns(counted) / work.PAGES for counted in by_subject[subject])
                if subject in by_subject
                else None
                for subject in SUBJECTS
            ]
            if any(cells):
                table.add(phase, *cells)


def plots(report: Report, found: Found) -> None:
    """The same as bars."""
    for name, title, insns in (
        ("kernel", "All that the kernel does", kernel),
        ("back_end", "What keeps the page, and interrupts", back_end),
    ):
        phases = [phase for phase in found if phase.startswith("swap")]
        series = {
            subject: [
                Sample.of(insns(counted) / work.PAGES for counted in found[phase][subject])
                for phase in phases
            ]
            for subject in SUBJECTS
        }
        report.bars(name, title, phases, series, "instructions for each page", log=True)


def profiles(report: Report, found: Found) -> None:
    """What they are, by function."""
    for phase, by_subject in found.items():
        for subject, samples in by_subject.items():
            name = f"profile-{subject}-{phase.replace(' ', '-')}.txt"
            (report.folder / name).write_text(samples[-1].text(work.PAGES))
