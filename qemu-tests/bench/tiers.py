# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""What a window that is too small is worth, and how many cold pages are copies of others.

Guests with less and less of a window read swapped pages, some of them much more often than others;
what the window has no room for lies in the daemon's store. And one that has room for all swaps
programs out that it has started and that wait: their pages are looked through from outside.
"""

from collections import Counter
from hashlib import blake2b
from pathlib import Path

from harness.daemon import Window
from harness.guest import Guest, Machine
from harness.lab import Lab
from harness.steps import Snapshot

from .report import Report

MEMORY_MIB = 320
# Files in memory, of which only so much may stay there.
SET_MIB, CONFINED_MIB = 160, 32
WINDOWS_MIB = (256, 128, 64, 32, 16)
READS = 60_000
SECONDS = 600

PAGE = 4096
# Where slots begin in a window: before that are its header and the driver's report.
SLOTS = 4 << 20

READING = "Zipf's law with exponent 0.9"
HOW = f"guests emulated by TCG; files in memory, read by {READING}; counts, no times"
HOW_COLD = "a guest emulated by TCG, with Debian's programs; counts, no times"

SCRIPT = f"""
must load modprobe virtio_tmem
must swap swap_on swap
must running wait_for 30 state running
must mkdir mkdir -p /run/set
must mount mount -t tmpfs -o size=300m set /run/set
set=(--dir /run/set --mib {SET_MIB} --files 4)
must create confined {CONFINED_MIB} "$WORKLOAD" file-set create "${{set[@]}}"
must settle confined {CONFINED_MIB} "$WORKLOAD" random-read "${{set[@]}}" \\
	--reads {READS // 3} --zipf 0.9 --order-seed 1
snapshot before
must read confined {CONFINED_MIB} "$WORKLOAD" random-read "${{set[@]}}" \\
	--reads {READS} --zipf 0.9 --order-seed 2
snapshot after
step window eval "cat /sys/bus/virtio/drivers/virtio_tmem/virtio*/tmem/window"
"""

# Each is started anew, so that no pages are shared by way of a fork.
COLD = """
must load modprobe virtio_tmem
must swap swap_on swap
must running wait_for 30 state running

programs() {
	local n
	for n in 1 2 3 4; do
		confined 4096 python3 -c '
import argparse, asyncio, decimal, email, http.server, json, logging, sqlite3, unittest, xml.dom.minidom
import pathlib, signal
pathlib.Path("/run/ready'$n'").touch()
signal.pause()' &
		confined 4096 bash -c 'touch /run/ready-bash'"$n"'; while read -r _; do :; done < <(sleep inf)' &
		confined 4096 perl -MPOSIX -e 'open(my $f, ">", "/run/ready-perl'$n'"); pause()' &
	done
}
ready() {
	local n
	for n in 1 2 3 4; do
		[ -e "/run/ready$n" ] && [ -e "/run/ready-bash$n" ] && [ -e "/run/ready-perl$n" ] || return
	done
}
programs
must programs wait_for 200 ready
# It says that it fell short, as it does: there is less.
step reclaim sh -c 'echo 1G swappiness=max >/sys/fs/cgroup/confined/memory.reclaim'
step window eval "cat /sys/bus/virtio/drivers/virtio_tmem/virtio*/tmem/window"
mark cold
wait_for 100 told enough
kill_group confined
"""


def run(report: Report, folder: Path) -> None:
    """Measures, and fills the report."""
    table = report.table(
        "shares",
        "Gets of swapped pages, by the size of the window",
        ["swapped out, MiB", "in the window, %", "gets", "got from the window, %"],
        HOW,
    )
    points: dict[str, dict[float, float]] = {"pages": {}, "gets": {}}
    for mib in WINDOWS_MIB:
        report.say(f"a window of {mib} MiB")
        guest = read(folder / f"{mib}", mib)
        before, after = guest.snapshot("before"), guest.snapshot("after")
        here = used(guest)
        out = after.driver["frontswap/pages"]
        by_window = counted(before, after, "window_hits")
        gets = by_window + counted(before, after, "hits", "staged_hits")
        table.add(f"{mib} MiB", out / 256, 100 * here / out, gets, 100 * by_window / gets)
        points["pages"][mib] = 100 * here / out
        points["gets"][mib] = 100 * by_window / gets
    series = {
        "of the pages, in the window": points["pages"],
        "of the gets, from the window": points["gets"],
    }
    report.lines(
        "shares", f"What a window is worth, read by {READING}", "MiB of window", series, "%", log=True
    )

    report.say("cold pages")
    contents = cold(folder / "cold")
    pages = sum(contents.values())
    table = report.table(
        "cold",
        "Cold pages of programs that wait",
        ["pages", "different ones", "copies of another, %"],
        HOW_COLD,
    )
    copies = 100 * (pages - len(contents)) / pages
    table.add("python3, bash and perl, four of each", pages, len(contents), copies)


def counted(before: Snapshot, after: Snapshot, *names: str) -> int:
    """What was counted of swapped pages from one moment to the next."""
    return after.counted("frontswap", names) - before.counted("frontswap", names)


def used(guest: Guest) -> int:
    """How many swapped pages are in the window."""
    words = guest.step("window").lines[1].split()
    assert words[0] == "persistent", words
    return int(words[words.index("used") + 1])


def read(folder: Path, mib: int) -> Guest:
    """Has a guest that has a window of a size read what is swapped out."""
    folder.mkdir()
    lab = Lab(f"bench-tiers-{mib}", folder)
    try:
        daemon = lab.daemon(window=f"{mib}MiB")
        machine = Machine(MEMORY_MIB, disks=[lab.disk("swap", 512)], devices=[daemon])
        return lab.run(SCRIPT, machine, SECONDS)
    finally:
        lab.close()


def cold(folder: Path) -> Counter[bytes]:
    """Swaps programs out; returns how often each content is in the window."""
    folder.mkdir()
    lab = Lab("bench-tiers-cold", folder)
    try:
        daemon = lab.daemon(window="512MiB")
        machine = Machine(512, disks=[lab.disk("swap", 512)], devices=[daemon])
        guest = lab.boot(COLD, machine)
        guest.wait_for_mark("cold", SECONDS)
        assert daemon.window is not None
        contents = look_through(daemon.window)
        guest.tell("enough")
        guest.finish(100)
    finally:
        lab.close()
    there = used(guest)
    assert there > 1000, f"only {there} pages went out"
    # What was there for a moment only lies around where nothing is any more.
    found = sum(contents.values())
    assert found < 1.1 * there, f"{found} pages are in slots, of which {there} are in use"
    return contents


def look_through(window: Window) -> Counter[bytes]:
    """Counts contents of slots, as far as there is anything in them."""
    contents: Counter[bytes] = Counter()
    with window.file.open("rb") as file:
        file.seek(SLOTS)
        while page := file.read(PAGE):
            contents[digest(page)] += 1
    # The kernel keeps no page that has only zeros: those are slots that were never used.
    del contents[digest(bytes(PAGE))]
    return contents


def digest(page: bytes) -> bytes:
    """What is the same for the same contents only."""
    return blake2b(page, digest_size=16).digest()
