# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The module comes and goes time and again while files and memory are in use."""

import pytest

from harness.guest import Guest, Machine
from harness.lab import Lab

TIMES = 6

# With pages out the module cannot go, so the swap is off while it does.
SCRIPT = f"""
must udev wait_for 30 bound
must mount mounted data /tmp/data
must swap swap_on swap
must create "$WORKLOAD" file-set create --dir /tmp/data/set --mib 48
snapshot before

churn() {{
	local round
	for ((round = 0; ; round++)); do
		"$WORKLOAD" file-set verify --dir /tmp/data/set --mib 48 || return
		echo 1 >/proc/sys/vm/drop_caches
		[ ! -e /tmp/stop ] || return 0
	done
}}
mkdir /tmp/out
churn >/tmp/out/churn 2>&1 &
churn=$!
"$WORKLOAD" coherency --dir /tmp/data/mix --ops 100000 --until /tmp/stop --threads 1 --racers 1 \\
	>/tmp/out/mixer 2>&1 &
mixer=$!
snapshot "round 0"
for ((round = 1; round <= {TIMES}; round++)); do
	wait_for 30 bound
	# In every other round the memory is still in use, and has to fit in without the swap.
	"$WORKLOAD" anon --mib $((round % 2 ? 220 : 64)) --passes $((round % 2 ? 0 : 3)) >"/tmp/out/anon $round" 2>&1 &
	anon=$!
	if ((round % 2)); then
		wait $anon
	fi
	snapshot "round $round"
	step "swapoff $round" swap_off swap
	step "unload $round" modprobe -r virtio_tmem
	step "hooks $round" hooks
	step "load $round" modprobe virtio_tmem
	wait $anon
	step "anon $round" cat "/tmp/out/anon $round"
	disk swap && swapon "$DISK"
done
touch /tmp/stop
wait $churn
printf '{{"status":%d}}\\n' $? >>/tmp/out/churn
step churn cat /tmp/out/churn
wait $mixer
step mixer cat /tmp/out/mixer
step files "$WORKLOAD" file-set verify --dir /tmp/data/set --mib 48
must umount umount /tmp/data
step fsck with_disk data fsck.ext4 -fn
"""


@pytest.fixture(scope="module")
def guest(module_lab: Lab) -> Guest:
    """One guest for all tests of this file."""
    daemon = module_lab.daemon()
    disks = [module_lab.disk("swap", 512), module_lab.disk("data", 256, "ext4")]
    return module_lab.run(SCRIPT, Machine(256, disks=disks, devices=[daemon]), 900)


def test_it_comes_and_goes_under_load(guest: Guest) -> None:
    for number in range(1, TIMES + 1):
        for what in ("swapoff", "unload", "load"):
            guest.step(f"{what} {number}")
        assert guest.step(f"hooks {number}").text.strip() == ""


def test_pages_went_to_the_host_in_between(guest: Guest) -> None:
    counters = [guest.snapshot(f"round {number}").driver for number in range(1, TIMES + 1)]
    hits = (counter["cleancache/hits"] + counter["cleancache/staged_hits"] for counter in counters)
    assert sum(hits) > 1000
    assert sum(counter["frontswap/stored"] for counter in counters) > 1000


def test_memory_is_right_all_the_while(guest: Guest) -> None:
    for number in range(1, TIMES + 1):
        assert guest.step(f"anon {number}").objects[-1]["wrong"] == 0


def test_files_are_right_all_the_while(guest: Guest) -> None:
    rounds = guest.step("churn").objects
    assert rounds[-1]["status"] == 0
    assert len(rounds) > TIMES
    assert all(each["wrong"] == 0 for each in rounds[:-1])
    assert guest.step("files").objects[-1]["wrong"] == 0
    guest.step("fsck")


def test_R12_what_is_changed_meanwhile_is_right(guest: Guest) -> None:
    found = guest.step("mixer").objects[-1]
    assert found["wrong"] == 0
    assert found["ops"] > 100
