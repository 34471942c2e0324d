# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Pages in memory that the host lends: put and got by a copy, and the daemon not asked."""

from dataclasses import dataclass

import pytest

from harness.daemon import Stat
from harness.guest import Guest
from harness.lab import Lab
from harness.small import SmallMachine

MEMORY = 256
MIB = 2 * MEMORY
PAGES = MIB * 256
FILES = 320

SCRIPT = f"""
must load modprobe virtio_tmem
must driver wait_for 30 bound
must mount mounted data /tmp/data
must create "$WORKLOAD" file-set create --dir /tmp/data --mib {FILES}
drop_caches
snapshot before
step "files 1" "$WORKLOAD" file-set verify --dir /tmp/data --mib {FILES}
snapshot first
step "files 2" "$WORKLOAD" file-set verify --dir /tmp/data --mib {FILES}
snapshot second
must swap swap_on swap
step anon "$WORKLOAD" anon --mib {MIB} --passes 0 --jobs 2
snapshot after
step window eval "cat /sys/bus/virtio/drivers/virtio_tmem/virtio*/tmem/window"
mark done
wait_for 60 told leave
step swapoff swap_off swap
snapshot "at end"
step rmmod modprobe -r virtio_tmem
step log kernel_log
"""


@dataclass
class Run:
    """What is left of the run."""

    guest: Guest
    at_end: Stat


@pytest.fixture(scope="module")
def run(module_lab: Lab) -> Run:
    """One guest for all tests of this file."""
    daemon = module_lab.daemon(capacity="2GiB", window="2GiB")
    disks = [module_lab.disk("swap", MIB + 512), module_lab.disk("data", FILES + 128, "ext4")]
    guest = module_lab.boot(SCRIPT, SmallMachine(MEMORY, disks=disks, devices=[daemon], modules=["ext4"]))
    guest.wait_for_mark("done", 600)
    at_end = daemon.stat()
    guest.tell("leave")
    guest.finish(120)
    return Run(guest, at_end)


def test_every_swapped_page_comes_back(run: Run) -> None:
    found = run.guest.step("anon").objects[-1]
    assert found["wrong"] == 0
    assert found["compared"] == found["pages"] == PAGES


def test_no_file_is_stale(run: Run) -> None:
    for name in ("files 1", "files 2"):
        assert run.guest.step(name).objects[-1]["wrong"] == 0


def test_swapped_pages_need_no_request(run: Run) -> None:
    driver = run.guest.snapshot("after").driver
    assert driver["frontswap/window_puts"] > PAGES // 2
    assert driver["frontswap/window_hits"] > PAGES // 2
    # Where chunks do not come as fast as pages do, as on a machine that has much else to do, pages go
    # as they would without a window.
    assert driver["frontswap/puts"] < driver["frontswap/window_puts"] // 4


def test_the_kernel_makes_no_request_of_what_it_reads(run: Run) -> None:
    before, after = run.guest.snapshot("second"), run.guest.snapshot("after")
    hits = after.driver["frontswap/window_hits"]
    # A request has eight pages at most.
    assert after.vmstat["nrswpin"] - before.vmstat["nrswpin"] < hits // 12
    assert after.vmstat["pswpin"] - before.vmstat["pswpin"] >= hits


def test_clean_pages_need_no_request(run: Run) -> None:
    driver = run.guest.snapshot("second").driver
    assert driver["cleancache/window_puts"] > FILES * 256 // 4
    assert driver["cleancache/window_hits"] > FILES * 256 // 4
    first, second = run.guest.snapshot("first"), run.guest.snapshot("second")
    again = second.read("data") - first.read("data")
    once = first.read("data") - run.guest.snapshot("before").read("data")
    assert again < once // 4


def test_no_memory_is_kept_for_pages_that_wait(run: Run) -> None:
    for name in ("second", "after"):
        assert run.guest.snapshot(name).driver["queue/staging_pages"] == 0


def test_next_to_nothing_is_written_to_the_swap_disk(run: Run) -> None:
    before, after = run.guest.snapshot("second"), run.guest.snapshot("after")
    pages = (after.written("swap") - before.written("swap")) // 8
    assert pages < PAGES // 20


def test_the_module_goes_and_leaves_nothing(run: Run) -> None:
    run.guest.step("swapoff")
    run.guest.step("rmmod")
