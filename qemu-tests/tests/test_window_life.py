# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""What is in the window is there whatever becomes of the daemon, and leaves it when it has to."""

import mmap
import random
import threading
from pathlib import Path

import pytest

from harness.guest import Guest
from harness.lab import Labs
from harness.process import wait_until
from harness.small import SmallMachine

MIB = 384

KILLED = f"""
must load modprobe virtio_tmem
must driver wait_for 30 bound
must swap swap_on swap
must mount mounted data /tmp/data
must create "$WORKLOAD" file-set create --dir /tmp/data --mib 96
must "warm up" confined 64 "$WORKLOAD" anon --mib 512 --passes 0
must granted wait_for 30 granted 98304
must "out kept" out kept 64 {MIB}
drop_caches
snapshot before
mark "pages out"
wait_for 60 told dead
step files "$WORKLOAD" file-set verify --dir /tmp/data --mib 96
step kept looked kept $PID
snapshot after
step anon confined 64 "$WORKLOAD" anon --mib 192 --passes 1 --seed 3
snapshot "after more"
step swapoff swap_off swap
step umount umount /tmp/data
step unload timeout 60 rmmod virtio_tmem
"""

TAKEN = """
must load modprobe virtio_tmem
must driver wait_for 30 bound
must swap swap_on swap
must mount mounted data /tmp/data
must create "$WORKLOAD" file-set create --dir /tmp/data --mib 192
for round in 1 2 3; do
	drop_caches
	step "files $round" "$WORKLOAD" file-set verify --dir /tmp/data --mib 192
done
step anon confined 96 "$WORKLOAD" anon --mib 192 --passes 1 --jobs 2
step mixer "$WORKLOAD" coherency --dir /tmp/data/mix --ops 300 --seconds 20
snapshot after
step swapoff swap_off swap
step umount umount /tmp/data
step unload timeout 60 rmmod virtio_tmem
"""

DRAINED = f"""
must load modprobe virtio_tmem
must driver wait_for 30 bound
must swap swap_on swap
must "warm up" confined 64 "$WORKLOAD" anon --mib 512 --passes 0
must granted wait_for 30 granted 98304
must "out kept" out kept 64 {MIB}
snapshot before
must drain drain 1
must drained wait_for 200 drained
snapshot drained
mark drained
step kept looked kept $PID
step unload timeout 60 rmmod virtio_tmem
"""

# More than the window has room for, and less than that and the guest's memory: pages that made room
# are read before others do.
CROWDED = """
must load modprobe virtio_tmem
must driver wait_for 30 bound
must mount mounted data /tmp/data
must create "$WORKLOAD" file-set create --dir /tmp/data --mib 160
drop_caches
must granted wait_for 30 granted 8192 ephemeral
for round in 1 2 3; do
	drop_caches
	step "files $round" "$WORKLOAD" file-set verify --dir /tmp/data --mib 160
done
snapshot after
mark read
wait_for 60 told leave
step umount umount /tmp/data
step unload timeout 60 rmmod virtio_tmem
"""

HOSTILE = """
must load modprobe virtio_tmem crc=2
must mount mounted data /tmp/data
must create "$WORKLOAD" file-set create --dir /tmp/data --mib 128
mark ready
for round in 1 2 3 4 5 6; do
	drop_caches
	step "files $round" "$WORKLOAD" file-set verify --dir /tmp/data --mib 128
done
snapshot after
mark done
step umount umount /tmp/data
step unload timeout 60 rmmod virtio_tmem
"""


@pytest.fixture(scope="module")
def killed(labs: Labs) -> Guest:
    """A guest whose daemon is killed for good while pages are in the window."""
    with labs("window-killed") as lab:
        daemon = lab.daemon(capacity="2GiB", window="1GiB")
        disks = [lab.disk("swap", 1024), lab.disk("data", 256, "ext4")]
        guest = lab.boot(KILLED, SmallMachine(256, disks=disks, devices=[daemon], modules=["ext4"]))
        guest.wait_for_mark("pages out", 300)
        daemon.kill()
        guest.tell("dead")
        guest.tell("kept")
        guest.finish(400)
        return guest


def test_pages_outlive_the_daemon(killed: Guest) -> None:
    found = killed.step("kept").objects[-1]
    assert found["wrong"] == 0
    assert found["compared"] == 2 * MIB * 256
    before, after = (killed.snapshot(name).driver for name in ("before", "after"))
    assert after["frontswap/window_hits"] - before["frontswap/window_hits"] > MIB * 256 // 2


def test_files_are_right_without_the_daemon(killed: Guest) -> None:
    assert killed.step("files").objects[-1]["wrong"] == 0


def test_the_guest_goes_on_swapping(killed: Guest) -> None:
    assert killed.step("anon").objects[-1]["wrong"] == 0
    after, more = (killed.snapshot(name).driver for name in ("after", "after more"))
    assert more["frontswap/window_puts"] - after["frontswap/window_puts"] > 10_000


def test_the_module_goes_without_the_daemon(killed: Guest) -> None:
    for step in ("swapoff", "umount", "unload"):
        killed.step(step)


