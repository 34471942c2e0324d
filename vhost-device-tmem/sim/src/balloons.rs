// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Balloons, which move guests' own memory (their page caches) as `tmemctl balance` would, while the
//! daemon's policy shares what is behind it.

use std::time::Duration;

use serde_json::json;
use vhost_device_tmem::balance::{
    Balancer, GuestStats, Observation, Terms, TermsError, TmemCounters, UNIT,
};

use crate::guest::{Guest, Second, PAGE};

/// The part of its memory that a guest is always left, and how many times it is the most that it gets.
const SPAN: u64 = 4;

/// Balloons of all guests, and what was counted since they were looked at last.
#[derive(Debug)]
pub struct Balloons {
    balancer: Balancer,
    every: usize,
    total: u64,
    counted: Vec<TmemCounters>,
}

impl Balloons {
    /// Of guests that have together what they have now, looked at each so many seconds. None gets less
    /// than a quarter of what it has now, or more than four times that.
    ///
    /// # Errors
    ///
    /// As balancing has, of guests with next to no memory.
    pub fn new(guests: &[Guest], every: usize) -> Result<Self, TermsError> {
        let sizes = guests
            .iter()
            .map(|guest| bytes(guest).div_ceil(UNIT) * UNIT);
        let sizes: Vec<_> = sizes.collect();
        let total = sizes.iter().sum();
        let terms = sizes.iter().enumerate().map(|(n, size)| Terms {
            name: format!("guest{n}"),
            min: size / SPAN,
            max: size * SPAN,
        });
        Ok(Self {
            balancer: Balancer::new(total, terms.collect())?,
            every: every.max(1),
            total,
            counted: vec![TmemCounters::default(); guests.len()],
        })
    }

    /// Returns the bytes that all guests have together, at most.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Takes note of what happened, and moves memory where it is time to.
    pub fn settle(&mut self, second: usize, guests: &mut [Guest], seen: &[Second]) {
        for (counted, seen) in self.counted.iter_mut().zip(seen) {
            counted.hits += seen.hits as u64;
            counted.missed += seen.again as u64;
        }
        if second % self.every != 0 {
            return;
        }
        let looks = guests.iter().zip(&self.counted).map(|(guest, counted)| {
            let free = guest.unused(second) * PAGE;
            Some(Observation {
                actual: bytes(guest),
                ram: None,
                stats: stats(free as u64, second),
                tmem: Some(*counted),
                weight: guest.likeness().weight,
            })
        });
        let looks: Vec<_> = looks.collect();
        let elapsed = Duration::from_secs(self.every as u64);
        let plan = self.balancer.step(&looks, elapsed);
        let to = |n: usize, guests: &mut [Guest], bytes: u64| {
            guests[n].set_cache(second, (bytes / PAGE as u64) as f64);
        };
        for (n, of) in plan.proposals.iter().enumerate() {
            if of.target_bytes < of.actual_bytes {
                to(n, guests, of.target_bytes);
            }
        }
        let actual: Vec<_> = guests.iter().map(bytes).collect();
        for (n, size) in plan.affordable(&actual).into_iter().enumerate() {
            if size > actual[n] {
                to(n, guests, size);
            }
        }
    }
}

/// Returns the bytes of a guest's own memory.
fn bytes(guest: &Guest) -> u64 {
    (guest.likeness().cache * PAGE) as u64
}

/// What a guest tells that reads files, and maps none: it has no faults.
fn stats(free: u64, second: usize) -> GuestStats {
    let stats = json!({
        "stat-free-memory": free,
        "stat-available-memory": free,
        "stat-major-faults": 0,
    });
    let stats = stats.as_object().cloned().unwrap_or_default();
    GuestStats {
        stats: stats.into_iter().collect(),
        last_update: json!(second + 1),
    }
}
