// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Where the pages are: pools of many guests within one capacity.
//!
//! The store knows nothing of virtqueues. A page has a key, which is its guest, pool, object and
//! index, and a version; at most one version of a page is stored at a time. Persistent pages stay
//! until their guest forgets them or goes away; ephemeral ones are evicted, the one used longest
//! ago first whosesoever it is, when room is needed.
//!
//! # Memory
//!
//! A page is an entry, which is found by its key, and its contents. Those are a word that repeats,
//! or they are in a slot: 4 KiB, or one of many sizes less than that where pages are compressed.
//! The slots of one span of 32 KiB are all of one size. Spans, entries and what finds them are
//! together never more than the capacity, and what is free goes back to the operating system. That
//! gives memory in huge pages, by chunks of 2 MiB that take all of it once a part is touched; but
//! for the last ones below the capacity, and those of which a part has to go back.
//!
//! Free slots of one size are of no use to pages of another, until all of a span are free. So where
//! there is no free span, one whose size has free slots enough is emptied into others of its size;
//! if that is of no avail, the oldest ephemeral page is evicted, and so on. A put is refused when
//! there is neither. That leaves no more than a span of each size that is not full.
//!
//! The credits count how often a page that cannot be compressed would find room in this way. They
//! are not an estimate by how pages turned out so far: a guest that sends pages which are refused
//! pays for it twice, and one that sends pages which turn out smaller has new credits with the next
//! answer.
//!
//! # Locking
//!
//! One lock guards all that is known *about* pages. It is taken per batch of keys and held for a
//! bounded number of steps, never while a page is copied or compressed: a put fills a slot that no
//! key leads to yet, a get pins the page that it copies from. (But pages that nobody reads are moved
//! under it, to make room.) Flushes of many pages let go of the lock every few hundred pages.

mod arena;
mod buckets;
mod budget;
mod classes;
mod codec;
mod compact;
mod flush;
mod get;
mod guest;
mod id;
mod index;
mod inner;
mod lru;
mod mapping;
mod pool;
mod put;
mod room;
mod slots;
mod spans;
mod take;
mod vacancies;
mod walk;

use std::{
    io,
    sync::{
        atomic::{AtomicUsize, Ordering},
        Arc, Mutex, MutexGuard, PoisonError, Weak,
    },
};

pub use arena::{HugePages, PageBytes};
pub use codec::Compression;
pub use get::PageSink;
pub use guest::{Dropped, DroppedKind, Guest, PoolError};
pub use pool::{Contents, PoolCounters, PoolKind, PoolReport};
pub use put::PageSource;
pub use take::Taken;
pub use walk::{Progress, Walk};

use arena::Arena;
use budget::{entry_bytes, Budget};
use inner::Inner;
use spans::SPAN_SIZE;

/// The binary logarithm of the page size.
pub const PAGE_SHIFT: u8 = 12;

/// The size of a page in bytes.
pub const PAGE_SIZE: usize = 1 << PAGE_SHIFT;

/// The smallest capacity that a store can be made with, in bytes.
pub const MIN_CAPACITY: u64 = 1 << 20;

/// Keys that are looked up, or pages that are forgotten, under one hold of the lock.
const BATCH: usize = 32;

/// Pages that a guest may put now, as far as the store can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credits {
    /// Pages that would be stored in persistent pools.
    pub persistent: u32,
    /// Pages that would be stored in ephemeral pools without evicting what was just put.
    pub ephemeral: u32,
}

/// Misbehaviour on purpose, to test how guests take it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// Puts refused at random, 0 to 100 in a hundred.
    pub refuse_percent: u8,
    /// Gets of ephemeral pages that find the page forgotten, 0 to 100 in a hundred.
    pub forget_percent: u8,
}

/// What the store as a whole holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreReport {
    /// The ceiling of what the store takes, in bytes.
    pub capacity_bytes: u64,
    /// How it compresses pages.
    pub compression: Compression,
    /// What its pages take now, in bytes, with what it needs to find them.
    pub used_bytes: u64,
    /// What it takes now, in bytes, with what is free but was not given back.
    pub resident_bytes: u64,
    /// Pages that it could hold as they are, without compression.
    pub capacity_pages: u64,
    /// Pages that it holds, or is just copying.
    pub used_pages: u64,
    /// Pages of those that it may forget.
    pub ephemeral_pages: u64,
    /// Objects that those pages belong to.
    pub objects: u64,
    /// What the pages consist of.
    pub contents: Contents,
    /// Pages that it forgot by itself since it was made.
    pub evictions: u64,
}

/// Why a store cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The capacity leaves no room for pages.
    #[error("a capacity of {0} bytes is too small; it takes at least {MIN_CAPACITY} (1MiB)")]
    TooSmall(u64),
    /// The operating system refused address space.
    #[error("cannot reserve address space for {0} bytes of pages: {1}")]
    Reserve(u64, #[source] io::Error),
}

