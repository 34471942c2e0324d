# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""What is measured, and the tables that it goes into."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ..report import Report
from ..sample import Sample, how_often, ratios
from ..table import NATIVE
from .contents import PAGE
from .processes import COMPRESSIONS, DEPTH, FILE, NULL, Bench, Driver, Outcome

ROUNDS = how_often(9)

# Where the tables do not answer to marks.
FEWER = min(5, ROUNDS)

BATCHES = (1, 4, 8, 16, 32)

# Pages to go over where that takes long.
FEW = 16384

# The contents where they make no difference.
ANY = "process"

# What the daemon is asked for, and what has to be in it before: nothing, what the operation before
# left there, or what another operation puts there first.
OPERATIONS = {
    "put, to memory that is new": ("put", "empty"),
    "put, in place of another": ("put", "as it is"),
    "get, and leave": ("get", "as it is"),
    "flush": ("flush", "as it is"),
    "get, and take": ("take", "lend"),
}
PUT, GET = "put, in place of another", "get, and leave"

# One thing to measure, from which the driver comes back with an outcome.
Step = Callable[[Driver], Outcome]


def rounds(driver: Driver, steps: Mapping[str, Step], count: int = ROUNDS) -> dict[str, list[Outcome]]:
    """Does all steps one after the other, again and again; a first time does not count."""
    found: dict[str, list[Outcome]] = defaultdict(list)
    for n in range(-1, count):
        for name, step in steps.items():
            outcome = step(driver)
            if n >= 0:
                found[name].append(outcome)
    return found


def operations(prefix: str = "", first: int = 0, batch: int = 1, **pace: object) -> dict[str, Step]:
    """All operations on one guest, in the order in which one leaves what the next needs."""

    def step(operation: str, before: str) -> Step:
        def run(driver: Driver) -> Outcome:
            if before != "as it is":
                driver.empty(first)
            if before == "lend":
                driver.tmem("lend", first, batch=32).check()
            return driver.tmem(operation, first, batch=batch, **pace).check()

        return run

    return {prefix + name: step(*how) for name, how in OPERATIONS.items()}


def rate(outcomes: Sequence[Outcome]) -> Sample:
    """Thousands of pages a second."""
    return Sample.of(outcome.rate / 1e3 for outcome in outcomes)


def latency(outcomes: Sequence[Outcome]) -> list[Sample]:
    """Microseconds that a request took: half of them, 99 and 99.9 in a hundred took no longer."""
    return [
        Sample.of(outcome.latency(which) for outcome in outcomes) for which in ("p50", "p99", "p999")
    ]


def against(ours: Sequence[Outcome], theirs: Sequence[Outcome]) -> Sample:
    """How many pages we do in the processor time of one of theirs, round by round.

    All of them keep their processor busy, so that it is the ratio of rates as well; but it does
    not suffer where something else runs on the machine.
    """
    return ratios([t.cost for t in theirs], [o.cost for o in ours])


