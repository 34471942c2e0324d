# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""A guest from which much is taken: memory, by a balloon, and time, by busy processes."""


import pytest

from harness.guest import Guest
from harness.lab import Lab
from harness.qmp import Qmp
from harness.small import SmallMachine

pytestmark = pytest.mark.long

MEMORY = 320
BALLOONED = 192

# What `parameters` shows of a module that was loaded with none.
DEFAULTS = {
    "frontswap": 1,
    "cleancache": 1,
    "ext4": 1,
    "xfs": 1,
    "btrfs": 1,
    "crc": 1,
    "window": 1,
    "admission": 1,
    "max_order": 9,
    "timeout_ms": 3000,
    "give_up_ms": 0,
    "poll_us": 200,
}

SCRIPT = f"""
# taken: whether the balloon has taken what it should.
taken() {{
	awk '/^MemTotal:/ {{ exit $2 > {BALLOONED} * 1024 ? 1 : 0 }}' /proc/meminfo
}}

# staging_at_most PAGES
staging_at_most() {{
	local pages
	read -r pages <$DRIVER/queue/staging_pages && [ "$pages" -le "$1" ]
}}

# hits_reach COUNT
hits_reach() {{
	local hits
	read -r hits <$DRIVER/frontswap/hits && [ "$hits" -ge "$1" ]
}}

must swap swap_on swap
must mount mounted data /tmp/data
must create "$WORKLOAD" file-set create --dir /tmp/data --mib 96
must "load one half" modprobe virtio_tmem cleancache=0 poll_us=77
snapshot "one half"
must "unload one half" modprobe -r virtio_tmem
must load modprobe virtio_tmem

# A process that runs only when nobody else wants the CPU gets pages beside many that do.
GROUP=idler confined 16 "$WORKLOAD" anon --mib 48 --passes 100000 --cpu 0 --idle >/tmp/idler 2>&1 &
must "idler out" wait_for 60 grep -q filled /tmp/idler
must "out waiter" out waiter 24 64
kernel_log >/dev/null
for hog in 1 2 3 4 5 6; do
	taskset 1 sh -c 'while :; do :; done' &
	hogs+=($!)
done
read -r hits <$DRIVER/frontswap/hits
step "idler alone" wait_for 100 hits_reach $((hits + 10))
: >"$RUN/told/waiter"
step "waiter" looked waiter $PID
step "beside" confined 24 "$WORKLOAD" anon --mib 64 --cpu 1 --seed 8
step "state" state running
kill "${{hogs[@]}}"
must "kill idler" kill_group idler
step "log of starving" kernel_log
snapshot "starved"

for round in 1 2; do
	step "files $round" "$WORKLOAD" file-set verify --dir /tmp/data --mib 96
	drop_caches
done
snapshot "before the balloon"
mark "all of the memory"
must "balloon" wait_for 60 taken
step "staging" wait_for 30 staging_at_most $(({BALLOONED} * 256 / 32 + 64))
for round in 3 4; do
	step "files $round" "$WORKLOAD" file-set verify --dir /tmp/data --mib 96
	drop_caches
done
step "anon" confined 48 "$WORKLOAD" anon --mib 96
step "staging after" staging_at_most $(({BALLOONED} * 256 / 32 + 64))
snapshot "ballooned"
step swapoff swap_off swap
step umount umount /tmp/data
step unload modprobe -r virtio_tmem
"""


@pytest.fixture(scope="module")
def guest(module_lab: Lab) -> Guest:
    """One guest for all tests of this file."""
    daemon = module_lab.daemon(data_queues=1)
    disks = [module_lab.disk("swap", 512), module_lab.disk("data", 256, "ext4")]
    monitor = module_lab.folder / "qmp"
    machine = SmallMachine(
        MEMORY,
        disks=disks,
        devices=[daemon],
        options=[*Qmp.qemu_options(monitor), "-device", "virtio-balloon-pci"],
        modules=["virtio_balloon"],
    )
    guest = module_lab.boot(SCRIPT, machine)
    guest.wait_for_mark("all of the memory", 300)
    Qmp(monitor).ask("balloon", value=BALLOONED << 20)
    guest.finish(200)
    return guest


def test_who_has_no_time_loses_nothing(guest: Guest) -> None:
    guest.step("idler alone")
    guest.step("state")
    assert guest.snapshot("starved").driver["frontswap/lost"] == 0
    assert "virtio_tmem" not in guest.step("log of starving").text


def test_others_do_not_wait_for_who_has_no_time(guest: Guest) -> None:
    for step in ("waiter", "beside"):
        found = guest.step(step).objects
        assert found[-1]["wrong"] == 0
        assert all("status" not in each for each in found)


def test_staging_memory_follows_the_balloon(guest: Guest) -> None:
    guest.step("staging")
    guest.step("staging after")
    before = guest.snapshot("before the balloon").driver["queue/staging_pages"]
    assert 0 < before <= MEMORY * 256 // 32


def test_every_page_is_right_with_a_balloon(guest: Guest) -> None:
    for step in ("files 1", "files 2", "files 3", "files 4", "anon"):
        assert guest.step(step).objects[-1]["wrong"] == 0
    before, after = (guest.snapshot(name).driver for name in ("before the balloon", "ballooned"))
    assert after["cleancache/hits"] > before["cleancache/hits"]


def test_half_of_it_takes_no_memory_for_the_other(guest: Guest) -> None:
    assert guest.snapshot("one half").driver["queue/staging_pages"] == 0


def test_parameters_in_force_can_be_read(guest: Guest) -> None:
    def shown(snapshot: str) -> dict[str, int]:
        driver = guest.snapshot(snapshot).driver
        return {name: driver[f"parameters/{name}"] for name in DEFAULTS}

    assert shown("before the balloon") == DEFAULTS
    assert shown("one half") == {**DEFAULTS, "cleancache": 0, "poll_us": 77}


def test_the_module_can_be_unloaded(guest: Guest) -> None:
    for step in ("swapoff", "umount", "unload"):
        guest.step(step)
