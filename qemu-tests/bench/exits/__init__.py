# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Exits of a guest for each page, as KVM traces them in a guest that is emulated."""

import shutil
import subprocess
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from harness import initramfs, paths
from harness.daemon import Daemon
from harness.disks import Disk
from harness.guest import Machine
from harness.lab import Lab
from harness.process import Deadline
from harness.steps import Transcript

from ..pages import FULL, ROOMY, WINDOWED
from ..report import Report
from ..sample import Sample, how_often
from ..table import NESTED
from . import scripts
from .settings import MISSING, PATIENT, Setting, asked_for
from .trace import KINDS, WORK, Devices, Phase, exits, phases

SECONDS = 1700

# Where the emulated guest has what its own guests need.
INSIDE = Path("/run/bench")

# Content to swap out.
CORPUS = ("usr/bin/python3.[0-9]*", "usr/lib/python3.[0-9]*/[a-h]*.py")

# The generic kernel can be a host on this CPU.
CPU = "EPYC,+svm,+npt"
MEMORY_MIB = 2048
INNER_MIB = 256
WINDOW_MIB = 1024

ROUNDS = how_often(3)

# Rounds of the settings that are compared with the first one.
COMPARED_ROUNDS = min(ROUNDS, 2)

# What is measured with the first setting, by the beginning of phases' names.
SUBJECTS = {
    "disk": "virtio-blk",
    "tmem": "virtio-tmem",
    "window": "virtio-tmem, with a window",
    "refused": "virtio-tmem, the host being full",
}

# What pages may cost that the guest copies by itself: it asks for memory, and for nothing else.
COPIED = 0.02

# What should be reached, and by which of all exits: those for the work, or the notifications and
# interrupts of our device alone where there should be none.
MARKS = {
    ("tmem", "swap put"): 0.1,
    ("tmem", "swap get"): 1.2,
    ("tmem", "swap get readahead"): 0.1,
    ("tmem", "file put"): 0.1,
    ("tmem", "file get"): 1.2,
    ("tmem", "file get readahead"): 0.1,
    ("tmem", "file first read"): 0,
    ("tmem", "swap free"): 0,
    ("tmem", "file dirty"): 0,
    ("tmem", "file remove"): 0,
    ("window", "swap put"): COPIED,
    ("window", "swap get"): COPIED,
    ("window", "swap get readahead"): COPIED,
    ("window", "file put"): COPIED,
    ("window", "file get"): COPIED,
    ("window", "file get readahead"): COPIED,
    ("refused", "swap put"): 0,
}
# What is said of many pages at once, or of the credits that the host has now, is not of a page.
NOTHING = 0.01
FLUSH = "flush"
WHERE = {"window": ", with a window", "refused": ", the host being full"}
# What somebody waits for.
GETS = ("swap get", "file get")
MEANS = {
    "file first read": "miss",
    "swap free": FLUSH,
    "file dirty": FLUSH,
    "file remove": FLUSH,
}

# An emulated host, too, is reset now and then: it is for some runs only, and those are made again.
RUNS_OF_HOST = 2
HOSTS = 8
RESET = f"the emulated host reset its guest, {scripts.TRIES} times in a row"

# What was traced, by subject and phase.
Found = dict[tuple[str, str], Phase]


def run(report: Report, folder: Path) -> None:
    """Traces, and makes tables of it."""
    settings = [Setting("as it is"), *asked_for()]
    lab = Lab("bench-exits", folder)
    try:
        found = trace(report, lab, folder, settings)
    finally:
        lab.close()
    first = found[settings[0].name]
    table = report.table(
        "exits",
        "Exits for each page, by what they are for",
        ["work", *KINDS],
        NESTED,
        number=",.3f",
    )
    for subject, name in first[0]:
        phases = [each[subject, name] for each in first]
        kinds = [Sample.of(phase.kinds[kind] / scripts.PAGES for phase in phases) for kind in KINDS]
        table.add(f"{name}, {SUBJECTS[subject]}", work(phases), *kinds)
    beside(report, first, found.get(PATIENT.name))
    names = [name for subject, name in first[0] if subject == "tmem"]
    compared = report.table(
        "settings", "Exits for each page, by how it is set up", names, NESTED, number=",.3f"
    )
    for setting in settings:
        if each := found.get(setting.name):
            phases_of = ([one["tmem", phase] for one in each] for phase in names)
            compared.add(setting.name, *map(work, phases_of))
        else:
            compared.cannot(setting.name, RESET)
    for name, why in MISSING.items():
        compared.cannot(name, why)
    details = [
        text(f"{setting}: {subject}/{name}", phase)
        for setting, each in found.items()
        for (subject, name), phase in each[-1].items()
    ]
    (report.folder / "details.txt").write_text("\n".join(details))