def peers(report: Report, bench: Bench, kinds: Mapping[str, Path]) -> None:
    """The daemon beside what could stand in its place."""
    report.say("the daemon, a disk in memory and plain copies")
    daemon = bench.daemon("peers")
    driver = bench.driver([daemon], [bench.disk(FILE), bench.disk(NULL)])
    driver.contents(kinds[ANY])
    steps: dict[str, Step] = {}
    for batch in (1, 32):
        steps |= operations(f"{batch} ", batch=batch)
        for n, disk in enumerate((FILE, NULL)):
            for write in (True, False):
                steps[f"{batch} {disk} {write}"] = lambda driver, n=n, write=write, batch=batch: (
                    driver.disk(n, write, batch=batch)
                )
    for out in (True, False):
        for huge in (False, True):
            steps[f"copy {out} {huge}"] = lambda driver, out=out, huge=huge: driver.copy(out, huge)
    found = rounds(driver, steps)
    table = report.table(
        "peers",
        f"Thousands of pages a second on one processor, {DEPTH} requests in flight",
        ["1 page", "32 pages", "of copying: 1", "of copying: 32", "of the disk: 1", "of the disk: 32"],
        NATIVE + "; one virtqueue, the driver polls on another processor; the last four columns are "
        "ratios of processor time, round by round",
        number=",.2f",
    )
    for name in OPERATIONS:
        out = name.startswith("put")
        copy = None if name == "flush" else found[f"copy {out} False"]
        disk = f"{FILE} {out}"
        cells: list[Sample | None] = [rate(found[f"{batch} {name}"]) for batch in (1, 32)]
        for batch in (1, 32):
            cells.append(against(found[f"{batch} {name}"], copy) if copy else None)
        for batch in (1, 32):
            ours, theirs = found[f"{batch} {name}"], found[f"{batch} {disk}"]
            cells.append(None if name == "flush" else against(ours, theirs))
        table.add(name, *cells)
    for disk in (FILE, NULL):
        for write, verb in ((True, "write"), (False, "read")):
            pair = [found[f"{batch} {disk} {write}"] for batch in (1, 32)]
            copied = [against(ours, found[f"copy {write} False"]) for ours in pair]
            table.add(f"{disk}, {verb}", *map(rate, pair), *copied, None, None)
    for out, way in ((True, "out of the guest"), (False, "into the guest")):
        for huge, size in ((False, ""), (True, ", from or to huge pages")):
            copy = rate(found[f"copy {out} {huge}"])
            table.add(f"copying {way}{size}", copy, copy, None, None, None, None)
    report.bars(
        "peers",
        "Pages a second on one processor",
        ["put, 1 page", "get, 1 page", "put, 32 pages", "get, 32 pages"],
        {
            "tmem": [rate(found[f"{batch} {name}"]) for batch in (1, 32) for name in (PUT, GET)],
            f"qemu-storage-daemon, {FILE}": [
                rate(found[f"{batch} {FILE} {out}"]) for batch in (1, 32) for out in (True, False)
            ],
            "copying, cold": [rate(found[f"copy {out} False"]) for _ in (1, 32) for out in (True, False)],
        },
        "thousands of pages a second",
    )
    for name, out in ((PUT, True), (GET, False)):
        verb = name.partition(",")[0]
        disk = against(found[f"1 {name}"], found[f"1 {FILE} {out}"])
        what = f"the daemon's {verb}s of 1 page, to those of a disk in memory"
        report.mark(what, disk, NATIVE, least=2)
        for batch in (1, 32):
            copy = against(found[f"{batch} {name}"], found[f"copy {out} False"])
            size = f"{batch} page{'s' if batch > 1 else ''}"
            what = f"the daemon's {verb}s of {size}, to a cold copy"
            report.mark(what, copy, NATIVE, least=0.6)
    driver.empty()
    driver.tmem("put", batch=32).check()
    stat = daemon.stat()
    pages = stat.persistent.pages + stat.ephemeral.pages
    more = stat.used_bytes / pages - PAGE
    what = "bytes for each page that the daemon needs to find it"
    report.mark(what, Sample.of([more]), NATIVE, most=64)
    bench.close()


def batches(report: Report, bench: Bench, kinds: Mapping[str, Path]) -> None:
    """By pages of a request: the rate, and how long requests take."""
    report.say("pages of a request")
    driver = bench.driver([bench.daemon("batches")])
    driver.contents(kinds[ANY])
    steps: dict[str, Step] = {}
    for batch in BATCHES:
        steps |= operations(f"{batch} ", batch=batch)
        steps |= operations(f"{batch} alone ", batch=batch, depth=1, pages=FEW)
    found = rounds(driver, steps, FEWER)
    for alone, name, title in (
        ("", "batches", f"By pages of a request, {DEPTH} requests in flight"),
        ("alone ", "alone", "By pages of a request, one request at a time"),
    ):
        table = report.table(
            name,
            f"{title}: thousands of pages a second, and microseconds that a request takes",
            ["pages", "k pages/s", "p50", "p99", "p99.9"],
            NATIVE + "; one processor for the daemon, one virtqueue, the driver polls",
        )
        for operation in OPERATIONS:
            for batch in BATCHES:
                outcomes = found[f"{batch} {alone}{operation}"]
                table.add(f"{operation}", batch, rate(outcomes), *latency(outcomes))
    report.lines(
        "batches",
        f"By pages of a request, {DEPTH} requests in flight",
        "pages of a request",
        {
            operation: {batch: rate(found[f"{batch} {operation}"]) for batch in BATCHES}
            for operation in OPERATIONS
        },
        "thousands of pages a second",
        log=True,
    )
    bench.close()


def queues(report: Report, bench: Bench, kinds: Mapping[str, Path]) -> None:
    """One virtqueue or two, each with a thread of the daemon."""
    report.say("virtqueues")
    driver = bench.driver([bench.daemon("queues")])
    driver.contents(kinds[ANY])
    ways = {
        "1 virtqueue": {"queues": 1},
        "2 virtqueues, one thread of the driver": {"queues": 2},
        "2 virtqueues, a thread each": {"queues": 2, "threads": 2},
    }
    steps: dict[str, Step] = {}
    for way, pace in ways.items():
        for batch in (1, 32):
            steps |= operations(f"{way} {batch} ", batch=batch, **pace)
    found = rounds(driver, steps, FEWER)
    table = report.table(
        "queues",
        f"By virtqueues, {DEPTH} requests in flight on each: thousands of pages a second",
        ["put, 1 page", "get, 1 page", "put, 32 pages", "get, 32 pages"],
        NATIVE + "; all threads of the daemon have one processor, all of the driver another",
    )
    for way in ways:
        cells = [rate(found[f"{way} {batch} {name}"]) for batch in (1, 32) for name in (PUT, GET)]
        table.add(way, *cells)
    bench.close()


