// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Guests made of formulas: how much they get of how much memory is known exactly.

use std::time::Duration;

use vhost_device_tmem::policy::{
    Bounds, EphemeralFigures, Figures, GuestFigures, PersistentFigures, Plan, Policy, Terms, AGES,
};

pub(crate) const MIB: u64 = 1 << 20;
pub(crate) const SECOND: Duration = Duration::from_secs(1);
const PAGE: f64 = 4096.0;

pub(crate) fn terms(guest: u32, weight: u32) -> Terms {
    Terms {
        guest,
        name: format!("guest{guest}"),
        weight,
        persistent: Bounds::NONE,
        ephemeral: Bounds::NONE,
        tier: Default::default(),
    }
}

/// A guest that asks for pages, those last used first the most often, and of whose gets a share of
/// *x* bytes serves `rate` · (1 - e^(-x / `set`)).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reader {
    /// Pages asked for a second, at most.
    pub(crate) rate: f64,
    /// How much memory they are spread over, in bytes.
    pub(crate) set: f64,
}

impl Reader {
    pub(crate) const IDLE: Self = Self {
        rate: 0.0,
        set: 1.0,
    };

    pub(crate) fn new(rate: f64, mib: f64) -> Self {
        Self {
            rate,
            set: mib * MIB as f64,
        }
    }

    /// Returns the pages got a second with so many bytes.
    pub(crate) fn hits(&self, bytes: f64) -> f64 {
        self.rate * (1.0 - (-bytes / self.set).exp())
    }

    /// Returns what is counted in a second with such a share.
    pub(crate) fn figures(&self, share: u64) -> EphemeralFigures {
        let bytes = share as f64;
        let reach = (bytes / 4.0).max(4.0 * MIB as f64);
        // Pages leave at the rate at which they come, so that they age as others follow them.
        let put = self.rate.max(1.0) * PAGE;
        let mut hits_by_age = [0; AGES];
        let mut from = 0.0;
        for (n, hits) in hits_by_age.iter_mut().enumerate() {
            let to = if n == AGES - 1 {
                bytes
            } else {
                (put * f64::from(1u32 << n)).min(bytes)
            };
            *hits = (self.hits(to) - self.hits(from)).round() as u64;
            from = to;
        }
        EphemeralFigures {
            used: share,
            hits_by_age,
            missed: (self.hits(bytes + reach) - self.hits(bytes)).round() as u64,
            reach: reach as u64,
        }
    }
}

/// A guest of a [`World`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Inmate {
    pub(crate) reader: Reader,
    /// The bytes that it would like to have of persistent memory, and has.
    pub(crate) wanted: u64,
    pub(crate) used: u64,
    pub(crate) is_there: bool,
    /// What it says instead of the truth.
    pub(crate) lie: Option<EphemeralFigures>,
}

impl Inmate {
    pub(crate) fn new(reader: Reader) -> Self {
        Self {
            reader,
            wanted: 0,
            used: 0,
            is_there: true,
            lie: None,
        }
    }
}

/// Guests that do as the policy says: puts to what they may, and drains by little where they have
/// more.
pub(crate) struct World {
    pub(crate) policy: Policy,
    pub(crate) capacity: u64,
    pub(crate) inmates: Vec<Inmate>,
    pub(crate) plan: Plan,
}

impl World {
    pub(crate) fn new(capacity: u64, terms: &[Terms], inmates: Vec<Inmate>) -> Self {
        let mut policy = Policy::default();
        policy.set_terms(terms, capacity).unwrap();
        let mut this = Self {
            policy,
            capacity,
            inmates,
            plan: Plan::default(),
        };
        this.step();
        this
    }

    /// Readers of the same weight.
    pub(crate) fn of(capacity: u64, readers: &[Reader]) -> Self {
        let terms: Vec<_> = (0..readers.len()).map(|n| terms(n as u32, 100)).collect();
        let inmates = readers.iter().map(|reader| Inmate::new(*reader)).collect();
        Self::new(capacity, &terms, inmates)
    }

    pub(crate) fn share(&self, guest: usize) -> u64 {
        self.plan.shares.get(guest).map_or(0, |of| of.ephemeral)
    }

    pub(crate) fn figures(&self) -> Vec<GuestFigures> {
        let there = self.inmates.iter().enumerate();
        let there = there.filter(|(_, inmate)| inmate.is_there);
        there
            .map(|(n, inmate)| GuestFigures {
                guest: n as u32,
                persistent: PersistentFigures {
                    used: inmate.used,
                    refused: inmate.wanted.saturating_sub(inmate.used) / PAGE as u64,
                },
                ephemeral: inmate
                    .lie
                    .unwrap_or_else(|| inmate.reader.figures(self.share(n))),
            })
            .collect()
    }

    pub(crate) fn step(&mut self) {
        let figures = self.figures();
        self.plan = self.policy.step(&Figures {
            elapsed: SECOND,
            capacity: self.capacity,
            guests: &figures,
        });
        for (inmate, share) in self.inmates.iter_mut().zip(&self.plan.shares) {
            inmate.used = if share.drain > 0 {
                inmate.used - share.drain.min(4 * MIB)
            } else {
                inmate.wanted.min(share.quota)
            };
        }
    }

    pub(crate) fn steps(&mut self, count: usize) {
        for _ in 0..count {
            self.step();
        }
    }

    /// Returns the pages got a second by all guests.
    pub(crate) fn hits(&self) -> f64 {
        let inmates = self.inmates.iter().enumerate();
        inmates
            .map(|(n, inmate)| inmate.reader.hits(self.share(n) as f64))
            .sum()
    }
}
