// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Ways to share memory: the daemon's policy, and what it is compared with.

use std::{cmp::Reverse, collections::BinaryHeap, time::Duration};

use vhost_device_tmem::policy::{
    Bounds, Figures, GuestFigures, PersistentFigures, Policy, Terms, TermsError,
};

use crate::guest::{Guest, Second, PAGE};

/// A way to share memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Way {
    /// As the daemon's policy says.
    Policy,
    /// The same for all, by weight.
    Equal,
    /// Whatever was put last, whoever put it: one list for all, of which the oldest go.
    Lru,
}

impl Way {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Policy, Self::Equal, Self::Lru];
}

/// What shares memory, and what it knows.
#[derive(Debug)]
pub(crate) enum Sharing {
    Policy(Box<Policy>),
    Equal,
    Lru,
}

impl Sharing {
    /// Of guests with these weights.
    ///
    /// # Errors
    ///
    /// As the policy has.
    pub(crate) fn new(way: Way, guests: &[Guest], capacity: u64) -> Result<Self, TermsError> {
        Ok(match way {
            Way::Equal => Self::Equal,
            Way::Lru => Self::Lru,
            Way::Policy => {
                let terms = guests.iter().enumerate().map(|(n, guest)| Terms {
                    guest: n as u32,
                    name: format!("guest{n}"),
                    weight: guest.likeness().weight,
                    persistent: Bounds { min: 0, cap: 0 },
                    ephemeral: Bounds::NONE,
                    tier: Default::default(),
                });
                let mut policy = Box::new(Policy::default());
                policy.set_terms(&terms.collect::<Vec<_>>(), capacity)?;
                Self::Policy(policy)
            }
        })
    }

    /// Looks at what happened, and takes from guests what they may not keep. Returns the shares in
    /// bytes, and how many of them moved from one guest to another.
    pub(crate) fn settle(
        &mut self,
        second: usize,
        guests: &mut [Guest],
        seen: &[Second],
        capacity: u64,
    ) -> (Vec<u64>, u64) {
        match self {
            Self::Policy(policy) => {
                let figures = guests.iter().zip(seen).enumerate();
                let figures = figures.map(|(n, (guest, seen))| GuestFigures {
                    guest: n as u32,
                    persistent: PersistentFigures::default(),
                    ephemeral: guest.figures(seen),
                });
                let plan = policy.step(&Figures {
                    elapsed: Duration::from_secs(1),
                    capacity,
                    guests: &figures.collect::<Vec<_>>(),
                });
                let shares: Vec<_> = plan.shares.iter().map(|share| share.ephemeral).collect();
                keep(second, guests, &shares);
                (shares, plan.moved)
            }
            Self::Equal => {
                let weights = guests.iter().map(|guest| guest.likeness().weight);
                let all: u64 = weights.map(u64::from).sum();
                let shares = guests.iter().map(|guest| {
                    let part = u128::from(capacity) * u128::from(guest.likeness().weight);
                    (part / u128::from(all.max(1))) as u64
                });
                let shares: Vec<_> = shares.collect();
                keep(second, guests, &shares);
                (shares, 0)
            }
            Self::Lru => {
                let before: Vec<_> = guests.iter().map(Guest::used).collect();
                evict(second, guests, capacity as f64 / PAGE);
                let lost = guests.iter().zip(&before);
                let lost: f64 = lost.map(|(guest, before)| before - guest.used()).sum();
                let shares = guests.iter().map(|guest| (guest.used() * PAGE) as u64);
                (shares.collect(), (lost * PAGE) as u64)
            }
        }
    }
}

/// What eviction does: a guest whose share is used up gives its own oldest pages.
fn keep(second: usize, guests: &mut [Guest], shares: &[u64]) {
    for (guest, share) in guests.iter_mut().zip(shares) {
        guest.shrink(second, *share as f64 / PAGE);
    }
}

/// Drops the oldest pages of all guests until no more than so many are left.
fn evict(second: usize, guests: &mut [Guest], pages: f64) {
    /// When pages were put. Never NaN.
    #[derive(PartialEq, PartialOrd)]
    struct Put(f64);
    impl Eq for Put {}
    #[allow(clippy::derive_ord_xor_partial_ord)]
    impl Ord for Put {
        fn cmp(&self, other: &Self) -> std::cmp::Ordering {
            self.0.total_cmp(&other.0)
        }
    }
    let mut excess = guests.iter().map(Guest::used).sum::<f64>() - pages;
    let oldest = guests.iter().enumerate();
    let oldest = oldest.filter_map(|(n, guest)| Some(Reverse((Put(guest.oldest()?), n))));
    let mut oldest: BinaryHeap<_> = oldest.collect();
    while excess > 1e-3 {
        let Some(Reverse((_, n))) = oldest.pop() else {
            break;
        };
        let guest = &mut guests[n];
        excess -= guest.evict_oldest(second, excess);
        if let Some(put) = guest.oldest() {
            oldest.push(Reverse((Put(put), n)));
        }
    }
}
