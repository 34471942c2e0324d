# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Devices smaller than the driver likes: they work, or are refused in a line."""

from dataclasses import dataclass

import pytest

from harness.guest import Guest
from harness.lab import Lab
from harness.small import SmallMachine


@dataclass
class Small:
    """How small a device is."""

    properties: dict[str, str | int]
    data_queues: int = 2
    # What the log says of it if it is refused, and whether it has to be.
    refused: str = ""
    useless: bool = False


DEVICES = {
    "no-epoch": Small({"config_size": 32}, refused="configuration space", useless=True),
    "no-reserve": Small({"config_size": 40}, refused="configuration space"),
    "few-descriptors": Small({"vq_size": 16}),
    "very-few-descriptors": Small({"vq_size": 4}, refused="virtqueue"),
    "few-descriptors-and-no-tables": Small(
        {"vq_size": 16, "indirect_desc": "off"}, refused="virtqueue"
    ),
    "one-data-queue": Small({}, data_queues=1),
    "a-queue-too-few": Small(
        {"num_vqs": 3}, refused="does not have the 4 virtqueues", useless=True
    ),
}

FIRST_SLOT = 0x10
SLOTS = {name: FIRST_SLOT + number for number, name in enumerate(DEVICES)}

SCRIPT = f"""
try() {{
	local name=$1 round
	kernel_log >/dev/null
	step "bind $name" bind_device "$2"
	step "log $name" kernel_log
	bound || return
	must "swapon $name" with_disk swap swapon
	snapshot "before $name"
	step "anon $name" confined 24 "$WORKLOAD" anon --mib 40 --passes 0
	for round in 1 2 3; do
		drop_caches
		step "files $name $round" "$WORKLOAD" file-set verify --dir /tmp/data --mib 16
	done
	snapshot "after $name"
	must "swapoff $name" swap_off swap
	must "unbind $name" unbind_device "$2"
	step "log at last $name" kernel_log
}}

must mount mounted data /tmp/data
must create "$WORKLOAD" file-set create --dir /tmp/data --mib 16
must mkswap with_disk swap mkswap
echo 0 >/sys/bus/virtio/drivers_autoprobe
must load modprobe virtio_tmem
{"".join(f"try {name} {slot:02x}" + chr(10) for name, slot in SLOTS.items())}
step unload modprobe -r virtio_tmem
"""


@pytest.fixture(scope="module")
def guest(module_lab: Lab) -> Guest:
    """One guest that has all of them, one after the other."""
    devices = [
        module_lab.daemon(
            name=name,
            capacity="256MiB",
            data_queues=small.data_queues,
            slot=SLOTS[name],
            **small.properties,
        )
        for name, small in DEVICES.items()
    ]
    disks = [module_lab.disk("swap", 256), module_lab.disk("data", 64, "ext4")]
    return module_lab.run(SCRIPT, SmallMachine(256, disks=disks, devices=devices), 300)


@pytest.mark.parametrize("name", DEVICES)
def test_it_works_or_is_refused_in_a_line(guest: Guest, name: str) -> None:
    small = DEVICES[name]
    if guest.any_step(f"bind {name}").status == 0:
        assert not small.useless
        works(guest, name)
        return
    assert small.refused
    log = guest.step(f"log {name}").lines
    # What the kernel says of each probe that failed is no explanation.
    said = [each for each in log if "virtio_tmem" in each and "failed with error" not in each]
    assert len(said) == 1
    assert small.refused in said[0]


def works(guest: Guest, name: str) -> None:
    """Fails if the device was of no use."""
    assert guest.step(f"anon {name}").objects[-1]["wrong"] == 0
    for number in (1, 2, 3):
        assert guest.step(f"files {name} {number}").objects[-1]["wrong"] == 0
    before, after = (guest.snapshot(f"{when} {name}").driver for when in ("before", "after"))
    for counter in ("frontswap/hits", "cleancache/hits"):
        assert after[counter] - before.get(counter, 0) > 1000, counter
    assert "does not answer" not in guest.step(f"log at last {name}").text


def test_the_module_can_be_unloaded(guest: Guest) -> None:
    guest.step("unload")
