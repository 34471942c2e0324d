# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Sets of files larger than the guest's memory, read again from the host."""

from dataclasses import dataclass

import pytest

from harness.daemon import Daemon, Stat
from harness.guest import BACK, Guest, Machine
from harness.lab import Lab
from harness.process import wait_until

MEMORY = 256
MIB = 320
PAGES = MIB * 256
FILESYSTEMS = ["ext4", "xfs", "btrfs"]

# Files whose last folios are smaller than those before them, which take several requests each: one
# readahead is for both.
SIZES = "33 65 97 131 259 515 1029 2053"

SCRIPT = f"""
tails() {{
	local folder=/tmp/$1/tails pages round
	disk "$1" && blockdev --setra 16384 "$DISK" && mkdir "$folder" && cd "$folder" || return
	for pages in {SIZES}; do
		head -c $((pages * 4096)) /dev/urandom >"$pages"
	done
	md5sum * >/tmp/sums
	for round in 1 2 3; do
		drop_caches
		snapshot "$1 before tails"
		md5sum --quiet -c /tmp/sums || return
		snapshot "$1 after tails"
	done
	cd / && rm -r "$folder"
}}

must udev wait_for 30 bound
for fs in {" ".join(FILESYSTEMS)}; do
	must "mount $fs" mounted "$fs" "/tmp/$fs"
	step "create $fs" "$WORKLOAD" file-set create --dir "/tmp/$fs" --mib {MIB} --files 10
	# What was written may be in the host already: the first reading shall be from the disk.
	must "umount written $fs" umount "/tmp/$fs"
	must "mount again $fs" mounted "$fs" "/tmp/$fs"
	for round in 1 2 3; do
		snapshot "$fs before $round"
		step "read $fs $round" "$WORKLOAD" file-set verify --dir "/tmp/$fs" --mib {MIB} --files 10
		snapshot "$fs after $round"
	done
	step "tails $fs" tails "$fs"
	mark "read $fs"
	wait_for 60 told "leave $fs"
	step "umount $fs" umount "/tmp/$fs"
	mark "left $fs"
	wait_for 60 told "go on after $fs"
done
"""


@dataclass
class Run:
    """What is left of the run."""

    guest: Guest
    read: dict[str, Stat]


def held(daemon: Daemon) -> int:
    """Clean pages that the host has."""
    return daemon.stat().ephemeral.pages


@pytest.fixture(scope="module")
def run(module_lab: Lab) -> Run:
    """One guest for all tests of this file."""
    daemon = module_lab.daemon(capacity="2GiB")
    disks = [module_lab.disk(name, 768, name) for name in FILESYSTEMS]
    guest = module_lab.boot(SCRIPT, Machine(MEMORY, disks=disks, devices=[daemon]))
    run = Run(guest, {})
    for name in FILESYSTEMS:
        guest.wait_for_mark(f"read {name}", 300)
        run.read[name] = daemon.stat()
        guest.tell(f"leave {name}")
        guest.wait_for_mark(f"left {name}", 60)
        # The guest forgets at once; telling the host may come late.
        wait_until(f"the host to forget {name}", 30, lambda: held(daemon) < PAGES // 100)
        guest.tell(f"go on after {name}")
    guest.finish(60)
    return run


@pytest.fixture(params=FILESYSTEMS)
def fs(request: pytest.FixtureRequest) -> str:
    """A filesystem."""
    name: str = request.param
    return name


def sectors(run: Run, fs: str, number: int) -> int:
    """Sectors that the disk had to give in a round of reading."""
    before = run.guest.snapshot(f"{fs} before {number}").read(fs)
    return run.guest.snapshot(f"{fs} after {number}").read(fs) - before


def test_every_page_is_right(run: Run, fs: str) -> None:
    for number in (1, 2, 3):
        found = run.guest.step(f"read {fs} {number}").objects[-1]
        assert (found["pages"], found["wrong"]) == (PAGES, 0)


def test_the_second_reading_is_from_the_host(run: Run, fs: str) -> None:
    assert sectors(run, fs, 1) >= PAGES * 8
    assert sectors(run, fs, 2) < sectors(run, fs, 1) // 4
    assert sectors(run, fs, 3) < sectors(run, fs, 1) // 4


def test_the_host_counts_the_same(run: Run, fs: str) -> None:
    before = run.guest.snapshot(f"{fs} before 1").driver["cleancache/hits"]
    after = run.guest.snapshot(f"{fs} after 3").driver["cleancache/hits"]
    assert after - before > PAGES // 2
    assert run.read[fs].ephemeral.gets_hit >= after
    assert run.read[fs].ephemeral.puts_stored > PAGES // 2


def test_R3_a_page_that_came_back_is_not_in_the_host_too(run: Run, fs: str) -> None:
    held = run.read[fs].ephemeral.pages
    assert held <= PAGES


def test_R8_umount_empties_the_host(run: Run, fs: str) -> None:
    # The fixture has waited for it.
    run.guest.step(f"umount {fs}")


@pytest.mark.parametrize("fs", FILESYSTEMS)
def test_folios_of_all_sizes_come_in_one_readahead(run: Run, fs: str) -> None:
    run.guest.step(f"tails {fs}")
    before, after = (run.guest.snapshot(f"{fs} {when} tails") for when in ("before", "after"))
    found = after.counted("cleancache", BACK) - before.counted("cleancache", BACK)
    assert found > sum(map(int, SIZES.split())) // 2
