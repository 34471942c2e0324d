// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Guests to simulate.

use std::collections::BTreeMap;

use rand::{rngs::SmallRng, Rng, SeedableRng};
use vhost_device_tmem::policy::{EphemeralFigures, AGES};

use crate::{
    guest::{Likeness, Told},
    synthetic::Kind,
    trace::Access,
    workload::Workload,
    world::Scenario,
};

/// Bytes for each guest where nothing else is said.
pub const EACH: u64 = 64 << 20;

/// The usual weight.
const WEIGHT: u32 = 100;

/// Pages of a guest's page cache.
const CACHE: f64 = 8192.0;

/// Seconds of a piece of a recorded trace.
const PIECE: f64 = 30.0;

/// A scenario by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Name {
    /// Guests that do the same all the time, each something else
    Steady,
    /// The same, and guests whose needs change: phases, days, bursts
    Mixed,
    /// The same needs and weights
    Alike,
    /// The same needs, and weights of 100, 200 and 400
    Weights,
    /// Steady guests, and a first one that floods memory with what it never asks for
    Flood,
    /// Steady guests, and a first one that reports absurd figures
    Liar,
    /// Steady guests, and a first one that reports as much as can be true of its share
    Boaster,
    /// Guests with much memory of their own, of which every other one works with more than that, and
    /// the others idle: for --balloons
    Balloon,
    /// Steady guests, and a first one that goes round a set which fits nowhere
    Looper,
}

impl Name {
    /// Returns whether the first guest is one to beware of.
    #[must_use]
    pub fn is_attack(self) -> bool {
        matches!(
            self,
            Self::Flood | Self::Liar | Self::Boaster | Self::Looper
        )
    }
}

/// What steady guests do, in turn, and how fast.
const STEADY: [(Kind, f64); 7] = [
    (Kind::Zipf(0.8), 1.0),
    (Kind::Idle, 1.0),
    (Kind::Zipf(1.1), 2.0),
    (Kind::Loop, 0.5),
    (Kind::Zipf(0.6), 0.5),
    (Kind::Idle, 1.0),
    (Kind::Scan(0.9), 1.0),
];

/// What others do, in turn.
const CHANGING: [(Kind, f64); 4] = [
    (Kind::Diurnal(1800.0), 1.0),
    (Kind::Phases(900.0), 1.0),
    (Kind::Bursts(600.0), 1.0),
    (Kind::Phases(450.0), 0.5),
];

/// Makes guests up.
#[must_use]
pub fn make(name: Name, guests: usize, capacity: u64, seed: u64) -> Scenario {
    let mut random = SmallRng::seed_from_u64(seed);
    let mut made = BTreeMap::new();
    // Many guests do the same, and not at the same time nor with as many pages.
    let mut workload = |n: usize, (kind, speed): (Kind, f64)| {
        let made = made
            .entry(n)
            .or_insert_with(|| kind.workload(speed, seed + n as u64));
        made.clone()
    };
    let each = (0..guests).map(|n| {
        let mut likeness = Likeness {
            workload: Workload::idle(),
            pages: 2f64.powf(random.random_range(2.0..5.0)),
            ahead: random.random_range(0.0..3600.0),
            cache: CACHE,
            weight: WEIGHT,
            lie: None,
            told: Told::default(),
        };
        let steady = n % STEADY.len();
        let changing = n / 2 % CHANGING.len();
        likeness.workload = match name {
            Name::Alike | Name::Weights => {
                likeness.pages = 16.0;
                if name == Name::Weights {
                    likeness.weight = WEIGHT << (n % 3);
                }
                workload(0, STEADY[0])
            }
            Name::Balloon => {
                likeness.cache = 8.0 * CACHE;
                // More than that, and than all that it could get.
                likeness.pages = random.random_range(48.0..64.0);
                let kind = if n % 2 == 0 {
                    Kind::Zipf(0.8)
                } else {
                    Kind::Idle
                };
                workload(n % 2, (kind, 1.0))
            }
            Name::Mixed if n % 2 == 1 => workload(100 + changing, CHANGING[changing]),
            Name::Mixed => workload(n / 2 % STEADY.len(), STEADY[n / 2 % STEADY.len()]),
            Name::Flood if n == 0 => Kind::Flood.workload(64.0, seed),
            Name::Looper if n == 0 => {
                likeness.pages = 256.0;
                Kind::Loop.workload(1.0, seed)
            }
            Name::Liar if n == 0 => {
                likeness.lie = Some(absurd());
                Kind::Flood.workload(1.0, seed)
            }
            Name::Boaster if n == 0 => {
                likeness.lie = Some(boast());
                Kind::Flood.workload(1.0, seed)
            }
            _ => workload(steady, STEADY[steady]),
        };
        likeness
    });
    let guests: Vec<_> = each.collect();
    Scenario {
        guests,
        capacity,
        seed,
    }
}

/// Guests of a recorded trace. They have no page cache: what they read is what a page cache does not
/// have, or it is the trace's memory that is looked for.
#[must_use]
pub fn recorded(
    traces: &BTreeMap<String, Vec<Access>>,
    cache: u64,
    capacity: u64,
    seed: u64,
) -> Scenario {
    let guests = traces.values().map(|trace| Likeness {
        workload: Workload::recorded(trace, PIECE, false),
        pages: 1.0,
        ahead: 0.0,
        cache: cache as f64,
        weight: WEIGHT,
        lie: None,
        told: Told::default(),
    });
    Scenario {
        guests: guests.collect(),
        capacity,
        seed,
    }
}

fn absurd() -> EphemeralFigures {
    EphemeralFigures {
        used: 0,
        hits_by_age: [u64::MAX; AGES],
        missed: u64::MAX,
        reach: 1,
    }
}

/// Hits of pages that were just put, as many as fit a large share, and more wanted.
fn boast() -> EphemeralFigures {
    let mut hits_by_age = [0; AGES];
    hits_by_age[0] = 1 << 16;
    EphemeralFigures {
        used: 0,
        hits_by_age,
        missed: 1 << 16,
        reach: 1 << 20,
    }
}
