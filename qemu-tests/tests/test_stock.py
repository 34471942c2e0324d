# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The workload on a guest without the device.

What passes with the module proves something only if the workload passes without it, too, and
fails when it should.
"""

import pytest

from harness.guest import Guest, Machine
from harness.lab import Lab

pytestmark = pytest.mark.long

SCRIPT = """
must swap swap_on swap
must mount mounted data /tmp/data
step anon "$WORKLOAD" anon --mib 300 --jobs 2
step create "$WORKLOAD" file-set create --dir /tmp/data/set --mib 100
drop_caches 3
step verify "$WORKLOAD" file-set verify --dir /tmp/data/set --mib 100
step generation "$WORKLOAD" file-set verify --dir /tmp/data/set --mib 100 --generation 2
mkdir /tmp/data/cases
for name in $("$WORKLOAD" coherency-case); do
	step "case $name" "$WORKLOAD" coherency-case "$name" --dir /tmp/data/cases
done
step stale "$WORKLOAD" coherency-case punch --inject-stale --dir /tmp/data/cases
step coherency "$WORKLOAD" coherency --dir /tmp/data/mix --ops 200 --seconds 60
snapshot end
exit 0
"""


@pytest.fixture(scope="module")
def guest(module_lab: Lab) -> Guest:
    """One guest for all tests of this file."""
    disks = [module_lab.disk("swap", 512), module_lab.disk("data", 512, "ext4")]
    return module_lab.run(SCRIPT, Machine(256, disks=disks), 400, with_module=False)


@pytest.mark.parametrize("step", ["anon", "create", "verify", "coherency"])
def test_workload_passes_on_a_stock_kernel(guest: Guest, step: str) -> None:
    guest.step(step)


def test_memory_was_swapped(guest: Guest) -> None:
    assert guest.snapshot("end").vmstat["pswpout"] > 10_000
    assert guest.snapshot("end").written("swap") > 80_000


@pytest.mark.parametrize("step", ["generation", "stale"])
def test_workload_fails_when_it_should(guest: Guest, step: str) -> None:
    assert guest.any_step(step).status == 1
    assert guest.any_step(step).objects[-1]["wrong"] > 0


def test_every_case_passes_on_a_stock_kernel(guest: Guest) -> None:
    cases = [name for name in guest.transcript.steps if name.startswith("case ")]
    assert len(cases) >= 18
    for name in cases:
        guest.step(name)