/// Someone who wants to know when puts that were hopeless would be accepted again.
pub trait CreditWatcher: Send + Sync {
    /// Is told, without a lock held, that there is room again. Told once for each
    /// [`Store::watch_credits`].
    fn room_again(&self);
}

/// The pages of all guests.
///
/// All methods may be called from any thread.
pub struct Store {
    inner: Mutex<Inner>,
    arena: Arc<Arena>,
    compression: Compression,
    useful_credits: u32,
    watchers: Mutex<Vec<Weak<dyn CreditWatcher>>>,
    /// The length of `watchers`, to be read without its lock.
    watching: AtomicUsize,
}

impl Store {
    /// Makes a store that takes at most `capacity` bytes, metadata included, in huge pages if
    /// they are wanted and the operating system has such.
    ///
    /// # Errors
    ///
    /// [`StoreError`] where the capacity is too small, or larger than the address space.
    pub fn new(
        capacity: u64,
        compression: Compression,
        faults: Faults,
        huge_pages: HugePages,
    ) -> Result<Self, StoreError> {
        if capacity < MIN_CAPACITY {
            return Err(StoreError::TooSmall(capacity));
        }
        let reserve = |error| StoreError::Reserve(capacity, error);
        let bytes = usize::try_from(capacity).map_err(|_| StoreError::TooSmall(capacity))?;
        let budget = Budget::new(bytes, compression);
        let arena = Arc::new(Arena::new(budget.max_spans(), huge_pages).map_err(reserve)?);
        let useful_credits = u32::try_from(budget.raw_pages() / 32).unwrap_or(u32::MAX);
        let inner = Inner::new(budget, Arc::clone(&arena), faults).map_err(reserve)?;
        Ok(Self {
            arena,
            compression,
            useful_credits: useful_credits.clamp(1, 256),
            inner: Mutex::new(inner),
            watchers: Mutex::default(),
            watching: AtomicUsize::new(0),
        })
    }

    /// Returns how many pages would be stored now.
    pub fn credits(&self) -> Credits {
        self.lock().credits()
    }

    /// Returns the credits at which they are worth telling of.
    pub fn useful_credits(&self) -> u32 {
        self.useful_credits
    }

    /// Asks to be told, once, when there are [`Self::useful_credits`]; at once if there are. Who
    /// is gone by then is not told.
    pub fn watch_credits(&self, watcher: Weak<dyn CreditWatcher>) {
        let mut watchers = self.watchers.lock().unwrap_or_else(PoisonError::into_inner);
        watchers.retain(|watcher| watcher.strong_count() > 0);
        watchers.push(watcher);
        self.watching.store(watchers.len(), Ordering::SeqCst);
        drop(watchers);
        // What was freed before the watcher was listed woke nobody.
        self.wake_watchers();
    }

    /// Returns what the store holds.
    pub fn report(&self) -> StoreReport {
        let inner = self.lock();
        let used_pages = inner.index.used_pages() as u64;
        let objects = inner.index.used_objects() as u64;
        let spans = inner.slots.spans().resident() * SPAN_SIZE;
        StoreReport {
            capacity_bytes: inner.budget.capacity() as u64,
            compression: self.compression,
            used_bytes: entry_bytes(used_pages, objects) + inner.contents.slot_bytes,
            resident_bytes: (inner.budget.metadata() + spans) as u64,
            capacity_pages: inner.budget.raw_pages() as u64,
            used_pages,
            ephemeral_pages: inner.lru.len() as u64,
            objects,
            contents: inner.contents,
            evictions: inner.evictions,
        }
    }

    /// Takes the lock. A poisoned one is taken all the same: nothing under it panics on what a
    /// guest says, and other guests are to go on.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Follows up on freed pages, with no lock held: returns memory if there is `much` of it, and
    /// wakes watchers.
    fn after_free(&self, much: bool) {
        if much {
            self.release_memory();
        }
        self.wake_watchers();
    }

    fn release_memory(&self) {
        loop {
            let mut inner = self.lock();
            let Some(chunk) = inner.slots.spans_mut().drain() else {
                if inner.shrink_pages() {
                    continue;
                }
                return;
            };
            drop(inner);
            // SAFETY: The allocator took the empty chunk out of use until it is told.
            unsafe { self.arena.release_chunk(chunk) };
            self.lock().slots.spans_mut().drained(chunk);
        }
    }

    fn wake_watchers(&self) {
        if self.watching.load(Ordering::SeqCst) == 0 {
            return;
        }
        if self.credits().persistent < self.useful_credits() {
            return;
        }
        let mut watchers = self.watchers.lock().unwrap_or_else(PoisonError::into_inner);
        let woken = std::mem::take(&mut *watchers);
        self.watching.store(0, Ordering::SeqCst);
        drop(watchers);
        for watcher in woken.iter().filter_map(Weak::upgrade) {
            watcher.room_again();
        }
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.report().fmt(f)
    }
}
