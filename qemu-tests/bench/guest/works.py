# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The works, and the configurations of the guest that they are done under.

The guest boots with little memory and with more plugged in that it does not use: memory is taken
into use, and out of it again, for the one configuration that has more; everything else is switched
by loading modules and swapping on and off. So all is measured in one boot.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MEMORY_MIB = 384
EXTRA_MIB = 512


def _from_environment(name: str, default: int) -> int:
    return int(os.environ.get(f"TMEM_BENCH_{name}", default))


def _asked_for(name: str, what: dict[str, Any]) -> dict[str, Any]:
    """Those of what there is that the environment names, or all."""
    names = os.environ.get(f"TMEM_BENCH_{name}", "").split() or list(what)
    return {name: value for name, value in what.items() if name in names}


ROUNDS = _from_environment("ROUNDS", 3)

# Works are so many percent of their size.
PERCENT = _from_environment("PERCENT", 100)

CONFIGURATIONS = {
    "nothing": "no swap",
    "swap": "disk swap",
    "zram": "zram, before disk swap",
    "zswap": "zswap, before disk swap",
    "tmem": "tmem",
    "tmem-zswap": "tmem behind zswap",
    "ram": f"{EXTRA_MIB} MiB more RAM",
}

# Those that are to be measured.
ASKED_CONFIGURATIONS = _asked_for("CONFIGURATIONS", CONFIGURATIONS)


@dataclass(frozen=True)
class Files:
    """A set of files on the disk."""

    name: str
    mib: int
    files: int

    def options(self, where: Path | str) -> list[str]:
        """How the workload is told."""
        return f"--dir {where}/{self.name} --mib {self.mib} --files {self.files}".split()


# Random reads and streaming are of one large file each, as of a database or of a backup.
SETS = {
    files.name: files
    for files in (
        Files("reread", MEMORY_MIB, 8),
        Files("database", MEMORY_MIB * 5 // 4, 1),
        Files("large", 4 * MEMORY_MIB * PERCENT // 100, 1),
    )
}

UNITS = max(2, 6 * PERCENT // 100)
JOBS = sorted({max(2, UNITS // 3), max(2, UNITS * 2 // 3), UNITS})

# A database's: 16 KiB each, of which memory has room for not quite half. A quarter is missed then.
ZIPF = 0.8
DATABASE_PAGES = 4
DATABASE_READS = 20_000 * PERCENT // 100
ONCE_READS = 48_000 * PERCENT // 100


@dataclass(frozen=True)
class Work:
    """Something that is done, under every configuration that can do it."""

    title: str
    command: str
    # Done before, and not measured: what it leaves in memory, or in the host, is what matters.
    before: str = ""
    without_swap: bool = True
    disk: str = "slow"
    # How often in a row, each time as if for the first time.
    times: int = 1


def _set(name: str) -> str:
    return " ".join(SETS[name].options("$DATA"))


def _random(reads: int, more: str) -> str:
    return f'"$WORKLOAD" random-read --reads {reads} {more}'


_REREAD = f'"$WORKLOAD" file-set read {_set("reread")}'
_ZIPF = f"{_set('database')} --zipf {ZIPF} --pages {DATABASE_PAGES}"
_STREAM = f'"$WORKLOAD" file-set read {_set("large")}'
_ONCE = _random(ONCE_READS, _set("large"))

WORKS = {
    **{
        f"build-{jobs}": Work(
            f"building {UNITS} units of a kernel module, -j {jobs}",
            f"build {jobs}",
            without_swap=False,
        )
        for jobs in JOBS
    },
    "reread": Work(
        f"reading {SETS['reread'].mib} MiB of files again", _REREAD, before=_REREAD
    ),
    "zipf": Work(
        f"{DATABASE_READS:,} random reads of 16 KiB out of {SETS['database'].mib} MiB, by Zipf's law",
        _random(DATABASE_READS, f"{_ZIPF} --order-seed 2"),
        before=_random(DATABASE_READS, _ZIPF),
    ),
    "stream": Work(
        f"streaming {SETS['large'].mib} MiB once", _STREAM, disk="fast", times=2
    ),
    "once": Work(
        f"{ONCE_READS:,} random reads of {SETS['large'].mib} MiB, each page once",
        _ONCE,
        disk="fast",
        times=2,
    ),
}

# Those that are to be done.
ASKED_WORKS = _asked_for("WORKS", WORKS)

# Which of them cannot gain from memory elsewhere.
LOSERS = ("stream", "once")


@dataclass(frozen=True)
class Run:
    """One measurement."""

    round: int
    configuration: str
    work: str
    time: int

    @property
    def name(self) -> str:
        """What its step is called."""
        return f"{self.round} {self.configuration} {self.work} {self.time}"


def plan() -> list[tuple[int, str, list[Run]]]:
    """Rounds, and in each all configurations, not always in the same order."""
    names = list(ASKED_CONFIGURATIONS)
    visits = []
    for number in range(ROUNDS):
        turn = number * len(names) // max(1, ROUNDS)
        for name in names[turn:] + names[:turn]:
            runs = [
                Run(number, name, work, time)
                for work, what in ASKED_WORKS.items()
                if what.without_swap or name != "nothing"
                for time in range(what.times)
            ]
            visits.append((number, name, runs))
    return visits


def script(folder: str, build: str) -> str:
    """What the guest does."""
    lines = [
        f". {folder}/guest.sh",
        "DATA=/tmp/data",
        f"BUILD={build}",
        "EXTRA=$(grep -lx offline /sys/devices/system/memory/memory*/state)",
    ]
    speed = ""
    for number, name, runs in plan():
        lines.append(f'must "{number} {name}: set up" configure {name}')
        for run in runs:
            work = WORKS[run.work]
            if work.disk != speed:
                speed = work.disk
                lines.append(f'ask "{speed} {run.name}"')
            lines.append(f'must "{run.name}: fresh" fresh')
            if work.before:
                lines.append(f'step "{run.name}: before" {work.before}')
            lines.append(f'measured "{run.name}" {work.command}')
        lines.append(f'must "{number} {name}: undo" deconfigure {name}')
    return "\n".join(lines)
