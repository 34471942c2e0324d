# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# shellcheck shell=bash
#
# What the guest of the measurements does. Sourced after lib.sh; needs DATA,
# the folder where the disk with the files is mounted.

# What a user would set up: zram as large as memory, before the disk; zswap as
# it comes, but for the compressor.
zram_on() {
	modprobe zram num_devices=1 &&
		echo lz4 >/sys/block/zram0/comp_algorithm &&
		awk '/^MemTotal/ { print $2 "K" }' /proc/meminfo >/sys/block/zram0/disksize &&
		mkswap /dev/zram0 && swapon -p 100 /dev/zram0
}

zram_off() {
	# udev may have it open for a moment.
	swapoff /dev/zram0 && wait_for 30 modprobe -r zram
}

zswap_on() {
	echo lz4 >/sys/module/zswap/parameters/compressor &&
		echo Y >/sys/module/zswap/parameters/enabled
}

zswap_off() {
	echo N >/sys/module/zswap/parameters/enabled
}

# The memory that was plugged in, but not taken into use, when the guest booted.
memory() {
	local state
	for state in $EXTRA; do
		echo "$1" >"$state" || return
	done
}

# module_on [PARAMETER=VALUE...]
module_on() {
	modprobe virtio_tmem "$@" && wait_for 30 bound && fresh && wait_for 30 warmed_up "$DATA"
}

# admit_all: the parameter that has the module put all clean pages, if it does not anyway.
admit_all() {
	! modinfo -F parm virtio_tmem | grep -q '^admission:' || echo admission=0
}

# configure NAME: sets the guest up so.
configure() {
	# shellcheck disable=SC2046
	case $1 in
	nothing) ;;
	swap) swap_on swap ;;
	zram) zram_on && swap_on swap ;;
	zswap) zswap_on && swap_on swap ;;
	tmem) module_on window=0 && swap_on swap ;;
	window) module_on && swap_on swap ;;
	tmem-all) module_on window=0 $(admit_all) && swap_on swap ;;
	tmem-zswap) zswap_on && module_on window=0 && swap_on swap ;;
	ram) memory online_movable && swap_on swap ;;
	esac
}

# deconfigure NAME: undoes that.
deconfigure() {
	empty || return
	case $1 in
	nothing) ;;
	swap) swap_off swap ;;
	zram) zram_off && swap_off swap ;;
	zswap) swap_off swap && zswap_off ;;
	tmem | window | tmem-all) swap_off swap && modprobe -r virtio_tmem ;;
	tmem-zswap) swap_off swap && zswap_off && modprobe -r virtio_tmem ;;
	ram) swap_off swap && wait_for 60 memory offline ;;
	esac
}

# empty: nothing of the files is in memory, nor in the host.
empty() {
	! mountpoint -q "$DATA" || umount "$DATA"
	drop_caches 3
}

# fresh: nothing of the files is in memory, and they are there to be read.
fresh() {
	empty && mounted files "$DATA" noatime
}

# measured NAME COMMAND...: a step between two looks at all counters.
measured() {
	local name=$1
	shift
	snapshot "begin $name"
	ask "begin $name"
	step "$name" "$@"
	ask "end $name"
	sync
	snapshot "end $name"
}

# ask WHAT: has the host do something, and waits until it has.
ask() {
	mark "$1"
	wait_for 60 told "$1"
}

# both COMMAND... -- COMMAND...: one after the other.
both() {
	local -a first=()
	while [ "$1" != -- ]; do
		first+=("$1")
		shift
	done
	shift
	"${first[@]}" && "$@"
}

# build JOBS: compiles what is on the disk.
build() {
	rm -f "$DATA/root/$BUILD"/*.o
	chroot "$DATA/root" make -s -C "$BUILD" -j "$1"
}