def beside(report: Report, found: Sequence[Found], patient: Sequence[Found] | None) -> None:
    """Everything beside the disk, and what should be reached."""
    names = [name for subject, name in found[0] if subject == "disk"]
    table = report.table(
        "beside",
        "Exits for each page, without the clock's and those of memory that is touched first",
        list(SUBJECTS.values()),
        NESTED,
        number=",.3f",
    )
    series: dict[str, list[float | Sample | None]] = {title: [] for title in SUBJECTS.values()}
    for name in names:
        cells = [
            work([each[subject, name] for each in found]) if (subject, name) in found[0] else None
            for subject in SUBJECTS
        ]
        table.add(name, *cells)
        for title, cell in zip(series, cells, strict=True):
            series[title].append(cell)
    report.bars("beside", "Exits for each page", names, series, "exits for each page")
    for (subject, name), most in MARKS.items():
        phases = [each[subject, name] for each in found]
        figure = work(phases) if most else Sample.of(own(phase) for phase in phases)
        what = f"{name} ({MEANS[name]})" if name in MEANS else name
        what += WHERE.get(subject, "")
        what += "" if most else ": notifications and interrupts of the device"
        bound = most or NOTHING
        report.mark(f"exits a page, {what}", figure, NESTED, most=bound, number=",.3f")
        if patient and subject == "tmem" and name.startswith(GETS):
            figure = work([each[subject, name] for each in patient])
            what += f", {PATIENT.name}"
            report.mark(f"exits a page, {what}", figure, NESTED, most=most, number=",.3f")


def work(phases: Iterable[Phase]) -> Sample:
    """Exits a page, without the clock's and those of memory that is touched first."""
    return Sample.of(sum(phase.kinds[kind] for kind in WORK) / scripts.PAGES for phase in phases)


def own(phase: Phase) -> float:
    """Exits a page for notifications of the device, and to see which interrupt of it there was."""
    return sum(phase.details[f"{kind}: tmem"] for kind in ("notify", "ISR")) / scripts.PAGES


def text(title: str, phase: Phase) -> str:
    """All exits of a phase, for people."""
    lines = [f"{n / scripts.PAGES:9.3f} {what}" for what, n in phase.details.most_common()]
    return "\n".join([title, *lines, ""])


def trace(
    report: Report, lab: Lab, folder: Path, settings: Sequence[Setting]
) -> dict[str, list[Found]]:
    """Runs a guest in a guest for each setting, round by round, and returns what was traced."""
    corpus = [path for pattern in CORPUS for path in Path("/").glob(pattern)]
    archive = initramfs.make(folder, scripts.inner(), {"corpus": corpus})
    runs = [
        (
            setting.name,
            inside(
                archive, f"{round_}-{number}", setting, ["tmem"] if number else list(SUBJECTS)
            ),
        )
        for round_ in range(ROUNDS)
        for number, setting in enumerate(settings)
        if number == 0 or round_ < COMPARED_ROUNDS
    ]
    found: dict[str, list[Found]] = {}
    for first in range(0, len(runs), RUNS_OF_HOST):
        some = runs[first : first + RUNS_OF_HOST]
        report.say(f"{first}/{len(runs)}: booting an emulated guest that is a host")
        ended_well = with_host(report, lab, folder, [run_ for _, run_ in some])
        for name, run_ in some:
            if run_ in ended_well:
                traced = read(folder / "results" / run_.folder.name, lab.name)
                found.setdefault(name, []).append(traced)
    assert settings[0].name in found, RESET
    return found


def with_host(
    report: Report, lab: Lab, folder: Path, runs: Sequence[scripts.Inside]
) -> list[scripts.Inside]:
    """Makes some runs in an emulated guest that is their host, and returns those that ended well."""
    for _ in range(1, HOSTS):
        try:
            return in_host(report, lab, folder, runs)
        except (AssertionError, Deadline) as error:
            report.say(f"once more: {str(error).partition(chr(10))[0]}")
    return in_host(report, lab, folder, runs)


