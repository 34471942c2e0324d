# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Machines other than the one that all else is tested on: with PCI Express, and without PCI."""

import pytest

from harness.lab import Lab
from harness.small import MICROVM, SmallMachine

pytestmark = pytest.mark.long

MEMORY = 192
MIB = MEMORY * 4 // 3
PAGES = MIB * 256

SCRIPT = f"""
must load modprobe virtio_tmem
must driver wait_for 30 bound
must swap swap_on swap
step anon "$WORKLOAD" anon --mib {MIB} --passes 0
must mount mounted disk /tmp/files
step create "$WORKLOAD" file-set create --dir /tmp/files --mib {MEMORY}
step warm "$WORKLOAD" file-set verify --dir /tmp/files --mib {MEMORY}
drop_caches
step verify "$WORKLOAD" file-set verify --dir /tmp/files --mib {MEMORY}
snapshot after
step umount umount /tmp/files
step swapoff swap_off swap
step rmmod modprobe -r virtio_tmem
"""


@pytest.mark.parametrize("board", ["pc", "q35", MICROVM])
def test_both_halves_on_this_machine(lab: Lab, board: str) -> None:
    daemon = lab.daemon(capacity="1GiB")
    disks = [lab.disk("swap", MIB + 256), lab.disk("disk", 2 * MEMORY, "ext4")]
    guest = lab.run(SCRIPT, SmallMachine(MEMORY, disks=disks, devices=[daemon], board=board), 300)
    for step in ("anon", "warm", "verify"):
        assert guest.step(step).objects[-1]["wrong"] == 0
    for step in ("umount", "swapoff", "rmmod"):
        guest.step(step)
    after = guest.snapshot("after").driver
    assert after["frontswap/hits"] > PAGES // 8
    assert after["cleancache/hits"] > 0
    stat = daemon.stat()
    assert stat.persistent.pages == 0
    assert stat.total("malformed") == 0
