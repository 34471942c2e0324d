# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Devices that answer with garbage: a page is right, or an error, and never wrong."""

import re

import pytest

from harness.fake import FakeDevice
from harness.guest import Guest, Machine
from harness.lab import Lab

pytestmark = pytest.mark.long

# A device is left alone from when it first talks nonsense. It is honest for a while before, so that
# there is something to lose.
HONEST = "--honest-answers=300"
LIES: dict[str, list[str]] = {
    "header": [HONEST, "--garbage-header-percent=20"],
    "result": [HONEST, "--garbage-result-percent=20"],
    "length": [HONEST, "--garbage-length-percent=20"],
    "epoch": [HONEST, "--garbage-epoch-percent=20"],
    "head": [HONEST, "--wrong-head-percent=20"],
    "miss": [HONEST, "--false-miss-percent=20"],
    "silence": ["--silent-after=600"],
    # Only a CRC can tell, and swap has none.
    "content": [HONEST, "--corrupt-percent=20"],
}

FIRST_SLOT = 0x10
SLOTS = {name: FIRST_SLOT + number for number, name in enumerate(LIES)}

SIGBUS = 128 + 7

SCRIPT = """
must settled udevadm settle
echo 0 >/sys/bus/virtio/drivers_autoprobe
must mount mounted data /tmp/data
must create "$WORKLOAD" file-set create --dir /tmp/data --mib 48
must swap with_disk swap mkswap

try() {
	local lie=$1 slot=$2 frontswap=$3 round
	must "unload $lie" modprobe -r virtio_tmem
	must "load $lie" modprobe virtio_tmem crc=2 timeout_ms=1000 give_up_ms=2000 "frontswap=$frontswap"
	dmesg --clear
	must "bind $lie" bind_device "$slot"
	must "swapon $lie" with_disk swap swapon
	snapshot "before $lie"
	for round in 1 2; do
		drop_caches
		step "files $lie $round" "$WORKLOAD" file-set verify --dir /tmp/data --mib 48
	done
	step "anon $lie" confined 128 "$WORKLOAD" anon --mib 240 --passes 0
	step "files $lie 3" "$WORKLOAD" file-set verify --dir /tmp/data --mib 48
	snapshot "after $lie"
	step "anon after $lie" confined 64 "$WORKLOAD" anon --mib 96 --passes 0 --seed 3
	step "log $lie" dmesg
	must "swapoff $lie" swap_off swap
}
"""


@pytest.fixture(scope="module")
def guest(module_lab: Lab) -> Guest:
    """One guest that has all of them, one after the other."""
    devices = [
        module_lab.start(FakeDevice(module_lab.folder, name, lies, SLOTS[name]))
        for name, lies in LIES.items()
    ]
    tries = "\n".join(
        f"try {name} {SLOTS[name]:02x} {0 if name == 'content' else 1}" for name in LIES
    )
    disks = [module_lab.disk("swap", 1024), module_lab.disk("data", 256, "ext4")]
    # The kernel says of each swapped page that it did not get that it did not.
    allowed = [r"Read-error on swap-device", r"I/O error.*swap", r"virtio_tmem.*I/O error"]
    machine = Machine(384, disks=disks, devices=devices, allowed=allowed)
    return module_lab.run(SCRIPT + tries, machine, 600)


@pytest.mark.parametrize("lie", LIES)
def test_files_are_right(guest: Guest, lie: str) -> None:
    for number in (1, 2, 3):
        assert guest.step(f"files {lie} {number}").objects[-1]["wrong"] == 0


@pytest.mark.parametrize("lie", LIES)
def test_R5_memory_is_right_or_an_error(guest: Guest, lie: str) -> None:
    step = guest.any_step(f"anon {lie}")
    assert step.status in (0, SIGBUS), step.describe()
    if step.status == 0:
        assert step.objects[-1]["wrong"] == 0


@pytest.mark.parametrize("lie", [lie for lie in LIES if lie not in ("silence", "content")])
def test_one_line_says_so_and_the_device_is_left_alone(guest: Guest, lie: str) -> None:
    said = [
        line
        for line in guest.step(f"log {lie}").lines
        # What the ring says of what it does not understand, what it is when it is loaded, and a
        # host that is another one for the first time, is no complaint of the driver's.
        if "virtio_tmem" in line
        and not re.search(r"is not a head|virtqueues, room for|epoch changed|has lost", line)
    ]
    assert len(said) == 1, "\n".join(said)


@pytest.mark.parametrize("lie", LIES)
def test_R5_memory_of_others_is_right(guest: Guest, lie: str) -> None:
    assert guest.step(f"anon after {lie}").objects[-1]["wrong"] == 0


def test_silence_is_given_up_where_that_is_asked_for(guest: Guest) -> None:
    log = guest.step("log silence").text
    assert log.count("the host does not answer") == 1
    assert len(re.findall(r"is given up: \d+ swap pages", log)) == 1
    # Nothing of it was ever there.
    assert guest.step("anon silence").objects[-1]["wrong"] == 0


def test_a_page_that_the_host_changed_is_noticed(guest: Guest) -> None:
    before, after = (guest.snapshot(f"{when} content").driver for when in ("before", "after"))
    assert after["cleancache/bad_crc"] > before["cleancache/bad_crc"]
    assert after["cleancache/hits"] > before["cleancache/hits"]
