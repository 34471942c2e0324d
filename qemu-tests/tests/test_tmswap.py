# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Swapping to `/dev/tmswapN`, a block device of the module's own that is stacked on a disk.

Once with a host that takes all, by requests; with one that refuses some; and with a window. What
happens when the host falls silent, or is gone, is in the files about that: behind both front-ends is
the same client.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from harness.daemon import Stat
from harness.guest import BACK, OUT, Guest
from harness.lab import Lab, Labs
from harness.small import SmallMachine

MIB = 96
PAGES_OF_MIB = 256
FILE_MIB = 80

# A page that is refused takes its whole request along to the disk: about every other one here.
REFUSED_PERCENT = 2

# What is written to the log about things that are refused.
BUSY = "is in use: as a swap area (swapoff it), by a filesystem, or below another such device"

SCRIPT = f"""
TMSWAP=/sys/devices/faux/virtio_tmem/tmswap

# tmswap NAME VALUE: writes to a file that is about such devices.
tmswap() {{
	echo "$2" >"$TMSWAP/$1"
}}

# add DISK
add() {{
	disk "$1" && tmswap add "$DISK"
}}

# signature DEVICE: what the page at its beginning ends with.
signature() {{
	dd if="$1" bs=4096 count=1 2>/dev/null | tail -c 10
}}

# filled FILE
filled() {{
	wait_for 200 grep -q filled "$1"
}}

driver_of() {{
	local device=(/sys/bus/virtio/drivers/virtio_tmem/virtio*)
	echo "${{device##*/}}"
}}

must load modprobe virtio_tmem
must add add swap
step devices cat $TMSWAP/devices
kernel_log >/dev/null
step "add again" add swap
step "log of add again" kernel_log
step "swapon of the disk" with_disk swap swapon
must mkswap mkswap /dev/tmswap0
must swapon swapon /dev/tmswap0

snapshot before
step "header below" with_disk swap signature
step anon confined 48 "$WORKLOAD" anon --mib {MIB} --passes 0 --jobs 2 --seed 1
snapshot after
echo always >/sys/kernel/mm/transparent_hugepage/enabled
step huge confined 48 "$WORKLOAD" anon --mib {MIB} --passes 1 --seed 2 --huge
echo never >/sys/kernel/mm/transparent_hugepage/enabled
step "huge pages" grep ^thp_swpout /proc/vmstat
snapshot "after huge"

kernel_log >/dev/null
step "remove in use" tmswap remove tmswap0
step "log of remove in use" kernel_log
step "unload in use" rmmod virtio_tmem

# All that is out goes to the disk, and is right there.
must out out drained 48 {MIB}
snapshot out
must drain drain 1
must drained wait_for 120 drained
snapshot drained
: >$RUN/told/drained
step "from the disk" looked drained $PID
snapshot "from the disk"
step "drain off" drain 0

# The device goes and comes back.
must "out once more" out unbound 48 {MIB}
DEVICE=$(driver_of)
step unbind eval 'echo $DEVICE >/sys/bus/virtio/drivers/virtio_tmem/unbind'
: >$RUN/told/unbound
step "without a host" looked unbound $PID
step bind eval 'echo $DEVICE >/sys/bus/virtio/drivers/virtio_tmem/bind'
step "with a host again" confined 48 "$WORKLOAD" anon --mib {MIB} --passes 0 --seed 3
snapshot "with a host again"
step swapoff swapoff /dev/tmswap0
step "at the host after swapoff" cat $DRIVER/frontswap/pages
step remove tmswap remove tmswap0
step "no devices" cat $TMSWAP/devices
step header with_disk swap signature
step "remove again" tmswap remove tmswap0

# A swap file on such a device, whose blocks become another file's while the host has pages of it.
must "add data" add data
mkdir /tmp/data
must mount mount /dev/tmswap0 /tmp/data
must "make a file" dd if=/dev/urandom of=/tmp/data/swap bs=1M count={FILE_MIB}
chmod 600 /tmp/data/swap
sync
must "mkswap file" mkswap /tmp/data/swap
must "swapon file" swapon /tmp/data/swap
step "anon in file" confined 48 "$WORKLOAD" anon --mib {MIB} --passes 0 --seed 4
step "swapoff file" swapoff /tmp/data/swap
snapshot "after file"
must pattern dd if=/dev/urandom of=/tmp/pattern bs=1M count={FILE_MIB // 4}
overwrite() {{
	cat /tmp/pattern /tmp/pattern | dd of=/tmp/data/swap bs=1M iflag=fullblock conv=notrunc
}}
same() {{
	local half
	for half in 0 {FILE_MIB // 4}; do
		dd if=/tmp/data/swap bs=1M skip=$half count={FILE_MIB // 4} 2>/dev/null | cmp - /tmp/pattern || return
	done
}}
# What is behind that: what was swapped, some of which is in the host alone.
rest() {{
	dd if=/tmp/data/swap bs=1M skip={FILE_MIB // 2} 2>/dev/null | md5sum
}}
step overwrite overwrite
drop_caches 3
step "file above" same
step "rest above" rest
step "left in the host" cat $DRIVER/frontswap/pages
must umount umount /tmp/data
step "remove data" wait_for 30 tmswap remove tmswap0
step "left after removal" cat $DRIVER/frontswap/pages
must "mount below" mounted data /tmp/data
step "file below" same
step "rest below" rest
must "umount below" umount /tmp/data

# One that nobody uses goes with the module.
must "add unused" add swap
step unload modprobe -r virtio_tmem
step "swapon below" with_disk swap swapon
"""


