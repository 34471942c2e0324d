# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""What the guest and the guest in it do while exits are traced."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.daemon import Window

from ..pages import FUNCTIONS

MIB = 4
PAGES = MIB * 256

# The phase that only begins the trace: its first marker is not in there.
START = "start/"

EVENTS = ("exit", "entry", "mmio", "pio", "msr", "inj_virq", "cpuid")
BUFFER_KIB = 65536

# The guest in the guest. On its command line are the module's parameters and what to measure.
INNER = """
CORPUS=$(ls /corpus/*)

modules() {{
	local file
	for file in /modules/*; do
		case $file in
		*-virtio_tmem.ko) ;;
		*) insmod "$file" || return ;;
		esac
	done
}}

devices() {{
	local folder
	for folder in /sys/bus/pci/devices/*; do
		echo "device ${{folder##*/}}" $(cat "$folder/vendor" "$folder/device") \\
			"$(tr '\\n' ';' <"$folder/resource")"
	done
}}

MIB={mib}
must modules modules
step devices devices
# shellcheck disable=SC2086
must sysctls sysctls $SYSCTLS
phases copy {start}
if [ -n "$BUSY" ]; then
	while :; do :; done &
fi
for subject in $SUBJECTS; do
	case $subject in
	disk) ;;
	tmem)
		# shellcheck disable=SC2086
		must load insmod /modules/*-virtio_tmem.ko $PARAMETERS
		must room only "$ROOMY"
		;;
	window) must window only "$WINDOWED" ;;
	refused) must "no room" only "$FULL" ;;
	esac
	case $subject in
	disk)
		swap_phases "$subject/"
		file_phases "$subject/"
		;;
	tmem)
		swap_phases "$subject/"
		file_phases "$subject/" warmed_up
		;;
	window)
		swap_phases "$subject/" lent_swap
		file_phases "$subject/" lent_files
		;;
	refused) refused_phases "$subject/" ;;
	esac
	snapshot "$subject"
done
"""

# The guest that is its host.
OUTER = """
T=/sys/kernel/tracing
kvm() {{
	modprobe kvm_amd && [ -c /dev/kvm ]
}}

# Makes ready for a trace; the first marker begins it.
trace() {{
	local event trigger=$T/events/kvm/kvm_cpuid/trigger
	mountpoint -q $T || mount -t tracefs tracefs $T
	echo 0 >$T/tracing_on
	echo {buffer} >$T/buffer_size_kb
	echo >$T/trace
	for event in {events}; do
		echo 1 >$T/events/kvm/kvm_$event/enable || return
	done
	grep -q '^traceon' $trigger || echo 'traceon if function == 0x6d656d74' >$trigger
}}

# A trace that lacks events is none.
complete() {{
	! grep 'overrun: [^0]' $T/per_cpu/cpu*/stats
}}

pack() {{
	tar -C {inside} -cf "$1" .
}}

must kvm kvm
{runs}
must results with_disk results pack
"""

# Now and then a guest in an emulated one is reset, for no reason that it or its host would say.
TRIES = 6

RUN = """
# Windows are memory, and no files to be packed.
unmounted() {{
	local folder
	for folder in {folder}/*.windows; do
		! mountpoint -q "$folder" || umount --lazy "$folder" || return
	done
}}

attempt() {{
	local disk
	unmounted && rm -rf {folder} && mkdir -p {folder} && cd {folder} || return
	for disk in {disks}; do
		truncate -s 256M $disk.img || return
	done
	mkfs.ext4 -q -E lazy_itable_init=0,lazy_journal_init=0 files.img || return
{windows}
{daemons}
	trace || return
	touch console.log output.log
	tail -qF console.log output.log | sed -u 's/^/inside: /' &
	{qemu}
	echo 0 >$T/tracing_on
	kill $(jobs -p)
	wait
	grep -q '"mark":"finished"' output.log
}}

attempts() {{
	local n
	for n in {tries}; do
		! attempt || return 0
	done
	return 1
}}

if step {name} attempts; then
	must complete complete
	must extract trace-cmd extract -o trace.dat
fi
unmounted
rm -f *.img
"""


@dataclass(frozen=True)
class Inside:
    """One guest in the guest: what it is started with, and where."""

    name: str
    folder: Path
    disks: Sequence[str]
    windows: Sequence[Window]
    # Each with the socket that it makes.
    daemons: Sequence[tuple[Sequence[str], Path]]
    qemu: Sequence[str]

    def script(self) -> str:
        """How its host runs it."""
        daemons = [
            f"\t{shlex.join(command)} >>daemon.log 2>&1 &\n"
            f"\twait_for 60 [ -S {socket} ] || return"
            for command, socket in self.daemons
        ]
        windows = [
            f"\tmkdir {window.folder} && {shlex.join(map(str, window.mount_command()))} || return"
            for window in self.windows
        ]
        return RUN.format(
            name=shlex.quote(self.name),
            tries=" ".join(map(str, range(TRIES))),
            folder=self.folder,
            disks=" ".join(self.disks),
            windows="\n".join(windows),
            daemons="\n".join(daemons),
            qemu=shlex.join(self.qemu),
        )


def inner() -> str:
    """The script of the guest in the guest."""
    return FUNCTIONS + INNER.format(mib=MIB, start=START)


def outer(inside: Path, runs: Sequence[Inside]) -> str:
    """The script of its host."""
    return OUTER.format(
        inside=inside,
        buffer=BUFFER_KIB,
        events=" ".join(EVENTS),
        runs="\n".join(run.script() for run in runs),
    )
