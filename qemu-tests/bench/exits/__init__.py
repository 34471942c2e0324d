# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Exits of a guest for each page, as KVM traces them in a guest that is emulated."""

import shutil
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path

from harness import paths
from harness.daemon import Daemon
from harness.disks import Disk
from harness.guest import Machine
from harness.lab import Lab
from harness.steps import Transcript

from ..pages import FULL, ROOMY
from ..report import Report
from ..table import NESTED
from . import initramfs, scripts
from .settings import Setting, asked_for
from .trace import KINDS, WORK, Devices, Phase, exits, phases

SECONDS = 1700

# Where the emulated guest has what its own guests need.
INSIDE = Path("/run/bench")

# The generic kernel can be a host on this CPU.
CPU = "EPYC,+svm,+npt"
MEMORY_MIB = 2048
INNER_MIB = 256

# What is measured first, by the beginning of phases' names.
SUBJECTS = {
    "disk": "virtio-blk",
    "tmem": "virtio-tmem",
    "refused": "virtio-tmem, the host being full",
}

# What was traced, by subject and phase.
Found = dict[tuple[str, str], Phase]


def run(report: Report, folder: Path) -> None:
    """Traces, and makes tables of it."""
    first = Setting("as it is")
    settings = [first, *asked_for()]
    lab = Lab("bench-exits", folder)
    try:
        found = trace(report, lab, folder, settings)
    finally:
        lab.close()
    table = report.table(
        "exits",
        "Exits for each page, by what they are for",
        ["work", *KINDS],
        NESTED,
        number=",.3f",
    )
    for (subject, name), phase in found[0].items():
        kinds = [phase.kinds[kind] / scripts.PAGES for kind in KINDS]
        table.add(f"{name}, {SUBJECTS[subject]}", work(phase), *kinds)
    names = [name for subject, name in found[0] if subject == "tmem"]
    compared = report.table(
        "settings", "Exits for each page, by how it is set up", names, NESTED, number=",.3f"
    )
    for setting, traced in zip(settings, found, strict=True):
        compared.add(setting.name, *(work(traced["tmem", name]) for name in names))
    details = [
        text(f"{setting.name}: {subject}/{name}", phase)
        for setting, traced in zip(settings, found, strict=True)
        for (subject, name), phase in traced.items()
    ]
    (report.folder / "details.txt").write_text("\n".join(details))


def work(phase: Phase) -> float:
    """Exits a page, without the clock's and those of memory that is touched first."""
    return sum(phase.kinds[kind] for kind in WORK) / scripts.PAGES


def text(title: str, phase: Phase) -> str:
    """All exits of a phase, for people."""
    lines = [f"{n / scripts.PAGES:9.3f} {what}" for what, n in phase.details.most_common()]
    return "\n".join([title, *lines, ""])


def trace(report: Report, lab: Lab, folder: Path, settings: Sequence[Setting]) -> list[Found]:
    """Runs a guest in a guest for each setting, and returns what was traced."""
    archive = initramfs.make(folder, scripts.inner())
    runs = [
        inside(archive, number, setting, SUBJECTS if number == 0 else ["tmem"])
        for number, setting in enumerate(settings)
    ]
    results = lab.disk("results", 1024)
    machine = Machine(
        MEMORY_MIB,
        cpus=2,
        disks=[results],
        kernel=paths.kernel_release().replace("-cloud-", "-"),
        options=["-cpu", CPU],
    )
    report.say("booting an emulated guest that is a host")
    guest = lab.prepare(scripts.outer(INSIDE, runs), machine)
    guest.boot()
    for setting in settings:
        guest.wait_for(setting.name, SECONDS, lambda said, name=setting.name: name in said.steps)
        report.say(f"its guest is traced: {setting.name}")
    guest.finish(SECONDS)
    with tarfile.open(results.path) as tar:
        tar.extractall(folder / "results", filter="data")
    report.say("reading the traces")
    return [read(folder / "results" / run.folder.name, lab.name) for run in runs]


def inside(
    archive: Path, number: int, setting: Setting, subjects: Sequence[str]
) -> scripts.Inside:
    """A guest in the guest."""
    folder = INSIDE / str(number)
    daemons = [
        Daemon(
            folder,
            "roomy",
            slot=ROOMY,
            options=setting.options,
            properties=setting.properties,
        ),
        Daemon(folder, "full", slot=FULL, capacity="1MiB"),
    ]
    disks = [Disk(name, folder / f"{name}.img") for name in ("swap", "files")]
    # What the kernel does not know goes to the environment of its first process.
    words = f'PARAMETERS="{setting.parameters}" SUBJECTS="{" ".join(subjects)}"'
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
        setting.name,
        folder,
        [disk.name for disk in disks],
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
    assert "finished" in said.marks, "\n".join(said.lines[-30:])
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
