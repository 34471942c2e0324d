# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The daemon, and what it counts."""

import json
import os
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .paths import binary
from .process import Group, wait_until
from .qmp import Qmp

DATA_QUEUES = 2

# Any vhost-user device, as QEMU calls it.
DRIVER = "vhost-user-test-device-pci"


@dataclass
class Counts:
    """The daemon's counters of one kind of pool, summed over pools and guests."""

    pages: int = 0
    bytes: int = 0
    puts: int = 0
    puts_stored: int = 0
    puts_refused: int = 0
    gets: int = 0
    gets_hit: int = 0
    flushes: int = 0
    pages_flushed: int = 0
    pages_evicted: int = 0

    def add(self, pool: dict[str, Any]) -> None:
        """Adds a pool's counters."""
        for name in vars(self):
            setattr(self, name, getattr(self, name) + int(pool.get(name, 0)))


class Stat:
    """All that the daemon counts, at one moment."""

    def __init__(self, reply: dict[str, Any]) -> None:
        self.reply = reply
        self.guests: list[dict[str, Any]] = reply["guests"]
        self.used_bytes = int(reply["used_bytes"])
        self.persistent = self._counts("persistent")
        self.ephemeral = self._counts("ephemeral")

    def _counts(self, kind: str) -> Counts:
        counts = Counts()
        for guest in self.guests:
            for pool in guest["pools"]:
                if pool["kind"] == kind:
                    counts.add(pool)
            # Of a pool that is gone, what was done with it counts, and not what it held last.
            counts.add({**guest["dropped"][kind], "pages": 0})
        return counts

    @property
    def windows(self) -> list[dict[str, Any]]:
        """What there is to say of guests' windows, of those that are open."""
        return [guest["window"] for guest in self.guests if guest.get("window")]

    @property
    def granted(self) -> int:
        """Pages of memory that is lent by windows."""
        chunks = (window["chunks"] for window in self.windows)
        return 512 * sum(each["ephemeral"] + each["persistent"] for each in chunks)

    def total(self, name: str) -> int:
        """A counter that guests have, summed over them."""
        return sum(int(guest.get(name, 0)) for guest in self.guests)


class Device:
    """Something that serves a vhost-user socket, run as a process of its own."""

    def __init__(
        self,
        folder: Path,
        name: str,
        data_queues: int = DATA_QUEUES,
        slot: int | None = None,
        **properties: str | int,
    ) -> None:
        self.name = name
        self.data_queues = data_queues
        # What QEMU is told of the device, by the names of its properties.
        self.properties: dict[str, str | int] = {
            "id": f"{name}-device",
            "chardev": name,
            "virtio-id": 6,
            "num_vqs": 2 + data_queues,
            "vq_size": 256,
            "config_size": 64,
            **({} if slot is None else {"addr": f"{slot:#x}"}),
            **properties,
        }
        self.socket = folder / f"{name}.sock"
        self.log = folder / f"{name}.log"
        self._group: Group | None = None

    def command(self) -> list[str | Path]:
        """How it is started."""
        raise NotImplementedError

    def ready(self) -> bool:
        """Whether it can be connected to."""
        return self.socket.exists()

    def start(self) -> None:
        """Starts it and waits until it can be connected to."""
        with self.log.open("ab") as log:
            self._group = Group(self.command(), stdout=log, stderr=log)
        wait_until(f"{self.name} to listen", 20, self._ready_or_dead)

    def _ready_or_dead(self) -> bool:
        if not self.running:
            raise AssertionError(f"{self.name} ended at once:\n{self.log.read_text()}")
        return self.ready()

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._group is not None and self._group.running

    @property
    def pid(self) -> int:
        """Its process."""
        assert self._group is not None
        return self._group.process.pid

    @property
    def pids(self) -> list[int]:
        """All of its processes, the one that looks after the others first."""
        tasks = Path(f"/proc/{self.pid}/task").glob("*/children")
        return [self.pid, *(int(child) for task in tasks for child in task.read_text().split())]

    def kill(self) -> None:
        """Ends it as a crash would."""
        assert self._group is not None
        self._group.signal(signal.SIGKILL)
        self._group.wait(self.name, 10)

    def end(self) -> None:
        """Ends it."""
        if self._group is not None:
            self._group.end()

    def qemu_options(self) -> list[str]:
        """What QEMU has to be told to have it as a device, in a PCI slot if one was named."""
        properties = (f"{name}={value}" for name, value in self.properties.items())
        return [
            "-chardev",
            f"socket,id={self.name},path={self.socket}",
            "-device",
            ",".join((DRIVER, *properties)),
        ]

    def plug(self, qmp: Qmp) -> None:
        """Gives the device to a guest that runs."""
        address = {"type": "unix", "data": {"path": str(self.socket)}}
        backend = {"type": "socket", "data": {"addr": address, "server": False}}
        qmp.ask("chardev-add", id=self.name, backend=backend)
        qmp.ask("device_add", driver=DRIVER, **self.properties)

    def unplug(self, qmp: Qmp) -> None:
        """Takes it away again, and waits until the guest has let go of it."""
        name = self.properties["id"]
        qmp.ask("device_del", id=name)

        def is_gone() -> bool:
            devices = qmp.ask("qom-list", path="/machine/peripheral")
            return name not in (device["name"] for device in devices)

        wait_until(f"{self.name} to be let go of", 100, is_gone)
        qmp.ask("chardev-remove", id=self.name)


