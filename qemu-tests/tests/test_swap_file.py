# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""A swap file whose parts are in another order on the disk, and a host with room for some of it.

The kernel merges what is next to each other on the disk, whether it is in the file or not. The pages
of two threads take turns in the file, so that those that are read ahead of one are every other
page's; here those are neighbours on the disk.
"""

import re
from dataclasses import dataclass

import pytest

from harness.daemon import Stat
from harness.guest import Guest, Machine
from harness.lab import Lab

pytestmark = pytest.mark.long

MEMORY = 256
MIB = 384
PAGES_OF_MIB = 256

# The part of the file where every other page is first on the disk.
SHUFFLED_MIB = 16
FILE_MIB = 512

SCRIPT = f"""
extents() {{
	dmesg | grep 'Adding .* swap on .* extents:'
}}

must udev wait_for 30 bound
must mount mounted swap /tmp/swap
must file shuffled /tmp/swap/file {FILE_MIB} {SHUFFLED_MIB * PAGES_OF_MIB}
must mkswap mkswap /tmp/swap/file
# What was shared with the file that is gone is so until the filesystem has dealt with that.
must swap wait_for 30 swapon /tmp/swap/file
must extents extents
drop_caches
snapshot before
step anon "$WORKLOAD" anon --mib {MIB} --jobs 2
snapshot after
step swapoff swapoff /tmp/swap/file
step umount umount /tmp/swap
step unload modprobe -r virtio_tmem
"""


@dataclass
class Run:
    """What is left of the run."""

    guest: Guest
    stat: Stat


@pytest.fixture(scope="module")
def run(module_lab: Lab) -> Run:
    """One guest for all tests of this file."""
    daemon = module_lab.daemon(capacity=f"{MIB // 4}MiB")
    disk = module_lab.disk("swap", 2 * FILE_MIB + 512, "xfs")
    guest = module_lab.run(SCRIPT, Machine(MEMORY, disks=[disk], devices=[daemon]), 300)
    return Run(guest, daemon.stat())


def test_the_file_is_in_parts(run: Run) -> None:
    found = re.search(r"extents:(\d+)", run.guest.step("extents").text)
    assert found is not None
    assert int(found[1]) >= SHUFFLED_MIB * PAGES_OF_MIB


def test_R5_every_page_is_right(run: Run) -> None:
    assert run.guest.step("anon").objects[-1]["wrong"] == 0
    for step in ("swapoff", "umount", "unload"):
        run.guest.step(step)


def test_some_pages_are_in_the_host_and_some_in_the_file(run: Run) -> None:
    before, after = run.guest.snapshot("before"), run.guest.snapshot("after")
    least = MIB * PAGES_OF_MIB // 10
    assert run.stat.persistent.puts_stored > least
    assert run.stat.persistent.gets_hit > least
    assert (after.written("swap") - before.written("swap")) // 8 > least
    assert (after.read("swap") - before.read("swap")) // 8 > least


def test_R14_nothing_is_left_in_the_host_after_swapoff(run: Run) -> None:
    assert run.stat.persistent.pages == 0
    assert run.stat.total("malformed") == 0
