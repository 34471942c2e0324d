# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Swapped pages are written back to their slots, while the slots are freed, written and read.

Afterwards the daemon is killed, so that nothing can have come from the host.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from harness.daemon import Stat
from harness.guest import Guest, Machine
from harness.lab import Lab, Labs
from harness.process import wait_until
from harness.small import SmallMachine

MEMORY = 320
MIB = 80
FILE_MIB = 320
PAGES_OF_MIB = 256

# The same memory, written and read again and again; and memory that comes and goes.
STORM = f"""
# out COUNT: whether the host has so many swapped pages.
out() {{
	local count
	read -r count <$DRIVER/frontswap/pages && [ "$count" -ge "$1" ]
}}

storm() {{
	local seed=100 steady job
	confined 48 "$WORKLOAD" anon --mib {MIB} --jobs 2 --passes 1 --seed 1 >/tmp/steady 2>&1 &
	steady=$!
	while [ -d /proc/$steady ]; do
		confined 48 "$WORKLOAD" anon --mib 24 --passes 0 --seed $((seed++)) || return
	done &
	job=$!
	# All of a drain, and then the beginning of one, again and again.
	while [ -d /proc/$steady ]; do
		wait_for 5 out 3000
		drain 1 && wait_for 20 drained
		drain 0
		wait_for 5 out 3000
		drain 1 && drain 0
	done
	wait $job || echo "the memory that came and went was wrong, or killed: $?"
	wait $steady
	echo "status $?"
	cat /tmp/steady
}}

snapshot before
step storm storm
snapshot "after storm"
confined 48 "$WORKLOAD" anon --mib {MIB} --passes 1 --seed 2 --wait-for "$RUN/told/dead" >/tmp/last 2>&1 &
last=$!
must filled wait_for 200 grep -q filled /tmp/last
must out out {MIB * PAGES_OF_MIB // 8}
snapshot filled
step begin drain 1
step drained wait_for 120 drained
step progress drain
snapshot drained
mark drained
wait_for 60 told dead
wait $last
step last cat /tmp/last
snapshot after
step swapoff swapoff "$(awk 'NR == 2 {{ print $1 }}' /proc/swaps)"
"""

DISK = f"""
must load modprobe virtio_tmem
must driver wait_for 30 bound
must swap swap_on swap
{STORM}
step unload modprobe -r virtio_tmem
"""

FILE = f"""
must udev wait_for 30 bound
must mount mounted swap /tmp/swap
must file shuffled /tmp/swap/file {FILE_MIB} 2048
must mkswap mkswap /tmp/swap/file
# What was shared with the file that is gone is so until the filesystem has dealt with that.
must swap wait_for 30 swapon /tmp/swap/file
{STORM}
step umount umount /tmp/swap
step unload modprobe -r virtio_tmem
"""


@dataclass
class Run:
    """What is left of the run."""

    guest: Guest
    drained: Stat


def _drained(lab: Lab, script: str, kind: type[Machine], filesystem: str | None) -> Run:
    # A page that is refused takes its whole request along to the area.
    daemon = lab.daemon(refuse_percent=1)
    disk = lab.disk("swap", 2 * FILE_MIB + 512, filesystem)
    allowed = [r"virtio_tmem: the host does not"]
    machine = kind(MEMORY, disks=[disk], devices=[daemon], allowed=allowed)
    guest = lab.boot(script, machine)
    guest.wait_for_mark("drained", 900)
    # The host hears a little later of what it need not keep.
    wait_until("the host to have no swapped pages", 30, lambda: not daemon.stat().persistent.pages)
    stat = daemon.stat()
    daemon.kill()
    guest.tell("dead")
    guest.finish(200)
    return Run(guest, stat)


@pytest.fixture(scope="module", params=["disk", pytest.param("file", marks=pytest.mark.long)])
def run(request: pytest.FixtureRequest, labs: Labs) -> Iterator[Run]:
    """One guest that swaps to a disk, and one that swaps to a file in another order than its disk."""
    with labs(f"drain-{request.param}") as lab:
        if request.param == "disk":
            yield _drained(lab, DISK, SmallMachine, None)
        else:
            # What makes the file is not on the small machine.
            yield _drained(lab, FILE, Machine, "xfs")


def test_every_page_is_right_in_the_storm(run: Run) -> None:
    storm = run.guest.step("storm")
    assert "status 0" in storm.lines, storm.describe()
    assert storm.objects[-1]["wrong"] == 0
    for found in storm.objects:
        assert found.get("wrong", 0) == 0


def test_pages_were_put_got_and_drained_in_the_storm(run: Run) -> None:
    after = run.guest.snapshot("after storm").driver
    for name in ("puts", "hits", "drained", "draining", "misses"):
        assert after[f"frontswap/{name}"] > 100, name
    assert after["frontswap/drain_failed"] == 0
    assert after["frontswap/lost"] <= after["frontswap/from_area"]


def test_a_drain_leaves_nothing_in_the_host(run: Run) -> None:
    run.guest.step("drained")
    filled, drained = run.guest.snapshot("filled").driver, run.guest.snapshot("drained").driver
    assert filled["frontswap/pages"] > MIB * PAGES_OF_MIB // 8
    assert drained["frontswap/pages"] == 0
    assert run.drained.persistent.pages == 0


def test_nothing_is_put_after_it(run: Run) -> None:
    drained, after = run.guest.snapshot("drained").driver, run.guest.snapshot("after").driver
    assert after["frontswap/puts"] == drained["frontswap/puts"]


def test_all_that_was_drained_is_in_the_area(run: Run) -> None:
    assert run.guest.step("last").objects[-1]["wrong"] == 0
    for step in ("swapoff", "unload"):
        run.guest.step(step)
