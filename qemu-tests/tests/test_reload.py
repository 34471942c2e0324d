# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The module comes and goes time and again while files and memory are in use."""

from dataclasses import dataclass

import pytest

from harness.guest import BACK, Guest
from harness.lab import Lab
from harness.qmp import Qmp
from harness.small import SmallMachine

pytestmark = pytest.mark.long

# The ways in which the driver's device goes and comes back.
WAYS = ["unload", "unbind", "unplug"]
TIMES = 3

SCRIPT = f"""
must load modprobe virtio_tmem
must driver wait_for 30 bound
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
bind() {{
	echo "$1" >/sys/bus/virtio/drivers/virtio_tmem/bind
}}
unbind() {{
	echo "$1" >/sys/bus/virtio/drivers/virtio_tmem/unbind
}}
mkdir /tmp/out
churn >/tmp/out/churn 2>&1 &
churn=$!
"$WORKLOAD" coherency --dir /tmp/data/mix --ops 100000 --until /tmp/stop --threads 1 --racers 1 \\
	>/tmp/out/mixer 2>&1 &
mixer=$!
snapshot "round 0"
ways=({" ".join(WAYS)})
for ((round = 1; round <= {TIMES}; round++)); do
	wait_for 60 bound
	# Time and again memory is written and looked at, while most of it is in the host.
	"$WORKLOAD" anon --mib 192 --passes 1 --seed $round >"/tmp/out/anon $round" 2>&1 &
	anon=$!
	wait_for 100 grep -q filled "/tmp/out/anon $round"
	snapshot "round $round"
	case ${{ways[round % {len(WAYS)}]}} in
	unload) step "go $round" modprobe -r virtio_tmem ;;
	unbind)
		device=(/sys/bus/virtio/drivers/virtio_tmem/virtio*)
		device=${{device##*/}}
		step "go $round" unbind "$device"
		;;
	unplug)
		mark "unplug $round"
		wait_for 100 told "unplugged $round"
		;;
	esac
	step "hooks $round" hooks
	mark "gone $round"
	wait_for 60 told "come back $round"
	case ${{ways[round % {len(WAYS)}]}} in
	unload) step "come $round" modprobe virtio_tmem ;;
	unbind) step "come $round" bind "$device" ;;
	esac
	wait $anon || echo "{{\\"status\\":$?}}" >>"/tmp/out/anon $round"
	step "anon $round" cat "/tmp/out/anon $round"
done
snapshot "last"
touch /tmp/stop
wait $churn
printf '{{"status":%d}}\\n' $? >>/tmp/out/churn
step churn cat /tmp/out/churn
wait $mixer
step mixer cat /tmp/out/mixer
step log eval 'dmesg | grep virtio_tmem'
step files "$WORKLOAD" file-set verify --dir /tmp/data/set --mib 48
must umount umount /tmp/data
"""


@dataclass
class Run:
    """What is left of the run."""

    guest: Guest
    # Pages that the host had whenever the device was gone.
    left: list[int]


@pytest.fixture(scope="module")
def run(module_lab: Lab) -> Run:
    """One guest for all tests of this file."""
    daemon = module_lab.daemon()
    disks = [module_lab.disk("swap", 1024), module_lab.disk("data", 256, "ext4")]
    monitor = module_lab.folder / "qmp"
    options = Qmp.qemu_options(monitor)
    machine = SmallMachine(
        256, disks=disks, devices=[daemon], options=options, modules=["ext4"]
    )
    guest = module_lab.boot(SCRIPT, machine)
    qmp = Qmp(monitor)
    run = Run(guest, [])
    for number in range(1, TIMES + 1):
        unplugged = WAYS[number % len(WAYS)] == "unplug"
        if unplugged:
            guest.wait_for_mark(f"unplug {number}", 300)
            daemon.unplug(qmp)
            guest.tell(f"unplugged {number}")
        guest.wait_for_mark(f"gone {number}", 300)
        stat = daemon.stat()
        run.left.append(stat.persistent.pages + stat.ephemeral.pages)
        if unplugged:
            daemon.plug(qmp)
        guest.tell(f"come back {number}")
    guest.finish(300)
    disks[1].check()
    return run


@pytest.fixture
def guest(run: Run) -> Guest:
    """The guest of that run."""
    return run.guest


def test_it_comes_and_goes_under_load(guest: Guest) -> None:
    for number in range(1, TIMES + 1):
        if WAYS[number % len(WAYS)] != "unplug":
            guest.step(f"go {number}")
            guest.step(f"come {number}")
        assert guest.step(f"hooks {number}").text.strip() == ""


def test_pages_went_to_the_host_in_between(guest: Guest) -> None:
    counters = [guest.snapshot(f"round {number}").driver for number in range(1, TIMES + 1)]
    assert sum(counter[f"cleancache/{name}"] for counter in counters for name in BACK) > 1000
    assert all(counter["frontswap/pages"] > 1000 for counter in counters)


def test_R14_the_host_has_its_memory_back_each_time(run: Run) -> None:
    assert run.left == [0] * TIMES


def test_R5_memory_is_right_all_the_while(guest: Guest) -> None:
    for number in range(1, TIMES + 1):
        found = guest.step(f"anon {number}").objects
        assert found[-1].get("wrong") == 0, found[-1]
    assert "lost" not in guest.step("log").text


def test_files_are_right_all_the_while(guest: Guest) -> None:
    rounds = guest.step("churn").objects
    assert rounds[-1]["status"] == 0
    assert len(rounds) > TIMES
    assert all(each["wrong"] == 0 for each in rounds[:-1])
    assert guest.step("files").objects[-1]["wrong"] == 0


def test_R12_what_is_changed_meanwhile_is_right(guest: Guest) -> None:
    found = guest.step("mixer").objects[-1]
    assert found["wrong"] == 0
    assert found["ops"] > 100
