# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Volumes that several guests have, and that none of them can write to: the host has them once."""

import subprocess
from collections.abc import Iterator
from dataclasses import replace

import pytest

from harness import paths
from harness.daemon import Daemon, Device
from harness.disks import Disk
from harness.guest import Guest
from harness.lab import Lab, Labs
from harness.small import SmallMachine

UUID = "4d2f0c1e-8a57-4b06-9d3c-75e1f0a2b6c8"
MEMORY = 192
MIB = 48
PAGES = MIB * 256
SEED = 7
OTHER_SEED = 8

SETS = f"--dir /tmp/image --mib {MIB}"


def script(parameters: str = "", options: str = "ro", seed: int = SEED) -> str:
    """A guest that reads a volume time and again, and forgets it each time."""
    verify = f'"$WORKLOAD" file-set verify {SETS} --seed {seed}'
    return f"""
joined() {{
	dmesg | grep -q "pages of this volume are"
}}
must load modprobe virtio_tmem {parameters}
must mount mounted image /tmp/image {options}
step warm {verify}
# The module hooks into a filesystem when it first sees one of its pages go.
drop_caches
step hooked {verify}
wait_for 30 joined
drop_caches
snapshot before
step first {verify}
snapshot first
drop_caches
wait_for 30 eval '[ "$(cat $DRIVER/queue/staged)" = 0 ]'
step again {verify}
snapshot again
step said dmesg
mark read
wait_for 200 told go
step last {verify}
snapshot last
step umount umount /tmp/image
step unload modprobe -r virtio_tmem
step log kernel_log
"""


def image(lab: Lab, name: str, seed: int = SEED) -> Disk:
    """Makes an ext4 image with a set of files in it. All of them have the same UUID."""
    content = lab.folder / f"{name}-content"
    subprocess.run(
        [
            paths.binary("tmem-workload"),
            *("file-set", "create", "--dir", content, "--mib", str(MIB), "--seed", str(seed)),
        ],
        check=True,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
    )
    disk = Disk.create(lab.folder, name, MIB * 2, "ext4", content, UUID)
    return replace(disk, name="image", read_only=True)


def boot(lab: Lab, device: Device, disk: Disk, said: str) -> Guest:
    """Boots a guest, and returns once it has read the volume."""
    guest = lab.boot(said, SmallMachine(MEMORY, disks=[disk], devices=[device]))
    guest.wait_for_mark("read", 300)
    for step in ("warm", "hooked", "first", "again"):
        assert guest.step(step).objects[-1]["wrong"] == 0
    return guest


def finish(guest: Guest) -> None:
    """Lets a guest read it once more, and go."""
    guest.tell("go")
    guest.finish(120)
    assert guest.step("last").objects[-1]["wrong"] == 0
    guest.step("umount")
    guest.step("unload")


def sectors(guest: Guest, begin: str, end: str) -> int:
    """What a guest has read of the volume's disk meanwhile."""
    return guest.snapshot(end).read("image") - guest.snapshot(begin).read("image")


def shared(guest: Guest, what: str) -> int:
    """A counter of the pools that are shared, at the end."""
    return guest.snapshot("again").driver[f"shared/{what}"]


@pytest.fixture(params=[None, "64MiB"], ids=["requests", "window"])
def lab(request: pytest.FixtureRequest, labs: Labs) -> Iterator[tuple[Lab, Daemon]]:
    """A daemon with three guests, two of which may share the volume."""
    with labs(f"shared-{request.param or 'requests'}") as lab:
        daemon = lab.daemon(others=["second", "third"], window=request.param)
        daemon.operate("shared", "add", UUID, "--guest", "tmem", "--guest", "second")
        yield lab, daemon


