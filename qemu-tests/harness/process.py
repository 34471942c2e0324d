# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Processes that never outlive a test, and conditions that are waited for."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from . import paths

# How much longer than usual things may take, to guests above all.
SLOWNESS = 8 if paths.DEBUG else 1


class Deadline(Exception):
    """Something took longer than it may."""


def wait_until(
    what: str,
    seconds: float,
    condition: Callable[[], bool],
    meanwhile: Callable[[], None] = lambda: None,
) -> None:
    """Returns as soon as `condition` holds; calls `meanwhile` while it does not."""
    seconds *= SLOWNESS
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise Deadline(f"{what}: not within {seconds:.0f} s")
        meanwhile()
        time.sleep(0.05)


def cpu_seconds(pid: int) -> float:
    """For how long a process has run on a CPU, in all of its threads."""
    # The name, in parentheses, may have anything in it; the 14th and 15th field are the times.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Idleness:
    """Whether a process does next to nothing, as seen from one look to the next."""

    # A QEMU whose guest sleeps still wakes up now and then, which takes 1 to 4 % of a CPU.
    SHARE = 0.1

    def __init__(self, pid: int, seconds: float) -> None:
        self._pid = pid
        self._seconds = seconds
        self._used = cpu_seconds(pid)
        self._since = time.monotonic()

    def reached(self) -> bool:
        """Whether it has rested for the last so many seconds; asked too early, it has not."""
        now = time.monotonic()
        if now - self._since < self._seconds:
            return False
        used = cpu_seconds(self._pid)
        rested = used - self._used < self.SHARE * (now - self._since)
        self._used, self._since = used, now
        return rested


@contextmanager
def stopped(*pids: int) -> Iterator[None]:
    """Has processes stand still for as long as the block takes."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in reversed(pids):
            os.kill(pid, signal.SIGCONT)


class Group:
    """A process with all of its descendants."""

    def __init__(
        self,
        command: Sequence[str | Path],
        stdout: int | IO[bytes],
        stderr: int | IO[bytes],
        env: Mapping[str, str] | None = None,
        stdin: int = subprocess.DEVNULL,
    ) -> None:
        self.process = subprocess.Popen(
            [str(word) for word in command],
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            env=None if env is None else dict(env),
            start_new_session=True,
        )

    @property
    def running(self) -> bool:
        """Whether the process itself has not ended yet."""
        return self.process.poll() is None

    def wait(self, what: str, seconds: float) -> int:
        """Waits for the process to end by itself, and returns its status."""
        seconds *= SLOWNESS
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise Deadline(f"{what}: not ended within {seconds:.0f} s") from None

    def signal(self, number: signal.Signals) -> None:
        """Sends the whole group a signal."""
        try:
            os.killpg(self.process.pid, number)
        except ProcessLookupError:
            pass

    def end(self, grace: float = 5.0) -> None:
        """Ends the whole group: politely, and then for certain."""
        if self.running:
            self.signal(signal.SIGTERM)
            try:
                self.process.wait(grace)
            except subprocess.TimeoutExpired:
                pass
        self.signal(signal.SIGKILL)
        self.process.wait()
