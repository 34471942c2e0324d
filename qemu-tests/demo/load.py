# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""What the guests do."""

import os

# The kernel and a bare userland leave a guest of this size some 140 MiB.
MEMORY_MIB = 256

ANON_MIB = int(os.environ.get("TMEM_DEMO_ANON_MIB", 4 * MEMORY_MIB))
FILES_MIB = int(os.environ.get("TMEM_DEMO_FILES_MIB", MEMORY_MIB + 128))

# Phases by the name of their step, in the order in which they come.
PHASES = {
    "create": f"writing {FILES_MIB} MiB of files",
    "first": "reading them",
    "second": "reading them again",
    "anon": f"filling and checking {ANON_MIB} MiB of memory",
}

SETS = f"--dir /tmp/data --mib {FILES_MIB} --files 12"

SCRIPT = f"""
if [ -n "$WITH_MODULE" ]; then
	must udev wait_for 30 bound
fi
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
mark measured
wait_for 60 told leave
"""


def script(with_module: bool) -> str:
    """The script of one of the guests."""
    return f"WITH_MODULE={'yes' if with_module else ''}\n{SCRIPT}"
