# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Guests, booted by virtme-ng."""

import os
import shlex
import subprocess
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from . import paths
from .daemon import Device
from .disks import Disk
from .guestlog import bad_lines
from .process import SLOWNESS, Deadline, Group, wait_until
from .steps import Snapshot, Step, Transcript

BOOT_SECONDS = 300.0

# Drivers of devices that the tests do not need. Loading them is half of the boot.
NOT_LOADED = (
    "kvm kvm_amd ahci libata sr_mod cdrom sg scsi_mod evdev serio_raw button i6300esb watchdog"
    " qemu_fw_cfg"
).split()

# On a machine that is busy, the kernel takes a late timer for a broken one.
KERNEL_OPTIONS = "ignore_loglevel log_buf_len=4M mitigations=off no_timer_check"

# What a kernel with its checks on needs: more memory, for what it knows of all other memory and for
# code that is larger; and to say all, whether the kernel or the script finds it.
#
# It has to write to each page that it allocates, as Debian's kernel does by default. Daemons write
# to the guest's memory past QEMU, which would not notice that the code that it has translated of a
# page is not there any more, and go on to run that.
DEBUG_MIB = 192
DEBUG_OPTIONS = "kasan_multi_shot watchdog_thresh=60 printk.devkmsg=on init_on_alloc=1"

# What the kernel says only after it has begun to run.
KERNEL_RUNS = "Linux version"


# What the driver counts of pages that went out, and that came back, whichever way.
OUT = ("stored", "window_puts")
BACK = ("hits", "staged_hits", "window_hits")


@dataclass
class Machine:
    """What a guest is made of."""

    memory_mib: int = 320
    cpus: int = 2
    disks: Sequence[Disk] = ()
    devices: Sequence[Device] = ()
    # The release, if it is not the one that modules are built for.
    kernel: str | None = None
    append: str = ""
    options: Sequence[str] = ()
    allowed: Sequence[str] = ()

    # Whether it is told by a line on its standard input, and not by a file.
    listens: ClassVar[bool] = False

    def parts(self) -> list[str]:
        """What QEMU has to be told of devices and disks, and else."""
        options = list(self.options)
        for device in self.devices:
            options += device.qemu_options()
        for disk in self.disks:
            options += disk.qemu_options()
        return options

    def wrap(self, folder: Path, script: str) -> str:
        """The script with what comes before and after it."""
        return "\n".join(
            (
                f"RUN={_quoted(folder)}",
                f"SLOWNESS={SLOWNESS}",
                f"WORKLOAD={_quoted(paths.binary('tmem-workload'))}",
                f". {_quoted(paths.GUEST / 'lib.sh')}",
                "trap 'leaks; mark finished' EXIT",
                "mark booted",
                script,
            )
        )

    def mib(self) -> int:
        """How much memory it really has, in MiB."""
        return self.memory_mib + (DEBUG_MIB if paths.DEBUG else 0)

    def options_of_kernel(self) -> str:
        """What the kernel is told."""
        options = (KERNEL_OPTIONS, DEBUG_OPTIONS if paths.DEBUG else "", self.append)
        return " ".join(filter(None, options))

    def command(self, script: Path) -> list[str]:
        """How virtme-ng is called."""
        kernel_options = f"{self.options_of_kernel()} modprobe.blacklist={','.join(NOT_LOADED)}"
        return [
            "vng",
            "--verbose",
            "--disable-kvm",
            "--disable-microvm",
            f"--run={paths.kernel(self.kernel)}",
            "--user=root",
            f"--memory={self.mib()}M",
            f"--cpus={self.cpus}",
            f"--append={kernel_options}",
            f"--qemu-opts={shlex.join(self.parts())}",
            "--",
            f"bash {_quoted(script)}",
        ]


def _quoted(path: Path) -> str:
    return shlex.quote(str(paths.in_guest(path)))


