# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""QEMU's monitor: what it counts without the guest's help, and what it does to the machine."""

import json
import socket
import struct
from pathlib import Path
from typing import Any

from .process import wait_until


class Qmp:
    """A connection to QEMU's monitor."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(5)
        self._socket.connect(str(path))
        self._lines = self._socket.makefile("r")
        self._lines.readline()
        self.ask("qmp_capabilities")

    @property
    def pid(self) -> int:
        """QEMU's process."""
        credentials = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        return int(struct.unpack("iii", credentials)[0])

    @staticmethod
    def qemu_options(path: Path) -> list[str]:
        """What QEMU has to be told."""
        return ["-qmp", f"unix:{path},server=on,wait=off"]

    def ask(self, command: str, **arguments: Any) -> Any:
        """Has QEMU execute a command, and returns what it answers.

        Raises `OSError` if it refuses, and `TimeoutError` if it does not answer.
        """
        request = {"execute": command, "arguments": arguments}
        self._socket.sendall(json.dumps(request).encode() + b"\n")
        while line := self._lines.readline():
            reply = json.loads(line)
            if "return" in reply:
                return reply["return"]
            if "error" in reply:
                raise OSError(reply["error"])
        raise ConnectionError("QEMU has ended")

    def sectors(self) -> dict[str, tuple[int, int]]:
        """Sectors read and written, by disk."""
        return {
            disk["device"]: (
                disk["stats"]["rd_bytes"] // 512,
                disk["stats"]["wr_bytes"] // 512,
            )
            for disk in self.ask("query-blockstats")
        }

    def limit(self, disk: str, bytes_per_second: int, requests_per_second: int) -> None:
        """Makes a disk no faster than that; 0 is no limit."""
        limits = {f"{what}_{way}": 0 for what in ("bps", "iops") for way in ("rd", "wr")}
        self.ask(
            "block_set_io_throttle",
            device=disk,
            bps=bytes_per_second,
            iops=requests_per_second,
            **limits,
        )

    def status(self) -> str:
        """Whether the guest runs, and if not, why."""
        return str(self.ask("query-status")["status"])

    def wait_for_status(self, status: str, seconds: float) -> None:
        """Waits until the guest is in that state."""
        wait_until(f"QEMU to say {status!r}", seconds, lambda: self.status() == status)

    def close(self) -> None:
        """Ends the connection."""
        self._lines.close()
        self._socket.close()