class Window:
    """Memory of the host's that a guest copies pages to and from by itself."""

    def __init__(self, folder: Path, name: str, size: str, source: str = "ivshmem") -> None:
        self.name = name
        self._size = size
        # By which device the guest has it: `ivshmem`, or the `virtio` device itself.
        self._source = source
        # A place where memory comes in huge pages; there is one for each daemon.
        self.folder = folder / f"{name}.windows"
        self.file = self.folder / f"{name}.window"
        # What QEMU takes it to be the size of, in bytes; the file's own where it is not told.
        self.size: int | None = None

    def mount_command(self) -> list[str | Path]:
        """How the place for it is made, of a folder."""
        options = ["-o", "huge=always,size=8G"]
        return ["mount", "-t", "tmpfs", *options, "tmem-windows", self.folder]

    def mount(self) -> None:
        """Makes the place for it."""
        self.folder.mkdir(exist_ok=True)
        if not self.folder.is_mount():
            subprocess.run(self.mount_command(), check=True)

    def unmount(self) -> None:
        """Gives the place back."""
        if self.folder.is_mount():
            subprocess.run(["umount", "--lazy", self.folder], check=True)

    def options(self) -> list[str | Path]:
        """What the daemon has to be told."""
        options: list[str | Path] = ["--window-dir", self.folder, "--window-size", self._size]
        return options if self._source == "ivshmem" else [*options, "--window-source", self._source]

    def qemu_options(self, number: int = 0) -> list[str]:
        """What QEMU has to be told, if it is to lend it once more with another number."""
        if self._source != "ivshmem":
            return []
        size = self.file.stat().st_size if self.size is None else self.size
        name = f"{self.name}-window{number or ''}"
        memory = f"memory-backend-file,id={name},mem-path={self.file}"
        return [
            "-object",
            f"{memory},size={size},share=on,align=2M",
            "-device",
            f"ivshmem-plain,memdev={name}",
        ]


class Daemon(Device):
    """The real one."""

    def __init__(
        self,
        folder: Path,
        name: str = "tmem",
        capacity: str = "1GiB",
        data_queues: int = DATA_QUEUES,
        refuse_percent: int = 0,
        slot: int | None = None,
        options: Sequence[str] = (),
        others: Sequence[str] = (),
        window: str | None = None,
        window_source: str | None = None,
        **properties: str | int,
    ) -> None:
        super().__init__(folder, name, data_queues, slot, **properties)
        # Memory that the guest reaches by itself, if it is to have some.
        window = window or os.environ.get("TMEM_TEST_WINDOW") or None
        source = window_source or os.environ.get("TMEM_TEST_WINDOW_SOURCE") or "ivshmem"
        self.window = None if window is None else Window(folder, name, window, source)
        self._options = options
        # Where further guests find it; nothing of their own is to be started.
        self.others = [Device(folder, other, data_queues) for other in others]
        self.control = folder / f"{name}.control"
        self._capacity = capacity
        self._refuse_percent = refuse_percent

    def command(self) -> list[str | Path]:
        command: list[str | Path] = [
            binary("vhost-device-tmem"),
            "--socket-path",
            self.socket,
            "--control-path",
            self.control,
            "--capacity",
            self._capacity,
            "--data-queues",
            str(self.data_queues),
            # Tests end it whatever its guests have put.
            "--stop-loses-pages",
        ]
        for other in self.others:
            command += ["--socket-path", f"{other.name}={other.socket}"]
        if self._refuse_percent:
            command += ["--fault-refuse-percent", str(self._refuse_percent)]
        if self.window is not None:
            command += self.window.options()
        return [*command, *self._options]

    def start(self) -> None:
        if self.window is not None:
            self.window.mount()
        super().start()

    def end(self) -> None:
        super().end()
        if self.window is not None:
            self.window.unmount()

    def qemu_options(self) -> list[str]:
        options = super().qemu_options()
        return options if self.window is None else [*self.window.qemu_options(), *options]

    def ready(self) -> bool:
        places = (self, *self.others)
        return self.control.exists() and all(place.socket.exists() for place in places)

    @property
    def worker(self) -> int:
        """The process that does the work; 0 while there is none."""
        workers = self.pids[1:]
        assert len(workers) <= 1, f"{self.name} has the workers {workers}"
        return workers[0] if workers else 0

    def stat(self) -> Stat:
        """Asks for the counters."""
        return Stat(json.loads(self.operate("stat", "--json")))

    def operate(self, *words: str) -> bytes:
        """Has `tmemctl` do something; returns what it prints."""
        answer = subprocess.run(
            [binary("tmemctl"), "--control-path", self.control, *words],
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            timeout=10,
        )
        return answer.stdout
