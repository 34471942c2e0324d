# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Nothing stale, whatever is done to a file whose pages are in the host.

The rules R1 to R18 and F1 to F11 are those of the contract: R8 for instance is that truncation,
holes and direct writes flush first, and F4 that a file which sees direct I/O is left alone.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import pytest

from harness.daemon import Stat
from harness.guest import BACK, OUT, Guest, Machine
from harness.lab import Labs

FILESYSTEMS = [
    "ext4",
    pytest.param("ext4-1k", marks=pytest.mark.long),
    pytest.param("xfs", marks=pytest.mark.long),
    "btrfs",
]

# Each case with the rules that it is about, and whether every filesystem has it.
CASES = {
    "untouched": "R2-R3-R5",
    "overwrite-buffered": "R1",
    "overwrite-part": "R1",
    "overwrite-mmap": "R1-F3",
    "overwrite-direct": "R8-R9-F4",
    "overwrite-direct-async": "R8-F4",
    "partial-block": "F3-R15",
    "truncate": "R8-R9-F1",
    "truncate-partial-page": "R8-F7",
    "punch": "R8-R9-F1",
    "punch-partial-page": "R8-F7",
    "zero-range": "R8-F1",
    "collapse": "R8-F1",
    "insert": "R8-F1",
    "reflink": "F5",
    "reflink-cached": "F5",
    "move-extents": "F9",
    "exchange": "F1",
    "punch-race": "F8",
    "zero-range-race": "F8",
    "truncate-race": "F8",
    "many-direct": "F4",
    "unlink-recreate": "R10-F6",
    "rename-over": "R10",
    "link-nameless": "F2",
}

UNSUPPORTED = {
    *((fs, case) for fs in ("ext4", "ext4-1k") for case in ("reflink", "reflink-cached", "exchange")),
    ("xfs", "move-extents"),
    *(("btrfs", case) for case in ("collapse", "insert", "move-extents", "exchange")),
}

# Multi-generational reclaim does not keep the lists that the case of partial blocks needs.
SCRIPT = """
must udev wait_for 30 bound
must mount mounted data /tmp/data
must "warm up" wait_for 30 warmed_up /tmp/data
echo 0 >/sys/kernel/mm/lru_gen/enabled
for name in {cases}; do
	# With a folder, and so files, of its own: a file that saw direct I/O is left alone for good.
	mkdir -p "/tmp/data/cases/$name"
	snapshot "before $name"
	step "$name" "$WORKLOAD" coherency-case "$name" --dir "/tmp/data/cases/$name"
	snapshot "after $name"
done
echo y >/sys/kernel/mm/lru_gen/enabled

mkdir /tmp/data/set
must old "$WORKLOAD" file-set create --dir /tmp/data/set --mib 16 --generation 1
for round in 1 2; do
	drop_caches
	step "old $round" "$WORKLOAD" file-set verify --dir /tmp/data/set --mib 16 --generation 1
done
drop_caches
must umount umount /tmp/data
must "mount elsewhere" mounted data /tmp/elsewhere
must new "$WORKLOAD" file-set create --dir /tmp/elsewhere/set --mib 16 --generation 2
must "umount elsewhere" umount /tmp/elsewhere
must "mount again" mounted data /tmp/data
for round in 1 2; do
	step "new $round" "$WORKLOAD" file-set verify --dir /tmp/data/set --mib 16 --generation 2
	drop_caches
done

mixer() {{
	local name=$1
	shift
	snapshot "before $name"
	step "$name" "$WORKLOAD" coherency --dir "/tmp/data/$name" --seconds 40 --threads 2 "$@"
	snapshot "after $name"
}}
mixer mixer --ops {ops} --seed 1
mixer no-direct --ops {ops} --seed 2 --no-direct
step "umount at last" umount /tmp/data
step unload modprobe -r virtio_tmem
"""

OPS = 300


@dataclass
class Run:
    """What is left of the run on one filesystem."""

    fs: str
    guest: Guest
    stat: Stat


@pytest.fixture(scope="module", params=FILESYSTEMS)
def run(request: pytest.FixtureRequest, labs: Labs) -> Iterator[Run]:
    """One guest for all tests of one filesystem."""
    with labs(f"coherency-{request.param}") as lab:
        daemon = lab.daemon()
        disk = lab.disk("data", 512, request.param)
        script = SCRIPT.format(cases=" ".join(CASES), ops=OPS)
        guest = lab.run(script, Machine(384, disks=[disk], devices=[daemon]), 500)
        yield Run(request.param, guest, daemon.stat())


def driver(run: Run, what: str, counter: str) -> int:
    """How far a counter of the driver went during a step."""
    after, before = run.guest.snapshot(f"after {what}"), run.guest.snapshot(f"before {what}")
    return after.driver[counter] - before.driver[counter]


def counted(run: Run, what: str, counters: Iterable[str]) -> int:
    """How far some counters of clean pages went during a step."""
    after, before = run.guest.snapshot(f"after {what}"), run.guest.snapshot(f"before {what}")
    return after.counted("cleancache", counters) - before.counted("cleancache", counters)


def hits(run: Run, what: str) -> int:
    """Pages that came back during a step, from the host or while on their way there."""
    return counted(run, what, BACK)


@pytest.mark.parametrize("case", CASES, ids=[f"{rule}-{case}" for case, rule in CASES.items()])
def test_case(run: Run, case: str) -> None:
    found = run.guest.step(case).objects[-1]
    assert found["wrong"] == 0
    assert found["supported"] == ((run.fs, case) not in UNSUPPORTED)
    # Both files were read from the host twice, and the witness once more: the case had something
    # to get wrong.
    assert hits(run, case) >= 5 * found["witness_pages"]


@pytest.mark.parametrize("case", ["reflink", "reflink-cached", "exchange", "punch", "truncate"])
def test_F4_what_is_no_direct_writing_bans_no_file(run: Run, case: str) -> None:
    assert driver(run, case, "cleancache/bans") == 0


def test_R8_R10_what_another_mount_wrote_is_seen(run: Run) -> None:
    for name in ("old 1", "old 2", "new 1", "new 2"):
        assert run.guest.step(name).objects[-1]["wrong"] == 0, name


@pytest.mark.parametrize("mixer", ["mixer", "no-direct"])
def test_R12_mixer_with_racing_readers(run: Run, mixer: str) -> None:
    found = run.guest.step(mixer).objects[-1]
    assert found["wrong"] == 0
    assert found["ops"] > OPS // 4
    assert counted(run, mixer, OUT) > 1000
    assert hits(run, mixer) > 1000


def test_the_host_saw_no_malformed_request(run: Run) -> None:
    assert run.stat.total("malformed") == 0
    assert run.stat.ephemeral.gets_hit <= run.stat.ephemeral.gets


def test_unload_after_all_that(run: Run) -> None:
    run.guest.step("umount at last")
    run.guest.step("unload")
