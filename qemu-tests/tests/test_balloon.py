# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""A balloon takes three quarters of a guest's memory under load, without the module and with it."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from harness.guest import Guest
from harness.lab import Lab, Labs
from harness.process import wait_until
from harness.qmp import Qmp
from harness.small import SmallMachine

pytestmark = pytest.mark.long

MEMORY = 512
BALLOONED = MEMORY // 4

# What the guest works with: more than it is left with, less than it had.
ANON_MIB = 112
FILES_MIB = 64

SETS = f"--dir /tmp/data --mib {FILES_MIB}"

SCRIPT = f"""
must swap swap_on swap
must mount mounted data /tmp/data
must create "$WORKLOAD" file-set create {SETS}
[ -z "$WITH_MODULE" ] || must load modprobe virtio_tmem
kernel_log >/dev/null
snapshot begin
"$WORKLOAD" anon --mib {ANON_MIB} --passes 100000 --seed 3 >/tmp/anon 2>&1 &
PID=$!
must filled wait_for 100 grep -q filled /tmp/anon
mark "under load"
round=0
until told "taken"; do
	round=$((round + 1))
	step "files $round" "$WORKLOAD" file-set verify {SETS}
done
snapshot taken
step "files at last" "$WORKLOAD" file-set verify {SETS}
step "anon" "$WORKLOAD" anon --mib {ANON_MIB} --passes 0 --seed 4
step "still there" kill $PID
snapshot end
step log kernel_log
mark measured
wait_for 60 told given
step swapoff swap_off swap
step umount umount /tmp/data
[ -z "$WITH_MODULE" ] || step unload modprobe -r virtio_tmem
"""


@dataclass
class Run:
    """A guest that has been through it."""

    guest: Guest
    # Sectors read and written of both disks, from the beginning of the load to its end.
    sectors: int


def run(lab: Lab, with_module: bool) -> Run:
    """Has a guest go through it."""
    name = "with" if with_module else "without"
    daemon = lab.daemon(name=name, window="512MiB")
    disks = [lab.disk(f"swap-{name}", 768), lab.disk(f"data-{name}", 192, "ext4")]
    monitor = lab.folder / f"{name}.qmp"
    machine = SmallMachine(
        MEMORY,
        disks=disks,
        devices=[daemon],
        options=[
            *Qmp.qemu_options(monitor),
            "-device",
            # Pages that the guest has no use for go back to the host meanwhile.
            "virtio-balloon-pci,free-page-reporting=on,deflate-on-oom=off",
        ],
        modules=["virtio_balloon"],
    )
    script = re.sub(r"\b(swap_on|mounted|swap_off) (swap|data)\b", rf"\1 \2-{name}", SCRIPT)
    guest = lab.boot(f"WITH_MODULE={name.replace('without', '')}\n{script}", machine)
    guest.wait_for_mark("under load", 200)
    qmp = Qmp(monitor)

    def left() -> int:
        return int(qmp.ask("query-balloon")["actual"])

    qmp.ask("balloon", value=BALLOONED << 20)
    wait_until("the balloon", 200, lambda: left() == BALLOONED << 20)
    guest.tell("taken")
    guest.wait_for_mark("measured", 300)
    qmp.ask("balloon", value=MEMORY << 20)
    wait_until("the balloon to be gone", 60, lambda: left() == MEMORY << 20)
    guest.tell("given")
    guest.finish(100)
    begin, end = guest.snapshot("begin"), guest.snapshot("end")
    sectors = sum(
        end.read(disk.name) + end.written(disk.name)
        - begin.read(disk.name) - begin.written(disk.name)
        for disk in disks
    )
    return Run(guest, sectors)


@pytest.fixture(scope="module")
def runs(labs: Labs) -> Iterator[dict[bool, Run]]:
    """One guest without the module, and one with it."""
    with labs("balloon") as lab:
        yield {with_module: run(lab, with_module) for with_module in (False, True)}


@pytest.mark.parametrize("with_module", [False, True], ids=["without", "with"])
def test_nobody_is_killed_for_want_of_memory(runs: dict[bool, Run], with_module: bool) -> None:
    guest = runs[with_module].guest
    assert "Out of memory" not in guest.step("log").text
    assert "oom" not in guest.step("log").text
    guest.step("still there")
    guest.step("swapoff")


@pytest.mark.parametrize("with_module", [False, True], ids=["without", "with"])
def test_every_page_is_right(runs: dict[bool, Run], with_module: bool) -> None:
    guest = runs[with_module].guest
    files = [name for name in guest.transcript.steps if name.startswith("files ")]
    assert len(files) >= 2, files
    for step in (*files, "anon"):
        assert guest.step(step).objects[-1]["wrong"] == 0, step


def test_the_host_has_what_the_disks_are_spared(runs: dict[bool, Run]) -> None:
    guest = runs[True].guest
    counters = guest.snapshot("end").driver
    assert counters["frontswap/lost"] == 0
    assert runs[True].sectors * 4 < runs[False].sectors
    guest.step("unload")
