# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Pages that come from the host are compared with what the disk has."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from harness.disks import Disk
from harness.guest import BACK, Guest, Machine
from harness.lab import Labs

pytestmark = pytest.mark.long

FILESYSTEMS = ["ext4", "xfs", "btrfs"]

BLOCK = 4096

# The page of the file that is changed on the disk.
PAGE = 5

# Cases take some time each; a short run has the mixer only.
SCRIPT = """
cases() {{
	local name status=0
	for name in $("$WORKLOAD" coherency-case); do
		mkdir -p "$1/cases/$name"
		"$WORKLOAD" coherency-case "$name" --dir "$1/cases/$name" || status=$?
	done
	return "$status"
}}

# A file's pages are where evicted pages go when this is done.
park() {{
	local round
	for round in 1 2; do
		drop_caches
		cat "$1" >/dev/null || return
	done
	drop_caches
}}

must udev wait_for 30 bound
for fs in {filesystems}; do
	must "mount $fs" mounted "$fs" "/tmp/$fs"
	must "warm up $fs" wait_for 30 warmed_up "/tmp/$fs"
	snapshot "$fs before"
	if [ {with_cases} = yes ]; then
		echo 0 >/sys/kernel/mm/lru_gen/enabled
		step "cases $fs" cases "/tmp/$fs"
		echo y >/sys/kernel/mm/lru_gen/enabled
	fi
	step "mixer $fs" "$WORKLOAD" coherency --dir "/tmp/$fs/mixer" --ops 100000 --seconds {seconds} --threads 2
	snapshot "$fs after"
done

# The disk is changed under a file.
head -c $((16 * {block})) /dev/urandom >/tmp/ext4/file
sync
must block with_disk ext4 debugfs -R "bmap /file {page}"
must park park /tmp/ext4/file
cp /tmp/ext4/file /tmp/before
drop_caches
snapshot "before a change"
mark parked
wait_for 60 told changed
cp /tmp/ext4/file /tmp/after
step compare cmp -l /tmp/before /tmp/after
snapshot "after a change"
step log dmesg
for fs in {filesystems}; do
	step "umount $fs" umount "/tmp/$fs"
done
step unload modprobe -r virtio_tmem
"""


@dataclass
class Run:
    """What is left of the run."""

    guest: Guest
    with_cases: bool


def change(disk: Disk, guest: Guest) -> None:
    """Turns each bit of a page of the file, behind the guest's back."""
    blocks = re.findall(r"^(\d+)$", guest.step("block").text, re.MULTILINE)
    with disk.path.open("r+b") as image:
        image.seek(int(blocks[-1]) * BLOCK)
        content = image.read(BLOCK)
        image.seek(-BLOCK, 1)
        image.write(bytes(byte ^ 0xFF for byte in content))


@pytest.fixture(scope="module", params=["short", "long"])
def run(request: pytest.FixtureRequest, labs: Labs) -> Iterator[Run]:
    """One guest for all tests of this file, and one for longer."""
    long = request.param == "long"
    script = SCRIPT.format(
        filesystems=" ".join(FILESYSTEMS),
        with_cases="yes" if long else "no",
        seconds=200 if long else 20,
        block=BLOCK,
        page=PAGE,
    )
    with labs(f"verify-{request.param}") as lab:
        disks = [lab.disk(name, 512, name) for name in FILESYSTEMS]
        machine = Machine(384, disks=disks, devices=[lab.daemon()], append="virtio_tmem.verify=1")
        guest = lab.boot(script, machine)
        guest.wait_for_mark("parked", 1800 if long else 600)
        change(disks[0], guest)
        guest.tell("changed")
        guest.finish(120)
        yield Run(guest, long)


def counted(run: Run, before: str, after: str, counter: str) -> int:
    """How far a counter went."""
    counters = (run.guest.snapshot(name).driver for name in (after, before))
    return next(counters)[f"cleancache/{counter}"] - next(counters)[f"cleancache/{counter}"]


@pytest.mark.parametrize("fs", FILESYSTEMS)
def test_no_page_is_different(run: Run, fs: str) -> None:
    found = run.guest.step(f"mixer {fs}").objects
    if run.with_cases:
        found += run.guest.step(f"cases {fs}").objects
    assert sum(outcome["wrong"] for outcome in found) == 0
    assert counted(run, f"{fs} before", f"{fs} after", "verify_different") == 0
    assert counted(run, f"{fs} before", f"{fs} after", "verified") > 1000


def test_every_page_that_came_was_compared_or_skipped(run: Run) -> None:
    first, last = f"{FILESYSTEMS[0]} before", "after a change"
    came = sum(counted(run, first, last, counter) for counter in BACK)
    looked_at = counted(run, first, last, "verified") + counted(run, first, last, "verify_skipped")
    # Of a folio that did not come as a whole nothing is compared.
    assert came // 2 < looked_at <= came


def test_a_page_that_is_different_is_counted_and_the_disks_is_used(run: Run) -> None:
    differences = run.guest.any_step("compare").text.split("\n")
    assert len([line for line in differences if line.strip()]) == BLOCK
    assert counted(run, "before a change", "after a change", "verify_different") == 1
    assert counted(run, "before a change", "after a change", "verified") == 16
    said = re.findall(r"inode \d+, page (\d+): the host has .*CRC-32C", run.guest.step("log").text)
    assert said == [str(PAGE)]


def test_all_ends_well(run: Run) -> None:
    for fs in FILESYSTEMS:
        run.guest.step(f"umount {fs}")
    run.guest.step("unload")