def test_the_host_is_told_what_a_larger_window_would_have_had(labs: Labs) -> None:
    with labs("window-crowded") as lab:
        daemon = lab.daemon(capacity="1GiB", window="64MiB")
        disk = lab.disk("data", 384, "ext4")
        guest = lab.boot(CROWDED, SmallMachine(256, disks=[disk], devices=[daemon], modules=["ext4"]))
        guest.wait_for_mark("read", 300)

        def told() -> bool:
            [window] = daemon.stat().windows
            # A quarter of what is there is remembered, and no more than was replaced.
            return 1000 < window["near_misses"] < window["replaced"] and window["near_reach"] > 1000

        wait_until("the host to be told of near misses", 30, told)
        guest.tell("leave")
        guest.finish(120)
        for number in (1, 2, 3):
            assert guest.step(f"files {number}").objects[-1]["wrong"] == 0
        assert guest.snapshot("after").driver["cleancache/window_replaced"] > 1000


@pytest.fixture(scope="module")
def taken(labs: Labs) -> Guest:
    """A guest whose host takes chunks back at random, and asks for others."""
    with labs("window-taken") as lab:
        options = ["--fault-take-chunks", "2"]
        daemon = lab.daemon(capacity="2GiB", window="128MiB", options=options)
        disks = [lab.disk("swap", 1024), lab.disk("data", 320, "ext4")]
        machine = SmallMachine(256, disks=disks, devices=[daemon], modules=["ext4"])
        return lab.run(TAKEN, machine, 500)


@pytest.mark.long
def test_no_page_is_wrong_while_chunks_are_taken(taken: Guest) -> None:
    for step in ("files 1", "files 2", "files 3", "anon", "mixer"):
        assert taken.step(step).objects[-1]["wrong"] == 0, step


@pytest.mark.long
def test_chunks_were_taken_and_asked_for(taken: Guest) -> None:
    driver = taken.snapshot("after").driver
    assert driver["cleancache/window_lost"] > 0
    assert driver["frontswap/window_moved"] > 1000
    # A swapped page is never lost by it.
    assert driver["frontswap/window_lost"] == 0


@pytest.mark.long
def test_the_module_goes_in_between(taken: Guest) -> None:
    for step in ("swapoff", "umount", "unload"):
        taken.step(step)


@pytest.fixture(scope="module")
def drained(labs: Labs) -> Guest:
    """A guest that takes its pages out of the window before the module goes."""
    with labs("window-drained") as lab:
        daemon = lab.daemon(capacity="2GiB", window="1GiB")
        machine = SmallMachine(256, disks=[lab.disk("swap", 1024)], devices=[daemon])
        guest = lab.boot(DRAINED, machine)
        guest.wait_for_mark("drained", 300)
        guest.tell("kept")
        guest.finish(200)
        return guest


@pytest.mark.long
def test_pages_of_the_window_are_drained(drained: Guest) -> None:
    before, after = (drained.snapshot(name) for name in ("before", "drained"))
    pages = after.driver["frontswap/drained"] - before.driver["frontswap/drained"]
    assert pages > MIB * 256 // 2
    assert after.written("swap") - before.written("swap") >= 8 * pages
    found = drained.step("kept").objects[-1]
    assert found["wrong"] == 0
    assert found["compared"] == 2 * MIB * 256
    drained.step("unload")


class Scribbler(threading.Thread):
    """Writes nonsense into a window: its header, its generations, and what is in it."""

    def __init__(self, window: Path) -> None:
        super().__init__()
        self._file = window
        self.stop = threading.Event()
        self.writes = 0

    def run(self) -> None:
        dice = random.Random(1)
        with self._file.open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
            while not self.stop.is_set():
                # A page of what may be granted; and now and then a generation, or the header.
                at = 4096 * dice.randrange(1024, len(memory) // 4096)
                if dice.random() < 0.02:
                    at = dice.choice((4096 + 4 * dice.randrange(512), 4096, 0))
                size = 4 if at < 1 << 21 else 64
                memory[at : at + size] = dice.randbytes(size)
                self.writes += 1
                # Not so often that nothing is left of the window.
                self.stop.wait(0.002)


@pytest.fixture(scope="module")
def hostile(labs: Labs) -> Guest:
    """A guest whose window says something else each time."""
    with labs("window-hostile") as lab:
        daemon = lab.daemon(capacity="1GiB", window="256MiB")
        disk = lab.disk("data", 256, "ext4")
        machine = SmallMachine(256, disks=[disk], devices=[daemon], modules=["ext4"])
        guest = lab.boot(HOSTILE, machine)
        guest.wait_for_mark("ready", 200)
        assert daemon.window is not None
        scribbler = Scribbler(daemon.window.file)
        scribbler.start()
        try:
            guest.wait_for_mark("done", 300)
        finally:
            scribbler.stop.set()
            scribbler.join()
        assert scribbler.writes > 500
        guest.finish(120)
        return guest


@pytest.mark.long
def test_a_window_of_nonsense_gives_no_wrong_page(hostile: Guest) -> None:
    for number in range(1, 7):
        assert hostile.step(f"files {number}").objects[-1]["wrong"] == 0
    driver = hostile.snapshot("after").driver
    assert driver["cleancache/bad_crc"] > 0
    assert driver["cleancache/window_hits"] > 1000
    hostile.step("unload")
