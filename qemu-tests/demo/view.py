# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""What is shown while the guests are at work."""

import os
import shutil
import sys
import time
from dataclasses import dataclass

BAR = 24


@dataclass
class Moment:
    """What is known of a guest at one moment."""

    phase: str = "booting"
    held: int = 0
    capacity: int = 0
    host_swapins: int = 0
    host_files: int = 0
    window: int = 0
    asked: int = 0
    files_read: int = 0
    files_written: int = 0
    swap_read: int = 0
    swap_written: int = 0

    @property
    def hit_percent(self) -> float | None:
        """Pages got of those asked for."""
        got = self.host_swapins + self.host_files
        return 100 * got / self.asked if self.asked else None


def mib(sectors: int) -> str:
    """Sectors as MiB."""
    return f"{sectors / 2048:.0f} MiB"


def bar(part: int, whole: int) -> str:
    """A part of a whole, to be looked at."""
    full = round(BAR * part / whole) if whole else 0
    return "█" * min(full, BAR) + "░" * (BAR - min(full, BAR))


class View:
    """Shows moments: a block that is drawn anew on a terminal, else a line each."""

    def __init__(self, start: float) -> None:
        self._start = start
        self._pretty = sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"
        self._drawn = 0

    def show(self, title: str, moment: Moment) -> None:
        """Shows what is known now."""
        if not self._pretty:
            self._print(self._line(title, moment))
            return
        self._erase()
        width = shutil.get_terminal_size().columns
        lines = [line[: width - 1] for line in self._block(title, moment)]
        self._drawn = len(lines)
        self._print("\n".join(lines))

    def say(self, text: str) -> None:
        """Prints something that stays."""
        self._erase()
        self._print(text)

    def _erase(self) -> None:
        if self._drawn:
            sys.stdout.write(f"\x1b[{self._drawn}F\x1b[J")
            self._drawn = 0

    def _print(self, text: str) -> None:
        print(text, flush=True)

    def _age(self) -> str:
        seconds = int(time.monotonic() - self._start)
        return f"{seconds // 60}:{seconds % 60:02d}"

    def _line(self, title: str, moment: Moment) -> str:
        hits = "–" if moment.hit_percent is None else f"{moment.hit_percent:.0f} %"
        window = f", from the window {moment.window}" if moment.window else ""
        return (
            f"{self._age()} {title}: {moment.phase} | host holds {moment.held} pages, hits {hits}{window}"
            f" | swap-ins: host {moment.host_swapins}, disk {moment.swap_read // 8}"
            f" | swap disk: read {mib(moment.swap_read)}, written {mib(moment.swap_written)}"
            f" | file disk: read {mib(moment.files_read)}, written {mib(moment.files_written)}"
        )

    def _block(self, title: str, moment: Moment) -> list[str]:
        hits = "–" if moment.hit_percent is None else f"{moment.hit_percent:.1f} %"
        held = f"{moment.held:,} pages, {moment.held / 256:.0f} MiB"
        return [
            f"\x1b[1m{self._age()}  {title}\x1b[0m  \x1b[36m{moment.phase}\x1b[0m",
            f"  host holds   {bar(moment.held, moment.capacity)}  {held}",
            f"  host gave    {moment.host_swapins:,} swapped pages,"
            f" {moment.host_files:,} pages of files; hit rate {hits}",
            f"  window gave  {moment.window:,} pages",
            f"  swap disk    {mib(moment.swap_read)} read, {mib(moment.swap_written)} written"
            f"  ({moment.swap_read // 8:,} swap-ins)",
            f"  file disk    {mib(moment.files_read)} read, {mib(moment.files_written)} written",
        ]
