# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# shellcheck shell=bash
#
# What the scripts of this folder share: where the cache is, which kernel the
# module is built for, and how to speak to the user. Sourced, never run.
#
# Environment:
#   TMEM_KERNEL   the release of the kernel that all is done for, instead of the
#                 toolbox's own: see scripts/toolbox
#   TMEM_DEBUG    if not empty, all is done for the kernel with its checks on,
#                 instead of the toolbox's own: see scripts/kernel-tree

# The cache: the toolbox root, downloaded packages, cargo's registry.
TMEM_CACHE=${TMEM_CACHE:-/var/cache/virtio-tmem}
case $TMEM_CACHE in
/*) ;;
*) TMEM_CACHE=$PWD/$TMEM_CACHE ;;
esac
export TMEM_CACHE

# The stable name of the toolbox root, a symlink to the root of the current key;
# inside the toolbox that root is where everything is anyway.
# shellcheck disable=SC2034  # Used by the scripts that source this file.
if [ -e /etc/virtio-tmem-toolbox ]; then
	toolbox=/
else
	toolbox=$TMEM_CACHE/toolbox
fi

# The checkout that the running script belongs to.
# shellcheck disable=SC2034
repo=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)

# What is built for the kernel with its checks on is kept apart by this.
debug=${TMEM_DEBUG:+-debug}
export TMEM_DEBUG=${TMEM_DEBUG:-}

# stock_release: the release of the kernel that the toolbox was made with.
stock_release() {
	sed -n 's/^release=//p' "$toolbox/etc/virtio-tmem-toolbox"
}

# kernel_release: the release of the kernel that the module is built for, and
# that guests run.
kernel_release() {
	local release
	release=$(stock_release)
	if [ -n "$debug" ]; then
		release=${release%%-*}-debug-amd64
	elif [ -n "${TMEM_KERNEL:-}" ]; then
		release=$TMEM_KERNEL
	fi
	printf '%s\n' "$release"
}

# module_folder: the folder that the module for that kernel is built in.
module_folder() {
	local release
	release=$(kernel_release)
	if [ "$release" = "$(stock_release)" ]; then
		printf '%s\n' "$repo/build/module"
	else
		printf '%s\n' "$repo/build/module-$release"
	fi
}

program=${0##*/}
tmem_step=0
tmem_steps=0

say() {
	printf '%s: %s\n' "$program" "$*" >&2
}

# A warning does not end the script, but the user should know.
warn() {
	printf '%s: warning: %s\n' "$program" "$*" >&2
}

# die WHAT-WENT-WRONG [WHAT-TO-DO]
die() {
	printf '%s: error: %s\n' "$program" "$1" >&2
	if [ $# -gt 1 ]; then
		printf '%s: %s\n' "$program" "$2" >&2
	fi
	exit 1
}

# Announces the next of $tmem_steps steps, with the time since the start.
step() {
	tmem_step=$((tmem_step + 1))
	say "[$tmem_step/$tmem_steps, ${SECONDS}s] $*"
}

# progress LOG COMMAND...: runs COMMAND with its output in LOG, and prints the
# log's last words every quarter of a minute, so that nobody has to wonder
# whether it still runs. On failure the last $tmem_tail lines of the log are
# shown. Signals end the command too, with all that it started.
tmem_tail=30
progress() {
	local log=$1 pid status=0 last=$SECONDS words
	shift
	set -m
	"$@" >"$log" 2>&1 </dev/null &
	pid=$!
	set +m
	trap 'interrupted "$pid" 130' INT
	trap 'interrupted "$pid" 143' TERM HUP
	while kill -0 "$pid" 2>/dev/null; do
		sleep 0.2
		if [ $((SECONDS - last)) -ge 15 ]; then
			last=$SECONDS
			words=$(tail -n 1 -- "$log" | tr -d '\r' | cut -c 1-100)
			say "    ${SECONDS}s: ${words:-at work}"
		fi
	done
	wait "$pid" || status=$?
	trap 'exit 130' INT
	trap 'exit 143' TERM HUP
	if [ "$status" -ne 0 ]; then
		say "the last lines of $log:"
		tail -n "$tmem_tail" -- "$log" | sed 's/^/    /' >&2
	fi
	return "$status"
}

interrupted() {
	trap '' INT TERM HUP
	say "interrupted"
	exec 2>/dev/null
	kill -KILL -- "-$1" || true
	wait "$1" || true
	exit "$2"
}

need_root() {
	if [ "$(id -u)" -ne 0 ]; then
		die "this must run as root (it makes mounts and a chroot); it ran as $(id -un)" \
			"run it again as root, for example: sudo make ${MAKECMDGOALS:-toolbox}"
	fi
}

# need_free DIR MIB WHAT: ends the script if DIR has not that much room.
need_free() {
	local dir=$1 mib=$2 what=$3 free
	free=$(df --output=avail -BM -- "$dir" | tail -n 1 | tr -dc 0-9)
	if [ "$free" -lt "$mib" ]; then
		die "$dir has $free MiB free, but $what needs $mib MiB" \
			"make room there, or set TMEM_CACHE to a folder on a larger disk"
	fi
}
