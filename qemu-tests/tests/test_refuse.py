# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""A host that refuses: every page is right all the same, and the disks carry what it did not."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from harness.daemon import Stat
from harness.guest import Guest, Machine
from harness.lab import Labs

ANON, FILES = 320, 160

SCRIPT = f"""
must udev wait_for 30 bound
must swap swap_on swap
must mount mounted data /tmp/data
must create "$WORKLOAD" file-set create --dir /tmp/data --mib {FILES}
drop_caches
snapshot before
for round in 1 2 3; do
	step "files $round" "$WORKLOAD" file-set verify --dir /tmp/data --mib {FILES}
	drop_caches
	snapshot "files $round"
done
step anon "$WORKLOAD" anon --mib {ANON}
step "files after" "$WORKLOAD" file-set verify --dir /tmp/data --mib {FILES}
snapshot after
step swapoff swap_off swap
step umount umount /tmp/data
step unload modprobe -r virtio_tmem
"""


@dataclass
class Run:
    """What is left of the run."""

    percent: int
    guest: Guest
    stat: Stat


@pytest.fixture(scope="module", params=[pytest.param(30, marks=pytest.mark.long), pytest.param(100, marks=pytest.mark.long)])
def run(request: pytest.FixtureRequest, labs: Labs) -> Iterator[Run]:
    """One guest for each share of refusals."""
    with labs(f"refuse-{request.param}") as lab:
        daemon = lab.daemon(refuse_percent=request.param)
        disks = [lab.disk("swap", 1024), lab.disk("data", 512, "ext4")]
        guest = lab.run(SCRIPT, Machine(256, disks=disks, devices=[daemon]), 500)
        yield Run(request.param, guest, daemon.stat())


def test_R5_every_byte_is_right(run: Run) -> None:
    for step in ("files 1", "files 2", "files 3", "files after", "anon"):
        assert run.guest.step(step).objects[-1]["wrong"] == 0, step
    for step in ("swapoff", "umount", "unload"):
        run.guest.step(step)


def test_the_host_refused_its_share(run: Run) -> None:
    for counts in (run.stat.persistent, run.stat.ephemeral):
        if run.percent == 100:
            assert counts.puts_stored == 0
        else:
            assert counts.puts_stored > 0
            share = counts.puts_refused / counts.puts
            assert 0.2 < share < 0.4


def test_the_disks_carry_what_the_host_refused(run: Run) -> None:
    before, after = run.guest.snapshot("before"), run.guest.snapshot("after")
    written = after.written("swap") - before.written("swap")
    assert written // 8 >= run.stat.persistent.puts_refused * 9 // 10
    read = after.read("data") - run.guest.snapshot("files 1").read("data")
    if run.percent == 100:
        assert read // 8 > FILES * 256 * 2
        assert written // 8 > ANON * 256 // 4
    else:
        assert read // 8 > FILES * 256 // 10
