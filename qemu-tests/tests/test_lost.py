# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The daemon dies while pages are out: who needs them waits, until the operator gives them up."""

import re

import pytest

from harness.guest import Guest
from harness.lab import Lab
from harness.small import SmallMachine

SIGBUS = 128 + 7

SCRIPT = """
must load modprobe virtio_tmem
must driver wait_for 30 bound
must swap swap_on swap
must mount mounted data /tmp/data
must "warm up" wait_for 30 warmed_up /tmp/data
must create "$WORKLOAD" file-set create --dir /tmp/data --mib 64
for round in 1 2; do
	drop_caches
	step "files $round" "$WORKLOAD" file-set verify --dir /tmp/data --mib 64
done
drop_caches
must "out lost" out lost 96 224
lost=$PID
must "out killed" out killed 24 64
snapshot before
kernel_log >/dev/null
mark "pages out"
wait_for 60 told dead
step "silent" wait_for 30 state silent
step "files after" "$WORKLOAD" file-set verify --dir /tmp/data --mib 64
step "killed" kill_group killed
step "still waiting" kill -0 $lost
step "log before" kernel_log
step "give up" set_tmem give_up 1
step "state" wait_for 30 state gone
step "lost" looked lost $lost
step "files again" "$WORKLOAD" file-set verify --dir /tmp/data --mib 64
step "anon again" confined 128 "$WORKLOAD" anon --mib 256 --passes 0 --seed 2
step coherency "$WORKLOAD" coherency --dir /tmp/data/mix --ops 100 --seconds 30
snapshot after
step "log after" kernel_log
step swapoff swap_off swap
step umount umount /tmp/data
step unload timeout 60 rmmod virtio_tmem
"""


@pytest.fixture(scope="module")
def guest(module_lab: Lab) -> Guest:
    """One guest for all tests of this file."""
    daemon = module_lab.daemon()
    disks = [module_lab.disk("swap", 1024), module_lab.disk("data", 256, "ext4")]
    # The kernel says of each page that a swap device could not give that it could not.
    allowed = [r"Read-error on swap-device", r"I/O error.*swap", r"virtio_tmem.*is given up"]
    machine = SmallMachine(
        384, disks=disks, devices=[daemon], modules=["ext4"], allowed=allowed
    )
    guest = module_lab.boot(SCRIPT, machine)
    guest.wait_for_mark("pages out", 300)
    stat = daemon.stat()
    assert stat.persistent.pages > 10_000
    assert stat.ephemeral.pages > 1000
    daemon.kill()
    # Somebody waits from now on.
    guest.tell("lost")
    guest.tell("killed")
    guest.tell("dead")
    guest.finish(400)
    return guest


def test_files_are_read_from_the_disk(guest: Guest) -> None:
    for step in ("files after", "files again"):
        assert guest.step(step).objects[-1]["wrong"] == 0


def test_nobody_loses_anything_before_it_is_given_up(guest: Guest) -> None:
    guest.step("silent")
    guest.step("still waiting")


def test_who_waits_can_be_killed(guest: Guest) -> None:
    guest.step("killed")


def test_R5_lost_memory_is_an_error_and_never_wrong(guest: Guest) -> None:
    guest.step("give up")
    guest.step("state")
    assert guest.step("lost").objects[-2:] == [{"status": SIGBUS}, {"event": "filled"}]


def test_the_guest_goes_on_with_its_disk(guest: Guest) -> None:
    assert guest.step("anon again").objects[-1]["wrong"] == 0
    assert guest.step("coherency").objects[-1]["wrong"] == 0
    assert guest.snapshot("after").written("swap") > guest.snapshot("before").written("swap")


def test_the_log_says_once_what_happened(guest: Guest) -> None:
    before, after = (
        re.findall(r"virtio_tmem.*", guest.step(f"log {when}").text) for when in ("before", "after")
    )
    assert len(before) == 1
    assert "the host does not answer" in before[0]
    assert len(after) == 1
    assert re.search(r"is given up: [1-9]\d* swap pages", after[0])


def test_the_module_can_be_unloaded(guest: Guest) -> None:
    for step in ("swapoff", "umount", "unload"):
        guest.step(step)
