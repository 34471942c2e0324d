// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Where the pages are: pools of many guests within one capacity.
//!
//! The store knows nothing of virtqueues. A page has a key, which is its guest, pool, object and
//! index, and a version; at most one version of a page is stored at a time. Persistent pages stay
//! until their guest forgets them or goes away; ephemeral ones are evicted when room is needed, of
//! the guest that is most above its share the one used longest ago first. Each guest has a [`Part`]:
//! of what it is promised for its persistent pages no other guest's put takes anything, and more than
//! its limit it does not get. A pool that guests share counts as a guest of its own (see `shared`). A
//! part of the capacity may be [lent](Store::lend) to guests, for pages that are not in the store, and
//! a part [withheld](Store::withhold) from all of them.
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
//! if that is of no avail, an ephemeral page is evicted, and so on. A put is refused when
//! there is neither. That leaves no more than a span of each size that is not full.
//!
//! The credits count how often a page that cannot be compressed would find room in this way. They
//! are not an estimate by how pages turned out so far: a guest that sends pages which are refused
//! pays for it twice, and one that sends pages which turn out smaller has new credits with the next
//! answer.
//!
//! What is forgotten is scrubbed before anybody else can read it: a put overwrites all of its slot,
//! and [`Store::tidy_step`] what is in no slot, when there is nothing else to do. That also has the
//! memory taken follow what is used, however scattered it is.
//!
//! # The next process
//!
//! Contents, and the entries of pages, objects and pools, are in two files in memory that outlive
//! the process. [`Store::recover`] takes them over: see `entry` for what makes an entry be there,
//! and `recover` for how it is found. The order of writes is what counts, not when they reach the
//! other processors: a page's contents, then its entry, then the answer; and for a page that goes,
//! first its entry. No entry is in force beside an older one with its key, so that none needs a
//! number to say which is newer.
//!
//! Entries always have a check. Contents of persistent pages have one where
//! [`Config::check_contents`] says so, in place of the links of the list that they are not in: it
//! takes up to three quarters of the time of the copy (`cargo bench --bench store -- page/`), to find
//! what no order of writes leads to. It is compared once in each process that takes them over, when
//! they are asked for first. Without it, compressed contents are still known by whether they come to
//! a page, and the lengths of all are checked.
//!
//! # Locking
//!
//! One lock guards all that is known *about* pages. It is taken per batch of keys and held for a
//! bounded number of steps, never while a page is copied or compressed: a put fills a slot that no
//! key leads to yet, a get pins the page that it copies from. (But pages that nobody reads are moved
//! under it, to make room.) Flushes of many pages are a [`Walk`], which lets go of the lock every few
//! hundred pages, and can be left alone and gone on with at any time.

mod accounts;
mod arena;
mod below;
mod buckets;
mod budget;
mod classes;
mod codec;
mod compact;
mod cursors;
mod entry;
mod evicted;
mod fairness;
mod fetch;
mod flush;
mod freeze;
mod get;
mod guest;
mod id;
mod index;
mod inner;
mod lend;
mod lru;
mod mapping;
mod memory;
mod places;
mod pool;
mod put;
mod ranges;
mod records;
mod recover;
mod reused;
mod room;
mod scan;
mod share;
mod shared;
mod slots;
mod spans;
mod take;
mod tidy;
mod vacancies;
mod walk;

#[cfg(test)]
mod crash_tests;

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    sync::{
        atomic::{AtomicBool, AtomicUsize, Ordering},
        Arc, Mutex, MutexGuard, PoisonError, Weak,
    },
};

pub use arena::{HugePages, PageBytes};
pub use codec::Compression;
pub use get::{PageSink, Taken};
pub use guest::{Dropped, DroppedKind, Guest, PoolError};
pub(crate) use memory::taken;
pub use memory::Memory;
pub use pool::{Contents, PoolCounters, PoolKind, PoolReport};
pub use put::PageSource;
pub use records::Hold;
pub use recover::{Recovered, RecoveredGuest};
pub use shared::{AccessCounters, AccessReport, SharedPool, SharedReport, FIRST_SHARED};
pub use take::Held;
pub use walk::{Progress, Walk};

use arena::Arena;
use below::Lower;
use budget::{entry_bytes, Budget};
use entry::{Object, Page};
pub use evicted::NearMisses;
use fairness::Parts;
pub use fairness::{Holding, Part};
use id::SpanId;
use inner::Inner;
use memory::Files;
use recover::extent;
use spans::CHUNK_SPANS;

