# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""A guest that ends while the host has its pages: the host has its memory back at once."""

import pytest

from harness.daemon import Daemon
from harness.guest import Guest
from harness.lab import Lab
from harness.process import wait_until
from harness.qmp import Qmp
from harness.small import SmallMachine

# The first boot ends as it is told, with pages out; the second finds a disk that was swapped to.
SCRIPT = """
disk note
boot=$(head -c 6 "$DISK" | tr -d '\\0')
if [ "$boot" = second ]; then
	mark "second boot"
	wait_for 60 told "go on"
fi
must load modprobe virtio_tmem
must swap swap_on swap
must mount mounted data /tmp/data
must "warm up" wait_for 30 warmed_up /tmp/data
must "create$boot" "$WORKLOAD" file-set create --dir /tmp/data --mib 24
for round in 1 2; do
	drop_caches
	step "files$boot $round" "$WORKLOAD" file-set verify --dir /tmp/data --mib 24
done
drop_caches
step "out$boot" out never 24 72
if [ "$boot" = second ]; then
	mark "pages out again"
	wait_for 60 told "end as ever"
	step "killed" kill_group never
	step swapoff swap_off swap
	exit
fi
disk note
printf second >"$DISK"
sync
mark "pages out"
wait_for 60 told "end"
HOW -f
"""


def held(daemon: Daemon) -> int:
    """Pages that the host has."""
    stat = daemon.stat()
    return stat.persistent.pages + stat.ephemeral.pages


@pytest.mark.parametrize("how", ["poweroff", "reboot"])
def test_the_host_has_its_memory_back(lab: Lab, how: str) -> None:
    daemon = lab.daemon()
    disks = [lab.disk("swap", 256), lab.disk("data", 64, "ext4"), lab.disk("note", 1)]
    monitor = lab.folder / "qmp"
    # QEMU stays and the device with it, so that nobody but the guest's driver can tell the host.
    options = [*Qmp.qemu_options(monitor), "-action", "reboot=shutdown,shutdown=pause"]
    machine = SmallMachine(256, disks=disks, devices=[daemon], options=options)
    guest = lab.boot(SCRIPT.replace("HOW", how), machine)
    qmp = Qmp(monitor)
    guest.wait_for_mark("pages out", 100)
    assert held(daemon) > 10_000
    guest.tell("end")
    qmp.wait_for_status("shutdown", 60)
    assert held(daemon) == 0
    if how == "reboot":
        boots_again(guest, daemon, qmp)
        qmp.wait_for_status("shutdown", 100)
        assert held(daemon) == 0
    qmp.ask("quit")
    guest.check_log()


def boots_again(guest: Guest, daemon: Daemon, qmp: Qmp) -> None:
    """The machine starts anew, and the host has pages of it again."""
    qmp.ask("set-action", reboot="reset")
    qmp.ask("system_reset")
    qmp.wait_for_status("prelaunch", 20)
    qmp.ask("cont")
    guest.wait_for_mark("second boot", 60)
    assert held(daemon) == 0
    guest.tell("go on")
    guest.wait_for_mark("pages out again", 60)
    for step in ("filessecond 1", "filessecond 2", "outsecond"):
        guest.step(step)
    wait_until("pages of the second boot", 20, lambda: held(daemon) > 10_000)
    guest.tell("end as ever")
