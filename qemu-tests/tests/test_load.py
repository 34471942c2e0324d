# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""How the module comes into a guest and goes: by udev, by hand, wrongly, and not at all."""

from dataclasses import dataclass

import pytest

from harness.guest import BACK, OUT, Guest, Machine
from harness.lab import Lab

# What udev did, the parameters that make no sense, each half alone, and the end with pages out.
SCRIPT = """
must udev wait_for 30 bound
step modules lsmod
step alias modinfo -F alias virtio_tmem
step modaliases cat /sys/bus/virtio/devices/virtio*/modalias
step drivers ls -l /sys/bus/virtio/drivers/virtio_tmem
step hooked hooks
must unload modprobe -r virtio_tmem
step unhooked hooks
for wrong in staging_pages=1 staging_pages=4294967295 max_order=99 timeout_ms=0 crc=7 \\
	max_order=-1 frontswap=maybe no_such_parameter=1; do
	dmesg --clear
	step "wrong $wrong" modprobe virtio_tmem "$wrong"
	step "log $wrong" dmesg
	step "modules $wrong" lsmod
	modprobe -r virtio_tmem
done
step "hooked wrongly" hooks

must swap with_disk swap mkswap
must mount mounted data /tmp/data
must create "$WORKLOAD" file-set create --dir /tmp/data --mib 64

try() {
	local name=$1
	shift
	must "load $name" load_module "$@"
	must "bound $name" wait_for 30 bound
	must "swapon $name" with_disk swap swapon
	step "hooks $name" hooks
	echo 1 >/proc/sys/vm/drop_caches
	snapshot "$name before"
	for round in 1 2 3; do
		step "$name files $round" "$WORKLOAD" file-set verify --dir /tmp/data --mib 64
		echo 1 >/proc/sys/vm/drop_caches
	done
	step "$name anon" "$WORKLOAD" anon --mib 208 --passes 0
	snapshot "$name after"
	must "swapoff $name" swap_off swap
}
try no-frontswap frontswap=0
try no-cleancache cleancache=0
try no-ext4 ext4=0
try both

must "swapon again" with_disk swap swapon
must out out kept 96 256
kept=$PID
mark "pages out"
wait_for 60 told unload
snapshot "pages out"
step "unload with pages out" modprobe -r virtio_tmem
step "modules with pages out" lsmod
snapshot "unloaded"
mark "unloaded"
wait_for 60 told kept
step "kept" looked kept $kept
step swapoff swap_off swap
step umount umount /tmp/data
must "load at last" modprobe virtio_tmem
step "unload at last" modprobe -r virtio_tmem
step "hooked at last" hooks
step "modules at last" lsmod
"""

WRONG = {
    "staging_pages=1": "staging_pages=1 makes no sense",
    "staging_pages=4294967295": "staging_pages=4294967295 makes no sense",
    "max_order=99": "max_order=99 makes no sense",
    "timeout_ms=0": "timeout_ms=0 makes no sense",
    "crc=7": "crc=7 makes no sense",
    "max_order=-1": "invalid for parameter `max_order'",
    "frontswap=maybe": "invalid for parameter `frontswap'",
}

# A function of each half that is hooked while it is on.
FRONTSWAP, CLEANCACHE = "swap_bdev_submit_write", "truncate_inode_pages_range"


@dataclass
class Run:
    """What is left of the run."""

    guest: Guest
    # What the host had before the module was unloaded with pages out, and after that.
    out: int
    left: int


@pytest.fixture(scope="module")
def run(module_lab: Lab) -> Run:
    """One guest for all tests of this file."""
    daemon = module_lab.daemon()
    disks = [module_lab.disk("swap", 1024), module_lab.disk("data", 256, "ext4")]
    machine = Machine(256, disks=disks, devices=[daemon])
    guest = module_lab.boot(SCRIPT, machine)
    guest.wait_for_mark("pages out", 600)
    out = daemon.stat().persistent.pages
    guest.tell("unload")
    guest.wait_for_mark("unloaded", 100)
    left = daemon.stat().used_bytes
    guest.tell("kept")
    guest.finish(180)
    return Run(guest, out, left)


@pytest.fixture
def guest(run: Run) -> Guest:
    """The guest of that run."""
    return run.guest


def test_udev_loads_the_module_by_its_alias(guest: Guest) -> None:
    guest.step("udev")
    assert "virtio_tmem" in guest.step("modules").text
    assert guest.step("alias").text.strip() == "virtio:d00000006v*"
    assert "virtio:d00000006v00001AF4" in guest.step("modaliases").text
    assert "virtio" in guest.step("drivers").text


def test_functions_are_hooked_only_while_it_is_loaded(guest: Guest) -> None:
    assert FRONTSWAP in guest.step("hooked").text
    assert CLEANCACHE in guest.step("hooked").text
    assert guest.step("unhooked").text.strip() == ""
    assert guest.step("hooked at last").text.strip() == ""


@pytest.mark.parametrize("wrong", WRONG)
def test_a_parameter_that_makes_no_sense_is_refused(guest: Guest, wrong: str) -> None:
    assert guest.any_step(f"wrong {wrong}").status != 0
    assert WRONG[wrong] in guest.step(f"log {wrong}").text
    assert "virtio_tmem" not in guest.step(f"modules {wrong}").text


def test_nothing_is_hooked_after_wrong_parameters(guest: Guest) -> None:
    assert guest.step("hooked wrongly").text.strip() == ""


@pytest.mark.parametrize(
    ("name", "frontswap", "cleancache"),
    [
        ("no-frontswap", False, True),
        ("no-cleancache", True, False),
        ("no-ext4", True, False),
        ("both", True, True),
    ],
)
def test_each_half_works_alone(guest: Guest, name: str, frontswap: bool, cleancache: bool) -> None:
    before = guest.snapshot(f"{name} before").driver
    after = guest.snapshot(f"{name} after").driver
    for half, on in (("frontswap", frontswap), ("cleancache", cleancache)):
        stored, hits = (
            sum(after.get(f"{half}/{name}", 0) - before.get(f"{half}/{name}", 0) for name in names)
            for names in (OUT, BACK)
        )
        assert (stored > 1000) == on, f"{half}: {stored} stored"
        assert (hits > 1000) == on, f"{half}: {hits} hits"
    for number in (1, 2, 3):
        assert guest.step(f"{name} files {number}").objects[-1]["wrong"] == 0
    assert guest.step(f"{name} anon").objects[-1]["wrong"] == 0


def test_a_half_that_is_off_is_not_hooked(guest: Guest) -> None:
    assert FRONTSWAP not in guest.step("hooks no-frontswap").text
    assert CLEANCACHE not in guest.step("hooks no-cleancache").text


def test_R5_unloading_with_pages_out_writes_them_to_the_swap_disk(run: Run) -> None:
    run.guest.step("unload with pages out")
    assert "virtio_tmem" not in run.guest.step("modules with pages out").text
    before, after = (run.guest.snapshot(name) for name in ("pages out", "unloaded"))
    assert run.out > 10_000
    assert after.written("swap") - before.written("swap") >= (run.out - 1000) * 8
    found = run.guest.step("kept").objects
    assert found[-1]["wrong"] == 0
    assert all("status" not in each for each in found)


def test_R14_the_host_has_its_memory_back_after_unloading(run: Run) -> None:
    assert run.left == 0


def test_unloading_works_after_swapoff(guest: Guest) -> None:
    guest.step("swapoff")
    guest.step("unload at last")
    assert "virtio_tmem" not in guest.step("modules at last").text
