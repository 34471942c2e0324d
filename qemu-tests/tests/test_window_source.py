# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The window by either of QEMU's devices that can lend one: an ivshmem device, and the tmem device.

Of the latter QEMU forgets the window at each reset, and does not survive being told of it while the
device is not started: so it is started and stopped here in all the ways that there are.
"""

import os
import random
import signal
import threading

import pytest

from harness.daemon import Daemon
from harness.guest import Guest
from harness.lab import Lab
from harness.process import wait_until
from harness.qmp import Qmp
from harness.small import SmallMachine

MIB = 96
PAGES = 2 * MIB * 256

SCRIPT = f"""
disk note
boot=$(head -c 6 "$DISK" | tr -d '\\0')
begin() {{
	must "load $1" modprobe virtio_tmem
	must "swap $1" swap_on swap
	must "warm up $1" confined 16 "$WORKLOAD" anon --mib 64 --passes 0
	must "granted $1" wait_for 30 granted 2048
	must "out $1" out "$1" 24 {MIB}
	snapshot "out $1"
}}
end() {{
	step "looked $1" looked "$1" $PID
	snapshot "looked $1"
	step "swapoff $1" swap_off swap
	step "unload $1" modprobe -r virtio_tmem
	step "log $1" kernel_log
}}
if [ "$boot" = second ]; then
	begin third
	mark "reset is over"
	wait_for 100 told third
	end third
	exit
fi
begin first
mark "pages out"
wait_for 100 told first
end first
begin second
mark "again"
wait_for 100 told second
end second
disk note
printf second >"$DISK"
sync
begin lost
mark "to be reset"
sleep 1000
"""


def kill_worker(daemon: Daemon) -> None:
    """Has another worker take over."""
    worker = daemon.worker
    os.kill(worker, signal.SIGKILL)
    wait_until("another worker", 20, lambda: daemon.worker not in (0, worker))


def check(guest: Guest, name: str, source: str) -> None:
    """All pages came back, and from the window."""
    for step in (f"swapoff {name}", f"unload {name}"):
        guest.step(step)
    found = guest.step(f"looked {name}").objects[-1]
    assert found["wrong"] == 0
    assert found["compared"] == PAGES
    out = guest.snapshot(f"out {name}").driver
    driver = guest.snapshot(f"looked {name}").driver
    assert out["frontswap/window_puts"] > MIB * 256 // 4
    assert driver["frontswap/window_hits"] > MIB * 256 // 4
    assert driver["frontswap/window_lost"] == 0
    device = {"ivshmem": "an ivshmem device", "virtio": "the tmem device itself"}[source]
    assert f"the window is memory of {device}" in guest.step(f"log {name}").text


@pytest.mark.parametrize("source", [pytest.param("ivshmem", marks=pytest.mark.long), "virtio"])
def test_a_window_is_there_whatever_becomes_of_the_device(lab: Lab, source: str) -> None:
    daemon = lab.daemon(capacity="1GiB", window="256MiB", window_source=source)
    monitor = lab.folder / "qmp"
    disks = [lab.disk("swap", 512), lab.disk("note", 1)]
    options = Qmp.qemu_options(monitor)
    guest = lab.boot(SCRIPT, SmallMachine(256, disks=disks, devices=[daemon], options=options))
    qmp = Qmp(monitor)
    qmp.ask("set-action", reboot="reset")

    # The machine is paused, with pages in the window, and goes on with another worker.
    guest.wait_for_mark("pages out", 400)
    qmp.ask("stop")
    kill_worker(daemon)
    qmp.ask("cont")
    guest.tell("first")

    # The module was loaded anew.
    guest.wait_for_mark("again", 400)
    kill_worker(daemon)
    guest.tell("second")

    guest.wait_for_mark("to be reset", 400)
    qmp.ask("system_reset")
    guest.wait_for_mark("reset is over", 400)
    guest.tell("third")
    guest.finish(400)
    for name in ("first", "second", "third"):
        check(guest, name, source)


ROUNDS = 4

HASTE = f"""
round() {{
	must "load $1" modprobe virtio_tmem
	must "swap $1" swap_on swap
	must "anon $1" confined 24 "$WORKLOAD" anon --mib 48 --passes 1 --seed "$1"
	must "swapoff $1" swap_off swap
	must "unload $1" modprobe -r virtio_tmem
}}
mark begin
for ((n = 1; n <= {ROUNDS}; n++)); do
	round $n
done
mark done
wait_for 100 told end
"""


class Haste(threading.Thread):
    """Pauses the machine time and again, for a moment only."""

    def __init__(self, qmp: Qmp) -> None:
        super().__init__()
        self._qmp = qmp
        self.stop = threading.Event()
        self.times = 0

    def run(self) -> None:
        dice = random.Random(1)
        while not self.stop.is_set():
            self._qmp.ask("stop")
            self._qmp.ask("cont")
            self.times += 1
            self.stop.wait(dice.uniform(0, 0.02))


@pytest.mark.long
def test_a_machine_that_is_paused_at_any_time_takes_no_harm(lab: Lab) -> None:
    """QEMU lives on, and has the window or has it not."""
    daemon = lab.daemon(capacity="1GiB", window="256MiB", window_source="virtio")
    monitor = lab.folder / "qmp"
    options = Qmp.qemu_options(monitor)
    disks = [lab.disk("swap", 512)]
    guest = lab.boot(HASTE, SmallMachine(256, disks=disks, devices=[daemon], options=options))
    haste = Haste(Qmp(monitor))
    guest.wait_for_mark("begin", 100)
    haste.start()
    try:
        guest.wait_for_mark("done", 400)
    finally:
        haste.stop.set()
        haste.join()
    guest.tell("end")
    guest.finish(100)
    for number in range(1, ROUNDS + 1):
        assert guest.step(f"anon {number}").objects[-1]["wrong"] == 0
    assert haste.times > 100
