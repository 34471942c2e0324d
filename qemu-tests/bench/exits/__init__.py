# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Exits of a guest for each page, as KVM traces them in a guest that is emulated."""

import shutil
import subprocess
import tarfile
from pathlib import Path

from harness import paths
from harness.daemon import Daemon
from harness.disks import Disk
from harness.guest import Machine
from harness.lab import Lab
from harness.steps import Transcript

from ..report import NESTED, Report
from . import initramfs, scripts
from .trace import KINDS, WORK, Devices, Phase, exits, phases

SECONDS = 1500

# Where the emulated guest has what its own guest needs.
INSIDE = Path("/run/bench")

# The generic kernel can be a host.
CPU = "EPYC,+svm,+npt"
MEMORY_MIB = 2048
INNER_MIB = 256


# What is measured, by the beginning of phases' names.
SUBJECTS = {"disk": "virtio-blk", "tmem": "virtio-tmem"}


def run(report: Report, folder: Path) -> None:
    """Traces, and makes tables of it."""
    lab = Lab("bench-exits", folder)
    try:
        found = trace(report, lab, folder, "", list(SUBJECTS))
    finally:
        lab.close()
    table = report.table(
        "exits",
        "Exits for each page, by what they are for",
        ["work", *KINDS],
        NESTED,
        number=",.3f",
    )
    for (subject, name), phase in found.items():
        kinds = [phase.kinds[kind] / scripts.PAGES for kind in KINDS]
        table.add(f"{name}, {SUBJECTS[subject]}", sum(kinds[: len(WORK)]), *kinds)
    details = "\n\n".join(
        "\n".join(
            [
                f"{subject}/{name}",
                *(f"{n / scripts.PAGES:9.3f} {what}" for what, n in phase.details.most_common()),
            ]
        )
        for (subject, name), phase in found.items()
    )
    (report.folder / "details.txt").write_text(details + "\n")


def trace(
    report: Report, lab: Lab, folder: Path, parameters: str, subjects: list[str]
) -> dict[tuple[str, str], Phase]:
    """Runs the guest in a guest to its end, and returns what was traced in each phase."""
    archive = initramfs.make(folder, scripts.inner(parameters, subjects))
    daemon = Daemon(INSIDE)
    disks = [Disk(name, INSIDE / f"{name}.img") for name in ("swap", "files")]
    script = scripts.outer(
        INSIDE,
        [disk.name for disk in disks],
        [str(paths.in_guest(Path(word))) for word in daemon.command()],
        daemon.socket,
        qemu(archive, daemon, disks),
    )
    results = lab.disk("results", 512)
    machine = Machine(
        MEMORY_MIB,
        cpus=2,
        disks=[results],
        kernel=paths.kernel_release().replace("-cloud-", "-"),
        options=["-cpu", CPU],
    )
    report.say("booting an emulated guest that is a host")
    guest = lab.prepare(script, machine)
    guest.boot()
    report.say("its guest is traced")
    guest.finish(SECONDS)
    with tarfile.open(results.path) as tar:
        tar.extractall(folder, filter="data")
    for log in ("console", "output"):
        shutil.copy(folder / f"{log}.log", paths.LOGS / f"{lab.name}-inner.{log}.log")
    report.say("reading the trace")
    return read(folder)


def read(folder: Path) -> dict[tuple[str, str], Phase]:
    """What was traced, by subject and phase."""
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
    return {
        (name.split("/")[0], name.split("/")[1]): phase
        for name, phase in zip(names, found, strict=True)
    }


def qemu(archive: Path, daemon: Daemon, disks: list[Disk]) -> list[str]:
    """How the guest in the guest is started."""
    command = ["qemu-system-x86_64", "-accel", "kvm", "-cpu", "host", "-machine", "q35"]
    command += ["-m", f"{INNER_MIB}M", "-smp", "1", "-display", "none", "-nodefaults"]
    command += ["-no-reboot", "-serial", "file:console.log", "-serial", "file:output.log"]
    command += ["-object", f"memory-backend-memfd,id=mem,size={INNER_MIB}M,share=on,prealloc=on"]
    command += ["-numa", "node,memdev=mem", "-kernel", str(paths.kernel())]
    command += ["-initrd", str(paths.in_guest(archive))]
    command += ["-append", "console=ttyS0 ignore_loglevel mitigations=off no_timer_check panic=-1"]
    for disk in disks:
        command += disk.qemu_options()
    return command + daemon.qemu_options()
