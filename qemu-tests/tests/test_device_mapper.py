# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""A swap area on a device-mapper device: put, left alone, and one that cannot be written any more."""

import re

import pytest

from harness.guest import Guest, Machine
from harness.lab import Lab

pytestmark = pytest.mark.long

MIB = 96
PAGES_OF_MIB = 256

SCRIPT = f"""
linear() {{
	modprobe dm-mod && disk swap && dmsetup create area --table "0 $(blockdev --getsz "$DISK") linear $DISK 0"
}}

# becomes TARGET [ARGUMENT...]: has the area's device be that from now on.
becomes() {{
	disk swap
	dmsetup suspend --noflush area &&
	dmsetup load area --table "0 $(blockdev --getsz "$DISK") $1 $DISK 0 ${{*:2}}" &&
	dmsetup resume area
}}

anon() {{
	confined 48 "$WORKLOAD" anon --mib {MIB} --passes 1 "$@"
}}

over() {{
	[[ $(drain) == *" over" ]]
}}

filled() {{
	wait_for 200 grep -q filled /tmp/anon
}}

must udev wait_for 30 bound
must linear linear
must mkswap mkswap /dev/mapper/area
must swap swapon /dev/mapper/area
step put anon
snapshot put

# Reads work, and writes are errors.
must flakey modprobe dm-flakey
anon --seed 3 --wait-for /tmp/go >/tmp/anon 2>&1 &
anon=$!
must filled filled
snapshot filled
must broken becomes flakey 0 3600 1 error_writes
step start drain 1
step over wait_for 120 over
step failed drain
snapshot failed
step hibernate eval 'echo disk >/sys/power/state'
step "after hibernate" drain
must mended becomes linear
step again drain 1
step drained wait_for 120 drained
touch /tmp/go
wait $anon
step "after the errors" cat /tmp/anon
step swapoff swapoff /dev/mapper/area

step reload load_module dm=0
must udev wait_for 30 bound
must "swap again" swapon /dev/mapper/area
snapshot before
step "left alone" anon --seed 2
snapshot after
step "swapoff again" swapoff /dev/mapper/area
step unload modprobe -r virtio_tmem
"""


@pytest.fixture(scope="module")
def guest(module_lab: Lab) -> Guest:
    """One guest for all tests of this file."""
    daemon = module_lab.daemon()
    disk = module_lab.disk("swap", 384)
    # What dm-flakey refuses is an error of the block layer's, too.
    allowed = [r"I/O error, dev dm-0"]
    machine = Machine(320, disks=[disk], devices=[daemon], allowed=allowed)
    return module_lab.run(SCRIPT, machine, 400)


def test_pages_are_put_unless_they_are_not_to_be(guest: Guest) -> None:
    assert guest.step("put").objects[-1]["wrong"] == 0
    assert guest.snapshot("put").driver["frontswap/stored"] > MIB * PAGES_OF_MIB // 4
    assert guest.snapshot("put").driver["frontswap/left_alone"] == 0


def test_such_areas_can_be_left_alone(guest: Guest) -> None:
    before, after = guest.snapshot("before"), guest.snapshot("after")
    assert guest.step("left alone").objects[-1]["wrong"] == 0
    assert after.driver["frontswap/puts"] == 0
    assert after.driver["frontswap/left_alone"] > MIB * PAGES_OF_MIB // 4
    written = (after.written("swap") - before.written("swap")) // 8
    assert written > MIB * PAGES_OF_MIB // 4


def test_what_the_disk_does_not_take_stays_in_the_host(guest: Guest) -> None:
    filled, failed = guest.snapshot("filled").driver, guest.snapshot("failed").driver
    assert filled["frontswap/pages"] > 1000
    assert failed["frontswap/pages"] > 1000
    assert failed["frontswap/drained"] == filled["frontswap/drained"]
    said = re.fullmatch(r"left (\d+) written 0 failed (\d+) over\s*", guest.step("failed").text)
    assert said is not None, guest.step("failed").text
    assert int(said[1]) == int(said[2]) > 1000
    lines = [line for line in guest.console() if "could not be written to their swap areas" in line]
    assert len(lines) >= 1


def test_hibernation_is_refused_with_a_line_while_pages_cannot_be_drained(guest: Guest) -> None:
    hibernate = guest.any_step("hibernate")
    assert hibernate.status != 0
    assert "Device or resource busy" in hibernate.text
    lines = [line for line in guest.console() if "no hibernation: " in line]
    assert len(lines) == 1, "\n".join(lines)


def test_it_can_be_tried_again(guest: Guest) -> None:
    for step in ("again", "drained", "swapoff"):
        guest.step(step)
    assert guest.step("after the errors").objects[-1]["wrong"] == 0