def in_host(
    report: Report, lab: Lab, folder: Path, runs: Sequence[scripts.Inside]
) -> list[scripts.Inside]:
    """The same, once."""
    results = lab.disk("results", 1024)
    machine = Machine(
        MEMORY_MIB,
        cpus=2,
        disks=[results],
        kernel=paths.kernel_release().replace("-cloud-", "-"),
        options=["-cpu", CPU],
    )
    guest = lab.prepare(scripts.outer(INSIDE, runs), machine)
    try:
        guest.boot()
        for run_ in runs:
            guest.wait_for(run_.name, SECONDS, lambda said, name=run_.name: name in said.steps)
            report.say(f"a guest is traced: {run_.name}")
        guest.finish(SECONDS)
    finally:
        guest.end()
    with tarfile.open(results.path) as tar:
        tar.extractall(folder / "results", filter="data")
    return [run_ for run_ in runs if guest.any_step(run_.name).status == 0]


def inside(
    archive: Path, name: str, setting: Setting, subjects: Sequence[str]
) -> scripts.Inside:
    """A guest in the guest."""
    folder = INSIDE / name
    daemons = [
        Daemon(
            folder,
            "roomy",
            slot=ROOMY,
            options=setting.options,
            **dict(word.split("=", 1) for word in setting.properties.split()),
        ),
        Daemon(folder, "full", slot=FULL, capacity="1MiB"),
        Daemon(folder, "windowed", slot=WINDOWED, window=f"{WINDOW_MIB}MiB"),
    ]
    windows = [daemon.window for daemon in daemons if daemon.window is not None]
    for window in windows:
        # There is no file yet whose size could be looked at.
        window.size = WINDOW_MIB << 20
    disks = [Disk(name, folder / f"{name}.img") for name in ("swap", "files")]
    # What the kernel does not know goes to the environment of its first process.
    words = f'PARAMETERS="{setting.parameters}" SUBJECTS="{" ".join(subjects)}"'
    words += f' SYSCTLS="{setting.sysctls}"'
    words += " BUSY=1" if setting.busy else ""
    options = "console=ttyS0 ignore_loglevel mitigations=off no_timer_check panic=-1"
    qemu = [
        *("qemu-system-x86_64", "-accel", "kvm", "-cpu", "host", "-machine", "q35"),
        *("-m", f"{INNER_MIB}M", "-smp", "1", "-display", "none", "-nodefaults", "-no-reboot"),
        *("-serial", "file:console.log", "-serial", "file:output.log"),
        *("-object", f"memory-backend-memfd,id=mem,size={INNER_MIB}M,share=on,prealloc=on"),
        *("-numa", "node,memdev=mem", "-kernel", str(paths.kernel())),
        *("-initrd", str(paths.in_guest(archive)), "-append", f"{options} {words}"),
        *(word for device in (*disks, *daemons) for word in device.qemu_options()),
    ]
    return scripts.Inside(
        f"{name} {setting.name}",
        folder,
        [disk.name for disk in disks],
        windows,
        [
            ([str(paths.in_guest(Path(word))) for word in daemon.command()], daemon.socket)
            for daemon in daemons
        ],
        qemu,
    )


def read(folder: Path, name: str) -> Found:
    """What was traced of one guest."""
    for log in ("console", "output"):
        shutil.copy(folder / f"{log}.log", paths.LOGS / f"{name}.{folder.name}.{log}.log")
    said = Transcript()
    for line in (folder / "output.log").read_text(errors="replace").splitlines():
        said.add(line)
    gave_up = [mark for mark in said.marks if mark.startswith("gave up")]
    assert "finished" in said.marks and not gave_up, "\n".join([*gave_up, *said.lines[-30:]])
    names = [
        obj["phase"]
        for step in said.steps.values()
        for obj in step.objects
        if obj.get("of") == "phase" and not obj["phase"].startswith(scripts.START)
    ]
    devices = Devices(line for step in said.steps.values() for line in step.lines)
    shown = folder / "trace.txt"
    with shown.open("w") as file:
        command = ["trace-cmd", "report", "-R", "-i", folder / "trace.dat"]
        subprocess.run(command, check=True, stdout=file, stderr=subprocess.DEVNULL)
    with shown.open() as lines:
        found = list(phases(exits(lines), devices))
    assert len(found) == len(names), f"{len(found)} phases in the trace, but {len(names)} were said"
    pairs = (name.split("/") for name in names)
    return {(pair[0], pair[1]): phase for pair, phase in zip(pairs, found, strict=True)}
