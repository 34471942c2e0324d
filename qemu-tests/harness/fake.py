# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Devices that lie."""

import socket
from collections.abc import Sequence
from pathlib import Path

from .daemon import Device
from .paths import binary
from .process import wait_until


class FakeDevice(Device):
    """A device that lies in the ways that its options say.

    While it runs it is told to behave in other ways: see fake-device/src/behaviour.rs for their
    names. Options may set the first ones: `--behave NAME[:ARGUMENT]`.
    """

    def __init__(
        self, folder: Path, name: str, lies: Sequence[str] = (), slot: int | None = None
    ) -> None:
        super().__init__(folder, name, slot=slot)
        self._lies = lies
        self._control = folder / f"{name}.control"

    def command(self) -> list[str | Path]:
        return [
            binary("tmem-fake-device"),
            "--socket-path",
            self.socket,
            "--control-path",
            self._control,
            "--queues",
            str(2 + self.data_queues),
            *self._lies,
        ]

    def ready(self) -> bool:
        return super().ready() and self._control.exists()

    def _ask(self, line: str) -> str:
        with socket.socket(socket.AF_UNIX) as stream:
            stream.settimeout(60)
            stream.connect(str(self._control))
            stream.sendall(line.encode() + b"\n")
            stream.shutdown(socket.SHUT_WR)
            with stream.makefile() as replies:
                reply = replies.readline().strip()
        if reply.startswith("error") or not reply:
            raise ValueError(f"the device {self.name} refuses {line!r}: {reply}")
        return reply

    def behave(self, *behaviours: str) -> None:
        """Makes it behave so from now on; without any, honestly.

        Requests that it had kept are answered, unless one of the behaviours keeps them too.
        """
        self._ask(" ".join(("behave", *behaviours)))

    def change_epoch(self) -> None:
        """Makes it forget all pages and have another epoch."""
        self._ask("epoch-change")

    def change_epoch_back(self) -> None:
        """Makes it have the epoch that it had before the last change."""
        self._ask("epoch-back")

    def counts(self) -> dict[str, int]:
        """What it counted.

        Requests `taken`, `answered`, `kept` now and `misbehaved`, `pages`, and its `epoch`.
        """
        words = self._ask("stat").split()
        return {name: int(value) for name, value in zip(words[::2], words[1::2], strict=True)}

    def wait_kept(self, requests: int = 1, seconds: float = 60) -> None:
        """Waits until it keeps so many requests without an answer."""
        what = f"{self.name} keeps {requests} requests"
        wait_until(what, seconds, lambda: self.counts()["kept"] >= requests)
