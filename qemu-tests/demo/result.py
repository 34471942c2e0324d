# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""What came out, as numbers, as a table and as JSON."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from harness.daemon import Stat
from harness.guest import BACK, Guest

from .load import ANON_MIB, BALLOONED_MIB, FILES_MIB, MACHINE_MIB, MEMORY_MIB, PHASES


@dataclass
class Result:
    """One guest's numbers."""

    seconds: dict[str, float]
    files_read_first: int
    files_read_second: int
    files_written: int
    swap_read: int
    swap_written: int
    swapins_disk: int
    swapins_host: int
    pages_held: int
    swap_hit_percent: float | None
    files_hit_percent: float | None
    notifications: int
    interrupts: int
    pages_moved: int
    pages_by_window: int
    balloon_sectors: int
    balloon_oom_kills: int

    @classmethod
    def of(cls, guest: Guest, stat: Stat, most_held: int) -> "Result":
        """Reads the numbers of a guest that has done its work."""
        begin, create = guest.snapshot("begin"), guest.snapshot("create")
        first, second, anon = (guest.snapshot(name) for name in ("first", "second", "anon"))
        filled, balloon = (guest.snapshot(name) for name in ("filled", "balloon"))
        swap_read = anon.read("swap") - begin.read("swap")
        window_gets, window_puts = (
            sum(anon.driver.get(f"{pool}/{name}", 0) for pool in ("frontswap", "cleancache"))
            for name in ("window_hits", "window_puts")
        )
        host = stat.persistent.gets_hit + anon.driver.get("frontswap/window_hits", 0)
        disk = swap_read // 8
        reread = FILES_MIB * 256
        # Pages that came back before they were sent spare the disk just the same.
        clean = sum(
            second.driver.get(f"cleancache/{hit}", 0) - first.driver.get(f"cleancache/{hit}", 0)
            for hit in BACK
        )
        moved = sum(
            counts.puts + counts.gets_hit for counts in (stat.persistent, stat.ephemeral)
        )
        moved += window_gets + window_puts
        return cls(
            seconds={name: guest.step(name).seconds for name in PHASES},
            files_read_first=first.read("files") - create.read("files"),
            files_read_second=second.read("files") - first.read("files"),
            files_written=anon.written("files") - begin.written("files"),
            swap_read=swap_read,
            swap_written=anon.written("swap") - begin.written("swap"),
            swapins_disk=disk,
            swapins_host=host,
            pages_held=most_held,
            swap_hit_percent=100 * host / (host + disk) if moved and host + disk else None,
            files_hit_percent=100 * clean / reread if moved else None,
            notifications=stat.total("kicks"),
            interrupts=anon.driver.get("queue/interrupts", stat.total("calls")),
            pages_moved=moved,
            pages_by_window=window_gets + window_puts,
            balloon_sectors=sum(
                balloon.read(disk) + balloon.written(disk) - filled.read(disk) - filled.written(disk)
                for disk in ("swap", "files")
            ),
            balloon_oom_kills=balloon.vmstat["oom_kill"] - filled.vmstat["oom_kill"],
        )


def less(without: int, with_module: int) -> float:
    """How much less the second is than the first, in percent."""
    return 100.0 * (1 - with_module / without) if without else 0.0


def _rows(without: Result, with_module: Result) -> list[tuple[str, str, str]]:
    def both(name: str, number: str) -> tuple[str, str]:
        values = (getattr(without, name), getattr(with_module, name))
        return tuple("–" if value is None else format(value, number) for value in values)  # type: ignore[return-value]

    rows = [
        (f"seconds {what}", f"{without.seconds[name]:.1f}", f"{with_module.seconds[name]:.1f}")
        for name, what in PHASES.items()
    ]
    for title, name, number in (
        ("file disk: sectors read, first time", "files_read_first", ",d"),
        ("file disk: sectors read, second time", "files_read_second", ",d"),
        ("file disk: sectors written", "files_written", ",d"),
        ("swap disk: sectors written", "swap_written", ",d"),
        ("swap disk: sectors read", "swap_read", ",d"),
        ("swap-ins from the disk, pages", "swapins_disk", ",d"),
        ("swap-ins from the host, pages", "swapins_host", ",d"),
        ("balloon: sectors read and written, both disks", "balloon_sectors", ",d"),
        ("balloon: processes killed for want of memory", "balloon_oom_kills", ",d"),
        ("most pages that the host held", "pages_held", ",d"),
        ("swap-ins that the host answered, %", "swap_hit_percent", ".1f"),
        ("second reading that the host answered, %", "files_hit_percent", ".1f"),
        ("pages moved to and from the host", "pages_moved", ",d"),
        ("of these, by way of the window", "pages_by_window", ",d"),
        ("notifications of the host", "notifications", ",d"),
        ("interrupts of the guest", "interrupts", ",d"),
    ):
        rows.append((title, *both(name, number)))
    return rows


def table(without: Result, with_module: Result) -> str:
    """The numbers side by side, and what they come to."""
    rows = _rows(without, with_module)
    width = max(len(row[0]) for row in rows)
    lines = [f"{'':{width}}  {'without':>12}  {'with module':>12}"]
    lines += [f"{title:{width}}  {a:>12}  {b:>12}" for title, a, b in rows]
    second = less(without.files_read_second, with_module.files_read_second)
    swap = less(without.swap_written, with_module.swap_written)
    balloon = less(without.balloon_sectors, with_module.balloon_sectors)
    lines += [
        "",
        f"Second reading of {FILES_MIB} MiB of files in a guest of {MEMORY_MIB} MiB:"
        f" {-second:+.1f} % sectors read",
        f"{ANON_MIB} MiB of memory in a guest of {MEMORY_MIB} MiB:"
        f" {-swap:+.1f} % sectors written to the swap disk",
        f"A balloon that leaves a guest {BALLOONED_MIB} of {MACHINE_MIB} MiB under load:"
        f" {-balloon:+.1f} % sectors",
        "Run under TCG, that is, on an emulated CPU: counts are what they are on a real one,"
        " times are not.",
    ]
    return "\n".join(lines)


def write(path: Path, without: Result, with_module: Result, kernel: str) -> None:
    """Keeps the numbers as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {
        "version": 1,
        "accelerator": "tcg",
        "kernel": kernel,
        "machine_mib": MACHINE_MIB,
        "guest_mib": MEMORY_MIB,
        "ballooned_mib": BALLOONED_MIB,
        "anon_mib": ANON_MIB,
        "files_mib": FILES_MIB,
        "without_module": asdict(without),
        "with_module": asdict(with_module),
        "second_read_sectors_less_percent": less(
            without.files_read_second, with_module.files_read_second
        ),
        "swap_sectors_written_less_percent": less(without.swap_written, with_module.swap_written),
        "balloon_sectors_less_percent": less(without.balloon_sectors, with_module.balloon_sectors),
    }
    path.write_text(json.dumps(document, indent=2) + "\n")
