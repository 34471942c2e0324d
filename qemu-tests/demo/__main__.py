# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Runs the demonstration; `make demo` does so in the toolbox."""

import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

from harness import paths
from harness.daemon import Daemon, Stat
from harness.guest import Guest
from harness.lab import Lab
from harness.process import Deadline
from harness.qmp import Qmp
from harness.small import SmallMachine

from . import load
from .result import Result, table, write
from .view import Moment, View

# Both guests together may take ten minutes; they take less than half of that.
LIMIT_SECONDS = 590.0

CAPACITY_MIB = 2048

# How large the window is, if the guest is to have one.
WINDOW = None if os.environ.get("TMEM_WINDOW") == "off" else "2GiB"


class Balloon:
    """Takes from a guest what it is to be taken, once it has come so far."""

    def __init__(self, guest: Guest, qmp: Qmp) -> None:
        self._guest = guest
        self._qmp = qmp
        self._steps = dict(load.BALLOON)

    def tend(self) -> None:
        """Goes on where there is something to do."""
        for mark, (mib, done) in list(self._steps.items()):
            if mark not in self._guest.transcript.marks:
                continue
            self._qmp.ask("balloon", value=mib << 20)
            if self._qmp.ask("query-balloon")["actual"] == mib << 20:
                self._guest.tell(done)
                del self._steps[mark]


class Show:
    """Runs the guests and shows how they are getting on."""

    def __init__(self, lab: Lab, start: float, view: View) -> None:
        self._lab = lab
        self._end = start + LIMIT_SECONDS
        self._view = view

    def run(self, title: str, with_module: bool) -> Result:
        """Runs one of them."""
        name = "with" if with_module else "without"
        folder = self._lab.folder / name
        folder.mkdir()
        window = WINDOW if with_module else None
        daemon = self._lab.start(
            Daemon(folder, name, capacity=f"{CAPACITY_MIB}MiB", window=window)
        )
        disks = [
            self._lab.disk("swap", load.ANON_MIB + 512),
            self._lab.disk("files", load.FILES_MIB + 256, "ext4"),
        ]
        monitor = folder / "qmp"
        machine = SmallMachine(
            load.MACHINE_MIB,
            disks=disks,
            devices=[daemon],
            options=[*Qmp.qemu_options(monitor), "-device", "virtio-balloon-pci"],
            modules=["virtio_balloon"],
            # Whom a balloon has killed is in the table.
            allowed=["invoked oom-killer", "Out of memory", "Call Trace"],
        )
        moment = Moment(capacity=CAPACITY_MIB * 256)
        guest = self._lab.prepare(load.script(with_module), machine)
        guest.boot(lambda: self._tick(title, moment))
        qmp = Qmp(monitor)
        balloon = Balloon(guest, qmp)
        most = 0
        loaded: Stat | None = None
        while "measured" not in guest.transcript.marks:
            if not guest.running:
                guest.finish(1)
            stat = daemon.stat()
            most = max(most, held(stat))
            if loaded is None and "loaded" in guest.transcript.marks:
                # Without what comes while the balloon is inflated.
                loaded = daemon.stat()
                guest.tell("go")
            observe(moment, guest, stat, qmp)
            balloon.tend()
            self._tick(title, moment)
        assert loaded is not None
        qmp.close()
        guest.tell("leave")
        guest.finish(60)
        for phase in load.PHASES:
            guest.step(phase)
        daemon.end()
        for disk in disks:
            disk.path.unlink()
        self._view.say(f"{title}: done")
        return Result.of(guest, loaded, most)

    def _tick(self, title: str, moment: Moment) -> None:
        if time.monotonic() > self._end:
            raise Deadline(f"the demonstration took longer than {LIMIT_SECONDS:.0f} s")
        self._view.show(title, moment)
        time.sleep(1)


def held(stat: Stat) -> int:
    """Pages that the host has memory for: stored, or lent."""
    return stat.persistent.pages + stat.ephemeral.pages + stat.granted


def observe(moment: Moment, guest: Guest, stat: Stat, qmp: Qmp) -> None:
    """Learns what there is to know without asking the guest."""
    began = [name for name in load.PHASES if name in guest.transcript.steps]
    moment.phase = load.PHASES[began[-1]] if began else "setting up"
    moment.held = held(stat)
    moment.host_swapins = stat.persistent.gets_hit
    moment.host_files = stat.ephemeral.gets_hit
    moment.asked = stat.persistent.gets + stat.ephemeral.gets
    moment.window = sum(window["hits"] for window in stat.windows)
    sectors = qmp.sectors()
    moment.swap_read, moment.swap_written = sectors["swap"]
    moment.files_read, moment.files_written = sectors["files"]


@contextmanager
def folder() -> Iterator[Path]:
    """A folder that is gone afterwards."""
    parent = paths.BUILD / "qemu"
    parent.mkdir(parents=True, exist_ok=True)
    path = Path(tempfile.mkdtemp(prefix="demo-", dir=parent))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def stopped(number: int, _frame: FrameType | None) -> NoReturn:
    """Lets a signal end everything in order."""
    sys.exit(128 + number)


def main() -> int:
    """Runs both guests and prints what came out."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stopped)
    start = time.monotonic()
    view = View(start)
    with folder() as path:
        lab = Lab("demo", path)
        try:
            paths.module()
            show = Show(lab, start, view)
            without = show.run("1/2 without the module", False)
            with_module = show.run("2/2 with the module", True)
        except (paths.Missing, AssertionError, Deadline, OSError) as error:
            view.say(f"demo: error: {error}")
            return 1
        finally:
            lab.close()
    print(f"\n{table(without, with_module)}")
    if WINDOW is None:
        print("Pages went by requests. Without TMEM_WINDOW=off they go by way of a window.\n")
    else:
        print(
            "Pages went by way of a window: memory of the host that the guest copies to and from"
            " by itself.\nTMEM_WINDOW=off shows what requests come to.\n"
        )
    result = paths.BUILD / "demo.json"
    write(result, without, with_module, paths.kernel_release())
    print(f"The same as JSON: {result.relative_to(paths.REPO)}")
    return 0


sys.exit(main())
