# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The daemon, its peers and the driver, each on its processor."""

import json
import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from harness.daemon import Daemon, Device
from harness.paths import binary

# Pages to put and to get: 512 MiB, many times what any cache holds.
PAGES = 131072

# What the daemon has room for: all pages, with what it needs to find them.
CAPACITY = "768MiB"

# What it has room for where any of many guests puts all pages.
MANY_CAPACITY = "1536MiB"

# Requests in flight, unless a table says otherwise.
DEPTH = 32

# The algorithms of the daemon's option --compression.
COMPRESSIONS = ("none", "lz4", "zstd")


def processors() -> tuple[int, int]:
    """The driver's processor, and that of the daemon and its peers."""
    allowed = sorted(os.sched_getaffinity(0))
    assert len(allowed) >= 2, "this takes two processors"
    return allowed[1], allowed[0]


def _on(cpu: int, command: Sequence[str | Path]) -> list[str | Path]:
    return ["taskset", "--cpu-list", str(cpu), *command]


class PinnedDaemon(Daemon):
    """The daemon, on one processor, with a socket for each of its guests."""

    def __init__(
        self, folder: Path, name: str, guests: int = 1, options: Sequence[str] = ()
    ) -> None:
        # Half of what there is is promised to all guests in equal parts. One beside others, who put
        # nothing, has the other half, and its own part.
        capacity = CAPACITY if guests == 1 else MANY_CAPACITY
        super().__init__(folder, name, capacity=capacity)
        self.sockets = [folder / f"{name}-{n}.sock" for n in range(guests)]
        self.socket = self.sockets[-1]
        self._options = list(options)

    def command(self) -> list[str | Path]:
        command: list[str | Path] = [binary("vhost-device-tmem")]
        for socket in self.sockets:
            command += ["--socket-path", socket]
        command += ["--control-path", self.control, "--capacity", self._capacity]
        command += ["--data-queues", str(self.data_queues), "--stop-loses-pages", *self._options]
        return _on(processors()[1], command)


class BlockDevice(Device):
    """qemu-storage-daemon, on one processor, with a disk on the host's memory."""

    def __init__(self, folder: Path, name: str, node: str) -> None:
        super().__init__(folder, name)
        self._node = node

    def command(self) -> list[str | Path]:
        return _on(
            processors()[1],
            [
                "qemu-storage-daemon",
                "--object",
                "iothread,id=worker",
                "--blockdev",
                f"{self._node},node-name=disk",
                "--export",
                "type=vhost-user-blk,id=export,node-name=disk,writable=on,iothread=worker,"
                f"addr.type=unix,addr.path={self.socket}",
            ],
        )


# The disks of qemu-storage-daemon. A file in memory is what a user would take, by the kind of
# asynchronous input and output that is the fastest there. The other one copies nothing: it is the
# least that a request can cost.
FILE = "disk in memory"
NULL = "disk that copies nothing"


class Bench:
    """All that a measurement needs, running."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._disk = Path(f"/dev/shm/tmem-bench-{os.getpid()}")
        self.daemons: list[PinnedDaemon] = []
        self.disks: dict[str, int] = {}
        self._devices: list[Device] = []
        self._drivers: list[Driver] = []

    def __enter__(self) -> "Bench":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
        self._disk.unlink(missing_ok=True)

    def close(self) -> None:
        """Ends what runs."""
        for driver in self._drivers:
            driver.end()
        for device in self._devices:
            device.end()
        self._drivers.clear()
        self._devices.clear()

    def daemon(self, name: str, guests: int = 1, options: Sequence[str] = ()) -> PinnedDaemon:
        """Starts a daemon; one that does not know an option raises AssertionError."""
        daemon = PinnedDaemon(self._folder, name, guests, options)
        self._devices.append(daemon)
        daemon.start()
        return daemon

    def disk(self, kind: str) -> BlockDevice:
        """Starts a peer."""
        size = PAGES * 4096
        if kind == FILE:
            with self._disk.open("wb") as file:
                # So that no write has to find memory first.
                for _ in range(size >> 20):
                    file.write(b"\1" * (1 << 20))
            node = f"driver=file,filename={self._disk},cache.direct=on,aio=native"
        else:
            node = f"driver=null-co,size={size},read-zeroes=off"
        device = BlockDevice(self._folder, kind.replace(" ", "-"), node)
        self._devices.append(device)
        device.start()
        return device

    def driver(
        self, daemons: Sequence[PinnedDaemon], disks: Sequence[BlockDevice] = ()
    ) -> "Driver":
        """Starts the driver, as the guest of all of these."""
        driver = Driver(daemons, disks)
        self._drivers.append(driver)
        return driver


def _cpu_seconds(device: Device) -> float:
    """The processor time that a device's processes have had, by their clocks."""
    # What clock_getcpuclockid(3) returns.
    return sum(time.clock_gettime((~pid << 3) | 2) for pid in device.pids)


