// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Lending a guest chunks of its window, out of the capacity that it shares with the others.

use std::sync::{
    atomic::{AtomicU32, AtomicU64, Ordering},
    Arc, Mutex, MutexGuard, PoisonError,
};

use serde::{Deserialize, Serialize};
use virtio_tmem_abi::{Chunk, ChunkKind, Chunks, Le64, SlotKey, Status, WindowReport};
use zerocopy::FromZeros;

use super::{lending::Holding, request::Reject};
use crate::{
    store::{Guest, PageBytes, PageSource, PoolKind, Progress, Store},
    window::{Counts, Mode, Window, CHUNK, CHUNK_SLOTS, OVERHEAD},
};

/// The most chunks that are taken back under one hold of the lock where there is no hurry.
const AT_ONCE: usize = 16;

fn kind_of(kind: ChunkKind) -> PoolKind {
    match kind {
        ChunkKind::Ephemeral => PoolKind::Ephemeral,
        ChunkKind::Persistent => PoolKind::Persistent,
    }
}

/// Lends a guest what is in its window.
///
/// Each chunk that has memory is a loan of the store's: those that are granted are of their kind,
/// those that are ready ephemeral, as they can be had back at once. The first two chunks of a window
/// that is open are persistent.
///
/// # Locking
///
/// `acting` is held while chunks change hands, so that loans and chunks go together; it comes before
/// all locks of window and store. Pages are read without it.
#[derive(Debug)]
pub(super) struct Lender {
    store: Arc<Store>,
    guest: Guest,
    window: Window,
    acting: Mutex<()>,
    /// How many want the guest to be granted no persistent chunk. It changes while somebody acts.
    emptying: AtomicU32,
    /// Persistent chunks that were asked for in vain.
    unserved: AtomicU32,
    /// All that were since the window was set.
    refused: AtomicU64,
    /// Chunks taken back that the driver had not returned.
    taken: AtomicU64,
    /// Bytes that the guest had taken without a grant, and that were taken from it.
    trimmed: AtomicU64,
}

/// What is known of a window, for statistics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowState {
    /// The size of the window in bytes.
    pub bytes: u64,
    /// Whether the driver uses it.
    pub open: bool,
    /// How many chunks of each sort there are.
    pub chunks: Counts,
    /// The bytes of the host's memory that it takes.
    pub allocated: u64,
    /// Chunks taken back that the driver had not returned.
    pub taken: u64,
    /// Persistent chunks that the driver asked for in vain.
    #[serde(default)]
    pub refused: u64,
    /// Bytes that the guest took without a grant, and that were taken from it.
    pub trimmed: u64,
    /// Pages that the guest says it put into the window.
    #[serde(default)]
    pub puts: u64,
    /// Pages for which it says that there was no place in the window.
    #[serde(default)]
    pub no_slot: u64,
    /// Pages that the guest says it looked for in the window, and found there.
    pub gets: u64,
    /// See `gets`.
    pub hits: u64,
    /// Ephemeral pages that it says it replaced by others.
    #[serde(default)]
    pub replaced: u64,
    /// Pages that it says went from the window to the store.
    #[serde(default)]
    pub moved: u64,
    /// Ephemeral pages that it says it read from elsewhere, though they would have been in the window
    /// if that had `near_reach` slots more.
    #[serde(default)]
    pub near_misses: u64,
    /// See `near_misses`.
    #[serde(default)]
    pub near_reach: u64,
    /// Pages that it says it found there, by the time since they were put: less than 2ⁿ seconds, and
    /// not less than half of that.
    #[serde(default)]
    pub hits_by_age: [u64; 16],
}

impl Lender {
    /// Lends on behalf of the guest with this number. `epoch` is that of its connection, if there is
    /// one: what an earlier one had is taken back.
    pub(super) fn new(store: Arc<Store>, number: u32, window: Window, epoch: Option<u64>) -> Self {
        let this = Self {
            guest: store.guest(number),
            store,
            window,
            acting: Mutex::default(),
            emptying: AtomicU32::new(0),
            unserved: AtomicU32::new(0),
            refused: AtomicU64::new(0),
            taken: AtomicU64::new(0),
            trimmed: AtomicU64::new(0),
        };
        if this.is_open() && epoch == Some(this.window.epoch()) {
            this.lend_again();
        } else {
            this.end();
        }
        this
    }