def waiting(report: Report, bench: Bench, kinds: Mapping[str, Path]) -> None:
    """Waiting for interrupts, or looking at the virtqueue all the time."""
    report.say("waiting and polling")
    driver = bench.driver([bench.daemon("waiting")])
    driver.contents(kinds[ANY])
    steps: dict[str, Step] = {}
    for wait in (False, True):
        for depth in (1, DEPTH):
            steps |= operations(f"{wait} {depth} ", wait=wait, depth=depth, pages=FEW)
    found = rounds(driver, steps, FEWER)
    table = report.table(
        "waiting",
        "One page a request: thousands of requests a second, microseconds that one takes, and "
        "notifications of the daemon for each",
        ["in flight", "k requests/s", "p50", "p99", "p99.9", "notifications"],
        NATIVE + "; one virtqueue, daemon and driver on a processor each",
        number=",.2f",
    )
    for name in (PUT, GET):
        for wait, how in ((False, "the driver polls"), (True, "the driver waits for interrupts")):
            for depth in (1, DEPTH):
                outcomes = found[f"{wait} {depth} {name}"]
                kicks = Sample.of(o.found["kicks"] / o.found["requests"] for o in outcomes)
                table.add(f"{name}; {how}", depth, rate(outcomes), *latency(outcomes), kicks)
    bench.close()


def kinds(report: Report, bench: Bench, files: Mapping[str, Path]) -> None:
    """By contents, with and without compression."""
    report.say("contents and compression")
    table = report.table(
        "kinds",
        "By contents, 32 pages a request: thousands of pages a second",
        ["put", "get", "put, of the bare compressor", "get, of the bare compressor"],
        NATIVE + "; one processor for the daemon, one virtqueue, the driver polls",
        number=",.2f",
    )
    for compression in COMPRESSIONS:
        daemon = bench.daemon(f"kinds-{compression}", options=["--compression", compression])
        driver = bench.driver([daemon])
        for kind, path in files.items():
            driver.contents(path)
            steps = operations(batch=32)
            if compression != "none":
                for name, back in ((PUT, False), (GET, True)):
                    steps[f"bare {name}"] = lambda driver, back=back: driver.compress(
                        compression, back
                    )
            found = rounds(driver, steps, FEWER)
            cells: list[Sample | None] = [rate(found[PUT]), rate(found[GET]), None, None]
            if compression != "none":
                for n, name in ((2, PUT), (3, GET)):
                    cells[n] = against(found[name], found[f"bare {name}"])
            table.add(f"{compression}, {kind}", *cells)
            if compression == "lz4" and kind == ANY:
                for name in (PUT, GET):
                    ratio = against(found[name], found[f"bare {name}"])
                    verb = name.partition(",")[0]
                    what = f"the daemon's {verb}s of 32 pages with LZ4, to LZ4 alone"
                    report.mark(what, ratio, NATIVE, least=0.85)
        bench.close()


def guests(report: Report, bench: Bench, kinds: Mapping[str, Path]) -> None:
    """One guest, and many."""
    report.say("guests")
    counts = (1, 4, 16, 64)
    driver = bench.driver([bench.daemon("guests", max(counts))])
    driver.contents(kinds[ANY])
    steps: dict[str, Step] = {}

    def step(operation: str, count: int) -> Step:
        def run(driver: Driver) -> Outcome:
            if operation == "get":
                driver.empty(0, max(counts))
                driver.tmem("put", guests=count, batch=32).check()
            depth = max(1, DEPTH // count)
            return driver.tmem(operation, guests=count, depth=depth, seconds=0.5)

        return run

    for count in counts:
        for operation in ("put", "get"):
            steps[f"{count} {operation}"] = step(operation, count)
    found = rounds(driver, steps, FEWER)
    table = report.table(
        "guests",
        "By guests, one page a request: thousands of pages a second, microseconds that a request "
        "takes, and how the guests fare beside each other",
        ["guests", "k pages/s", "of one guest's", "p50", "p99", "p99.9", "fewest to most", "p99 most to least"],
        NATIVE + f"; {DEPTH} requests in flight over all of them, at least one each; one processor "
        "for the daemon",
        number=",.2f",
    )
    for operation in ("put", "get"):
        for count in counts:
            outcomes = found[f"{count} {operation}"]
            shares = [o.found["guests"] for o in outcomes]
            pages = [[share["pages"] for share in share_of] for share_of in shares]
            slow = [[share["latency"]["p99"] for share in share_of] for share_of in shares]
            alone = found[f"1 {operation}"]
            together = ratios([o.rate for o in outcomes], [o.rate for o in alone])
            unfair = Sample.of(max(each) / max(1, min(each)) for each in slow)
            table.add(
                operation,
                count,
                rate(outcomes),
                together,
                *latency(outcomes),
                Sample.of(min(each) / max(each) for each in pages),
                unfair,
            )
            if count == max(counts):
                what = f"{operation}s of {count} guests"
                report.mark(f"{what} together, to those of one", together, NATIVE, least=0.8)
                report.mark(f"{what}: the highest p99 to the lowest", unfair, NATIVE, most=2)
    bench.close()
