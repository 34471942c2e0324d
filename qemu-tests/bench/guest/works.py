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

from harness.disks import MIB

from ..sample import how_often

MEMORY_MIB = 384
EXTRA_MIB = 512


def _asked_for(name: str, what: dict[str, Any]) -> dict[str, Any]:
    """Those of what there is that the environment names, or all."""
    names = os.environ.get(f"TMEM_BENCH_{name}", "").split() or list(what)
    return {name: value for name, value in what.items() if name in names}


ROUNDS = how_often(3)

# Works are so many percent of their size.
PERCENT = int(os.environ.get("TMEM_BENCH_PERCENT", 100))

# What the guest's kernel is set to, under all configurations.
SYSCTLS = os.environ.get("TMEM_BENCH_SYSCTLS", "")

CONFIGURATIONS = {
    "nothing": "no swap",
    "swap": "disk swap",
    "zram": "zram, before disk swap",
    "zswap": "zswap, before disk swap",
    "tmem": "tmem",
    "window": "tmem, with a window",
    "tmem-all": "tmem, whatever comes back",
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
class Disk:
    """How fast the disks are made; 0 is as fast as the host's page cache."""

    title: str
    bytes_per_second: int = 0
    requests_per_second: int = 0

    @property
    def text(self) -> str:
        """What they are, in words."""
        if not self.bytes_per_second:
            return f"disks {self.title}"
        return (
            f"disks of {self.bytes_per_second // MIB} MiB and {self.requests_per_second:,} requests a"
            f" second, {SLOWER} times slower than {self.title}, as the CPU is"
        )


# The emulated CPU is some 16 times slower than a real one, and so are these: an SSD at SATA of
# 500 MB/s and 80,000 requests/s, and one at PCIe of 2 GB/s and 320,000 requests/s. Disks without a
# limit are as one of 16 GB/s would be.
SLOWER = 16
FASTEST = "fastest"
DISKS = {
    "sata": Disk("an SSD at SATA", 512 * MIB // SLOWER, 80_000 // SLOWER),
    "pcie": Disk("an SSD at PCIe", 2048 * MIB // SLOWER, 320_000 // SLOWER),
    FASTEST: Disk("as fast as the host's memory"),
}

# Which configurations there are where something cannot be gained, but only lost.
OF_LOSERS = ("swap", "tmem", "window", "tmem-all")


@dataclass(frozen=True)
class Work:
    """Something that is done, under every configuration that can do it."""

    title: str
    command: str
    # Done before, and not measured: what it leaves in memory, or in the host, is what matters.
    before: str = ""
    without_swap: bool = True
    disk: str = "sata"
    # How often in a row, each time as if for the first time.
    times: int = 1
    configurations: tuple[str, ...] = tuple(CONFIGURATIONS)
    # In how many of the rounds; what takes long is done less often.
    rounds: int = ROUNDS

    def under(self, configuration: str) -> bool:
        """Whether it is done under a configuration."""
        if configuration == "nothing" and not self.without_swap:
            return False
        return configuration in self.configurations


def _set(name: str) -> str:
    return " ".join(SETS[name].options("$DATA"))


def _random(reads: int, more: str) -> str:
    return f'"$WORKLOAD" random-read --reads {reads} {more}'


_REREAD = f'"$WORKLOAD" file-set read {_set("reread")}'
_ZIPF = f"{_set('database')} --zipf {ZIPF} --pages {DATABASE_PAGES}"
_DATABASE = f'"$WORKLOAD" file-set read {_set("database")}'
_STREAM = f'"$WORKLOAD" file-set read {_set("large")}'
_ONCE = _random(ONCE_READS, _set("large"))

WORKS = {
    **{
        f"build-{jobs}": Work(
            f"building {UNITS} units of a kernel module, -j {jobs}",
            f"build {jobs}",
            without_swap=False,
            # What is read once is little beside what is read again and again.
            configurations=tuple(name for name in CONFIGURATIONS if name != "tmem-all"),
            # The first still has the memory that it needs.
            rounds=min(ROUNDS, 1 if jobs == JOBS[0] else 2),
        )
        for jobs in JOBS
    },
    "reread": Work(
        f"reading {SETS['reread'].mib} MiB of files again", _REREAD, before=_REREAD
    ),
    # All of it has been read once, and what is popular more often.
    "zipf": Work(
        f"{DATABASE_READS:,} random reads of 16 KiB out of {SETS['database'].mib} MiB, by Zipf's law",
        _random(DATABASE_READS, f"{_ZIPF} --order-seed 2"),
        before=f"both {_DATABASE} -- {_random(DATABASE_READS, _ZIPF)}",
    ),
    "stream": Work(
        f"streaming {SETS['large'].mib} MiB once",
        _STREAM,
        disk="pcie",
        configurations=OF_LOSERS,
    ),
    "once": Work(
        f"{ONCE_READS:,} random reads of {SETS['large'].mib} MiB, each page once",
        _ONCE,
        configurations=OF_LOSERS,
    ),
    # The same on disks that cost no time, where all that it takes is the CPU's.
    "stream-cpu": Work(
        f"streaming {SETS['large'].mib} MiB once, the CPU alone",
        _STREAM,
        disk=FASTEST,
        times=2,
        configurations=OF_LOSERS,
    ),
    "once-cpu": Work(
        f"{ONCE_READS:,} random reads of {SETS['large'].mib} MiB, the CPU alone",
        _ONCE,
        disk=FASTEST,
        configurations=OF_LOSERS,
    ),
}

# Those that are to be done.
ASKED_WORKS = _asked_for("WORKS", WORKS)

# Which of them cannot gain from memory elsewhere.
LOSERS = ("stream", "once", "stream-cpu", "once-cpu")


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
                if what.under(name) and number < what.rounds
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
        f"must sysctls sysctls {SYSCTLS}",
        "EXTRA=$(grep -lx offline /sys/devices/system/memory/memory*/state)",
    ]
    for number, name, runs in plan():
        lines.append(f'must "{number} {name}: set up" configure {name}')
        for run in runs:
            work = WORKS[run.work]
            lines.append(f'must "{run.name}: fresh" fresh')
            # Nothing that is not measured has to take its time.
            if work.before:
                lines.append(f'step "{run.name}: before" {work.before}')
            lines += [
                f'ask "{work.disk} {run.name}"',
                f'measured "{run.name}" {work.command}',
                f'ask "{FASTEST} after {run.name}"',
            ]
        lines.append(f'must "{number} {name}: undo" deconfigure {name}')
    return "\n".join(lines)
