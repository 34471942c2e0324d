# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The daemon dies while pages are out."""

import re

import pytest

from harness.guest import Guest, Machine
from harness.lab import Lab

SIGBUS = 128 + 7

SCRIPT = """
must udev wait_for 30 bound
must swap swap_on swap
must mount mounted data /tmp/data
must "warm up" wait_for 30 warmed_up /tmp/data
must create "$WORKLOAD" file-set create --dir /tmp/data --mib 64
for round in 1 2; do
	drop_caches
	step "files $round" "$WORKLOAD" file-set verify --dir /tmp/data --mib 64
done
drop_caches
mkdir /tmp/out
confined 128 "$WORKLOAD" anon --mib 288 --wait-for "$RUN/told/dead" >/tmp/out/anon 2>&1 &
anon=$!
wait_for 200 grep -q filled /tmp/out/anon
snapshot before
mark "pages out"
wait_for 60 told dead
step "files after" "$WORKLOAD" file-set verify --dir /tmp/data --mib 64
wait $anon
step "status of anon" echo '{"status":'$?'}'
step anon cat /tmp/out/anon
step "files again" "$WORKLOAD" file-set verify --dir /tmp/data --mib 64
step "anon again" confined 128 "$WORKLOAD" anon --mib 256 --passes 0 --seed 2
step coherency "$WORKLOAD" coherency --dir /tmp/data/mix --ops 100 --seconds 30
snapshot after
step swapoff swap_off swap
step umount umount /tmp/data
step unload timeout 60 modprobe -r virtio_tmem
"""


@pytest.fixture(scope="module")
def guest(module_lab: Lab) -> Guest:
    """One guest for all tests of this file."""
    daemon = module_lab.daemon()
    disks = [module_lab.disk("swap", 1024), module_lab.disk("data", 256, "ext4")]
    # The kernel says of each page that a swap device could not give that it could not.
    allowed = [r"Read-error on swap-device", r"I/O error.*swap", r"virtio_tmem: the host does not"]
    machine = Machine(384, disks=disks, devices=[daemon], allowed=allowed)
    guest = module_lab.boot(SCRIPT, machine)
    guest.wait_for_mark("pages out", 300)
    stat = daemon.stat()
    assert stat.persistent.pages > 10_000
    assert stat.ephemeral.pages > 1000
    daemon.kill()
    guest.tell("dead")
    guest.finish(400)
    return guest


def test_files_are_read_from_the_disk(guest: Guest) -> None:
    for step in ("files after", "files again"):
        assert guest.step(step).objects[-1]["wrong"] == 0


def test_lost_memory_is_an_error_and_never_wrong(guest: Guest) -> None:
    assert guest.step("status of anon").objects[-1]["status"] == SIGBUS
    assert '"wrong"' not in guest.step("anon").text


def test_the_guest_goes_on_with_its_disk(guest: Guest) -> None:
    assert guest.step("anon again").objects[-1]["wrong"] == 0
    assert guest.step("coherency").objects[-1]["wrong"] == 0
    assert guest.snapshot("after").written("swap") > guest.snapshot("before").written("swap")


def test_the_log_says_once_what_happened(guest: Guest) -> None:
    said = [line for line in guest.console() if "the host does not answer any more" in line]
    assert len(said) == 1, "\n".join(said)
    assert re.search(r"[1-9]\d* swap pages that it had are lost", said[0])


def test_the_module_can_be_unloaded(guest: Guest) -> None:
    for step in ("swapoff", "umount", "unload"):
        guest.step(step)
