# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Files that change other than by a call on them: by a disk that fails, by swapping, behind all backs."""

from dataclasses import dataclass

import pytest

from harness.guest import Guest, Machine
from harness.lab import Lab

pytestmark = pytest.mark.long

FILESYSTEMS = ["ext4", "xfs", "btrfs"]

# How much memory is used, half of which is swapped, and how long the swap file is.
SWAP_MIB = 64

# Long enough for no filesystem to write anything of its own while the disk fails.
OPTIONS = {"ext4": "commit=300", "xfs": "", "btrfs": "commit=300"}

# The disk's table is replaced while the filesystem is in use, and not told.
SCRIPT = f"""
# table SERIAL TARGET ARGUMENTS...: has device-mapper's device of that name send all to the disk.
table() {{
	local name=$1 sectors
	disk "$name" && read -r sectors <"/sys/block/${{DISK##*/}}/size" || return
	set -- "$2" "$DISK 0" "${{@:3}}"
	if [ -e "/dev/mapper/$name" ]; then
		dmsetup suspend --noudevsync --noflush --nolockfs "$name" &&
			dmsetup load "$name" --table "0 $sectors $*" &&
			dmsetup resume --noudevsync "$name"
	else
		dmsetup create --noudevsync "$name" --table "0 $sectors $*" && dmsetup mknodes "$name"
	fi
}}

# same FILE: compares what is read of the file with what the disk has.
same() {{
	drop_caches
	cmp <(dd if="$1" bs=1M iflag=direct status=none) <(dd if="$1" bs=64K status=none)
}}

# parked FILE: has its pages go to where evicted pages go.
parked() {{
	local round
	for round in 1 2; do
		drop_caches
		cat "$1" >/dev/null || return
	done
	drop_caches
}}

# failed_write FOLDER SERIAL: writes over a file while the disk fails.
failed_write() {{
	local file=$1/file status
	dd if=/dev/urandom of="$file" bs=64K count=16 status=none && sync && parked "$file" || return
	table "$2" flakey 0 1 1 error_writes || return
	dd if=/dev/urandom of=/tmp/new bs=64K count=16 status=none
	dd if=/tmp/new of="$file" bs=64K conv=notrunc status=none
	# Only the file's pages: what the filesystem has to write itself stays in memory.
	xfs_io -c "sync_range -w 0 1m" -c "sync_range -a 0 1m" "$file" >/dev/null 2>&1
	table "$2" linear || return
	# Whoever reads directly is told of the error once.
	dd if="$file" of=/dev/null bs=1M iflag=direct status=none 2>/dev/null
	same "$file"
	status=$?
	dd if="$file" bs=1M iflag=direct status=none | cmp -s - /tmp/new && echo "written nevertheless"
	parked "$file"
	same "$file" && return $status
}}

# swapped FILE: swaps to the file, and reads it afterwards.
swapped() {{
	local file=$1/swap
	touch "$file" && chmod 600 "$file" || return
	if [ "$(stat -f -c %T "$1")" = btrfs ]; then
		chattr +C "$file"
	fi
	dd if=/dev/urandom of="$file" bs=1M count={SWAP_MIB} status=none && mkswap "$file" && sync || return
	parked "$file"
	# Some are in memory all the while, and are evicted later.
	dd if="$file" of=/dev/null bs=1M count={SWAP_MIB // 2} status=none
	swapon "$file" || return
	confined {SWAP_MIB // 2} "$WORKLOAD" anon --mib {SWAP_MIB} || return
	swapoff "$file" || return
	same "$file" && parked "$file" && same "$file"
}}

# repaired FILE: has xfs drop the file's pages to check, and maybe build anew, where its blocks are.
repaired() {{
	head -c 262144 /dev/urandom >"$1" && sync && xfs_io -x -c "repair bmapbtd" "$1" && parked "$1"
}}

must udev wait_for 30 bound
must modules modprobe -a dm-mod dm-flakey
for fs in {" ".join(FILESYSTEMS)}; do
	declare -A options=([ext4]="{OPTIONS['ext4']}" [xfs]="" [btrfs]="{OPTIONS['btrfs']}")
	must "table $fs" table "$fs" linear
	mkdir "/tmp/$fs"
	must "mount $fs" mount ${{options[$fs]:+-o "${{options[$fs]}}"}} "/dev/mapper/$fs" "/tmp/$fs"
	must "warm up $fs" wait_for 30 warmed_up "/tmp/$fs"
	snapshot "$fs before a failed write"
	step "failed write $fs" failed_write "/tmp/$fs" "$fs"
	snapshot "$fs after a failed write"
done

snapshot "xfs before a repair"
step repair repaired /tmp/xfs/repaired
snapshot "xfs after a repair"

# With swapped pages in the host nothing would be written to the swap file.
must reload load_module frontswap=0
must bound wait_for 30 bound
for fs in {" ".join(FILESYSTEMS)}; do
	must "warm up $fs again" wait_for 30 warmed_up "/tmp/$fs"
	snapshot "$fs before swapping"
	step "swap file $fs" swapped "/tmp/$fs"
	snapshot "$fs after swapping"
	step "umount $fs" umount "/tmp/$fs"
done
step unload modprobe -r virtio_tmem
"""

# What the filesystems say of the disk's errors.
ALLOWED = [r"I/O error", r"EXT4-fs .*dm-", r"XFS \(dm-\d+\)", r"BTRFS .*dm-"]


@dataclass
class Run:
    """What is left of the run."""

    guest: Guest


@pytest.fixture(scope="module")
def run(module_lab: Lab) -> Run:
    """One guest for all tests of this file."""
    daemon = module_lab.daemon()
    disks = [module_lab.disk(name, 512, name) for name in FILESYSTEMS]
    machine = Machine(320, disks=disks, devices=[daemon], allowed=ALLOWED)
    return Run(module_lab.run(SCRIPT, machine, 500))


def counted(run: Run, fs: str, what: str, counter: str) -> int:
    """How far a counter went meanwhile."""
    before, after = (run.guest.snapshot(f"{fs} {when} {what}").driver for when in ("before", "after"))
    return after[f"cleancache/{counter}"] - before[f"cleancache/{counter}"]


@pytest.mark.parametrize("fs", FILESYSTEMS)
def test_F10_what_could_not_be_written_is_not_read(run: Run, fs: str) -> None:
    said = run.guest.step(f"failed write {fs}").text
    assert "written nevertheless" not in said
    # The file's pages were there before.
    assert counted(run, fs, "a failed write", "stored") >= 256


@pytest.mark.parametrize("fs", FILESYSTEMS)
def test_F11_what_was_swapped_to_a_file_is_read_from_the_file(run: Run, fs: str) -> None:
    run.guest.step(f"swap file {fs}")
    assert counted(run, fs, "swapping", "stored") >= SWAP_MIB * 128


def test_F5_a_repair_by_the_filesystem_bans_no_file(run: Run) -> None:
    run.guest.step("repair")
    assert counted(run, "xfs", "a repair", "bans") == 0
    assert counted(run, "xfs", "a repair", "stored") >= 64


def test_all_ends_well(run: Run) -> None:
    for fs in FILESYSTEMS:
        run.guest.step(f"umount {fs}")
    run.guest.step("unload")
