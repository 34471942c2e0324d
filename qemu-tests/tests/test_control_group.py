# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The daemon in a control group with limits, which somebody else fills.

The guest here is a host: it has control groups of its own, whatever machine the tests run on. The
daemon runs in it, and a driver that puts pages as a guest would.
"""

import pytest

from harness import paths
from harness.guest import Guest, Machine
from harness.lab import Lab

pytestmark = pytest.mark.long

HIGH, MAX = 192, 224
CAPACITY = 160

# What is put, and what the other process takes: together more than there may be.
PUT_PAGES = 128 << 8
HOG = 104

SCRIPT = f"""
GROUP=/sys/fs/cgroup/host
DAEMON={paths.in_guest(paths.binary("vhost-device-tmem"))}
TMEMCTL={paths.in_guest(paths.binary("tmemctl"))}
LOAD={paths.in_guest(paths.binary("tmem-daemon-load"))}

limits() {{
	echo +memory >/sys/fs/cgroup/cgroup.subtree_control && mkdir -p $GROUP &&
		echo {HIGH}M >$GROUP/memory.high && echo {MAX}M >$GROUP/memory.max
}}

# inside COMMAND...: runs the command in the group.
inside() {{
	(
		echo "$BASHPID" >$GROUP/cgroup.procs
		exec "$@"
	)
}}

stat() {{
	"$TMEMCTL" --control-path /tmp/control.sock stat --json
}}

# withheld BYTES: whether so much is withheld from guests.
withheld() {{
	[[ $(stat) =~ \\"withheld_bytes\\":\\ ?$1[,}}] ]]
}}

must limits limits
must contents dd if=/dev/urandom of=/tmp/contents bs=64k count=16
inside "$DAEMON" --socket-path /tmp/guest.sock --control-path /tmp/control.sock --data-queues 1 \\
	--capacity {CAPACITY}MiB --compression none --pressure cgroup --stop-loses-pages \\
	>/tmp/daemon.log 2>&1 &
DAEMON_PID=$!
must listens wait_for 60 test -S /tmp/guest.sock
mkfifo /tmp/runs
"$LOAD" --tmem /tmp/guest.sock --pages {PUT_PAGES} --cpu 0 --device-cpu 1 \\
	</tmp/runs >/tmp/loaded 2>&1 &
exec 9>/tmp/runs
echo '{{"run":"contents","path":"/tmp/contents"}}' >&9
echo '{{"run":"tmem","operation":"lend","first":0,"batch":32,"depth":4,"wait":true}}' >&9
must "pages put" wait_for 200 grep -q pages /tmp/loaded
step full stat
step "full group" cat $GROUP/memory.current

inside "$WORKLOAD" anon --mib {HOG} --passes 0 --wait-for /tmp/enough >/tmp/hog 2>&1 &
HOG_PID=$!
must "hog filled" wait_for 300 grep -q filled /tmp/hog
step "settled" wait_for 60 eval '! withheld 0'
step squeezed stat
step "squeezed group" cat $GROUP/memory.current
touch /tmp/enough
step "hog" wait $HOG_PID
step "hog found" cat /tmp/hog

# Ten calm seconds, and then a sixty-fourth a second.
step "given back" wait_for 200 withheld 0
echo '{{"run":"tmem","operation":"lend","first":0,"batch":32,"depth":4,"wait":true}}' >&9
step "put again" wait_for 200 eval '[ $(grep -c pages /tmp/loaded) -eq 2 ]'
step "full again" stat
step events cat $GROUP/memory.events
step loads cat /tmp/loaded
exec 9>&-
step "still there" kill $DAEMON_PID
step log cat /tmp/daemon.log
"""


@pytest.fixture(scope="module")
def host(module_lab: Lab) -> Guest:
    """One machine for all tests of this file."""
    return module_lab.run(SCRIPT, Machine(1024), 900, with_module=False)


def used(host: Guest, step: str) -> int:
    """What pages take, in bytes, at that step."""
    return int(host.step(step).objects[-1]["used_bytes"])


def test_nobody_is_killed(host: Guest) -> None:
    events = dict(line.split() for line in host.step("events").text.splitlines() if line)
    assert int(events["oom_kill"]) == 0
    assert int(events["oom"]) == 0
    assert int(host.step("hog found").objects[-1]["wrong"]) == 0
    host.step("hog")
    host.step("still there")


def test_pages_go_where_the_group_is_short(host: Guest) -> None:
    # Almost all of them were there.
    assert used(host, "full") > (PUT_PAGES - PUT_PAGES // 8) << 12
    # What is not pages is some MiB.
    room = (HIGH - HOG) << 20
    assert used(host, "squeezed") <= room
    assert int(host.step("squeezed").objects[-1]["withheld_bytes"]) > 0
    assert int(host.step("squeezed").objects[-1]["evictions"]) > 0
    assert int(host.step("squeezed group").text) <= HIGH << 20


def test_memory_comes_back_afterwards(host: Guest) -> None:
    host.step("given back")
    assert used(host, "full again") > used(host, "squeezed") + (16 << 20)