def test_what_one_guest_has_read_the_other_gets(lab: tuple[Lab, Daemon]) -> None:
    place, daemon = lab
    disk = image(place, "volume")
    first = boot(place, daemon, disk, script())
    assert shared(first, "stored") > PAGES // 2
    assert shared(first, "hits") > PAGES // 2
    assert sectors(first, "first", "again") < PAGES * 8 // 4

    used = daemon.stat().used_bytes
    second = boot(place, daemon.others[0], disk, script())
    assert sectors(second, "before", "first") < PAGES * 8 // 4
    assert shared(second, "hits") > PAGES // 2
    # The host has the pages once.
    assert daemon.stat().used_bytes - used < PAGES * 4096 // 4

    third = boot(place, daemon.others[1], disk, script())
    assert "pages of this volume are the guest's own" in third.step("said").text
    assert shared(third, "puts") == shared(third, "hits") == 0
    # The one that is taken off reads on from its disk.
    daemon.operate("shared", "remove", UUID, "--guest", "tmem")
    for guest in (first, second, third):
        finish(guest)


def test_copies_that_went_different_ways_are_told_apart(labs: Labs) -> None:
    with labs("shared-copies") as place:
        daemon = place.daemon(others=["second"])
        daemon.operate("shared", "add", UUID, "--guest", "tmem", "--guest", "second")
        first = boot(place, daemon, image(place, "volume"), script())
        copy = image(place, "copy", OTHER_SEED)
        second = boot(place, daemon.others[0], copy, script(seed=OTHER_SEED))
        for guest in (first, second):
            assert "pages of this volume are shared" in guest.step("said").text
            finish(guest)


REWRITE = f"""
joined() {{
	[ "$(dmesg | grep -c "pages of this volume are shared")" -ge "$1" ]
}}
# read_only TIMES SEED: reads it while it cannot be written to.
read_only() {{
	local verify=("$WORKLOAD" file-set verify {SETS} --seed "$2")
	step "warm $1" "${{verify[@]}}"
	drop_caches
	step "hooked $1" "${{verify[@]}}"
	step "joined $1" wait_for 30 joined "$1"
	drop_caches
	step "first $1" "${{verify[@]}}"
	drop_caches
	wait_for 30 eval '[ "$(cat $DRIVER/queue/staged)" = 0 ]'
	step "again $1" "${{verify[@]}}"
}}
must load modprobe virtio_tmem
must lock with_disk image blockdev --setro
must mount mounted image /tmp/image ro
read_only 1 {SEED}
# Mounted otherwise meanwhile,
must unlock with_disk image blockdev --setrw
must rw mount -o remount,rw /tmp/image
must create "$WORKLOAD" file-set create {SETS} --seed {OTHER_SEED}
must ro mount -o remount,ro /tmp/image
must "lock again" with_disk image blockdev --setro
read_only 2 {OTHER_SEED}
# and not mounted meanwhile.
must umount umount /tmp/image
must "unlock again" with_disk image blockdev --setrw
must "mount rw" mounted image /tmp/image
must "create again" "$WORKLOAD" file-set create {SETS} --seed {SEED}
must "umount rw" umount /tmp/image
must "lock at last" with_disk image blockdev --setro
must "mount ro" mounted image /tmp/image ro
read_only 3 {SEED}
snapshot end
step umount umount /tmp/image
step unload modprobe -r virtio_tmem
step log kernel_log
"""


def test_a_volume_that_was_written_to_meanwhile_is_another(labs: Labs) -> None:
    with labs("shared-rewritten") as place:
        daemon = place.daemon()
        daemon.operate("shared", "add", UUID, "--guest", "tmem")
        disk = replace(image(place, "volume"), read_only=False)
        guest = place.run(REWRITE, SmallMachine(MEMORY, disks=[disk], devices=[daemon]), 400)
        for time in (1, 2, 3):
            guest.step(f"joined {time}")
            for step in ("warm", "hooked", "first", "again"):
                assert guest.step(f"{step} {time}").objects[-1]["wrong"] == 0
        assert guest.snapshot("end").driver["shared/hits"] > PAGES


def test_whoever_does_not_want_to_share_does_not(labs: Labs) -> None:
    with labs("shared-off") as place:
        daemon = place.daemon()
        daemon.operate("shared", "add", UUID, "--guest", "tmem")
        said = script("shared=0").replace("wait_for 30 joined", ":")
        guest = boot(place, daemon, image(place, "volume"), said)
        assert shared(guest, "puts") == 0
        assert "pages of this volume" not in guest.step("said").text
        finish(guest)
