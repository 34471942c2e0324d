# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""`tmemctl balance` sets the balloons of three guests, of which one works and two idle."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from harness.guest import Guest
from harness.lab import Lab
from harness.paths import binary
from harness.process import Group, wait_until
from harness.qmp import Qmp
from harness.small import SmallMachine

pytestmark = pytest.mark.long

MIB = 1 << 20
MEMORY = 448
# All together are made with more than that.
TOTAL = 672
MIN, MAX = 112, 448

# What the busy guest works with: more than its part of the total.
BUSY_MIB = 256

BUSY, *IDLE = NAMES = ("busy", "idle", "other")

SCRIPT = f"""
must swap swap_on swap-NAME
must load modprobe virtio_tmem
kernel_log >/dev/null
out kept 16 48
kept=$PID
mark ready
must go wait_for 300 told go
if [ NAME = {BUSY} ]; then
	"$WORKLOAD" anon --mib {BUSY_MIB} --passes 100000 --seed 3 >/tmp/busy 2>&1 &
	busy=$!
	must filled wait_for 300 grep -q filled /tmp/busy
	mark "under load"
fi
wait_for 900 told enough
snapshot loaded
if [ NAME = {BUSY} ]; then
	must "still there" kill $busy
fi
: >"$RUN/told/kept"
step "kept" looked kept $kept
step "anon" "$WORKLOAD" anon --mib 64 --passes 1 --seed 4
step log kernel_log
mark measured
# What is swapped comes back, which takes memory.
wait_for 300 told given
step swapoff swap_off swap-NAME
step unload modprobe -r virtio_tmem
"""


@dataclass
class Run:
    """Guests that have been through it."""

    guests: dict[str, Guest]
    # What `tmemctl balance` printed: before there was work, and all of it.
    calm: dict[str, Any]
    looks: list[dict[str, Any]]


def looks(output: Path) -> list[dict[str, Any]]:
    """What was printed so far, in whole lines."""
    lines = output.read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def has(look: dict[str, Any]) -> dict[str, int]:
    """The MiB that each guest has."""
    return {guest["name"]: guest["actual_bytes"] // MIB for guest in look["guests"]}


def is_stuck(look: dict[str, Any]) -> bool:
    """Whether a balloon did not get where it was told to go."""
    return any(guest["reason"] == "stuck" for guest in look["guests"])


def give_back(monitor: Path) -> None:
    """Gives a guest all of its memory."""
    qmp = Qmp(monitor)
    qmp.ask("balloon", value=MEMORY * MIB)
    wait_until(
        "the balloon to be gone",
        60,
        lambda: int(qmp.ask("query-balloon")["actual"]) == MEMORY * MIB,
    )
    qmp.close()


@pytest.fixture(scope="module")
def run(module_lab: Lab) -> Run:
    """Three guests for all tests of this file."""
    daemon = module_lab.daemon(name=BUSY, others=IDLE, capacity="256MiB")
    guests: dict[str, Guest] = {}
    monitors: dict[str, Path] = {}
    words: list[str | Path] = [binary("tmemctl"), "--control-path", daemon.control, "balance"]
    words += ["--total", f"{TOTAL}MiB", "--apply", "--interval", "2", "--json"]
    for name, device in zip(NAMES, (daemon, *daemon.others), strict=True):
        monitor = monitors[name] = module_lab.folder / f"{name}.qmp"
        machine = SmallMachine(
            MEMORY,
            cpus=1,
            disks=[module_lab.disk(f"swap-{name}", 768)],
            devices=[device],
            options=[
                *Qmp.qemu_options(monitor),
                "-device",
                "virtio-balloon-pci,free-page-reporting=on,deflate-on-oom=off",
            ],
            modules=["virtio_balloon"],
        )
        guests[name] = module_lab.boot(SCRIPT.replace("NAME", name), machine)
        guests[name].wait_for_mark("ready", 200)
        words += ["--guest", f"{name}={monitor},min={MIN}MiB,max={MAX}MiB"]
    output = module_lab.folder / "balance.out"
    with output.open("wb") as out, (module_lab.folder / "balance.err").open("wb") as err:
        balance = Group(words, stdout=out, stderr=err)

    def seen(what: str, seconds: float, condition: Any) -> dict[str, Any]:
        def met() -> bool:
            assert balance.running, (module_lab.folder / "balance.err").read_text()
            so_far = looks(output)
            return bool(so_far) and condition(so_far[-1])

        wait_until(what, seconds, met)
        return looks(output)[-1]

    try:
        calm = seen(
            "all to have no more than the total",
            200,
            lambda look: sum(has(look).values()) <= TOTAL,
        )
        for guest in guests.values():
            guest.tell("go")
        guests[BUSY].wait_for_mark("under load", 600)
        part = has(calm)[BUSY]
        seen(
            "the busy guest to have more memory, and the others less",
            300,
            lambda look: has(look)[BUSY] >= part + 48
            and all(has(look)[name] <= has(calm)[name] for name in IDLE),
        )
    finally:
        balance.end()
    for guest in guests.values():
        guest.tell("enough")
    for name, guest in guests.items():
        guest.wait_for_mark("measured", 600)
        give_back(monitors[name])
        guest.tell("given")
    for guest in guests.values():
        guest.finish(300)
    return Run(guests, calm, looks(output))


def test_who_works_gets_memory_from_who_idles(run: Run) -> None:
    before, after = has(run.calm), has(run.looks[-1])
    assert after[BUSY] >= before[BUSY] + 48
    assert sum(after[name] for name in IDLE) < sum(before[name] for name in IDLE)


def test_nobody_is_below_its_minimum_or_told_to_be(run: Run) -> None:
    for look in run.looks:
        assert all(MIN <= mib <= MAX for mib in has(look).values()), has(look)
        for guest in look["guests"]:
            assert guest["told_bytes"] is None or MIN <= guest["told_bytes"] // MIB <= MAX


def test_all_together_have_no_more_than_the_total(run: Run) -> None:
    first = next(n for n, look in enumerate(run.looks) if sum(has(look).values()) <= TOTAL)
    assert all(sum(has(look).values()) <= TOTAL for look in run.looks[first:])


def test_no_balloon_is_stuck(run: Run) -> None:
    assert not any(is_stuck(look) for look in run.looks)


@pytest.mark.parametrize("name", NAMES)
def test_nobody_is_killed_and_every_page_is_right(run: Run, name: str) -> None:
    guest = run.guests[name]
    log = guest.step("log").text
    assert "Out of memory" not in log and "oom" not in log
    for step in ("kept", "anon"):
        assert guest.step(step).objects[-1]["wrong"] == 0, step
    assert all("status" not in each for each in guest.step("kept").objects)
    assert guest.snapshot("loaded").driver["frontswap/lost"] == 0
    for step in ("swapoff", "unload"):
        guest.step(step)
