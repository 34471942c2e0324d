# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Memory of the guest that the host's daemon cannot map."""

import re

import pytest

from harness.guest import Guest
from harness.lab import Lab
from harness.qmp import Qmp
from harness.small import SmallMachine

PLUGGED_MIB = 128

# What is swapped out lies in memory that the host can reach, and what is there when it comes back
# is memory that it cannot.
PLUGGED = """
total() {
	awk '/^MemTotal:/ { print $2 }' /proc/meminfo
}

# grown BEFORE: whether there is more memory than there was, and all of it.
grown() {
	[ "$(total)" -gt $(($1 + PLUGGED_MIB * 1000)) ]
}

must load modprobe virtio_tmem
must swap swap_on swap
must mount mounted data /tmp/data
must "warm up" wait_for 30 warmed_up /tmp/data
must create "$WORKLOAD" file-set create --dir /tmp/data --mib 24
must out out looked 24 80
# Where only pages are that can be moved, such as these.
must online eval 'echo online_movable >/sys/devices/system/memory/auto_online_blocks'
kernel_log >/dev/null
before=$(total)
mark "plug it in"
wait_for 60 told "it is in"
must grown wait_for 30 grown "$before"
snapshot plugged
mark look
step memory looked looked $PID
snapshot looked
for round in 1 2 3; do
	step "files $round" "$WORKLOAD" file-set verify --dir /tmp/data --mib 24
	drop_caches
done
step "more memory" confined 48 "$WORKLOAD" anon --mib 160 --passes 1 --seed 6
step "most memory" "$WORKLOAD" anon --mib 420 --passes 0 --seed 7
snapshot end
step log kernel_log
step swapoff swap_off swap
step umount umount /tmp/data
step unload modprobe -r virtio_tmem
"""


@pytest.fixture(scope="module")
def plugged(module_lab: Lab) -> Guest:
    """A guest that gets more memory, of which QEMU was not told to share it."""
    daemon = module_lab.daemon()
    disks = [module_lab.disk("swap", 1024), module_lab.disk("data", 128, "ext4")]
    monitor = module_lab.folder / "qmp"
    # Where there may be memory above 4 GiB one day, 64 MiB are set aside for devices.
    machine = SmallMachine(
        320,
        disks=disks,
        devices=[daemon],
        options=Qmp.qemu_options(monitor),
        memory=",slots=4,maxmem=1G",
    )
    script = f"PLUGGED_MIB={PLUGGED_MIB}\n{PLUGGED}"
    guest = module_lab.boot(script, machine)
    guest.wait_for_mark("plug it in", 100)
    assert daemon.stat().persistent.pages > 10_000
    qmp = Qmp(monitor)
    kind, size = "memory-backend-ram", PLUGGED_MIB << 20
    qmp.ask("object-add", **{"qom-type": kind, "id": "more", "size": size})
    qmp.ask("device_add", driver="pc-dimm", id="dimm", memdev="more")
    guest.tell("it is in")
    guest.wait_for_mark("look", 60)
    guest.tell("looked")
    guest.finish(200)
    assert daemon.stat().total("malformed") == 0
    return guest


def test_R5_pages_come_back_into_memory_that_the_host_cannot_reach(plugged: Guest) -> None:
    for step in ("memory", "more memory", "most memory"):
        found = plugged.step(step).objects
        assert found[-1]["wrong"] == 0
        assert all("status" not in each for each in found)
    assert plugged.snapshot("end").driver["frontswap/lost"] == 0


def test_they_do_come_from_the_host(plugged: Guest) -> None:
    before, after = plugged.snapshot("plugged"), plugged.snapshot("looked")
    assert after.driver["frontswap/hits"] - before.driver["frontswap/hits"] > 10_000
    assert after.driver["frontswap/bounced"] > before.driver["frontswap/bounced"]


def test_files_are_right(plugged: Guest) -> None:
    for number in (1, 2, 3):
        assert plugged.step(f"files {number}").objects[-1]["wrong"] == 0


def test_the_module_can_be_unloaded(plugged: Guest) -> None:
    for step in ("swapoff", "umount", "unload"):
        plugged.step(step)


UNSHARED = """
must swap swap_on swap
kernel_log >/dev/null
step load modprobe virtio_tmem
step bound bound
step log kernel_log
step hooks hooks
step anon confined 24 "$WORKLOAD" anon --mib 64
step unload modprobe -r virtio_tmem
"""


@pytest.mark.long
def test_a_guest_of_which_nothing_is_shared_is_told_so(lab: Lab) -> None:
    daemon = lab.daemon()
    machine = SmallMachine(256, disks=[lab.disk("swap", 256)], devices=[daemon], shared=False)
    guest = lab.run(UNSHARED, machine, 100)
    assert guest.any_step("bound").status != 0
    assert re.search(r"virtio_tmem.*share", guest.step("log").text)
    assert guest.step("hooks").text.strip() == ""
    assert guest.step("anon").objects[-1]["wrong"] == 0
    guest.step("unload")
    assert daemon.running
