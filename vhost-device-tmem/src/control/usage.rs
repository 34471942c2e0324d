// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a guest has and did, put together from all places where the daemon knows of it.

use serde::{Deserialize, Serialize};

use super::protocol::GuestStat;
use crate::store::{Dropped, PoolCounters, PoolKind, PoolReport};

/// What became of pages, as the guest sees it: by requests, and in its window, of which it tells
/// itself. A guest may tell anything, so that these are for information alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Memory of the host that the guest takes, in bytes: in the store, and for its window.
    pub memory_bytes: u64,
    /// Pages of persistent pools that are in the store.
    pub persistent_pages: u64,
    /// Pages of ephemeral pools that are in the store.
    pub ephemeral_pages: u64,
    /// Pages put, wherever they were put first.
    pub puts: u64,
    /// Pages put that the store refused.
    pub refused: u64,
    /// Pages looked for.
    pub gets: u64,
    /// Pages looked for and found.
    pub hits: u64,
}

impl Usage {
    /// Returns what is known of a guest.
    pub fn of(guest: &GuestStat) -> Self {
        let window = guest.window.unwrap_or_default();
        let [persistent, ephemeral] = PoolKind::ALL.map(|kind| guest.counters(kind));
        // Pages that go from the window to the store are put there, and were put before.
        let requested = persistent.puts.saturating_add(ephemeral.puts);
        let put_first = requested.saturating_sub(window.moved);
        let stored: u64 = guest.pools.iter().map(|pool| pool.bytes).sum();
        Self {
            memory_bytes: stored.saturating_add(window.allocated),
            persistent_pages: guest.pages(PoolKind::Persistent),
            ephemeral_pages: guest.pages(PoolKind::Ephemeral),
            puts: put_first.saturating_add(window.puts),
            refused: persistent
                .puts_refused
                .saturating_add(ephemeral.puts_refused),
            gets: sum([persistent.gets, ephemeral.gets, window.gets]),
            hits: sum([persistent.gets_hit, ephemeral.gets_hit, window.hits]),
        }
    }

    /// Returns the part of the pages looked for that was found, from 0 to 1; [`None`] if none was
    /// looked for.
    pub fn hit_rate(&self) -> Option<f64> {
        part(self.hits, self.gets)
    }

    /// Returns the part of the pages put that was refused, from 0 to 1; [`None`] if none was put.
    pub fn refused_rate(&self) -> Option<f64> {
        part(self.refused, self.puts)
    }
}

impl GuestStat {
    /// Returns what was done in its pools of one kind, also in those that are gone.
    pub fn counters(&self, kind: PoolKind) -> PoolCounters {
        counters_of(&self.pools, &self.dropped, kind)
    }

    /// Returns the pages that its pools of one kind have in the store.
    pub fn pages(&self, kind: PoolKind) -> u64 {
        let pools = self.pools.iter().filter(|pool| pool.kind == kind);
        pools.map(|pool| pool.pages).sum()
    }
}

/// Returns what was done in pools of one kind, of those that there are and of those that are gone.
pub(crate) fn counters_of(pools: &[PoolReport], dropped: &Dropped, kind: PoolKind) -> PoolCounters {
    let mut sum = dropped.of(kind).counters;
    for pool in pools.iter().filter(|pool| pool.kind == kind) {
        sum += pool.counters;
    }
    sum
}

/// Returns a part of a whole, from 0 to 1; [`None`] of nothing.
pub fn part(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| (part as f64 / whole as f64).min(1.0))
}

/// What guests tell need not be sensible.
fn sum(counts: [u64; 3]) -> u64 {
    counts.into_iter().fold(0, u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        device::WindowState,
        store::{Contents, PoolReport},
    };

    fn pool(kind: PoolKind, counters: PoolCounters) -> PoolReport {
        PoolReport {
            pool: 0,
            kind,
            pages: 10,
            objects: 1,
            bytes: 1 << 20,
            contents: Contents::default(),
            counters,
        }
    }

    fn guest(moved: u64) -> GuestStat {
        let swap = PoolCounters {
            puts: 100,
            puts_refused: 25,
            gets: 10,
            gets_hit: 10,
            ..PoolCounters::default()
        };
        let files = PoolCounters {
            puts: 50,
            gets: 10,
            gets_hit: 5,
            ..PoolCounters::default()
        };
        let mut guest = GuestStat {
            pools: vec![
                pool(PoolKind::Persistent, swap),
                pool(PoolKind::Ephemeral, files),
            ],
            window: Some(WindowState {
                allocated: 2 << 20,
                puts: 40,
                gets: 20,
                hits: 15,
                moved,
                ..WindowState::default()
            }),
            ..GuestStat::default()
        };
        guest.dropped.add(&pool(PoolKind::Ephemeral, files));
        guest
    }

    #[test]
    fn windows_and_pools_that_are_gone_count() {
        let usage = Usage::of(&guest(40));
        assert_eq!(
            usage,
            Usage {
                memory_bytes: 4 << 20,
                persistent_pages: 10,
                ephemeral_pages: 10,
                puts: 200,
                refused: 25,
                gets: 50,
                hits: 35,
            }
        );
        assert_eq!(usage.hit_rate(), Some(0.7));
        assert_eq!(usage.refused_rate(), Some(0.125));
        assert_eq!(Usage::default().hit_rate(), None);
    }

    #[test]
    fn what_a_guest_tells_need_not_be_sensible() {
        let mut guest = guest(u64::MAX);
        let window = guest.window.as_mut().unwrap();
        (window.puts, window.gets, window.hits) = (u64::MAX, 1, u64::MAX);
        window.allocated = u64::MAX;
        let usage = Usage::of(&guest);
        assert_eq!((usage.puts, usage.hits), (u64::MAX, u64::MAX));
        assert_eq!(usage.hit_rate(), Some(1.0));
    }
}
