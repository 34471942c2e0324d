# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""A guest hibernates with pages out, is off, and goes on where it was.

A root that virtiofs serves does not survive that, so this guest has all that it needs in memory.
"""

from dataclasses import dataclass
from pathlib import Path

import pytest

from bench.exits import initramfs
from harness import paths
from harness.daemon import Daemon, Stat
from harness.disks import Disk
from harness.guestlog import bad_lines
from harness.lab import Lab
from harness.process import Group, wait_until
from harness.steps import Transcript

MEMORY = 320
MIB = 96
PAGES_OF_MIB = 256

SCRIPT = f"""
modules() {{
	local file
	for file in /modules/*; do
		case $file in
		*-virtio_tmem.ko) ;;
		*) insmod "$file" || return ;;
		esac
	done
}}

# The shell that sleeps is not the one that this is about.
hibernate() {{
	echo 0 >/sys/power/image_size
	echo shutdown >/sys/power/disk && echo disk >/sys/power/state
}}

must modules modules
if [ -n "$GO_ON" ]; then
	disk swap
	must resume cp "/sys/block/${{DISK##*/}}/dev" /sys/power/resume
	exit 99
fi
must load insmod /modules/*-virtio_tmem.ko
must swap swap_on swap
confined 48 "$WORKLOAD" anon --mib {MIB} --passes 1 --wait-for /tmp/go >/tmp/anon 2>&1 &
anon=$!
must filled wait_for 200 grep -q filled /tmp/anon
snapshot filled
step hibernate hibernate
snapshot resumed
mark resumed
touch /tmp/go
wait $anon
step "status of anon" echo '{{"status":'$?'}}'
step anon cat /tmp/anon
step swapoff swap_off swap
"""


@dataclass
class Run:
    """What is left of the run."""

    slept: Transcript
    woke: Transcript
    before: Stat
    console: list[str]


class Machine:
    """A guest that is started twice, with the same disk."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.daemon: Daemon = lab.daemon()
        self.disk: Disk = lab.disk("swap", 512)
        self.archive = initramfs.make(lab.folder, SCRIPT)

    def start(self, name: str, words: str) -> tuple[Group, Path]:
        """Starts it, and returns where its output is."""
        output = paths.LOGS / f"hibernate.{name}.output.log"
        console = paths.LOGS / f"hibernate.{name}.console.log"
        paths.LOGS.mkdir(parents=True, exist_ok=True)
        output.write_bytes(b"")
        options = "console=ttyS0 ignore_loglevel mitigations=off no_timer_check panic=-1"
        qemu = [
            *("qemu-system-x86_64", "-accel", "tcg", "-cpu", "max", "-machine", "q35"),
            *("-m", f"{MEMORY}M", "-smp", "2", "-display", "none", "-nodefaults", "-no-reboot"),
            *("-serial", f"file:{console}", "-serial", f"file:{output}"),
            *("-object", f"memory-backend-memfd,id=mem,size={MEMORY}M,share=on"),
            *("-numa", "node,memdev=mem", "-kernel", str(paths.kernel())),
            *("-initrd", str(self.archive), "-append", f"{options} {words}"),
            *self.disk.qemu_options(),
            *self.daemon.qemu_options(),
        ]
        with (self.lab.folder / f"{name}.qemu.log").open("wb") as log:
            return Group(qemu, stdout=log, stderr=log), output


def _said(output: Path) -> Transcript:
    said = Transcript()
    for line in output.read_text(errors="replace").splitlines():
        said.add(line)
    return said


@pytest.fixture(scope="module")
def run(module_lab: Lab) -> Run:
    """One guest for all tests of this file."""
    machine = Machine(module_lab)
    group, output = machine.start("sleep", "")
    try:
        wait_until(
            "pages to be out",
            300,
            lambda: "filled" in _said(output).snapshots or not group.running,
        )
        before = machine.daemon.stat()
        group.wait("the guest to power off", 300)
    finally:
        group.end()
    slept = _said(output)
    group, output = machine.start("wake", "GO_ON=1")
    try:
        group.wait("the guest to go on and end", 400)
    finally:
        group.end()
    console = []
    for name in ("sleep", "wake"):
        log = paths.LOGS / f"hibernate.{name}.console.log"
        console += log.read_text(errors="replace").splitlines()
    return Run(slept, _said(output), before, console)


def test_pages_were_out(run: Run) -> None:
    assert run.before.persistent.pages > MIB * PAGES_OF_MIB // 4
    assert "gave up" not in " ".join(run.slept.marks)


def test_the_guest_went_on_where_it_was(run: Run) -> None:
    assert "resumed" in run.woke.marks, "\n".join([*run.woke.lines[-30:], *run.console[-30:]])
    assert "resumed" not in run.slept.marks
    assert run.woke.steps["swapoff"].status == 0


def test_every_page_is_right(run: Run) -> None:
    assert run.woke.steps["status of anon"].objects[-1]["status"] == 0
    assert run.woke.steps["anon"].objects[-1]["wrong"] == 0


def test_nothing_of_before_was_believed(run: Run) -> None:
    assert run.woke.snapshots["resumed"].driver["frontswap/pages"] == 0
    assert run.woke.snapshots["resumed"].driver["cleancache/pages"] == 0
    assert run.woke.snapshots["resumed"].driver["frontswap/drained"] > MIB * PAGES_OF_MIB // 4


def test_the_kernel_does_not_complain(run: Run) -> None:
    assert not bad_lines(run.console)