    fn acting(&self) -> MutexGuard<'_, ()> {
        self.acting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the store know what is lent already.
    fn lend_again(&self) {
        let counts = self.window.counts();
        let lend = |kind, bytes| {
            if bytes > 0 {
                self.store.lend_again(&self.guest, kind, bytes);
            }
        };
        let bytes = |chunks: u32| u64::from(chunks) * CHUNK;
        lend(PoolKind::Persistent, OVERHEAD + bytes(counts.persistent));
        lend(PoolKind::Ephemeral, bytes(counts.ephemeral));
    }

    /// A connection of this epoch begins, or goes on.
    pub(super) fn begin(&self, epoch: u64) {
        if self.window.epoch() != epoch {
            self.end();
        }
    }

    /// Goes on with opening the window. What the driver does not know of is taken back first, not
    /// much of it at a time.
    ///
    /// # Errors
    ///
    /// What the response says.
    pub(super) fn open(&self, resume: bool, epoch: u64, step: usize) -> Result<Progress, Reject> {
        let open = self.is_open();
        let resume = resume && open && self.window.epoch() == epoch;
        let acting = self.acting();
        if !resume {
            let held = self.window.held(None);
            self.take_back(held.iter().copied().take(step));
            if held.len() > step {
                return Ok(Progress::More);
            }
        }
        let lent = open || self.store.lend(&self.guest, PoolKind::Persistent, OVERHEAD);
        if lent && self.window.open_for(epoch, resume) {
            return Ok(Progress::Done);
        }
        if lent && !open {
            self.store
                .end_loan(&self.guest, PoolKind::Persistent, OVERHEAD);
        }
        drop(acting);
        self.end();
        Err(Reject::Status(Status::NoMemory))
    }

    /// Has the window outlive resets, until it is opened again.
    ///
    /// # Errors
    ///
    /// It is not open.
    pub(super) fn keep(&self) -> Result<(), Reject> {
        let kept = self.window.keep();
        kept.then_some(()).ok_or(Reject::Status(Status::NoWindow))
    }

    /// Returns how many chunks there are, the first two included.
    pub(super) fn chunks(&self) -> u32 {
        self.window.chunks()
    }

    /// Returns whether the driver uses the window.
    pub(super) fn is_open(&self) -> bool {
        self.window.mode() != Mode::Closed
    }

    /// Looks whether the window is open.
    ///
    /// # Errors
    ///
    /// It is not.
    pub(super) fn require_open(&self) -> Result<(), Reject> {
        self.is_open()
            .then_some(())
            .ok_or(Reject::Status(Status::NoWindow))
    }

    /// Begins to grant chunks. Returns how many the request was granted before, if it is carried out
    /// again.
    pub(super) fn begin_grant(&self, ticket: u64) -> u32 {
        self.window.begin_grant(ticket)
    }

    /// Grants one chunk more. False if there is none.
    pub(super) fn grant(&self, kind: ChunkKind) -> bool {
        let _acting = self.acting();
        self.may_grant(kind) && self.have_ready(kind) && self.window.grant(kind)
    }

    /// So many chunks were asked for in vain.
    pub(super) fn refused(&self, kind: ChunkKind, count: u32) {
        // What is not to be had is not taken from others either.
        if kind == ChunkKind::Persistent && self.may_grant(kind) {
            self.unserved.fetch_add(count, Ordering::Relaxed);
            self.refused.fetch_add(count.into(), Ordering::Relaxed);
        }
    }

    /// Returns whether the guest may be granted chunks of this kind.
    fn may_grant(&self, kind: ChunkKind) -> bool {
        let emptied = kind == ChunkKind::Persistent && self.emptying.load(Ordering::Relaxed) > 0;
        !emptied && !self.is_frozen()
    }

