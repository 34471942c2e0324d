// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Traces that are made up. Each stands for something that guests do.

use std::f64::consts::TAU;

use rand::{rngs::SmallRng, Rng, SeedableRng};
use rand_distr::{Distribution, Zipf};

use crate::{
    reuse::{Curve, Distances},
    trace::Access,
    workload::Workload,
};

/// Objects of a working set. Guests say how many pages one is.
const OBJECTS: u64 = 4096;

/// Accesses of a trace for each object. As many are made before, so that caches are warm.
const ROUNDS: u64 = 24;

/// Where objects begin that are used once.
const ONCE: u64 = 1 << 40;

/// Seconds of a piece of what changes.
const PIECE: f64 = 30.0;

/// Accesses a second at the usual speed: as many as there are objects in so many seconds.
const SWEEP: f64 = 32.0;

/// What a guest does.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// Nothing.
    Idle,
    /// Objects by Zipf's law with this exponent.
    Zipf(f64),
    /// The same objects round and round: none helps before all are there.
    Loop,
    /// By Zipf's law, and as many objects that are used only once, such as those of a backup.
    Scan(f64),
    /// By Zipf's law, and as often as the time of the day says: a period of so many seconds.
    Diurnal(f64),
    /// By Zipf's law, with other objects after so many seconds each, and two sets in turn.
    Phases(f64),
    /// Busy for a fifth of so many seconds, and idle for the others.
    Bursts(f64),
    /// Objects that are never used again: a flood of puts.
    Flood,
}

impl Kind {
    /// Makes it up, so many times as fast as usual.
    #[must_use]
    pub fn workload(self, speed: f64, seed: u64) -> Workload {
        let mut random = SmallRng::seed_from_u64(seed);
        let mut zipf = |exponent: f64| {
            let zipf = Zipf::new(OBJECTS as f64, exponent).expect("exponents are positive");
            let mut random = SmallRng::seed_from_u64(random.random());
            move || zipf.sample(&mut random) as u64
        };
        let rate = speed * OBJECTS as f64 / SWEEP;
        match self {
            Self::Idle => Workload::idle(),
            Self::Flood => Workload::steady(rate, Curve::new(&[None])),
            Self::Loop => steady(rate, |n| n % OBJECTS),
            Self::Zipf(exponent) => {
                let mut page = zipf(exponent);
                steady(rate, |_| page())
            }
            Self::Scan(exponent) => {
                let mut page = zipf(exponent);
                steady(2.0 * rate, |n| if n % 2 == 0 { ONCE + n } else { page() })
            }
            Self::Diurnal(seconds) => {
                let mut page = zipf(0.8);
                timed(seconds, |second| {
                    (rate * (1.0 - (TAU * second / seconds).cos()), page())
                })
            }
            Self::Phases(seconds) => {
                let mut page = zipf(0.8);
                timed(2.0 * seconds, |second| {
                    let set = (second / seconds) as u64;
                    (rate, page() + set * 2 * OBJECTS)
                })
            }
            Self::Bursts(seconds) => {
                let mut page = zipf(0.8);
                timed(seconds, |second| {
                    let is_busy = second < seconds / 5.0;
                    (if is_busy { 4.0 * rate } else { 0.0 }, page())
                })
            }
        }
    }
}

/// What is alike for all time, at so many accesses a second: the object of each.
fn steady(rate: f64, mut object: impl FnMut(u64) -> u64) -> Workload {
    let accesses = OBJECTS * ROUNDS;
    let mut distances = Distances::new(2 * accesses as usize);
    let found = (0..2 * accesses).map(|n| distances.access(object(n)));
    let found: Vec<_> = found.skip(accesses as usize).collect();
    Workload::steady(rate, Curve::new(&found))
}

/// What repeats after so many seconds: at each time, accesses a second and an object.
fn timed(seconds: f64, mut at: impl FnMut(f64) -> (f64, u64)) -> Workload {
    let mut trace = Vec::new();
    let mut second = 0.0;
    while second < seconds {
        let (rate, page) = at(second);
        if rate >= 1.0 {
            trace.push(Access {
                seconds: second,
                page,
            });
        }
        second += 1.0 / rate.max(1.0);
    }
    // The last piece may be one without accesses.
    let mut workload = Workload::recorded(&trace, PIECE, true);
    workload.lasts(seconds);
    workload
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hits(kind: Kind, objects: f64) -> f64 {
        kind.workload(1.0, 1).at(0.0).curve.hits(objects)
    }

    #[test]
    fn kinds_are_what_they_say() {
        let all = OBJECTS as f64;
        assert_eq!(hits(Kind::Flood, 1e9), 0.0);
        assert_eq!(hits(Kind::Loop, all * 0.95), 0.0);
        assert_eq!(hits(Kind::Loop, all * 1.05), 1.0);
        assert!(hits(Kind::Zipf(1.1), all / 8.0) > hits(Kind::Zipf(0.7), all / 8.0) + 0.2);
        assert!(hits(Kind::Scan(0.8), 1e9) > 0.45 && hits(Kind::Scan(0.8), 1e9) <= 0.5);
    }

    #[test]
    fn what_changes_does() {
        let bursts = Kind::Bursts(600.0).workload(1.0, 1);
        assert!(bursts.at(60.0).rate > 400.0 && bursts.at(500.0).rate == 0.0);
        assert_eq!(bursts.at(600.0).rate, bursts.at(0.0).rate);
        let phases = Kind::Phases(600.0).workload(1.0, 1);
        // Just after a change there is little that a small cache has.
        let small = |second| phases.at(second).curve.hits(OBJECTS as f64 / 8.0);
        assert!(small(600.0) < small(1100.0));
        let day = Kind::Diurnal(600.0).workload(1.0, 1);
        assert!(day.at(300.0).rate > 4.0 * day.at(60.0).rate);
    }
}
