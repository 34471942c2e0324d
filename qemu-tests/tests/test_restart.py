# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The daemon's worker dies time and again while two guests swap: no page is lost, no guest notices."""

import os
import random
import re
import signal
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from harness.daemon import Daemon
from harness.guest import Guest
from harness.lab import Labs
from harness.process import wait_until
from harness.small import SmallMachine

# How often it dies.
TIMES = [8, pytest.param(100, marks=pytest.mark.long)]

# Requests of each guest between two deaths: somewhere in a request of this one.
APART = range(20, 400)

SCRIPT = """
must load modprobe virtio_tmem
must driver wait_for 30 bound
must swap swap_on swap
must mount mounted data /tmp/data
must create "$WORKLOAD" file-set create --dir /tmp/data --mib 32
must "out" out keeper 24 64
keeper=$PID
kernel_log >/dev/null
mark "it begins"
round=0
until told "enough"; do
	round=$((round + 1))
	step "anon $round" confined 48 "$WORKLOAD" anon --mib 128 --passes 1 --seed $round
	step "files $round" "$WORKLOAD" file-set verify --dir /tmp/data --mib 32
	drop_caches
done
step keeper looked keeper $keeper
step state state running
snapshot end
step log kernel_log
step swapoff swap_off swap
step umount umount /tmp/data
step unload modprobe -r virtio_tmem
"""


@dataclass
class Run:
    """What is left of the run."""

    guests: list[Guest]
    daemon: Daemon
    # Workers that there were, each with another number.
    workers: set[int]
    times: int


def kill(daemon: Daemon, random_: random.Random) -> int:
    """Has the worker die while both guests have something to do for it; returns which it was."""
    before = {guest["name"]: guest["requests"] for guest in daemon.stat().guests}
    apart = random_.choice(APART)

    def busy() -> bool:
        # A new worker counts from nothing.
        return all(
            guest["requests"] > before[guest["name"]] + apart
            or guest["requests"] < before[guest["name"]]
            for guest in daemon.stat().guests
        )

    wait_until("both guests to go on", 100, busy)
    worker = daemon.worker
    os.kill(worker, signal.SIGKILL)
    wait_until("another worker", 20, lambda: daemon.worker not in (0, worker))
    return worker


@pytest.fixture(scope="module", params=TIMES)
def run(request: pytest.FixtureRequest, labs: Labs) -> Iterator[Run]:
    """Two guests for all tests of this file."""
    with labs(f"restart-{request.param}") as lab:
        daemon = lab.daemon(others=["other"])
        guests = []
        for number, place in enumerate((daemon, *daemon.others)):
            disks = [
                lab.disk(f"swap{number}", 512),
                lab.disk(f"data{number}", 128, "ext4"),
            ]
            disk = r"\b(swap_on swap|mounted data|swap_off swap)\b"
            script = re.sub(disk, rf"\g<1>{number}", SCRIPT)
            guests.append(lab.boot(script, SmallMachine(256, disks=disks, devices=[place], modules=["ext4"])))
        for guest in guests:
            guest.wait_for_mark("it begins", 200)
        random_ = random.Random(1)
        workers = {kill(daemon, random_) for _ in range(request.param)}
        for guest in guests:
            guest.tell("enough")
            guest.tell("keeper")
        for guest in guests:
            guest.finish(300)
        yield Run(guests, daemon, workers, request.param)


def test_no_page_is_lost_or_wrong(run: Run) -> None:
    for guest in run.guests:
        rounds = [name for name in guest.transcript.steps if re.match(r"(anon|files) \d+$", name)]
        assert len(rounds) >= 2, rounds
        for name in (*rounds, "keeper"):
            assert guest.step(name).objects[-1]["wrong"] == 0, name
        counters = guest.snapshot("end").driver
        assert counters["frontswap/hits"] > 5_000
        assert counters["frontswap/lost"] == 0


def test_no_guest_notices(run: Run) -> None:
    for guest in run.guests:
        guest.step("state")
        assert "virtio_tmem" not in guest.step("log").text
        for step in ("swapoff", "umount", "unload"):
            guest.step(step)


def test_the_worker_died_that_often(run: Run) -> None:
    assert len(run.workers) == run.times
    assert run.daemon.running
