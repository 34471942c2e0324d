// SPDX-License-Identifier: GPL-2.0

//! What the driver knows of a pool: its index, its credits, its counters.

use core::ops::{
    Deref,
    DerefMut, //
};

use kernel::{
    new_spinlock_irq,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        lock::{
            spinlock::SpinLockIrqBackend,
            Guard, //
        },
        SpinLockIrq, //
    },
};

use crate::bindings::random::random_u32;

use super::{
    counters::Counters,
    credits::Credits,
    logic::index::{
        self,
        shard_of,
        Buckets,
        NodeChunk,
        ObjectChunk,
        Shard, //
    },
};

/// How many shards an index has.
const SHARDS: u32 = 16;

/// The number of the first pool that is shared.
pub(super) const FIRST_SHARED: u32 = 2;

/// Which pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pool {
    /// The persistent one.
    Frontswap,
    /// The ephemeral one.
    Cleancache,
    /// An ephemeral one that other guests have, too: by its place among those.
    Shared(u8),
}

impl Pool {
    /// Returns the pool's number in requests.
    pub(crate) const fn number(self) -> u32 {
        match self {
            Self::Frontswap => 0,
            Self::Cleancache => 1,
            Self::Shared(place) => FIRST_SHARED + place as u32,
        }
    }
}

/// What the driver knows of a pool.
#[pin_data]
pub(crate) struct PoolState {
    shards: KVec<Pin<KBox<SpinLockIrq<Shard>>>>,
    pages: Atomic<u64>,
    max_pages: u64,
    pub(super) credits: Credits,
    pub(crate) counters: Counters,
}

impl PoolState {
    /// Creates a pool without pages, for at most `max_pages`.
    ///
    /// May sleep.
    pub(super) fn new(max_pages: u64) -> impl PinInit<Self, Error> {
        Self::with_shards(max_pages, SHARDS)
    }

    /// Creates a pool, or several, whose pages are not in any index: they are not the driver's own.
    ///
    /// May sleep.
    pub(super) fn without_index() -> impl PinInit<Self, Error> {
        Self::with_shards(u64::MAX, 0)
    }

    fn with_shards(max_pages: u64, count: u32) -> impl PinInit<Self, Error> {
        pin_init::pin_init_scope(move || {
            let mut shards = KVec::with_capacity(count as usize, GFP_KERNEL)?;
            // So that an earlier driver's versions mean nothing.
            let version = random_u32();

            for number in 0..count {
                let shard = Shard::new(index::Config {
                    number,
                    shards: SHARDS,
                    max_pages: usize::try_from(max_pages / u64::from(SHARDS))?,
                    version,
                })
                .map_err(|_| ENOMEM)?;

                shards.push(
                    KBox::pin_init(new_spinlock_irq!(shard, "PoolState::shards"), GFP_KERNEL)?,
                    GFP_KERNEL,
                )?;
            }

            Ok(try_pin_init!(Self {
                shards,
                pages: Atomic::new(0),
                max_pages,
                credits: Credits::new(),
                counters: Counters::new(),
            }))
        })
    }

    /// Returns how many pages the index has.
    pub(crate) fn pages(&self) -> &Atomic<u64> {
        &self.pages
    }

    /// Locks the shard that has the objects with this tag.
    ///
    /// Any context.
    pub(super) fn shard(&self, tag: u64) -> Option<ShardGuard<'_>> {
        self.shards
            .get(shard_of(tag, SHARDS) as usize)
            .map(|shard| self.guard(shard))
    }

    /// Returns which shard has the objects with this tag.
    pub(super) fn shard_of(tag: u64) -> usize {
        shard_of(tag, SHARDS) as usize
    }

    /// Returns how many shards there are.
    pub(super) fn shard_count(&self) -> usize {
        self.shards.len()
    }

    /// Locks shard `n`.
    pub(super) fn nth_shard(&self, n: usize) -> Option<ShardGuard<'_>> {
        self.shards.get(n).map(|shard| self.guard(shard))
    }

    /// Gives shard `n` the memory that it wants, as far as there is any.
    ///
    /// May sleep, and enters reclaim: to be called by nobody whom reclaim waits for.
    pub(super) fn grow_shard(&self, n: usize) {
        while let Some(wants) = self.nth_shard(n).map(|shard| shard.wants()) {
            if !wants.any() {
                return;
            }
            // Whatever is left over is freed here, without the lock.
            if wants.nodes {
                let Ok(chunk) = NodeChunk::new() else { return };
                let left = self.nth_shard(n).map(|mut shard| shard.add_nodes(chunk));
                if !matches!(left, Some(Ok(()))) {
                    return;
                }
            }
            if wants.objects {
                let Ok(chunk) = ObjectChunk::new() else {
                    return;
                };
                let left = self.nth_shard(n).map(|mut shard| shard.add_objects(chunk));
                if !matches!(left, Some(Ok(()))) {
                    return;
                }
            }
            if let Some(count) = wants.buckets {
                let Ok(buckets) = Buckets::new(count) else {
                    return;
                };
                let _old = self.nth_shard(n).map(|mut shard| shard.rehash(buckets));
            }
        }
    }

    /// Locks each shard in turn.
    pub(super) fn shards(&self) -> impl Iterator<Item = ShardGuard<'_>> {
        self.shards.iter().map(|shard| self.guard(shard))
    }

    fn guard<'a>(&'a self, shard: &'a SpinLockIrq<Shard>) -> ShardGuard<'a> {
        let shard = shard.lock();

        ShardGuard {
            state: self,
            before: shard.stats().live,
            shard,
        }
    }

    /// Returns whether there may be more pages. Any context.
    pub(super) fn has_room(&self) -> bool {
        self.pages.load(Relaxed) < self.max_pages
    }

    /// Makes room for up to `pages` more pages, and returns for how many there is any.
    ///
    /// Any context. To be followed by insertions and [`Self::admitted`].
    pub(super) fn admit(&self, pages: usize) -> usize {
        if !self.has_room() {
            self.counters.over_limit.add(pages);
            return 0;
        }
        let admitted = self.credits.take(pages);
        if admitted < pages {
            self.counters.no_credit.add(pages - admitted);
        }
        admitted
    }

    /// Gives back what [`Self::admit`] took, but for the pages that are going to be put.
    pub(super) fn admitted(&self, admitted: usize, inserted: usize) {
        if admitted > inserted {
            self.credits.settle(admitted - inserted);
        }
    }
}

/// The right to look at and change a shard.
///
/// When it is dropped, the number of pages that the shard has more or fewer is accounted for.
pub(super) struct ShardGuard<'a> {
    state: &'a PoolState,
    before: u64,
    shard: Guard<'a, Shard, SpinLockIrqBackend>,
}

impl Deref for ShardGuard<'_> {
    type Target = Shard;

    fn deref(&self) -> &Shard {
        &self.shard
    }
}

impl DerefMut for ShardGuard<'_> {
    fn deref_mut(&mut self) -> &mut Shard {
        &mut self.shard
    }
}

impl Drop for ShardGuard<'_> {
    fn drop(&mut self) {
        let after = self.shard.stats().live;

        match after.checked_sub(self.before) {
            Some(0) => (),
            Some(more) => self.state.pages.add(more, Relaxed),
            None => {
                let fewer = self.before.wrapping_sub(after);

                self.state.pages.fetch_sub(fewer, Relaxed);
            }
        }
    }
}
