# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Three guests of different weights on one daemon that is too small for all of them."""

import json
import subprocess
from dataclasses import dataclass, field
from typing import Any

import pytest

from harness.daemon import Daemon
from harness.guest import Guest
from harness.lab import Lab
from harness.paths import binary
from harness.process import wait_until
from harness.small import SmallMachine

pytestmark = pytest.mark.long

MIB = 1 << 20
MEMORY = 256
CAPACITY = 96

# What each guest works with, and what it may have of its own for that; and what it does not touch.
BUSY_MIB, BUSY_ROOM = 128, 40
KEPT_MIB, KEPT_ROOM = 48, 16
FILES_MIB = 48

# What the operator says of each.
TERMS = {
    "light": {"weight": "100", "persistent-min": "12MiB"},
    "heavy": {"weight": "300"},
    "capped": {"weight": "300", "persistent-max": "8MiB"},
}

SETS = f"--dir /tmp/data --mib {FILES_MIB}"

SCRIPT = f"""
must swap swap_on swap-NAME
must mount mounted data-NAME /tmp/data
must create "$WORKLOAD" file-set create {SETS}
must load modprobe virtio_tmem
kernel_log >/dev/null
mark ready
must go wait_for 300 told go
must kept out kept {KEPT_ROOM} {KEPT_MIB}
kept=$PID
GROUP=busy confined {BUSY_ROOM} "$WORKLOAD" anon --mib {BUSY_MIB} --passes 100000 --seed 3 >/tmp/busy 2>&1 &
must filled wait_for 300 grep -q filled /tmp/busy
mark "under load"
round=0
until told enough; do
	round=$((round + 1))
	step "files $round" "$WORKLOAD" file-set verify {SETS}
	drop_caches
done
step "files at last" "$WORKLOAD" file-set verify {SETS}
snapshot loaded
must "kill busy" kill_group busy
: >"$RUN/told/kept"
step "kept" looked kept $kept
step "anon" confined {BUSY_ROOM} "$WORKLOAD" anon --mib {BUSY_MIB} --passes 1 --seed 4
step log kernel_log
step swapoff swap_off swap-NAME
step umount umount /tmp/data
step unload modprobe -r virtio_tmem
"""


@dataclass
class Run:
    """Three guests that have been through it."""

    guests: dict[str, Guest]
    # What the daemon said last of each while all worked, and all that it had at any look.
    parts: dict[str, dict[str, Any]] = field(default_factory=dict)
    most: int = 0


def parts(daemon: Daemon, run: Run) -> dict[str, dict[str, Any]]:
    """What each guest has now, by its name."""
    stat = daemon.stat()
    run.most = max(run.most, stat.used_bytes + int(stat.reply["lent_bytes"]))
    run.parts = {guest["name"]: guest["part"] for guest in stat.guests}
    return run.parts


def swapped(part: dict[str, Any]) -> int:
    """The persistent memory that a guest has."""
    return int(part["persistent"]["used_bytes"])


@pytest.fixture(scope="module")
def run(module_lab: Lab) -> Run:
    """Three guests for all tests of this file."""
    first, *others = TERMS
    daemon = module_lab.daemon(
        name=first, others=others, capacity=f"{CAPACITY}MiB", options=("--compression", "none")
    )
    for name, terms in TERMS.items():
        words = [f"{key}={value}" for key, value in terms.items()]
        command = [binary("tmemctl"), "--control-path", daemon.control, "set", name, *words]
        subprocess.run(command, check=True, timeout=30)
    guests = {}
    for name, device in zip(TERMS, (daemon, *daemon.others), strict=True):
        disks = [
            module_lab.disk(f"swap-{name}", 512),
            module_lab.disk(f"data-{name}", 128, "ext4"),
        ]
        machine = SmallMachine(MEMORY, cpus=1, disks=disks, devices=[device])
        guests[name] = module_lab.boot(SCRIPT.replace("NAME", name), machine)
        guests[name].wait_for_mark("ready", 200)
    run = Run(guests)
    for guest in guests.values():
        guest.tell("go")
    for guest in guests.values():
        guest.wait_for_mark("under load", 600)

    def shared() -> bool:
        now = parts(daemon, run)
        heavy, light = swapped(now["heavy"]), swapped(now["light"])
        return heavy > 1.5 * light and light >= 12 * MIB

    wait_until("the heavy guest to have more than the light one", 300, shared)
    for guest in guests.values():
        guest.tell("enough")
    for guest in guests.values():
        guest.finish(600)
    return run


def test_shares_follow_weights(run: Run) -> None:
    heavy, light = (swapped(run.parts[name]) for name in ("heavy", "light"))
    assert 1.5 * light < heavy < 8 * light


def test_minima_and_caps_hold(run: Run) -> None:
    assert swapped(run.parts["light"]) >= 12 * MIB
    assert swapped(run.parts["capped"]) <= 8 * MIB
    assert swapped(run.parts["capped"]) > 2 * MIB


def test_the_daemon_has_no_more_than_its_capacity(run: Run) -> None:
    assert CAPACITY * MIB // 2 < run.most <= CAPACITY * MIB


@pytest.mark.parametrize("name", TERMS)
def test_every_page_is_right(run: Run, name: str) -> None:
    guest = run.guests[name]
    files = [step for step in guest.transcript.steps if step.startswith("files ")]
    assert len(files) >= 2, files
    for step in (*files, "anon", "kept"):
        assert guest.step(step).objects[-1]["wrong"] == 0, step
    assert all("status" not in each for each in guest.step("kept").objects)


@pytest.mark.parametrize("name", TERMS)
def test_nobody_is_killed_and_all_end_well(run: Run, name: str) -> None:
    guest = run.guests[name]
    assert "Out of memory" not in guest.step("log").text
    assert guest.snapshot("loaded").driver["frontswap/lost"] == 0
    for step in ("swapoff", "umount", "unload"):
        guest.step(step)


def test_what_is_refused_goes_to_the_disk(run: Run) -> None:
    for guest in run.guests.values():
        loaded = guest.snapshot("loaded")
        driver = loaded.driver
        assert driver["frontswap/refused"] + driver["frontswap/no_credit"] > 0
    written = [guest.snapshot("loaded").written(f"swap-{name}") for name, guest in run.guests.items()]
    assert all(sectors > 0 for sectors in written), json.dumps(written)