class Guest:
    """A guest that runs a script, and what it says."""

    def __init__(self, name: str, folder: Path, machine: Machine, script: str) -> None:
        self.name = name
        self.transcript = Transcript()
        self.status: int | None = None
        self._folder = folder
        self._machine = machine
        self._console = paths.LOGS / f"{name}.console.log"
        self._output = paths.LOGS / f"{name}.output.log"
        self._told = folder / "told"
        self._script = folder / "script.sh"
        self._group: Group | None = None
        self._reader: threading.Thread | None = None
        self._told.mkdir()
        self._script.write_text(machine.wrap(folder, script))

    def boot(self, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Starts the guest and returns once its script runs; does something `meanwhile`.

        The start of virtiofsd is a race in virtme-ng 1.35 that now and then leaves a guest without
        a root. A guest of which the kernel never ran its script, and never came as far as our
        module, is started once more.
        """
        for attempt in (1, 2):
            self._start()
            try:
                wait_until(f"{self.name} to boot", BOOT_SECONDS, self._booted_or_ended, meanwhile)
                if self.running or self.transcript.marks:
                    return
                why = f"ended with {self._wait()}"
            except Deadline as late:
                why = str(late)
            self.end()
            console = self.console()
            bad = [line for line in bad_lines(console) if "not syncing" not in line]
            if attempt == 2 or any("virtio_tmem" in line for line in console):
                raise AssertionError(f"{self.name} did not boot: {why}\n{self._tail()}")
            print(f"{self.name}: {why} before its script ran; starting it again", *bad, sep="\n")

    def _start(self) -> None:
        paths.LOGS.mkdir(parents=True, exist_ok=True)
        self.transcript = Transcript()
        path = f"{paths.GUEST / 'bin'}:{os.environ['PATH']}"
        self._console.unlink(missing_ok=True)
        # A guest that opens it once more appends to it, too.
        with self._console.open("ab") as console:
            self._group = Group(
                self._machine.command(self._script),
                stdin=subprocess.PIPE if self._machine.listens else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=console,
                env={**os.environ, "PATH": path},
            )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._group is not None and self._group.process.stdout is not None
        with self._output.open("w") as log:
            for raw in self._group.process.stdout:
                line = raw.decode(errors="replace")
                log.write(line)
                log.flush()
                self.transcript.add(line)

    def _booted_or_ended(self) -> bool:
        return bool(self.transcript.marks) or not self.running

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._group is not None and self._group.running

    def _wait(self) -> int:
        assert self._group is not None
        return self._group.wait(self.name, 10)

    def wait_for(self, what: str, seconds: float, condition: Callable[[Transcript], bool]) -> None:
        """Waits until what the guest has said meets a condition."""

        def met() -> bool:
            if condition(self.transcript):
                return True
            if not self.running:
                raise AssertionError(f"{self.name} ended before {what}\n{self._tail()}")
            return False

        wait_until(f"{self.name}: {what}", seconds, met)

    def wait_for_mark(self, mark: str, seconds: float) -> None:
        """Waits until the script has come as far as a mark."""
        self.wait_for(f"mark {mark}", seconds, lambda said: mark in said.marks)

    def wait_for_text(self, step: str, text: str, seconds: float) -> None:
        """Waits until a step's output has a text."""

        def said(transcript: Transcript) -> bool:
            return step in transcript.steps and text in transcript.steps[step].text

        self.wait_for(f"{text!r} in {step}", seconds, said)

    def wait_for_log(self, text: str, seconds: float, times: int = 1) -> None:
        """Waits until so many lines of the kernel's log have a text."""

        def said(_: Transcript) -> bool:
            return sum(text in line for line in self.console()) >= times

        self.wait_for(f"{text!r} in the log", seconds, said)

    def tell(self, name: str) -> None:
        """Lets `told NAME` become true in the guest."""
        if not self._machine.listens:
            (self._told / name).touch()
            return
        assert self._group is not None and self._group.process.stdin is not None
        self._group.process.stdin.write(name.encode() + b"\n")
        self._group.process.stdin.flush()

    def finish(self, seconds: float) -> None:
        """Waits for the end, and fails if the guest or its log is not as it should be."""
        assert self._group is not None and self._reader is not None
        try:
            self.status = self._group.wait(self.name, seconds)
            self._reader.join(10)
        except Deadline as late:
            self.end()
            raise AssertionError(f"{late}\n{self._tail()}") from None
        self.check_log()
        assert "finished" in self.transcript.marks, f"the script did not end\n{self._tail()}"
        assert self.status == 0, f"the guest ended with {self.status}\n{self._tail()}"

    def check_log(self) -> None:
        """Fails if the kernel has complained of anything."""
        bad = bad_lines(self.console(), self._machine.allowed)
        assert not bad, f"{self._console} has:\n" + "\n".join(bad[:20])

    def console(self) -> list[str]:
        """The lines of the guest's console."""
        return self._console.read_text(errors="replace").splitlines()

    def end(self) -> None:
        """Ends the guest, if it has not."""
        if self._group is not None:
            self._group.end()
        if self._reader is not None:
            self._reader.join(10)

    def step(self, name: str) -> Step:
        """A step that must have ended well."""
        step = self.any_step(name)
        assert step.status == 0, step.describe()
        return step

    def any_step(self, name: str) -> Step:
        """A step, however it ended."""
        assert name in self.transcript.steps, f"no step {name}\n{self._tail()}"
        return self.transcript.steps[name]

    def snapshot(self, name: str) -> Snapshot:
        """A snapshot that the script took."""
        assert name in self.transcript.snapshots, f"no snapshot {name}\n{self._tail()}"
        return self.transcript.snapshots[name]

    def _tail(self) -> str:
        said = self.transcript.lines[-30:]
        console = self.console()[-30:]
        return "\n".join(["its last words:", *said, f"{self._console} ends with:", *console])