class Driver:
    """The program that sends requests, and measures them."""

    def __init__(self, daemons: Sequence[PinnedDaemon], disks: Sequence[BlockDevice]) -> None:
        own, other = processors()
        self._guests = [daemon for daemon in daemons for _ in daemon.sockets]
        self._disks = list(disks)
        command: list[str | Path] = [binary("tmem-daemon-load"), "--pages", str(PAGES)]
        command += ["--cpu", str(own), "--device-cpu", str(other)]
        for socket in (socket for daemon in daemons for socket in daemon.sockets):
            command += ["--tmem", socket]
        for disk in disks:
            command += ["--blk", disk.socket]
        self._process = subprocess.Popen(
            [str(word) for word in _on(own, command)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def _run(self, run: str, **words: Any) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps({"run": run, **words}) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, f"the driver ended with status {self._process.wait()}"
        return json.loads(answer) or {}

    def contents(self, path: Path) -> None:
        """Fills the pages that are put."""
        self._run("contents", path=str(path))

    def empty(self, first: int = 0, guests: int = 1) -> None:
        """Has guests forget all that they put."""
        self._run("empty", first=first, guests=guests)

    def tmem(
        self,
        operation: str,
        first: int = 0,
        guests: int = 1,
        queues: int = 1,
        batch: int = 1,
        depth: int = DEPTH,
        **pace: Any,
    ) -> "Outcome":
        """Requests to the daemon."""
        words = {"guests": guests, "queues": queues, "batch": batch, "depth": depth}
        served_by = self._guests[first]
        return self._timed(served_by, "tmem", operation=operation, first=first, **words, **pace)

    def _timed(self, served_by: Device, run: str, **words: Any) -> "Outcome":
        before = _cpu_seconds(served_by)
        found = self._run(run, **words)
        return Outcome({**found, "cpu_seconds": _cpu_seconds(served_by) - before})

    def disk(
        self, device: int, write: bool, batch: int = 1, depth: int = DEPTH, **pace: Any
    ) -> "Outcome":
        """Requests to a block device."""
        words = {"write": write, "batch": batch, "depth": depth}
        return self._timed(self._disks[device], "blk", device=device, **words, **pace)

    def copy(self, out: bool, huge: bool) -> "Outcome":
        """Plain copies of pages."""
        return Outcome(self._run("copy", out=out, huge=huge))

    def compress(self, method: str, decompress: bool) -> "Outcome":
        """Plain compression of the pages, or decompression."""
        return Outcome(self._run("compress", method=method, decompress=decompress))

    def end(self) -> None:
        """Ends the driver."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


class Outcome:
    """What a run came to."""

    def __init__(self, found: dict[str, Any]) -> None:
        self.found = found

    @property
    def rate(self) -> float:
        """Pages a second."""
        return float(self.found["pages"]) / float(self.found["seconds"])

    @property
    def cost(self) -> float:
        """Nanoseconds of processor time that a page took, apart from the driver's."""
        return float(self.found["cpu_seconds"]) / float(self.found["pages"]) * 1e9

    def latency(self, which: str) -> float:
        """Microseconds that requests took: p50, p99 or p999."""
        return int(self.found["latency"][which]) / 1000

    def check(self) -> "Outcome":
        """Every page has to have fared as it should."""
        assert self.found["ok"] == self.found["pages"], f"not all pages fared well: {self.found}"
        return self
