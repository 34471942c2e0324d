# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""What the guests do."""

import os

# What machines are made with. Balloons leave guests half of it, and a quarter at last.
MACHINE_MIB = 512
MEMORY_MIB = MACHINE_MIB // 2
BALLOONED_MIB = MACHINE_MIB // 4

ANON_MIB = int(os.environ.get("TMEM_DEMO_ANON_MIB", 4 * MEMORY_MIB))
FILES_MIB = int(os.environ.get("TMEM_DEMO_FILES_MIB", MEMORY_MIB + 128))

# What a guest works with while its balloon is inflated: more than it is left with.
BALLOON_ANON_MIB = 112
BALLOON_FILES_MIB = 64

# Phases by the name of their step, in the order in which they come.
PHASES = {
    "create": f"writing {FILES_MIB} MiB of files",
    "first": "reading them",
    "second": "reading them again",
    "anon": f"filling and checking {ANON_MIB} MiB of memory",
    "balloon": f"working while a balloon leaves it {BALLOONED_MIB} MiB",
}

SETS = f"--dir /tmp/data --mib {FILES_MIB} --files 12"

BALLOON_SETS = f"--dir /tmp/data/balloon --mib {BALLOON_FILES_MIB}"

# What the balloon is told once the guest has come as far as a mark, and what the guest is told then.
BALLOON = {"ready": (MEMORY_MIB, "half"), "under load": (BALLOONED_MIB, "quarter")}

SCRIPT = f"""
# balloon: works until the balloon has taken what it is to take, and once more then.
balloon() {{
	local wrong=0
	until told quarter; do
		"$WORKLOAD" file-set verify {BALLOON_SETS} || wrong=1
	done
	"$WORKLOAD" file-set verify {BALLOON_SETS} || wrong=1
	"$WORKLOAD" anon --mib {BALLOON_ANON_MIB} --passes 0 --seed 4 || wrong=1
	return $wrong
}}

if [ -n "$WITH_MODULE" ]; then
	must load modprobe virtio_tmem
	must bound wait_for 30 bound
fi
mark ready
must half wait_for 60 told half
must swap swap_on swap
must mount mounted files /tmp/data
snapshot begin
step create "$WORKLOAD" file-set create {SETS}
must umount umount /tmp/data
must "mount again" mounted files /tmp/data
snapshot create
step first "$WORKLOAD" file-set verify {SETS}
snapshot first
step second "$WORKLOAD" file-set verify {SETS}
snapshot second
step anon "$WORKLOAD" anon --mib {ANON_MIB} --passes 0 --jobs 2
snapshot anon
mark loaded
must go wait_for 60 told go
must "create more" "$WORKLOAD" file-set create {BALLOON_SETS}
"$WORKLOAD" anon --mib {BALLOON_ANON_MIB} --passes 100000 --seed 3 >/tmp/busy 2>&1 &
busy=$!
must filled wait_for 100 grep -q filled /tmp/busy
snapshot filled
mark "under load"
step balloon balloon
snapshot balloon
kill $busy
mark measured
wait_for 60 told leave
"""


def script(with_module: bool) -> str:
    """The script of one of the guests."""
    return f"WITH_MODULE={'yes' if with_module else ''}\n{SCRIPT}"
