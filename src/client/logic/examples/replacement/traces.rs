// SPDX-License-Identifier: GPL-2.0

//! Which pages are read, made up: each trace stands for something that guests do.

/// Accesses of a trace.
const LENGTH: u64 = 100_000;

/// Where pages begin that are read once.
const ONCE: u64 = 1 << 40;

/// The trace by which costs are measured.
pub(crate) const FOR_COST: &str = "zipf 0.9";

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, most: u64) -> u64 {
        self.next() % most
    }
}

/// Pages of which the n-th is read so often as 1 to the power of something by n says.
struct Zipf(Vec<f64>);

impl Zipf {
    fn new(pages: u64, power: f64) -> Self {
        let mut sum = 0.0;
        let sums = (1..=pages).map(|n| {
            sum += (n as f64).powf(-power);
            sum
        });
        Self(sums.collect())
    }

    fn page(&self, random: &mut Random) -> u64 {
        let all = self.0.last().copied().unwrap_or_default();
        let at = (random.next() >> 11) as f64 / (1u64 << 53) as f64 * all;
        self.0.partition_point(|sum| *sum < at) as u64
    }
}

/// Returns all traces, for page cache and window of so many pages together.
pub(crate) fn all(memory: u64) -> Vec<(&'static str, Vec<u64>)> {
    let mut random = Random(1);
    let mut once = ONCE;
    let each = |f: &mut dyn FnMut(u64) -> u64| (0..LENGTH).map(f).collect::<Vec<_>>();
    let mut traces = Vec::new();

    for (name, power) in [("zipf 0.7", 0.7), (FOR_COST, 0.9), ("zipf 1.1", 1.1)] {
        let zipf = Zipf::new(4 * memory, power);
        traces.push((name, each(&mut |_| zipf.page(&mut random))));
    }
    let zipf = Zipf::new(2 * memory, 0.9);
    traces.push((
        "zipf, scans",
        each(&mut |n| {
            if n / 5000 % 2 == 1 && n % 2 == 0 {
                once += 1;
                once
            } else {
                zipf.page(&mut random)
            }
        }),
    ));
    traces.push((
        "set, scan",
        each(&mut |n| {
            if n % 4 == 0 {
                once += 1;
                once
            } else {
                random.below(memory * 7 / 10)
            }
        }),
    ));
    traces.push((
        "zipf, loop",
        each(&mut |n| {
            if n % 2 == 0 {
                ONCE + n / 2 % memory
            } else {
                zipf.page(&mut random)
            }
        }),
    ));
    let zipf = Zipf::new(memory, 0.9);
    traces.push((
        "changes",
        each(&mut |n| zipf.page(&mut random) + n / 20_000 * (memory / 2)),
    ));
    for (name, part) in [
        ("loop 0.9", 9),
        ("loop 1.1", 11),
        ("loop 1.5", 15),
        ("loop 3", 30),
    ] {
        traces.push((name, each(&mut |n| n % (memory * part / 10))));
    }
    traces
}
