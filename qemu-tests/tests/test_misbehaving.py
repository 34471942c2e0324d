# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Devices that begin to misbehave while they have pages.

Whoever owns a page that only the device has gets it or an error, or waits and can be killed; nobody
else notices.
"""

import pytest

from harness.fake import FakeDevice
from harness.guest import Guest
from harness.lab import Lab
from harness.small import SmallMachine

# A device that answers so is left alone.
LIES = [
    "wrong-op",
    "epoch-flap",
    "short",
    "long-used",
    "used-zero",
    "bad-credits",
    "count:0",
    "status:77",
]

SIGBUS = 128 + 7

SCRIPT = f"""
must mount mounted data /tmp/data
must create "$WORKLOAD" file-set create --dir /tmp/data --mib 16
must mkswap with_disk swap mkswap

# begin NAME: with the module loaded anew, has memory in the device.
begin() {{
	must "load $1" modprobe virtio_tmem timeout_ms=1000
	must "bound $1" wait_for 30 bound
	must "swapon $1" with_disk swap swapon
	must "out $1" out "$1" 24 48
	owner=$PID
}}

# others NAME: whoever has nothing in the device.
others() {{
	for round in 1 2; do
		drop_caches
		step "files $1 $round" "$WORKLOAD" file-set verify --dir /tmp/data --mib 16
	done
	step "anon $1" confined 24 "$WORKLOAD" anon --mib 48 --passes 0 --seed 3
}}

end() {{
	step "log $1" kernel_log
	must "swapoff $1" swap_off swap
	must "unload $1" modprobe -r virtio_tmem
}}

for lie in {" ".join(LIES)}; do
	begin "$lie"
	kernel_log >/dev/null
	mark "$lie may begin"
	wait_for 60 told "$lie"
	step "owner $lie" looked "$lie" $owner
	others "$lie"
	end "$lie"
	mark "$lie is over"
	wait_for 60 told "go on after $lie"
done

begin lost
must "out other" out other 24 56
other=$PID
kernel_log >/dev/null
mark "one may be lost"
wait_for 60 told "one is lost"
step "other" looked other $other
others lost
step "still waiting" kill -0 $owner
snapshot waiting
step "killed" kill_group lost
# Until then the device has memory that somebody may want.
step "given up" set_tmem give_up 1
end lost
"""


@pytest.fixture(scope="module")
def guest(module_lab: Lab) -> Guest:
    """One guest for all tests of this file."""
    device = module_lab.start(FakeDevice(module_lab.folder, "fake"))
    disks = [module_lab.disk("swap", 256), module_lab.disk("data", 64, "ext4")]
    # The kernel says of each swapped page that it did not get that it did not.
    allowed = [r"Read-error on swap-device", r"I/O error.*swap", r"virtio_tmem.*I/O error"]
    machine = SmallMachine(256, disks=disks, devices=[device], allowed=allowed)
    guest = module_lab.boot(SCRIPT, machine)
    for lie in LIES:
        guest.wait_for_mark(f"{lie} may begin", 100)
        device.behave(lie)
        guest.tell(lie)
        guest.wait_for_mark(f"{lie} is over", 200)
        # The next one has an honest beginning.
        device.behave()
        guest.tell(f"go on after {lie}")
    guest.wait_for_mark("one may be lost", 100)
    device.behave("lose-one")
    guest.tell("lost")
    device.wait_kept()
    guest.tell("other")
    guest.tell("one is lost")
    guest.finish(200)
    return guest


@pytest.mark.parametrize("lie", LIES)
def test_R5_the_owner_gets_its_memory_or_an_error(guest: Guest, lie: str) -> None:
    found = guest.step(f"owner {lie}").objects
    if "status" in found[0]:
        assert found[0]["status"] == SIGBUS
    else:
        assert found[-1]["wrong"] == 0


# Credits promise nothing, so that none of them can be a lie: a put is refused, or is not made.
@pytest.mark.parametrize("lie", [lie for lie in LIES if lie != "bad-credits"])
def test_one_line_says_so_and_the_device_is_left_alone(guest: Guest, lie: str) -> None:
    said = [line for line in guest.step(f"log {lie}").lines if "virtio_tmem" in line]
    if lie == "epoch-flap":
        # The first time is none: hosts are restarted.
        said = [line for line in said if "epoch changed" not in line and "has lost" not in line]
    assert len(said) == 1, "\n".join(said)


@pytest.mark.parametrize("name", [*LIES, "lost"])
def test_nobody_else_notices(guest: Guest, name: str) -> None:
    for step in (f"anon {name}", f"files {name} 1", f"files {name} 2"):
        assert guest.step(step).objects[-1]["wrong"] == 0


@pytest.mark.parametrize("name", [*LIES, "lost"])
def test_the_module_can_be_unloaded(guest: Guest, name: str) -> None:
    guest.step(f"swapoff {name}")
    guest.step(f"unload {name}")


def test_who_waits_for_one_answer_can_be_killed(guest: Guest) -> None:
    guest.step("still waiting")
    guest.step("killed")
    assert guest.snapshot("waiting").driver["frontswap/lost"] == 0


def test_others_get_theirs_meanwhile(guest: Guest) -> None:
    found = guest.step("other").objects
    assert found[-1]["wrong"] == 0
    assert all("status" not in each for each in found)
