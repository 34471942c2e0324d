# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Swapped pages go to the host and to the swap area: the daemon dies, and nothing is lost."""

import pytest

from harness.guest import Guest, Machine
from harness.lab import Lab

pytestmark = pytest.mark.long

MIB = 160
PAGES_OF_MIB = 256

SCRIPT = f"""
must udev wait_for 30 bound
must swap swap_on swap
snapshot before
confined 64 "$WORKLOAD" anon --mib {MIB} --passes 1 --wait-for "$RUN/told/dead" >/tmp/anon 2>&1 &
anon=$!
must filled wait_for 200 grep -q filled /tmp/anon
snapshot filled
mark "pages out"
wait_for 60 told dead
wait $anon
step "status of anon" echo '{{"status":'$?'}}'
step anon cat /tmp/anon
snapshot after
step drain drain 1
step drained wait_for 60 drained
step swapoff swap_off swap
step unload timeout 60 modprobe -r virtio_tmem
"""


@pytest.fixture(scope="module")
def guest(module_lab: Lab) -> Guest:
    """One guest for all tests of this file."""
    daemon = module_lab.daemon()
    disk = module_lab.disk("swap", 512)
    machine = Machine(
        320,
        disks=[disk],
        devices=[daemon],
        append="virtio_tmem.write_through=1 virtio_tmem.give_up_ms=5000",
        allowed=[r"virtio_tmem: the host does not", r"virtio_tmem: the device is given up"],
    )
    guest = module_lab.boot(SCRIPT, machine)
    guest.wait_for_mark("pages out", 300)
    assert daemon.stat().persistent.pages > MIB * PAGES_OF_MIB // 4
    daemon.kill()
    guest.tell("dead")
    guest.finish(300)
    return guest


def test_pages_are_in_the_host_and_in_the_area(guest: Guest) -> None:
    before, filled = guest.snapshot("before"), guest.snapshot("filled")
    stored = filled.driver["frontswap/stored"]
    assert stored > MIB * PAGES_OF_MIB // 4
    assert (filled.written("swap") - before.written("swap")) // 8 >= stored - 32 * 8


def test_nothing_is_lost_with_the_host(guest: Guest) -> None:
    assert guest.step("status of anon").objects[-1]["status"] == 0
    assert guest.step("anon").objects[-1]["wrong"] == 0


def test_what_the_host_lost_is_read_from_the_area(guest: Guest) -> None:
    filled, after = guest.snapshot("filled"), guest.snapshot("after")
    read = after.driver["frontswap/from_area"]
    assert read > 1000
    assert (after.read("swap") - filled.read("swap")) // 8 >= read


def test_to_drain_is_to_forget(guest: Guest) -> None:
    for step in ("drain", "drained", "swapoff", "unload"):
        guest.step(step)
