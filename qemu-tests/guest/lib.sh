# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# shellcheck shell=bash
#
# What the scripts of tests in a guest are made of. Sourced by them; needs
# RUN (the test's folder) and WORKLOAD (the workload's binary); and, where the
# guest is slow, SLOWNESS (how much longer than usual things may take).

DRIVER=/sys/kernel/debug/virtio_tmem
SLOWNESS=${SLOWNESS:-1}

# A stock kernel of this size complains of itself when it has to swap: kswapd
# finds no page for the tables of swap, nor for virtiofs to forget an inode
# with, which is a warning each. A larger reserve, and keeping inodes, prevent
# it, so that every complaint that is left is taken seriously.
echo 8192 >/proc/sys/vm/min_free_kbytes
echo 1 >/proc/sys/vm/vfs_cache_pressure

# uptime_ms: sets REPLY to the guest's age in milliseconds.
uptime_ms() {
	local up rest
	read -r up rest </proc/uptime
	REPLY=$((10#${up/./} * 10))
}

# mark NAME: tells the host that the script has come this far.
mark() {
	printf '{"mark":"%s"}\n' "$1"
}

# step NAME COMMAND...: runs the command and tells the host how it went.
step() {
	local name=$1 status=0 start
	shift
	uptime_ms
	start=$REPLY
	printf '{"begin":"%s"}\n' "$name"
	"$@" 2>&1 || status=$?
	uptime_ms
	# The output may have ended without a newline.
	printf '\n{"end":"%s","status":%d,"seconds":%d.%03d}\n' "$name" "$status" \
		$(((REPLY - start) / 1000)) $(((REPLY - start) % 1000))
	return "$status"
}

# must NAME COMMAND...: a step without which the rest makes no sense.
must() {
	step "$@" || {
		mark "gave up at $1"
		exit 99
	}
}

# sysctls [NAME=VALUE...]: has the kernel work that way.
sysctls() {
	local one name
	for one in "$@"; do
		name=${one%%=*}
		echo "${one#*=}" >"/proc/sys/${name//.//}" || return
	done
}

# wait_for SECONDS COMMAND...: repeats the command until it succeeds.
wait_for() {
	local until
	uptime_ms
	until=$((REPLY + $1 * SLOWNESS * 1000))
	shift
	until "$@" >/dev/null 2>&1; do
		uptime_ms
		[ "$REPLY" -lt "$until" ] || return 1
		sleep 0.1
	done
}

# told NAME: whether the host has told us so.
told() {
	[ -e "$RUN/told/$1" ]
}

# counters FOLDER: the files below it, as the fields of a JSON object.
counters() {
	local file value separator=
	for file in "$1"/* "$1"/*/*; do
		[ -f "$file" ] || continue
		read -r value <"$file" 2>/dev/null || continue
		[[ $value =~ ^[0-9]+$ ]] || continue
		printf '%s"%s":%s' "$separator" "${file#"$1"/}" "$value"
		separator=,
	done
}

# disks: sectors read and written, of every disk that has a serial number.
disks() {
	local folder serial separator=
	local -a stat
	for folder in /sys/block/vd*; do
		read -r serial <"$folder/serial" 2>/dev/null
		read -ra stat <"$folder/stat" 2>/dev/null || continue
		printf '%s"%s":{"read":%s,"written":%s}' "$separator" "$serial" "${stat[2]}" "${stat[6]}"
		separator=,
	done
}

# vmstat: what the memory management counts of swap and faults.
vmstat() {
	local name value separator=
	while read -r name value; do
		case $name in
		pswpin | pswpout | nrswpin | pgmajfault | oom_kill | workingset_refault_file | workingset_refault_anon | nr_free_pages)
			printf '%s"%s":%s' "$separator" "$name" "$value"
			separator=,
			;;
		esac
	done </proc/vmstat
}

# snapshot NAME: all counters at this moment.
snapshot() {
	printf '{"snapshot":"%s","driver":{%s},"disks":{%s},"vmstat":{%s}}\n' "$1" \
		"$(counters "$DRIVER")" "$(disks)" "$(vmstat)"
}

# disk SERIAL: sets DISK to the disk's device, once it is there.
disk() {
	local folder serial
	for folder in /sys/block/vd*; do
		read -r serial <"$folder/serial" 2>/dev/null
		if [ "$serial" = "$1" ]; then
			DISK=/dev/${folder##*/}
			return
		fi
	done
	return 1
}

# with_disk SERIAL COMMAND...: runs the command with the disk as last argument.
with_disk() {
	disk "$1" || return
	shift
	"$@" "$DISK"
}

# swap_on SERIAL: swaps to the disk.
swap_on() {
	disk "$1" && mkswap "$DISK" && swapon "$DISK"
}

# swap_off SERIAL
swap_off() {
	disk "$1" && swapoff "$DISK"
}

# mounted SERIAL FOLDER [OPTIONS]: mounts the disk there.
mounted() {
	disk "$1" && mkdir -p "$2" && mount ${3:+-o "$3"} "$DISK" "$2"
}

# shuffled FILE MIB PARTS: makes a file for swapping, on a filesystem with reflinks, of which the first
# so many pages are in another order on the disk: every other one first, and then those between.
shuffled() {
	local n
	local -a parts=()
	dd if=/dev/zero of="$1.source" bs=1M count="$2" || return
	for ((n = 0; n < $3; n++)); do
		parts+=(-c "reflink $1.source $((n * 4))k $((((n * 2) % $3 + n * 2 / $3) * 4))k 4k")
	done
	parts+=(-c "reflink $1.source $(($3 * 4))k $(($3 * 4))k $(($2 * 1024 - $3 * 4))k")
	xfs_io -f "${parts[@]}" "$1" >/dev/null && rm "$1.source" && chmod 600 "$1" && sync
}

# confined MIB COMMAND...: runs the command with so much memory. Only its own
# pages are swapped then, and not those of the script, which may be lost. The
# memory is that of all in the same GROUP.
confined() {
	local group=/sys/fs/cgroup/${GROUP:-confined}
	echo +memory >/sys/fs/cgroup/cgroup.subtree_control
	mkdir -p "$group"
	echo "${1}M" >"$group/memory.max"
	shift
	(
		echo "$BASHPID" >"$group/cgroup.procs"
		exec "$@"
	)
}

# kill_group GROUP: ends all in the group, and returns once they are gone.
kill_group() {
	echo 1 >"/sys/fs/cgroup/$1/cgroup.kill" && wait_for 30 ended "$1"
}

# ended GROUP: whether all threads of a group are gone, or in the kernel's hands
# for good: there they may need a page of their memory once more, and nothing
# lets go of them before it has come.
ended() {
	local thread stat
	while read -r thread; do
		read -r stat <"/proc/$thread/stat" 2>/dev/null || continue
		# What comes after the name; the seventh field is the flags, with PF_EXITING.
		# shellcheck disable=SC2086 # To be split.
		set -- ${stat##*) }
		[ $(($7 & 4)) -ne 0 ] || return
	done <"/sys/fs/cgroup/$1/cgroup.threads"
}

# load_module [PARAMETER=VALUE...]: loads the module anew.
load_module() {
	modprobe -r virtio_tmem && modprobe virtio_tmem "$@"
}

# virtio_at SLOT: sets REPLY to the virtio device in the PCI slot.
virtio_at() {
	local folder
	for folder in "/sys/bus/pci/devices/0000:00:$1.0"/virtio*; do
		REPLY=${folder##*/}
		[ -e "$folder" ] && return
	done
	return 1
}

# bind_device SLOT: gives the device in the PCI slot to the driver.
bind_device() {
	virtio_at "$1" && echo "$REPLY" >/sys/bus/virtio/drivers/virtio_tmem/bind
}

# unbind_device SLOT: takes it away.
unbind_device() {
	virtio_at "$1" && echo "$REPLY" >/sys/bus/virtio/drivers/virtio_tmem/unbind
}

# bound: whether the driver has its device.
bound() {
	local device
	for device in /sys/bus/virtio/drivers/virtio_tmem/virtio*; do
		[ -e "$device" ] && return
	done
	return 1
}

# tmem NAME: sets REPLY to a file of the driver's device.
tmem() {
	for REPLY in /sys/bus/virtio/drivers/virtio_tmem/virtio*/tmem/"$1"; do
		[ -e "$REPLY" ] && return
	done
	echo "the device has no file $1"
	return 1
}

# state [STATE]: shows what the device is at, or says whether it is at that.
state() {
	local found
	tmem state && read -r found <"$REPLY" || return
	echo "$found"
	[ "$found" = "${1:-$found}" ]
}

# set_tmem NAME VALUE: writes to a file of the driver's device.
set_tmem() {
	tmem "$1" && echo "$2" >"$REPLY"
}

# hear: takes what the host tells by a serial line, which others are told of by `told`.
hear() {
	local name
	mkdir -p "$RUN/told"
	while read -r name; do
		: >"$RUN/told/$name"
	done </dev/ttyS1
}

# beats: tells the host each second that the guest is alive.
beats() {
	while sleep 1; do
		echo '{"beat":1}'
	done
}

# kernel_log: what the kernel has said since it was asked last.
kernel_log() {
	dmesg -c
}

# out NAME MIB OF: has memory in the host, which is looked at once "NAME" is told.
# Sets PID to that process.
out() {
	mkdir -p /tmp/out
	GROUP=$1 confined "$2" "$WORKLOAD" anon --mib "$3" --passes 1 --seed "$3" \
		--wait-for "$RUN/told/$1" >"/tmp/out/$1" 2>&1 &
	# shellcheck disable=SC2034 # The scripts of tests wait for it.
	PID=$!
	wait_for 200 grep -q filled "/tmp/out/$1"
}

# looked NAME PID: how the memory came back.
looked() {
	wait "$2" || echo "{\"status\":$?}"
	cat "/tmp/out/$1"
}

# drain [1|0]: starts a drain, or stops it, or says how far it is.
# shellcheck disable=SC2120 # The scripts of tests say what.
drain() {
	local file
	for file in /sys/bus/virtio/drivers/virtio_tmem/virtio*/tmem/drain; do
		[ -e "$file" ] || return
		if [ $# -gt 0 ]; then
			echo "$1" >"$file" || return
		else
			cat "$file" || return
		fi
	done
}

# drained: whether a drain is over that left nothing.
drained() {
	# shellcheck disable=SC2119
	[[ $(drain) == "left 0 "*" over" ]]
}

# hooks: the functions that something is hooked into.
hooks() {
	cat /sys/kernel/tracing/enabled_functions
}

# warmed_up FOLDER: makes clean pages there, and says whether the driver put any.
# It hooks into a filesystem when it first sees one of its pages go.
warmed_up() {
	local before
	before=$(clean_puts)
	head -c 262144 /dev/zero >"$1/warm-up"
	# shellcheck disable=SC2119
	drop_caches
	cat "$1/warm-up" >/dev/null
	# shellcheck disable=SC2119
	drop_caches
	rm "$1/warm-up"
	[ "$(clean_puts)" -gt "$before" ]
}

# clean_puts: how many clean pages were put, whichever way.
clean_puts() {
	local asked copied
	read -r asked <$DRIVER/cleancache/puts
	read -r copied <$DRIVER/cleancache/window_puts
	echo $((asked + copied))
}

# granted PAGES [KIND]: whether the host has lent memory for so many swapped pages, or of that kind.
granted() {
	local kind pages rest
	tmem window || return
	while read -r kind _ pages rest; do
		[ "$kind" = "${2:-persistent}" ] && [ "$pages" -ge "$1" ] && return
	done <"$REPLY"
	return 1
}

# drop_caches [WHAT]: has clean pages, or what the kernel calls WHAT, go.
# shellcheck disable=SC2120 # The scripts of tests say what.
drop_caches() {
	sync
	echo "${1:-1}" >/proc/sys/vm/drop_caches
}

KMEMLEAK=/sys/kernel/debug/kmemleak

# leaks: on a kernel that can tell, writes to its log what the module has leaked,
# while it is there and, if it can go, after it has gone.
leaks() {
	[ -e $KMEMLEAK ] || return 0
	find_leaks
	if [ -d /sys/module/virtio_tmem ] && timeout $((60 * SLOWNESS)) rmmod virtio_tmem; then
		find_leaks
	fi
}

# find_leaks: looks for them. The kernel believes in a leak that it finds twice,
# and that is more than five seconds old.
find_leaks() {
	local until line
	uptime_ms
	until=$((REPLY + 6000))
	while [ "$REPLY" -lt "$until" ]; do
		echo scan >$KMEMLEAK || return
		uptime_ms
	done
	echo scan >$KMEMLEAK || return
	# Code of a module that is gone is a mere address.
	awk '
		function end() {
			if (ours)
				printf "%s", block
			block = ""
			ours = 0
		}
		/^unreferenced/ { end() }
		/virtio_tmem|^ *0xffffffff/ { ours = 1 }
		{ block = block $0 "\n" }
		END { end() }
	' $KMEMLEAK |
		while IFS= read -r line; do
			printf '<3>kmemleak: %s\n' "$line" >/dev/kmsg
		done
	echo clear >$KMEMLEAK
}
