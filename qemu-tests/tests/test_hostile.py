# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Devices that are not what they say, and a second one."""

import pytest

from harness.daemon import Device
from harness.fake import FakeDevice
from harness.guest import Guest, Machine
from harness.lab import Lab

# The lie, and what the log has to say of it.
LIES: dict[str, tuple[list[str], str]] = {
    "magic": (["--magic", "1"], "not a tmem device: its magic is 0x1"),
    "version": (["--abi-major", "9"], "the host speaks version 9.2 of the ABI"),
    "page-size": (["--page-shift", "16"], "offers a page size"),
    "no-data-queues": (["--data-queues", "0"], "offers a number of data virtqueues"),
    "more-queues": (["--data-queues", "5"], "does not have the 7 virtqueues"),
    "queues-without-number": (["--data-queues", "65535"], "offers a number of data virtqueues"),
    "no-pages": (["--max-pages", "0"], "offers a most pages"),
    "no-flushes": (["--max-flushes", "0"], "offers a most flushes"),
    "no-pools": (["--max-pools", "0"], "offers a most pools"),
    "nothing": (["--capabilities", "0"], "offers a capabilities"),
    "half-a-configuration": (["--config-bytes", "20"], "offers a"),
    "no-configuration": (["--config-bytes", "0"], "not a tmem device: its magic is 0x0"),
    "mute": (["--silent-control"], "does not answer"),
}

FIRST_SLOT = 0x0E
SLOTS = {name: FIRST_SLOT + number for number, name in enumerate((*LIES, "honest", "second"))}

TRY = """
dmesg --clear
step "bind {name}" bind_device {slot:02x}
step "log {name}" dmesg
step "hooks {name}" hooks
"""

SCRIPT = f"""
must swap swap_on swap
must settled udevadm settle
step "boot log" dmesg
echo 0 >/sys/bus/virtio/drivers_autoprobe
must unload modprobe -r virtio_tmem
must load modprobe virtio_tmem timeout_ms=1000
{"".join(TRY.format(name=name, slot=slot) for name, slot in SLOTS.items())}
step anon "$WORKLOAD" anon --mib 256
snapshot after
must swapoff swap_off swap
must unbind unbind_device {SLOTS["honest"]:02x}
step unhooked hooks
must bind bind_device {SLOTS["second"]:02x}
step "hooked again" hooks
step unload modprobe -r virtio_tmem
"""


@pytest.fixture(scope="module")
def guest(module_lab: Lab) -> Guest:
    """One guest that has all of them, and two honest ones."""
    devices: list[Device] = [
        module_lab.start(FakeDevice(module_lab.folder, name, lies, SLOTS[name]))
        for name, (lies, _) in LIES.items()
    ]
    devices += [
        module_lab.daemon(name=name, slot=SLOTS[name]) for name in ("honest", "second")
    ]
    disk = module_lab.disk("swap", 1024)
    return module_lab.run(SCRIPT, Machine(256, disks=[disk], devices=devices), 300)


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_refused_and_named(guest: Guest, lie: str) -> None:
    assert guest.any_step(f"bind {lie}").status != 0
    assert LIES[lie][1] in guest.step(f"log {lie}").text
    assert guest.step(f"hooks {lie}").text.strip() == ""


def test_udev_offers_the_driver_all_of_them(guest: Guest) -> None:
    log = guest.step("boot log").text
    for _, message in LIES.values():
        assert message in log


def test_R16_a_second_device_is_refused(guest: Guest) -> None:
    guest.step("bind honest")
    assert guest.any_step("bind second").status != 0
    assert "another tmem device is in use" in guest.step("log second").text


def test_the_first_goes_on(guest: Guest) -> None:
    assert guest.step("anon").objects[-1]["wrong"] == 0
    assert guest.snapshot("after").driver["frontswap/hits"] > 10_000
    assert guest.step("unhooked").text.strip() == ""
    assert "swap_bdev_submit_write" in guest.step("hooked again").text
    guest.step("unload")
