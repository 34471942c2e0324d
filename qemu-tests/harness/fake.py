# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Devices that lie."""

from collections.abc import Sequence
from pathlib import Path

from .daemon import Device
from .paths import binary


class FakeDevice(Device):
    """A device that lies in the ways that its options say."""

    def __init__(self, folder: Path, name: str, lies: Sequence[str], slot: int) -> None:
        super().__init__(folder, name, slot=slot)
        self._lies = lies

    def command(self) -> list[str | Path]:
        return [
            binary("tmem-fake-device"),
            "--socket-path",
            self.socket,
            "--queues",
            str(2 + self.data_queues),
            *self._lies,
        ]
