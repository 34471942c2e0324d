# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""A place in which a guest, its disks and its devices are put together."""

import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from . import paths
from .daemon import Daemon, Device
from .disks import Disk
from .guest import Guest, Machine


class Lab:
    """Makes the parts, and ends them all when it is closed."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self._folder = folder
        self._devices: list[Device] = []
        self._guests: list[Guest] = []

    def daemon(self, **options: Any) -> Daemon:
        """Starts the daemon."""
        return self.start(Daemon(self._folder, **options))

    def start[D: Device](self, device: D) -> D:
        """Starts a device."""
        self._devices.append(device)
        device.start()
        return device

    @property
    def folder(self) -> Path:
        """The folder of what is gone when the lab is closed."""
        return self._folder

    def disk(self, name: str, mib: int, filesystem: str | None = None) -> Disk:
        """Makes a disk."""
        return Disk.create(self._folder, name, mib, filesystem)

    def prepare(self, script: str, machine: Machine) -> Guest:
        """Makes a guest that is not booted yet."""
        number = len(self._guests)
        folder = self._folder / f"guest{number}"
        folder.mkdir()
        name = self.name if number == 0 else f"{self.name}-{number}"
        guest = Guest(name, folder, machine, script)
        self._guests.append(guest)
        return guest

    def boot(self, script: str, machine: Machine, with_module: bool = True) -> Guest:
        """Boots a guest and returns once its script runs."""
        if with_module:
            paths.module()
        guest = self.prepare(script, machine)
        guest.boot()
        return guest

    def run(
        self, script: str, machine: Machine, seconds: float, with_module: bool = True
    ) -> Guest:
        """Boots a guest and returns once it has ended well."""
        guest = self.boot(script, machine, with_module)
        guest.finish(seconds)
        return guest

    def close(self) -> None:
        """Ends everything."""
        for guest in self._guests:
            guest.end()
        for device in self._devices:
            device.end()
            shutil.copy(device.log, paths.LOGS / f"{self.name}.{device.name}.log")


Labs = Callable[[str], AbstractContextManager[Lab]]
