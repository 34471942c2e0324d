# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""A host that stands for half a minute, and a guest that does: nothing is lost."""

import re
import time
from dataclasses import dataclass

import pytest

from harness.daemon import Daemon
from harness.guest import Guest
from harness.lab import Lab
from harness.process import stopped
from harness.qmp import Qmp
from harness.small import SmallMachine

SECONDS = 30

SCRIPT = """
must load modprobe virtio_tmem
must driver wait_for 30 bound
must swap swap_on swap
must mount mounted data /tmp/data
must "warm up" wait_for 30 warmed_up /tmp/data
must create "$WORKLOAD" file-set create --dir /tmp/data --mib 48
for round in 1 2; do
	drop_caches
	must "files before $round" "$WORKLOAD" file-set verify --dir /tmp/data --mib 48
done
drop_caches
must "reader out" out reader 48 112
reader=$PID
kernel_log >/dev/null
beats &
beats=$!
mark "pages out"
wait_for 100 told "the host stands"
step "silent" wait_for 30 state silent
snapshot "silent"
step "files meanwhile" "$WORKLOAD" file-set verify --dir /tmp/data --mib 48
drop_caches
step "files meanwhile again" "$WORKLOAD" file-set verify --dir /tmp/data --mib 48
mark "files read"
step "anon meanwhile" confined 48 "$WORKLOAD" anon --mib 96 --passes 0 --seed 5
snapshot "meanwhile"
mark "memory swapped"
wait_for 200 told "the host runs"
step "reader" looked reader $reader
step "running" wait_for 30 state running
step "log of the host's stop" kernel_log
step "files after" "$WORKLOAD" file-set verify --dir /tmp/data --mib 48

must "sleeper out" out sleeper 32 96
sleeper=$PID
must "victim out" out victim 12 24
victim=$PID
snapshot "before the guest's stop"
# Nobody waits for what the host is told of these pages.
echo 1 >/sys/fs/cgroup/victim/cgroup.kill
wait $victim
mark "both may stop"
wait_for 200 told sleeper
step "sleeper" looked sleeper $sleeper
step "state after both" state running
step "log of both stops" kernel_log
step "anon after" confined 64 "$WORKLOAD" anon --mib 160 --passes 1 --seed 6
step "files at last" "$WORKLOAD" file-set verify --dir /tmp/data --mib 48
snapshot "end"
kill $beats
step swapoff swap_off swap
step umount umount /tmp/data
step unload modprobe -r virtio_tmem
mark "nothing is out"
wait_for 60 told "the host has looked"
"""


@dataclass
class Run:
    """What is left of the run."""

    guest: Guest
    # While the host stood: the signs of life, and what QEMU's monitor said.
    beats: int
    status: list[str]
    # What the host had of the guest in the end.
    left: int


def lives(guest: Guest, qmp: Qmp, daemon: Daemon, run: Run) -> None:
    """Has the daemon stand for as long as the guest needs for so many signs of life."""
    with stopped(*daemon.pids):
        before = guest.transcript.beats
        # Who needs a page that the host has, needs it from now on.
        guest.tell("reader")
        guest.tell("the host stands")
        for mark in ("files read", "memory swapped"):
            guest.wait_for_mark(mark, 200)
            run.status.append(qmp.status())
        guest.wait_for("signs of life", 2 * SECONDS, lambda said: said.beats >= before + SECONDS)
        run.status.append(qmp.status())
        run.beats = guest.transcript.beats - before
    guest.tell("the host runs")


@pytest.fixture(scope="module")
def run(module_lab: Lab) -> Run:
    """One guest for all tests of this file."""
    daemon = module_lab.daemon()
    disks = [module_lab.disk("swap", 1024), module_lab.disk("data", 256, "ext4")]
    monitor = module_lab.folder / "qmp"
    options = Qmp.qemu_options(monitor)
    # To a guest that was stopped it seems as if its processors had done nothing all the time.
    append = "rcupdate.rcu_cpu_stall_suppress=1 nowatchdog"
    machine = SmallMachine(
        384,
        disks=disks,
        devices=[daemon],
        options=options,
        modules=["ext4"],
        append=append,
    )
    guest = module_lab.boot(SCRIPT, machine)
    qmp = Qmp(monitor)
    run = Run(guest, 0, [], 0)
    guest.wait_for_mark("pages out", 300)
    stat = daemon.stat()
    assert stat.persistent.pages > 10_000
    assert stat.ephemeral.pages > 5000
    lives(guest, qmp, daemon, run)
    guest.wait_for_mark("both may stop", 200)
    with stopped(qmp.pid, *daemon.pids):
        time.sleep(SECONDS)
    guest.tell("sleeper")
    guest.wait_for_mark("nothing is out", 300)
    run.left = daemon.stat().used_bytes
    guest.tell("the host has looked")
    guest.finish(60)
    return run


def test_the_guest_and_its_monitor_go_on_while_the_host_stands(run: Run) -> None:
    assert run.beats >= SECONDS
    assert run.status == ["running"] * 3
    run.guest.step("silent")


def test_files_are_read_from_the_disk_while_the_host_stands(run: Run) -> None:
    for step in ("files meanwhile", "files meanwhile again"):
        assert run.guest.step(step).objects[-1]["wrong"] == 0
    before, after = run.guest.snapshot("silent"), run.guest.snapshot("meanwhile")
    assert after.read("data") > before.read("data")


def test_memory_is_swapped_to_the_disk_while_the_host_stands(run: Run) -> None:
    assert run.guest.step("anon meanwhile").objects[-1]["wrong"] == 0
    before, after = run.guest.snapshot("silent"), run.guest.snapshot("meanwhile")
    assert after.written("swap") - before.written("swap") > 48 * 256 // 2 * 8


def test_R5_memory_that_the_host_had_is_right_afterwards(run: Run) -> None:
    for step in ("reader", "sleeper", "anon after"):
        found = run.guest.step(step).objects
        assert found[-1]["wrong"] == 0
        assert all("status" not in each for each in found)
    assert run.guest.step("files after").objects[-1]["wrong"] == 0
    assert run.guest.snapshot("end").driver["frontswap/lost"] == 0


def test_two_lines_say_that_the_host_stood(run: Run) -> None:
    log = run.guest.step("log of the host's stop").text
    said = re.findall(r"virtio_tmem.*", log)
    assert len(said) == 2, log
    assert "the host does not answer" in said[0]
    assert "the host answers again" in said[1]


def test_a_guest_that_did_not_run_blames_nobody(run: Run) -> None:
    run.guest.step("state after both")
    assert "virtio_tmem" not in run.guest.step("log of both stops").text


def test_pages_go_to_the_host_again(run: Run) -> None:
    run.guest.step("running")
    before, after = (
        run.guest.snapshot(name).driver["frontswap/stored"]
        for name in ("before the guest's stop", "end")
    )
    assert after - before > 10_000


def test_R14_nothing_is_left_in_the_host_at_last(run: Run) -> None:
    for step in ("swapoff", "umount", "unload"):
        run.guest.step(step)
    assert run.left == 0
