# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Anonymous memory, four times the guest's, with the pages in the host."""

from dataclasses import dataclass

import pytest

from harness.daemon import DATA_QUEUES, Stat
from harness.guest import Guest
from harness.lab import Lab
from harness.small import SmallMachine

MEMORY = 256
MIB = 4 * MEMORY
PAGES = MIB * 256

SCRIPT = f"""
must load modprobe virtio_tmem
must driver wait_for 30 bound
must swap swap_on swap
snapshot before
step anon "$WORKLOAD" anon --mib {MIB} --passes 0 --jobs 2
snapshot after
mark done
wait_for 60 told leave
snapshot "at end"
step swapoff swap_off swap
step rmmod modprobe -r virtio_tmem
"""


@dataclass
class Run:
    """What is left of the run."""

    guest: Guest
    at_end: Stat
    after_swapoff: Stat


@pytest.fixture(scope="module")
def run(module_lab: Lab) -> Run:
    """One guest for all tests of this file."""
    daemon = module_lab.daemon(capacity="2GiB")
    disk = module_lab.disk("swap", MIB + 512)
    guest = module_lab.boot(SCRIPT, SmallMachine(MEMORY, disks=[disk], devices=[daemon]))
    guest.wait_for_mark("done", 600)
    at_end = daemon.stat()
    guest.tell("leave")
    guest.finish(120)
    return Run(guest, at_end, daemon.stat())


def test_R5_every_swapped_page_comes_back(run: Run) -> None:
    found = run.guest.step("anon").objects[-1]
    assert found["wrong"] == 0
    assert found["pages"] == PAGES
    assert found["compared"] == PAGES


def test_swapped_pages_are_in_the_host(run: Run) -> None:
    counts = run.at_end.persistent
    # Of four times the guest's memory, three quarters have to be elsewhere, time and again.
    assert counts.puts_stored > PAGES // 2
    assert counts.gets_hit > PAGES // 2
    # Between the snapshot and the daemon's counters a few more may come back.
    assert run.guest.snapshot("after").driver["frontswap/hits"] > PAGES // 2


def test_next_to_nothing_is_written_to_the_swap_disk(run: Run) -> None:
    before, after = run.guest.snapshot("before"), run.guest.snapshot("after")
    pages = (after.written("swap") - before.written("swap")) // 8
    assert pages < run.at_end.persistent.puts_stored // 100


def test_next_to_nothing_is_read_from_the_swap_disk(run: Run) -> None:
    before, after = run.guest.snapshot("before"), run.guest.snapshot("after")
    pages = (after.read("swap") - before.read("swap")) // 8
    assert pages < run.at_end.persistent.gets_hit // 100


def test_one_notification_is_for_many_pages(run: Run) -> None:
    counts = run.at_end.persistent
    # Later than the daemon's counters: what it has heard of has been said by then.
    notifications = run.guest.snapshot("at end").driver["queue/notifications"]
    assert 0 < 4 * notifications < counts.puts_stored + counts.gets_hit
    # QEMU kicks each virtqueue itself when it starts it, and when it stops.
    assert run.at_end.total("kicks") <= notifications + 2 * (2 + DATA_QUEUES)


def test_R14_nothing_is_left_in_the_host_after_swapoff(run: Run) -> None:
    run.guest.step("swapoff")
    run.guest.step("rmmod")
    assert run.after_swapoff.persistent.pages == 0
    assert run.after_swapoff.total("malformed") == 0
