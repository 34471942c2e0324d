# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""A guest that sleeps while the host has its pages."""

from collections.abc import Iterator

import pytest

from harness.guest import BACK, OUT, Guest
from harness.lab import Lab, Labs
from harness.process import Idleness, wait_until
from harness.qmp import Qmp
from harness.small import SmallMachine

# How the guest sleeps: what the kernel is told.
SLEEPS = {"S3": "deep", "s2idle": "s2idle", "S3 again": "deep"}

SCRIPT = f"""
must load modprobe virtio_tmem
must swap swap_on swap
must mount mounted data /tmp/data
must "warm up" wait_for 30 warmed_up /tmp/data
must create "$WORKLOAD" file-set create --dir /tmp/data --mib 24
# A key would do, but there is no keyboard.
must "wake up" eval 'echo enabled >/sys/class/tty/ttyS1/power/wakeup'

sleeps() {{
	local name=$1
	for round in 1 2; do
		drop_caches
		must "files before $name $round" "$WORKLOAD" file-set verify --dir /tmp/data --mib 24
	done
	must "out $name" out "woken $name" 24 64
	drop_caches
	snapshot "before $name"
	echo "$2" >/sys/power/mem_sleep
	kernel_log >/dev/null
	mark "going to $name"
	step "$name" wait_for 60 sh -c 'echo mem >/sys/power/state'
	mark "woke from $name"
	step "state $name" wait_for 30 state running
	wait_for 60 told "woken $name"
	step "files $name" "$WORKLOAD" file-set verify --dir /tmp/data --mib 24
	snapshot "files $name"
	step "memory $name" looked "woken $name" $PID
	step "log $name" kernel_log
	step "more memory $name" confined 24 "$WORKLOAD" anon --mib 64 --seed 9
	snapshot "after $name"
}}
{"".join(f'sleeps "{name}" {kind}' + chr(10) for name, kind in SLEEPS.items())}
step swapoff swap_off swap
step umount umount /tmp/data
step unload modprobe -r virtio_tmem
"""


def wakes(guest: Guest, qmp: Qmp, name: str) -> None:
    """Wakes a guest that is idle, which QEMU does not see as a sleep.

    All that is received is a reason to wake up. While it still goes to sleep, it is one not to.
    """
    idleness = Idleness(qmp.pid, 2)

    def nudge() -> None:
        if idleness.reached():
            guest.tell("nudge")

    wait_until(f"{name} to end", 100, lambda: f"woke from {name}" in guest.transcript.marks, nudge)


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(None, id="requests", marks=pytest.mark.long),
        pytest.param("512MiB", id="window"),
    ],
)
def guest(request: pytest.FixtureRequest, labs: Labs) -> Iterator[Guest]:
    """One guest whose pages go by requests, and one that has a window."""
    with labs(f"sleep-{'window' if request.param else 'requests'}") as lab:
        yield asleep(lab, request.param)


def asleep(lab: Lab, window: str | None) -> Guest:
    """A guest that has slept."""
    daemon = lab.daemon(window=window)
    disks = [lab.disk("swap", 512), lab.disk("data", 128, "ext4")]
    monitor = lab.folder / "qmp"
    machine = SmallMachine(
        256,
        disks=disks,
        devices=[daemon],
        options=[*Qmp.qemu_options(monitor), "-global", "PIIX4_PM.disable_s3=0"],
        append="no_console_suspend",
    )
    guest = lab.boot(SCRIPT, machine)
    qmp = Qmp(monitor)
    for name, kind in SLEEPS.items():
        guest.wait_for_mark(f"going to {name}", 200)
        stat = daemon.stat()
        assert stat.persistent.pages + stat.granted > 5000
        if kind == "deep":
            qmp.wait_for_status("suspended", 60)
            qmp.ask("system_wakeup")
        else:
            wakes(guest, qmp, name)
        guest.tell(f"woken {name}")
    guest.finish(200)
    return guest


@pytest.mark.parametrize("name", SLEEPS)
def test_it_sleeps_and_wakes_up(guest: Guest, name: str) -> None:
    guest.step(name)
    guest.step(f"state {name}")


@pytest.mark.parametrize("name", SLEEPS)
def test_R5_all_is_there_afterwards(guest: Guest, name: str) -> None:
    for what in ("files", "memory", "more memory"):
        found = guest.step(f"{what} {name}").objects
        assert found[-1]["wrong"] == 0
        assert all("status" not in each for each in found)
    driver = guest.snapshot(f"after {name}").driver
    assert driver["frontswap/lost"] == driver["frontswap/window_lost"] == 0


@pytest.mark.parametrize("name", SLEEPS)
def test_clean_pages_come_from_the_host_afterwards(guest: Guest, name: str) -> None:
    before, after = guest.snapshot(f"before {name}"), guest.snapshot(f"files {name}")
    assert after.counted("cleancache", BACK) - before.counted("cleancache", BACK) > 1000


@pytest.mark.parametrize("name", SLEEPS)
def test_pages_go_to_the_host_again(guest: Guest, name: str) -> None:
    before, after = guest.snapshot(f"files {name}"), guest.snapshot(f"after {name}")
    assert after.counted("frontswap", OUT) - before.counted("frontswap", OUT) > 5000


@pytest.mark.parametrize("name", SLEEPS)
def test_nobody_waited_for_the_host(guest: Guest, name: str) -> None:
    assert "does not answer" not in guest.step(f"log {name}").text


def test_the_module_can_be_unloaded(guest: Guest) -> None:
    for step in ("swapoff", "umount", "unload"):
        guest.step(step)