    /// Grants no persistent chunk until the guard is dropped, so that those that the guest returns
    /// become fewer.
    pub(super) fn grant_no_persistent(&self) -> NoPersistent<'_> {
        let _acting = self.acting();
        self.emptying.fetch_add(1, Ordering::Relaxed);
        NoPersistent(self)
    }

    /// Returns whether the guest is to have nothing more.
    fn is_frozen(&self) -> bool {
        self.store.is_frozen(self.guest.number())
    }

    /// Sees to it that a chunk is ready, and lent as of this kind. The caller is acting.
    fn have_ready(&self, kind: ChunkKind) -> bool {
        if self.window.has_failed() {
            return false;
        }
        let (guest, of) = (&self.guest, kind_of(kind));
        if self.window.is_ready() {
            if of == PoolKind::Ephemeral {
                return true;
            }
            self.store.end_loan(guest, PoolKind::Ephemeral, CHUNK);
            if self.store.lend(guest, of, CHUNK) {
                return true;
            }
            self.window.unready();
            return false;
        }
        self.make_ready(of)
    }

    /// Makes one chunk more ready, lent as of this kind. The caller is acting.
    fn make_ready(&self, of: PoolKind) -> bool {
        if !self.store.lend(&self.guest, of, CHUNK) {
            return false;
        }
        let ready = self.window.make_ready();
        if !ready {
            self.store.end_loan(&self.guest, of, CHUNK);
        }
        ready
    }

    /// Returns what answers the last request for chunks.
    pub(super) fn granted(&self) -> Chunks {
        let mut chunks = Chunks::new_zeroed();
        let granted = self.window.granted();
        let mut count = 0;
        for (place, (number, generation)) in chunks.chunks.iter_mut().zip(granted) {
            *place = Chunk {
                number: number.into(),
                generation: generation.into(),
            };
            count += 1;
        }
        chunks.count = count.into();
        chunks
    }

    /// Takes a chunk back that the driver returns, if it has it.
    pub(super) fn give_back(&self, chunk: &Chunk) {
        let _acting = self.acting();
        let (number, generation) = (chunk.number.get(), chunk.generation.get());
        if self.window.holds(number, generation) {
            self.take_back([number]);
        }
    }

    /// Takes chunks back. Returns how many the driver had. The caller is acting.
    fn take_back(&self, chunks: impl IntoIterator<Item = u32>) -> u64 {
        let mut count = 0;
        for number in chunks {
            if let Some(kind) = self.window.take_back(number) {
                self.store.end_loan(&self.guest, kind_of(kind), CHUNK);
                count += 1;
            }
        }
        count
    }

    /// The device was reset: takes everything back, unless it is kept.
    pub(super) fn reset(&self) {
        if self.window.mode() == Mode::Held {
            self.end();
        }
    }

    /// Takes back what the guest may lose, of what it has now. Returns how many chunks those were.
    pub(super) fn abandon(&self) -> u64 {
        let (mut left, mut taken) = (self.window.counts().ephemeral as usize, 0);
        while left > 0 {
            // A few at a time, for the guest not to wait long.
            let _acting = self.acting();
            let mut held = self.window.held(Some(ChunkKind::Ephemeral));
            held.truncate(left.min(AT_ONCE));
            if held.is_empty() {
                break;
            }
            left -= held.len();
            taken += self.take_back(held);
        }
        self.taken.fetch_add(taken, Ordering::Relaxed);
        let _acting = self.acting();
        while self.unready() {}
        taken
    }

    /// Returns how many persistent chunks the guest has.
    pub(super) fn persistent(&self) -> u32 {
        self.window.counts().persistent
    }

    /// Takes everything back: what there was is the guest's no more.
    pub(super) fn end(&self) {
        let _acting = self.acting();
        let open = self.is_open();
        self.take_back(self.window.held(None));
        while self.unready() {}
        self.window.close();
        self.unserved.store(0, Ordering::Relaxed);
        if open {
            self.store
                .end_loan(&self.guest, PoolKind::Persistent, OVERHEAD);
        }
    }

    /// Takes the memory of a chunk that nobody has. The caller is acting.
    fn unready(&self) -> bool {
        let had = self.window.unready();
        if had {
            self.store.end_loan(&self.guest, PoolKind::Ephemeral, CHUNK);
        }
        had
    }

    /// Makes a chunk ready before somebody asks for it, if that is to be done. False if not.
    pub(super) fn prepare(&self) -> bool {
        let _acting = self.acting();
        self.window.ahead() > 0 && !self.is_frozen() && self.make_ready(PoolKind::Ephemeral)
    }

    /// Takes back up to so many chunks that it may, those first that nobody has, and then the
    /// coldest.
    pub(super) fn shrink(&self, count: u32) {
        let _acting = self.acting();
        self.window.calm();
        let mut left = count as usize;
        while left > 0 && self.unready() {
            left -= 1;
        }
        let taken = self.take_back(self.window.coldest(left));
        self.taken.fetch_add(taken, Ordering::Relaxed);
    }

    /// Takes what the guest has taken without a grant. Returns how many bytes that were.
    pub(super) fn trim(&self) -> u64 {
        let trimmed = self.window.trim();
        self.trimmed.fetch_add(trimmed, Ordering::Relaxed);
        trimmed
    }

    /// Returns what the guest has of its window, and what it asked for in vain since this was called
    /// last.
    pub(super) fn holding(&self) -> Holding {
        let counts = self.window.counts();
        let spare = counts.ready + counts.ephemeral;
        Holding {
            above: self.above().unwrap_or_else(|| spare.into()),
            spare,
            persistent: counts.persistent,
            unserved: self.unserved.swap(0, Ordering::Relaxed),
            may_have_more: self.store.is_promised_more(&self.guest),
        }
    }

    /// Returns by how many chunks the guest is above its share of ephemeral memory, if it has one.
    fn above(&self) -> Option<i64> {
        let bytes = self.store.above_share(&self.guest)?;
        // CAST: As a number of chunks it is small.
        Some((bytes / i128::from(CHUNK)) as i64)
    }

    /// Returns what is known of the window.
    pub(super) fn state(&self) -> WindowState {
        let report = self.window.report();
        let told = |count: fn(&WindowReport) -> Le64| report.as_ref().map_or(0, |r| count(r).get());
        WindowState {
            bytes: u64::from(self.window.chunks()) * CHUNK,
            open: self.is_open(),
            chunks: self.window.counts(),
            allocated: self.window.allocated(),
            taken: self.taken.load(Ordering::Relaxed),
            refused: self.refused.load(Ordering::Relaxed),
            trimmed: self.trimmed.load(Ordering::Relaxed),
            puts: told(|report| report.puts),
            no_slot: told(|report| report.refused),
            gets: told(|report| report.gets),
            hits: told(|report| report.hits),
            replaced: told(|report| report.replaced),
            moved: told(|report| report.moved),
            near_misses: told(|report| report.near_misses),
            near_reach: told(|report| report.near_reach),
            hits_by_age: report
                .as_ref()
                .map(|report| report.hits_by_age.map(Le64::get))
                .unwrap_or_default(),
        }
    }

    /// Returns the pages of a put from the window.
    pub(super) fn source<'l>(&'l self, entries: &'l [SlotKey]) -> Slots<'l> {
        Slots {
            window: &self.window,
            entries,
        }
    }
}

/// While there is one, the guest is granted no persistent chunk.
#[derive(Debug)]
pub(super) struct NoPersistent<'l>(&'l Lender);

impl Drop for NoPersistent<'_> {
    fn drop(&mut self) {
        let _acting = self.0.acting();
        self.0.emptying.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Returns how many slots so many chunks have.
pub(super) fn slots_of(chunks: u32) -> u64 {
    u64::from(chunks) * u64::from(CHUNK_SLOTS)
}

/// The pages of a put from the window.
pub(super) struct Slots<'l> {
    window: &'l Window,
    entries: &'l [SlotKey],
}

impl PageSource for Slots<'_> {
    fn read_page(&mut self, n: usize, frame: &mut PageBytes) -> bool {
        let Some(entry) = self.entries.get(n) else {
            return false;
        };
        let (slot, generation) = (entry.slot.get(), entry.generation.get());
        self.window.read_slot(slot, generation, frame)
    }
}
