# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""What came out of the guest, as tables, plots and marks."""

from collections.abc import Mapping
from dataclasses import dataclass

from harness.guest import BACK, OUT, Guest

from ..report import Report
from ..sample import Sample, ratios
from ..table import TCG
from . import works
from .works import ASKED_CONFIGURATIONS, ASKED_WORKS, CONFIGURATIONS, DISKS, FASTEST, LOSERS, Run

# What is reached, and by how much it is missed.
FEWER_SECTORS = 0.5
MORE_RAM = 1.25
LOSS = 1.02

NO_SWAP = "it needs more memory than there is, and without swap the kernel would end it"


@dataclass(frozen=True)
class Cost:
    """What one run took."""

    seconds: float
    cpu: float
    swap: int
    files: int
    puts: int
    gets: int
    not_put: int

    @property
    def sectors(self) -> int:
        """Sectors read and written, of both disks."""
        return self.swap + self.files


NOT_PUT = "no_credit no_memory no_staging too_large unsafe_inode not_admitted".split()


def cost(guest: Guest, cpu: Mapping[str, float], run: Run) -> Cost | None:
    """What a run cost, if it ended well."""
    step = guest.any_step(run.name)
    if step.status != 0:
        return None
    begin, end = guest.snapshot(f"begin {run.name}"), guest.snapshot(f"end {run.name}")
    own = next((said["seconds"] for said in step.objects if "seconds" in said), None)

    def sectors(disk: str) -> int:
        return sum(
            count(disk) * sign
            for snapshot, sign in ((end, 1), (begin, -1))
            for count in (snapshot.read, snapshot.written)
        )

    def driver(*names: str) -> int:
        return sum(
            end.driver.get(f"{pool}/{name}", 0) - begin.driver.get(f"{pool}/{name}", 0)
            for pool in ("frontswap", "cleancache")
            for name in names
        )

    return Cost(
        seconds=step.seconds if own is None else own,
        cpu=cpu[f"end {run.name}"] - cpu[f"begin {run.name}"],
        swap=sectors("swap"),
        files=sectors("files"),
        puts=driver(*OUT),
        gets=driver(*BACK),
        not_put=driver(*NOT_PUT),
    )


Costs = dict[tuple[str, str], list[Cost]]


def _costs(guest: Guest, cpu: Mapping[str, float]) -> Costs:
    """The costs of each work under each configuration; none where one run of it failed."""
    costs: Costs = {}
    failed = set()
    for _, name, runs in works.plan():
        for run in runs:
            one = cost(guest, cpu, run)
            if one is None:
                failed.add((name, run.work))
            else:
                costs.setdefault((name, run.work), []).append(one)
    return {key: value for key, value in costs.items() if key not in failed}


def _sample(costs: list[Cost], what: str) -> Sample:
    return Sample.of(float(getattr(cost, what)) for cost in costs)


def _ratio(costs: Costs, work: str, ours: str, theirs: str, what: str) -> Sample | None:
    """The ratio of two configurations, round by round."""
    one, other = costs.get((ours, work)), costs.get((theirs, work))
    if not one or not other:
        return None
    return ratios(
        [float(getattr(cost, what)) for cost in one],
        [max(1e-9, float(getattr(cost, what))) for cost in other],
    )


def tell(report: Report, guest: Guest, cpu: Mapping[str, float]) -> None:
    """Puts all that was measured into the report.

    `cpu` has what QEMU and the daemon had used of the host's CPUs before and after each run.
    """
    costs = _costs(guest, cpu)
    for work, what in ASKED_WORKS.items():
        base = "swap" if work in LOSERS else "ram"
        table = report.table(
            work,
            f"{what.title}; {DISKS[what.disk].text}",
            [
                "seconds",
                "times disk swap" if base == "swap" else "times more RAM",
                "CPU seconds",
                "swap, 1000 sectors",
                "files, 1000 sectors",
                "1000 pages put",
                "1000 pages got",
                "1000 pages not put",
            ],
            TCG,
            ",.2f",
        )
        for name, title in ASKED_CONFIGURATIONS.items():
            if name not in what.configurations:
                continue
            if not what.under(name):
                table.cannot(title, NO_SWAP)
                continue
            there = costs.get((name, work))
            if there is None:
                table.cannot(title, _why(guest, name, work))
                continue
            table.add(
                title,
                _sample(there, "seconds"),
                _ratio(costs, work, name, base, "seconds"),
                _sample(there, "cpu"),
                *(
                    Sample.of(getattr(cost, counter) / 1000 for cost in there)
                    for counter in ("swap", "files", "puts", "gets", "not_put")
                ),
            )
    _plots(report, costs)
    _marks(report, costs)


def _why(guest: Guest, name: str, work: str) -> str:
    for _, configuration, runs in works.plan():
        for run in runs:
            if (configuration, run.work) == (name, work):
                step = guest.any_step(run.name)
                if step.status != 0:
                    last = step.lines[-1] if step.lines else ""
                    return f"it ended with status {step.status} {last}".strip()
    return "it was not run"


def _plots(report: Report, costs: Costs) -> None:
    titles = {work: f"-j {work.partition('-')[2]}" for work in ASKED_WORKS if work.startswith("build")}
    others = {"reread": "re-read", "zipf": "Zipf", "stream": "stream", "once": "reads once"}
    titles |= {work: title for work, title in others.items() if work in ASKED_WORKS}
    for name, what, unit in (
        ("seconds", "seconds", "seconds (emulated CPU)"),
        ("sectors", "sectors", "sectors of both disks"),
    ):
        report.bars(
            name,
            f"The same works, in a guest of {works.MEMORY_MIB} MiB",
            list(titles.values()),
            {
                title: [
                    _sample(costs[configuration, work], what)
                    if (configuration, work) in costs
                    else None
                    for work in titles
                ]
                for configuration, title in ASKED_CONFIGURATIONS.items()
            },
            unit,
        )


def _marks(report: Report, costs: Costs) -> None:
    for ours, where in (("tmem", ""), ("window", ", with a window")):
        for work, what in ASKED_WORKS.items():
            if ours in what.configurations:
                _marks_of(report, costs, work, ours, where)


def _marks_of(report: Report, costs: Costs, work: str, ours: str, where: str) -> None:
    what = ASKED_WORKS[work]
    title = f"{what.title}{where}"
    if work in LOSERS:
        if what.disk == FASTEST:
            # There is no mark for it: no real CPU is as slow beside its disks.
            ratio = _ratio(costs, work, ours, "swap", "cpu")
            report.mark(f"{title}: CPU seconds, to disk swap", ratio, TCG)
        else:
            ratio = _ratio(costs, work, ours, "swap", "seconds")
            report.mark(f"{title}: seconds, to disk swap", ratio, TCG, most=LOSS)
        return
    sectors = _ratio(costs, work, ours, "swap", "sectors")
    report.mark(f"{title}: sectors, to disk swap", sectors, TCG, most=1 - FEWER_SECTORS)
    for other, mark in (("zram", 1.0), ("zswap", 1.0), ("ram", MORE_RAM)):
        seconds = _ratio(costs, work, ours, other, "seconds")
        report.mark(f"{title}: seconds, to {CONFIGURATIONS[other]}", seconds, TCG, most=mark)
