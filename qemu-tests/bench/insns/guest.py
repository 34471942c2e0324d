# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""What the guest does while its instructions are counted."""

import shlex

from ..pages import CORPUS, FUNCTIONS

MIB = 16
PAGES = MIB * 256
MEMORY_MIB = 512

SCRIPT = """
ZRAM=/sys/block/zram0

kernel_symbols() {
	grep -i ' [tw] ' /proc/kallsyms | gzip -1 | base64 -w 0
}

module_symbols() {
	grep -F -e '[virtio_tmem]' -e '[__builtin__ftrace]' /proc/kallsyms
}

zram_on() {
	echo lz4 >$ZRAM/comp_algorithm && echo 256M >$ZRAM/disksize && mkswap /dev/zram0 &&
		swapon /dev/zram0
}

# udev may have it open.
zram_reset() {
	echo 1 >$ZRAM/reset
}

zram_off() {
	cat $ZRAM/mm_stat && swapoff /dev/zram0 && wait_for 30 zram_reset
}

zswap() {
	echo lz4 >/sys/module/zswap/parameters/compressor
	echo "$1" >/sys/module/zswap/parameters/enabled
}

modprobe -a zram lz4
echo 0 >/proc/sys/kernel/kptr_restrict
step symbols kernel_symbols
phases copy "user/1/"
for round in $(seq "$ROUNDS"); do
	swap_phases "disk/$round/"
	file_phases "disk/$round/"

	must "zram on" zram_on
	phases swap "zram/$round/"
	must "zram off" zram_off

	must "zswap on" zswap 1
	swap_phases "zswap/$round/"
	must "zswap off" zswap 0

	# shellcheck disable=SC2086
	must "load" modprobe virtio_tmem $PARAMETERS
	step "tmem/$round/symbols" module_symbols
	must "room" only "$ROOMY"
	swap_phases "tmem/$round/"
	file_phases "tmem/$round/" warmed_up
	snapshot "tmem/$round"

	step "window/$round/symbols" module_symbols
	must "window" only "$WINDOWED"
	swap_phases "window/$round/" lent_swap
	file_phases "window/$round/" lent_files
	snapshot "window/$round"

	step "refused/$round/symbols" module_symbols
	must "no room" only "$FULL"
	refused_phases "refused/$round/"
	snapshot "refused/$round"
	must "unload" modprobe -r virtio_tmem
done
"""


def script(rounds: int, parameters: str) -> str:
    """The script of the guest."""
    head = f"MIB={MIB}\nROUNDS={rounds}\nPARAMETERS={shlex.quote(parameters)}\n"
    return head + CORPUS + FUNCTIONS + SCRIPT
