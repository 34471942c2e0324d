# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""What guests do with many pages while it is measured what these cost."""

# The slots of a device whose host has room, of one whose host has next to none, and of one whose host
# has room and lends a window.
ROOMY, FULL, WINDOWED = 0x10, 0x11, 0x12

# Functions for scripts in guests. They need MIB, the size of what is worked on, and CORPUS, files
# that content is taken from.
FUNCTIONS = f"""
ROOMY={ROOMY:02x}
FULL={FULL:02x}
WINDOWED={WINDOWED:02x}
""" + """
# phases WHAT LABEL [OPTION...]: goes through the phases of one thing.
phases() {
	local what=$1 label=$2
	shift 2
	# shellcheck disable=SC2086
	must "$label$what" confined 4096 "$WORKLOAD" phases "$what" --mib "$MIB" --label "$label" \\
		"$@" $CORPUS
}

# swap_phases LABEL [COMMAND]: with the disk "swap", on which the command succeeds first.
swap_phases() {
	must "${1}swap on" swap_on swap
	[ $# -eq 1 ] || must "${1}warm up" wait_for 30 "$2"
	phases swap "$1"
	must "${1}swap off" swap_off swap
}

# The host lends a window bit by bit, as it is used. With these, all that phases put has room there. It
# takes a large window: who uses up soon what is lent is lent up to 248 MiB more of either kind.

# lent_swap: puts more swapped pages than phases do, and says whether the host has lent so many.
lent_swap() {
	GROUP=lent confined 4 "$WORKLOAD" anon --mib $((MIB + 8)) --passes 0 &&
		granted $(((MIB + 2) * 256))
}

# lent_files FOLDER: the same with clean pages there.
lent_files() {
	head -c "$((MIB + 4))M" /dev/zero >"$1/warm-up"
	drop_caches
	cat "$1/warm-up" >/dev/null
	drop_caches
	rm "$1/warm-up"
	# Nothing is left for the journal, which would write it while phases are measured.
	sync
	granted $(((MIB + 2) * 256)) ephemeral
}

# fill: has somebody else keep what the host has room for.
fill() {
	local group=/sys/fs/cgroup/filler
	rm -f /tmp/enough
	mkdir -p "$group" && echo 4M >"$group/memory.max" || return
	(
		echo "$BASHPID" >"$group/cgroup.procs"
		exec "$WORKLOAD" anon --mib 16 --passes 0 --wait-for /tmp/enough
	) >/tmp/filler 2>&1 &
	wait_for 60 grep -q filled /tmp/filler
}

give_back() {
	: >/tmp/enough
	wait "$!" && cat /tmp/filler
}

# refused_phases LABEL: swap_phases, once a host with next to no room has none left.
refused_phases() {
	must "${1}swap on" swap_on swap
	must "${1}fill" fill
	phases swap "$1"
	must "${1}give back" give_back
	must "${1}swap off" swap_off swap
}

# only SLOT: gives the driver that device alone, of those that there are.
only() {
	local slot
	for slot in "$ROOMY" "$FULL" "$WINDOWED"; do
		unbind_device "$slot" 2>/dev/null
	done
	bind_device "$1"
}

# file_phases LABEL [COMMAND]: with a file on the disk "files", on which the command succeeds first.
file_phases() {
	must "${1}create" mounted files /tmp/files
	# shellcheck disable=SC2086
	must "${1}write" "$WORKLOAD" phases create --mib "$MIB" --file /tmp/files/pages $CORPUS
	must "${1}umount" umount /tmp/files
	must "${1}mount" mounted files /tmp/files
	[ $# -eq 1 ] || must "${1}warm up" wait_for 30 "$2" /tmp/files
	phases file "$1" --file /tmp/files/pages
	must "${1}leave" umount /tmp/files
}
"""

# Programs and text, of which real memory is full.
CORPUS = """
CORPUS=$(ls /usr/bin/python3.[0-9]* /usr/lib/x86_64-linux-gnu/libc.so.6 \\
	/usr/lib/python3.[0-9]*/[a-h]*.py)
"""
