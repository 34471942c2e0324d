// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! From counters that only grow to what happened since the last look. This reckons, and asks nobody.

use std::time::Duration;

use crate::{
    control::counters_of,
    device::WindowState,
    policy::{EphemeralFigures, GuestFigures, PersistentFigures, AGES},
    store::{Dropped, Holding, NearMisses, PoolKind, PoolReport, PAGE_SIZE},
    window::{CHUNK, CHUNK_SLOTS},
};

/// The seconds that evictions are summed up over.
const PERIOD: f64 = 30.0;

/// What is counted of a guest, since it connected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// Persistent pages refused for want of quota, those that had no chunk included.
    refused: u64,
    /// Ephemeral pages found in the store.
    hits: u64,
    /// Ephemeral pages that were not there any more, and would have been with as much more memory as
    /// `reach`.
    missed: u64,
    reach: u64,
    /// Those of its window, and what they would have taken there, as the guest says.
    window_missed: u64,
    window_reach: u64,
    /// Bytes of ephemeral pages that were evicted, or taken back with their chunks.
    evicted: u64,
    /// Pages that the guest says it found in its window, by their ages.
    window_hits: [u64; AGES],
}

impl Counts {
    /// Counts what there is of a guest.
    pub(super) fn of(
        pools: &[PoolReport],
        dropped: &Dropped,
        near: NearMisses,
        window: Option<WindowState>,
    ) -> Self {
        let [persistent, ephemeral] = PoolKind::ALL.map(|kind| counters_of(pools, dropped, kind));
        let window = window.unwrap_or_default();
        let chunks = window.refused.saturating_mul(CHUNK_SLOTS.into());
        let evicted = ephemeral.pages_evicted.saturating_mul(PAGE_SIZE as u64);
        Self {
            refused: persistent.refused_over_quota.saturating_add(chunks),
            hits: ephemeral.gets_hit,
            missed: near.pages,
            reach: near.reach,
            window_missed: window.near_misses,
            window_reach: window.near_reach.saturating_mul(PAGE_SIZE as u64),
            evicted: evicted.saturating_add(window.taken.saturating_mul(CHUNK)),
            window_hits: window.hits_by_age,
        }
    }
}

/// What is known of a guest from the look before.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Past {
    counts: Counts,
    /// Bytes evicted over the last half minute, about.
    evicted: f64,
}

/// Returns what was counted since: all of it where counting has begun anew.
fn since(now: u64, before: u64) -> u64 {
    now.checked_sub(before).unwrap_or(now)
}

impl Past {
    /// Returns what happened since the last look, which is so long ago.
    pub(super) fn follow(
        &mut self,
        guest: u32,
        holding: Holding,
        now: Counts,
        elapsed: Duration,
    ) -> GuestFigures {
        let before = std::mem::replace(&mut self.counts, now);
        let seconds = elapsed.as_secs_f64();
        let evicted = since(now.evicted, before.evicted);
        self.evicted = self.evicted * (-seconds / PERIOD).exp() + evicted as f64;
        let mut hits_by_age = [0; AGES];
        for (hits, (now, before)) in hits_by_age
            .iter_mut()
            .zip(now.window_hits.into_iter().zip(before.window_hits))
        {
            *hits = since(now, before);
        }
        let hits = &mut hits_by_age[self.age_of_store(holding.ephemeral)];
        *hits = hits.saturating_add(since(now.hits, before.hits));
        GuestFigures {
            guest,
            persistent: PersistentFigures {
                used: holding.persistent,
                refused: since(now.refused, before.refused),
            },
            ephemeral: EphemeralFigures {
                used: holding.ephemeral,
                hits_by_age,
                missed: since(now.missed, before.missed)
                    .saturating_add(since(now.window_missed, before.window_missed)),
                reach: now.reach.saturating_add(now.window_reach),
            },
        }
    }

    /// Returns the age at which pages of the guest are evicted, which is that of what is found in the
    /// store: the last one where none are.
    fn age_of_store(&self, held: u64) -> usize {
        if self.evicted < 1.0 {
            return AGES - 1;
        }
        // All that it has goes in this time.
        let seconds = held as f64 * PERIOD / self.evicted;
        let ages = (0..AGES).find(|n| seconds < f64::from(1u32 << n));
        ages.unwrap_or(AGES - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn holding(persistent: u64, ephemeral: u64) -> Holding {
        Holding {
            persistent,
            ephemeral,
        }
    }

    #[test]
    fn figures_are_differences() {
        let mut past = Past::default();
        let mut counts = Counts {
            refused: 5,
            hits: 7,
            missed: 2,
            reach: 1 << 20,
            window_missed: 30,
            window_reach: 1 << 21,
            ..Counts::default()
        };
        counts.window_hits[3] = 9;
        let first = past.follow(4, holding(100, 200), counts, SECOND);
        assert_eq!((first.guest, first.persistent.used), (4, 100));
        assert_eq!((first.persistent.refused, first.ephemeral.used), (5, 200));
        assert_eq!(first.ephemeral.hits_by_age[3], 9);
        let near = (first.ephemeral.missed, first.ephemeral.reach);
        assert_eq!(near, (32, 3 << 20));
        assert_eq!(first.ephemeral.hits_by_age[AGES - 1], 7);
        counts.hits = 8;
        let second = past.follow(4, holding(0, 0), counts, SECOND);
        assert_eq!(second.persistent.refused, 0);
        assert_eq!(second.ephemeral.hits_by_age.iter().sum::<u64>(), 1);
        assert_eq!(second.ephemeral.missed, 0);
        // Another connection has begun, which has a window that was opened anew.
        counts.hits = 3;
        counts.missed = 3;
        counts.window_missed = 4;
        let third = past.follow(4, holding(0, 0), counts, SECOND);
        assert_eq!(third.ephemeral.hits_by_age[AGES - 1], 3);
        assert_eq!(third.ephemeral.missed, 5);
    }

    #[test]
    fn hits_are_as_old_as_what_is_evicted() {
        let mut past = Past::default();
        let counts = Counts {
            hits: 1,
            evicted: 10 << 20,
            ..Counts::default()
        };
        // 1 MiB of 10 MiB a half minute: three seconds.
        let of = past.follow(0, holding(0, 1 << 20), counts, SECOND);
        assert_eq!(of.ephemeral.hits_by_age[2], 1);
        let of = past.follow(0, holding(0, 1 << 20), counts, 300 * SECOND);
        assert_eq!(of.ephemeral.hits_by_age.iter().sum::<u64>(), 0);
        assert!(past.evicted < 1024.0);
    }
}