@dataclass
class Run:
    """What is left of the run."""

    kind: str
    guest: Guest
    stat: Stat


KINDS = ["requests", *(pytest.param(kind, marks=pytest.mark.long) for kind in ("refusals", "window"))]


@pytest.fixture(scope="module", params=KINDS)
def run(request: pytest.FixtureRequest, labs: Labs) -> Iterator[Run]:
    """One guest for each kind of host."""
    kind = request.param
    with labs(f"tmswap-{kind}") as lab:
        yield swapped(lab, kind)


def swapped(lab: Lab, kind: str) -> Run:
    """A guest that has swapped to such devices."""
    daemon = lab.daemon(
        refuse_percent=REFUSED_PERCENT if kind == "refusals" else 0,
        window="512MiB" if kind == "window" else None,
    )
    disks = [lab.disk("swap", 512), lab.disk("data", 192, "ext4")]
    machine = SmallMachine(320, disks=disks, devices=[daemon], modules=["ext4"])
    guest = lab.run(SCRIPT, machine, 600)
    return Run(kind, guest, daemon.stat())


def _out(run: Run, before: str, after: str) -> int:
    snapshots = run.guest.snapshot(before), run.guest.snapshot(after)
    return snapshots[1].counted("frontswap", OUT) - snapshots[0].counted("frontswap", OUT)


def _back(run: Run, before: str, after: str) -> int:
    snapshots = run.guest.snapshot(before), run.guest.snapshot(after)
    return snapshots[1].counted("frontswap", BACK) - snapshots[0].counted("frontswap", BACK)


def _written(run: Run, before: str, after: str) -> int:
    snapshots = run.guest.snapshot(before), run.guest.snapshot(after)
    return (snapshots[1].written("swap") - snapshots[0].written("swap")) // 8


@pytest.mark.parametrize(
    "step", ["anon", "huge", "from the disk", "without a host", "with a host again", "anon in file"]
)
def test_R5_every_page_is_right(run: Run, step: str) -> None:
    found = run.guest.step(step).objects
    assert found[-1]["wrong"] == 0
    assert all("status" not in each for each in found)


