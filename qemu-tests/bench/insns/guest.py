# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""What the guest does while its instructions are counted."""

MIB = 16
PAGES = MIB * 256
MEMORY_MIB = 512

SCRIPT = f"""
ZRAM=/sys/block/zram0
CORPUS=$(ls /usr/bin/python3.[0-9]* /usr/lib/x86_64-linux-gnu/libc.so.6 \\
	/usr/lib/python3.[0-9]*/[a-h]*.py)

# phases WHAT LABEL [OPTION...]: goes through the phases of one thing.
phases() {{
	local what=$1 label=$2
	shift 2
	# shellcheck disable=SC2086
	must "$label$what" confined 4096 "$WORKLOAD" phases "$what" --mib {MIB} --label "$label" "$@" \\
		$CORPUS
}}

kernel_symbols() {{
	grep -i ' [tw] ' /proc/kallsyms | gzip -1 | base64 -w 0
}}

module_symbols() {{
	grep -F '[virtio_tmem]' /proc/kallsyms
}}

zram_on() {{
	echo lz4 >$ZRAM/comp_algorithm && echo 256M >$ZRAM/disksize && mkswap /dev/zram0 &&
		swapon /dev/zram0
}}

# udev may have it open.
zram_reset() {{
	echo 1 >$ZRAM/reset
}}

zram_off() {{
	cat $ZRAM/mm_stat && swapoff /dev/zram0 && wait_for 30 zram_reset
}}

zswap() {{
	echo lz4 >/sys/module/zswap/parameters/compressor
	echo "$1" >/sys/module/zswap/parameters/enabled
}}

files() {{
	must "$1create" mounted files /tmp/files
	must "$1write" "$WORKLOAD" phases create --mib {MIB} --file /tmp/files/pages $CORPUS
	must "$1umount" umount /tmp/files
	must "$1mount" mounted files /tmp/files
	[ -z "$2" ] || must "$1warm up" wait_for 30 "$2" /tmp/files
	phases file "$1" --file /tmp/files/pages
	must "$1leave" umount /tmp/files
}}

modprobe -a zram lz4
echo 0 >/proc/sys/kernel/kptr_restrict
step symbols kernel_symbols
phases copy "user/1/"
for round in $(seq "$ROUNDS"); do
	must "disk on" swap_on swap
	phases swap "disk/$round/"
	must "disk off" swap_off swap
	files "disk/$round/" ""

	must "zram on" zram_on
	phases swap "zram/$round/"
	must "zram off" zram_off

	must "zswap on" zswap 1
	must "zswap disk on" swap_on swap
	phases swap "zswap/$round/"
	must "zswap disk off" swap_off swap
	must "zswap off" zswap 0

	must "load" modprobe virtio_tmem $PARAMETERS
	must "bound" wait_for 30 bound
	step "tmem/$round/symbols" module_symbols
	must "tmem on" swap_on swap
	phases swap "tmem/$round/"
	snapshot "tmem/$round/swap"
	must "tmem off" swap_off swap
	files "tmem/$round/" warmed_up
	snapshot "tmem/$round/file"
	must "unload" modprobe -r virtio_tmem
done
"""


def script(rounds: int, parameters: str) -> str:
    """The script of the guest."""
    return f"ROUNDS={rounds}\nPARAMETERS='{parameters}'\n{SCRIPT}"