use crate::{tier::Tier, tmpfs::Tmpfs};

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
    /// What it takes now, in bytes, with what is free but was not given back, as the operating
    /// system says. What of it is in the host's swap counts as well.
    pub resident_bytes: u64,
    /// What of the capacity is lent to guests, in bytes.
    pub lent_bytes: u64,
    /// What of the capacity is withheld from all guests, in bytes.
    pub withheld_bytes: u64,
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
    /// More is promised to the guests than there is.
    #[error(
        "the guests are promised {0} bytes in all, and the capacity is {1}; promise each less"
    )]
    Promised(u64, u64),
    /// The operating system refused address space, or to keep what is mapped out of the swap.
    #[error("cannot map {0} bytes of memory: {1}; if they are to be locked, is RLIMIT_MEMLOCK high enough?")]
    Map(u64, #[source] io::Error),
    /// The operating system refused a file in memory.
    #[error("cannot make a file in memory for the {name} of the store: {error}")]
    Memory {
        /// Which one.
        name: &'static str,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// What the pages below it take cannot be had.
    #[error("what is below the store cannot be used: {0}")]
    Tier(#[source] io::Error),
    /// What was handed over is not the memory of such a store.
    #[error("the {name} of the store cannot be taken over: {why}")]
    Foreign {
        /// Which file.
        name: &'static str,
        /// What is wrong with it.
        why: String,
    },
}

/// What a store is to be like.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// The ceiling of what it takes, in bytes, metadata included.
    pub capacity: u64,
    /// How it compresses pages.
    pub compression: Compression,
    /// Whether pages are kept in huge pages, if the operating system has such.
    pub huge_pages: HugePages,
    /// Whether its memory is kept out of the host's swap.
    pub lock_memory: bool,
    /// Whether persistent pages get a check of their contents when they are put, which the next
    /// process compares them with. That takes up to three quarters of
    /// the time of the copy.
    pub check_contents: bool,
    /// How many guests share the capacity. Those with numbers below this are promised something.
    pub guests: u32,
    /// The bytes that each of these is promised for its persistent pages, whatever the others put.
    pub guaranteed: u64,
    /// Misbehaviour on purpose.
    pub faults: Faults,
}

impl Config {
    /// Returns a store of this capacity for so many guests: each is promised its share of half of
    /// it.
    pub fn shared(capacity: u64, guests: u32) -> Self {
        Self {
            guests,
            guaranteed: capacity / (2 * u64::from(guests.max(1))),
            ..Self::new(capacity)
        }
    }

    /// Returns a store of this capacity that is as usual, and promises nobody anything.
    pub fn new(capacity: u64) -> Self {
        Self {
            capacity,
            compression: Compression::default(),
            huge_pages: HugePages::default(),
            lock_memory: false,
            check_contents: false,
            guests: 0,
            guaranteed: 0,
            faults: Faults::default(),
        }
    }
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
    files: Files,
    compression: Compression,
    check_contents: bool,
    /// What is below, if there is something.
    lower: Option<Lower>,
    /// That of the inner one, to be read without the lock.
    pressed: Arc<AtomicBool>,
    useful_credits: u32,
    watchers: Mutex<Vec<Watching>>,
    /// The length of `watchers`, to be read without its lock.
    watching: AtomicUsize,
}

/// Who wants to be told, and of whose credits: a guest's, or those for whoever comes first.
struct Watching {
    guest: Option<u32>,
    watcher: Weak<dyn CreditWatcher>,
}

impl Store {
    /// Makes a store without pages, and memory for it: that can be huge pages where this process may
    /// mount a file system for them.
    ///
    /// # Errors
    ///
    /// [`StoreError`] where the capacity is too small, or the operating system refuses.
    pub fn new(config: &Config) -> Result<Self, StoreError> {
        let tmpfs = Tmpfs::mount().ok();
        let (store, _) = Self::recover(config, Memory::create(config, tmpfs.as_ref())?)?;
        Ok(store)
    }

    /// Makes a store of memory that another process may have used before, with all pages and pools
    /// that are described there, and says what these are. Nobody else uses the memory any more.
    ///
    /// Pools that were being destroyed are emptied by [`Self::tidy_step`]. Counters start anew.
    ///
    /// # Errors
    ///
    /// [`StoreError::Foreign`] where the memory is not that of a store as `config` says, and others
    /// where the operating system refuses.
    pub fn recover(config: &Config, memory: Memory) -> Result<(Self, Recovered), StoreError> {
        Self::recover_above(config, memory, None)
    }

    /// As [`Self::recover`], above a tier: that in which the process before has put what its pages say
    /// is there.
    ///
    /// # Errors
    ///
    /// As of [`Self::recover`].
    pub fn recover_above(
        config: &Config,
        memory: Memory,
        tier: Option<Arc<dyn Tier>>,
    ) -> Result<(Self, Recovered), StoreError> {
        let map = |error| StoreError::Map(config.capacity, error);
        let budget = Budget::of(config)?;
        let files = memory.open(config, &budget)?;
        let max = budget.max_pages();
        let pages = extent::<Page>(&files, files.layout.pages, max).map_err(map)?;
        let objects = extent::<Object>(&files, files.layout.objects, max).map_err(map)?;
        let budget = budget.grown_to(pages, objects);
        let (file, spans) = (&files.pages, budget.max_spans());
        let huge = files.huge && config.huge_pages == HugePages::On;
        let arena = Arena::new(file, spans, huge, config.lock_memory);
        let arena = Arc::new(arena.map_err(map)?);
        let useful_credits = u32::try_from(budget.raw_pages() / 32).unwrap_or(u32::MAX);
        let parts = Parts::alike(0..config.guests, config.guaranteed);
        if parts.promised() > config.capacity {
            return Err(StoreError::Promised(parts.promised(), config.capacity));
        }
        let inner = Inner::new(&files, budget, Arc::clone(&arena), parts, config.faults);
        let mut inner = inner.map_err(map)?;
        if config.lock_memory {
            inner.index.lock().map_err(map)?;
        }
        let lower = tier.map(|tier| {
            let (secret, start) = files.begin_start()?;
            // Of each start so many pools can be told apart.
            inner.last_life = start << 32;
            inner.tier = Some(Arc::clone(&tier));
            inner.accounts.remember_reuse();
            Lower::new(tier, (secret, start))
        });
        let lower = lower.transpose().map_err(StoreError::Tier)?;
        let recovered = inner.recover(&files).map_err(map)?;
        let store = Self {
            arena,
            files,
            compression: config.compression,
            check_contents: config.check_contents,
            lower,
            pressed: Arc::clone(&inner.pressed),
            useful_credits: useful_credits.clamp(1, 256),
            inner: Mutex::new(inner),
            watchers: Mutex::default(),
            watching: AtomicUsize::new(0),
        };
        Ok((store, recovered))
    }

    /// Returns the memory's descriptors, for who keeps them for the next process: those that
    /// [`Memory::from_descriptors`] takes.
    pub fn descriptors(&self) -> [BorrowedFd<'_>; 2] {
        [self.files.index.as_fd(), self.files.pages.as_fd()]
    }

    /// Returns how many pages of whichever guest comes first would be stored now.
    pub fn credits(&self) -> Credits {
        self.lock().credits(None)
    }

    /// Returns how many pages of a guest would be stored now. Those that others were promised are
    /// not among them.
    pub fn credits_of(&self, guest: &Guest) -> Credits {
        self.lock().credits(Some(guest.number()))
    }

    /// Returns the credits at which they are worth telling of.
    pub fn useful_credits(&self) -> u32 {
        self.useful_credits
    }

    /// Asks to be told, once, when there are [`Self::useful_credits`] for whoever comes first; at
    /// once if there are. Who is gone by then is not told.
    pub fn watch_credits(&self, watcher: Weak<dyn CreditWatcher>) {
        self.watch(None, watcher);
    }

    /// As [`Self::watch_credits`], for the credits of a guest.
    pub fn watch_credits_of(&self, guest: &Guest, watcher: Weak<dyn CreditWatcher>) {
        self.watch(Some(guest.number()), watcher);
    }

    fn watch(&self, guest: Option<u32>, watcher: Weak<dyn CreditWatcher>) {
        let mut watchers = self.watchers.lock().unwrap_or_else(PoisonError::into_inner);
        watchers.retain(|watching| watching.watcher.strong_count() > 0);
        watchers.push(Watching { guest, watcher });
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
        let private = inner.index.taken() + inner.slots.table.taken();
        StoreReport {
            capacity_bytes: inner.budget.capacity() as u64,
            compression: self.compression,
            used_bytes: entry_bytes(used_pages, objects) + inner.contents.slot_bytes,
            resident_bytes: private + taken(&self.files.index) + taken(&self.files.pages),
            lent_bytes: inner.budget.lent() as u64,
            withheld_bytes: inner.budget.withheld() as u64,
            capacity_pages: inner.budget.raw_pages() as u64,
            used_pages,
            ephemeral_pages: inner.accounts.ephemeral_pages() as u64,
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
            // Who frees more comes here more often.
            self.release_chunk();
        }
        self.wake_watchers();
    }

    /// Gives the memory of an empty chunk, or of a step of free entries, back to the operating
    /// system; false if there is none.
    fn release_chunk(&self) -> bool {
        let mut inner = self.lock();
        let Some(chunk) = inner.slots.spans_mut().drain() else {
            return inner.shrink_pages();
        };
        inner
            .slots
            .cleaned(SpanId::from_index(chunk * CHUNK_SPANS), CHUNK_SPANS);
        drop(inner);
        // SAFETY: The allocator took the empty chunk out of use until it is told.
        unsafe { self.arena.release_chunk(chunk) };
        self.lock().slots.spans_mut().drained(chunk);
        true
    }

    fn wake_watchers(&self) {
        if self.watching.load(Ordering::SeqCst) == 0 {
            return;
        }
        let mut watchers = self.watchers.lock().unwrap_or_else(PoisonError::into_inner);
        let inner = self.lock();
        let useful = self.useful_credits();
        let (woken, others): (Vec<Watching>, _) = std::mem::take(&mut *watchers)
            .into_iter()
            .partition(|watching| inner.credits(watching.guest).persistent >= useful);
        drop(inner);
        *watchers = others;
        self.watching.store(watchers.len(), Ordering::SeqCst);
        drop(watchers);
        for watcher in woken.iter().filter_map(|woken| woken.watcher.upgrade()) {
            watcher.room_again();
        }
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.report().fmt(f)
    }
}