def test_pages_go_to_the_host_and_come_back(run: Run) -> None:
    assert _out(run, "before", "after") > MIB * PAGES_OF_MIB // 4
    assert _back(run, "before", "after") > MIB * PAGES_OF_MIB // 8
    assert run.guest.snapshot("with a host again").counted("frontswap", OUT) > 5000


def test_large_folios_go_to_the_host(run: Run) -> None:
    assert _out(run, "after", "after huge") > MIB * PAGES_OF_MIB // 4
    found = dict(line.split() for line in run.guest.step("huge pages").lines if line)
    assert int(found["thp_swpout"]) > 0


def test_the_disk_has_what_the_host_refuses(run: Run) -> None:
    written = _written(run, "before", "after")
    if run.kind == "refusals":
        refused = run.guest.snapshot("after").driver["frontswap/refused"]
        assert refused > 100
        # And those that had come with them, and did not go back to the host.
        assert written > 10 * refused
        assert run.guest.snapshot("after").driver["frontswap/misses"] > 1000
    else:
        assert written < _out(run, "before", "after") // 100


def test_the_hooks_leave_it_alone(run: Run) -> None:
    driver = run.guest.snapshot("after").driver
    # Each page that went to the device went past them, also those that were refused.
    assert driver["frontswap/left_alone"] >= driver["frontswap/stored"]
    assert driver["frontswap/left_alone"] > MIB * PAGES_OF_MIB // 4


def test_a_disk_is_below_one_device_only(run: Run) -> None:
    assert run.guest.step("devices").text.split()[0] == "tmswap0"
    again = run.guest.any_step("add again")
    assert again.status != 0
    assert "busy" in again.text
    assert BUSY in run.guest.step("log of add again").text
    swapon = run.guest.any_step("swapon of the disk")
    assert swapon.status != 0
    assert "busy" in swapon.text


def test_one_that_is_in_use_stays(run: Run) -> None:
    remove = run.guest.any_step("remove in use")
    assert remove.status != 0
    assert "busy" in remove.text
    assert "tmswap0 is in use: swapoff it first" in run.guest.step("log of remove in use").text
    assert run.guest.any_step("unload in use").status != 0


def test_a_drain_goes_to_the_disk_below(run: Run) -> None:
    out, drained = run.guest.snapshot("out").driver, run.guest.snapshot("drained").driver
    assert out["frontswap/pages"] > 3000
    assert drained["frontswap/pages"] == 0
    assert _written(run, "out", "drained") >= out["frontswap/pages"]
    assert _back(run, "drained", "from the disk") == 0
    assert run.guest.snapshot("from the disk").driver["frontswap/lost"] == 0


def test_nothing_is_left_in_the_host_after_swapoff(run: Run) -> None:
    run.guest.step("swapoff")
    assert int(run.guest.step("at the host after swapoff").text) == 0


def test_the_header_is_on_the_disk_below(run: Run) -> None:
    run.guest.step("remove")
    assert run.guest.step("no devices").text.strip() == ""
    for step in ("header below", "header"):
        assert run.guest.step(step).text.strip() == "SWAPSPACE2"
    assert run.guest.any_step("remove again").status != 0
    run.guest.step("swapon below")


def test_what_is_written_otherwise_is_what_is_read(run: Run) -> None:
    assert _out(run, "with a host again", "after file") > 3000
    for step in ("overwrite", "file above"):
        run.guest.step(step)


def test_what_is_left_is_on_the_disk_below_when_the_device_is_removed(run: Run) -> None:
    # Nobody tells a device what of a swap file is free.
    assert int(run.guest.step("left in the host").text) > 1000
    run.guest.step("remove data")
    assert int(run.guest.step("left after removal").text) == 0
    run.guest.step("file below")
    assert run.guest.step("rest below").text == run.guest.step("rest above").text


def test_one_that_nobody_uses_goes_with_the_module(run: Run) -> None:
    run.guest.step("unload")
    assert run.stat.persistent.pages == 0
    assert run.stat.total("malformed") == 0
