# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""What the guest and the guest in it do while exits are traced."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from ..pages import FUNCTIONS

MIB = 4
PAGES = MIB * 256

# The phase that only begins the trace: its first marker is not in there.
START = "start/"

EVENTS = ("exit", "entry", "mmio", "pio", "msr", "inj_virq", "cpuid")

# The guest in the guest.
INNER = """
CORPUS=$(ls /corpus/*)
MIB={mib}
PARAMETERS={parameters}
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
		echo "device ${{folder##*/}} $(cat "$folder/vendor" "$folder/device" | tr '\\n' ' ')" \\
			"$(ls "$folder" | grep '^virtio')" "$(tr '\\n' ';' <"$folder/resource")"
	done
	grep . /sys/block/vd*/serial
	ls -d /sys/bus/virtio/devices/*/block/* 2>/dev/null
	cat /proc/interrupts
}}

must modules modules
step devices devices
phases copy {start}
for subject in {subjects}; do
	if [ "$subject" = tmem ]; then
		# shellcheck disable=SC2086
		must load insmod /modules/*-virtio_tmem.ko $PARAMETERS
		must bound wait_for 30 bound
		step devices devices
	fi
	swap_phases "$subject/"
	if [ "$subject" = tmem ]; then
		file_phases "$subject/" warmed_up
	else
		file_phases "$subject/"
	fi
	snapshot "$subject"
done
cat /proc/interrupts
"""

# The guest that is its host.
OUTER = """
T=/sys/kernel/tracing
kvm() {{
	modprobe kvm_amd && [ -c /dev/kvm ]
}}

trace() {{
	local event
	mountpoint -q $T || mount -t tracefs tracefs $T
	echo 0 >$T/tracing_on
	echo {buffer} >$T/buffer_size_kb
	for event in {events}; do
		echo 1 >$T/events/kvm/kvm_$event/enable || return
	done
	echo 'traceon if function == 0x6d656d74' >$T/events/kvm/kvm_cpuid/trigger
}}

pack() {{
	tar -cf "$1" trace.dat console.log output.log daemon.log
}}

guest() {{
	{qemu}
}}

must kvm kvm
mkdir -p {folder}
cd {folder}
for disk in {disks}; do
	truncate -s 256M $disk.img
done
must mkfs mkfs.ext4 -q -E lazy_itable_init=0,lazy_journal_init=0 files.img
{daemon} >daemon.log 2>&1 &
must daemon wait_for 60 [ -S {socket} ]
must trace trace
touch console.log output.log
tail -qF console.log output.log | sed -u 's/^/inside: /' &
step guest guest
echo 0 >$T/tracing_on
# A trace that lacks events is none.
must complete sh -c "! grep 'overrun: [^0]' $T/per_cpu/cpu*/stats"
must extract trace-cmd extract -o trace.dat
must results with_disk results pack
"""


def inner(parameters: str, subjects: Sequence[str]) -> str:
    """The script of the guest in the guest."""
    text = INNER.format(
        mib=MIB, start=START, parameters=shlex.quote(parameters), subjects=" ".join(subjects)
    )
    return FUNCTIONS + text


def outer(
    folder: Path,
    disks: Sequence[str],
    daemon: Sequence[str],
    socket: Path,
    qemu: Sequence[str],
) -> str:
    """The script of its host."""
    return OUTER.format(
        folder=folder,
        disks=" ".join(disks),
        daemon=shlex.join(daemon),
        socket=socket,
        qemu=shlex.join(qemu),
        buffer=65536,
        events=" ".join(EVENTS),
    )
