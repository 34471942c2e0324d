// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One guest's connection: its place in the store, its epoch and its counters.

use std::sync::{
    atomic::{AtomicBool, AtomicU64, Ordering},
    Arc, Mutex, MutexGuard, PoisonError, TryLockError,
};

use virtio_tmem_abi::{Event, EventKind, PageResult};

use super::{
    lender::{slots_of, Lender},
    loglimit::LogLimit,
    pools::Pools,
    request::Offer,
    Limits, WindowState,
};
use crate::{
    store::{CreditWatcher, Credits, Dropped, PoolReport, Store, PAGE_SIZE},
    window::CHUNK,
};

/// Credits below which the guest is told when there are more.
const LOW_CREDITS: u32 = 32;

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds to the number.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// Returns the number.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What happened on a connection.
#[derive(Debug, Default)]
pub struct Counters {
    /// Requests, whatever became of them.
    pub requests: Counter,
    /// Requests that break a rule, or name no operation of their virtqueue.
    pub malformed: Counter,
    /// Notifications received.
    pub kicks: Counter,
    /// Times that a worker looked at a virtqueue for a while before it went to sleep.
    pub polls: Counter,
    /// Of those, the ones that found a request.
    pub polls_found: Counter,
    /// Interrupts sent.
    pub calls: Counter,
    /// Events sent.
    pub events: Counter,
    /// Requests, and pages of others, in memory that the front-end does not share.
    pub out_of_reach: Counter,
    /// Virtqueues found broken.
    pub ring_errors: Counter,
}

/// Wakes whoever sends a guest's events. It may be called from any thread, with locks of the
/// store's watchers held by none.
pub(super) type Waker = Box<dyn Fn() + Send + Sync>;

/// A guest, from its connecting to its going away.
pub struct Session {
    pub(super) name: String,
    pub(super) store: Arc<Store>,
    pub(super) pools: Pools,
    pub(super) limits: Limits,
    /// Who lends it chunks of its window, if it has one.
    pub(super) lender: Option<Arc<Lender>>,
    /// What happened on the connection.
    pub counters: Counters,
    log: Arc<LogLimit>,
    epoch: AtomicU64,
    /// Wakes the thread that sends events, while there is one.
    waker: Mutex<Option<Waker>>,
    /// The store was asked to tell of credits.
    watching: AtomicBool,
    epoch_due: AtomicBool,
    credits_due: AtomicBool,
    /// Slots in persistent chunks that the guest is to be asked for.
    recall_due: AtomicU64,
    /// Persistent pages of the store that the guest is to be asked for.
    shrink_due: AtomicU64,
    /// Why it is not served at the moment.
    failure: Mutex<Option<String>>,
    /// Virtqueues that run.
    running: AtomicU64,
    /// Times that one was started.
    starts: AtomicU64,
    /// The connection ended.
    ended: AtomicBool,
    /// Held while pages of a stream are given to the guest.
    restoring: Mutex<()>,
    /// The driver created a pool since its virtqueues run.
    driven: AtomicBool,
    /// The log told of a refusal.
    refused: AtomicBool,
}

impl Session {
    /// Gives a guest its place in the store, by its number. `log` says how much may be said of it.
    pub(super) fn new(
        number: u32,
        name: &str,
        store: Arc<Store>,
        limits: Limits,
        epoch: u64,
        log: Arc<LogLimit>,
        lender: Option<Arc<Lender>>,
    ) -> Arc<Self> {
        Arc::new(Self {
            name: name.to_owned(),
            pools: Pools::new(Arc::clone(&store), number),
            store,
            limits,
            lender,
            counters: Counters::default(),
            log,
            epoch: AtomicU64::new(epoch),
            waker: Mutex::default(),
            watching: AtomicBool::new(false),
            epoch_due: AtomicBool::new(false),
            credits_due: AtomicBool::new(false),
            recall_due: AtomicU64::new(0),
            shrink_due: AtomicU64::new(0),
            failure: Mutex::default(),
            running: AtomicU64::new(0),
            starts: AtomicU64::new(0),
            ended: AtomicBool::new(false),
            restoring: Mutex::default(),
            driven: AtomicBool::new(false),
            refused: AtomicBool::new(false),
        })
    }

    /// Returns the epoch, never zero and never [`EPOCH_NONE`](virtio_tmem_abi::EPOCH_NONE).
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// The guest, of which no virtqueue runs, goes on in another epoch.
    pub(super) fn set_epoch(&self, epoch: u64) {
        self.epoch.store(epoch, Ordering::Release);
    }

    /// Returns whether a virtqueue runs.
    pub fn runs(&self) -> bool {
        self.running.load(Ordering::SeqCst) > 0
    }

    /// Returns how often a virtqueue was started.
    pub(super) fn starts(&self) -> u64 {
        self.starts.load(Ordering::SeqCst)
    }

    /// Returns whether all that the guest put was forgotten with its connection.
    pub(super) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::SeqCst)
    }

    /// Takes it on to give the guest the pages of a stream, until the guard is dropped. [`None`] if
    /// somebody else does so.
    pub(super) fn begin_restore(&self) -> Option<MutexGuard<'_, ()>> {
        match self.restoring.try_lock() {
            Ok(guard) => Some(guard),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// Returns what its device has.
    pub(super) fn offer(&self) -> Offer<'_> {
        Offer {
            limits: &self.limits,
            epoch: self.epoch(),
            window: self.lender.is_some(),
        }
    }

    /// Returns what is known of its window, [`None`] if it has none.
    pub fn window(&self) -> Option<WindowState> {
        self.lender.as_ref().map(|lender| lender.state())
    }

    /// Returns the credits of this moment.
    pub fn credits(&self) -> Credits {
        self.store.credits_of(self.pools.guest())
    }

    /// Returns what the guest's pools hold.
    pub fn pools(&self) -> Vec<PoolReport> {
        self.store.pools(self.pools.guest())
    }

    /// Returns what became of the pools that it does not have any more.
    pub fn dropped(&self) -> Dropped {
        self.pools.dropped()
    }

    /// Returns whether the guest is not served at the moment.
    pub(super) fn has_failed(&self) -> bool {
        self.failure().is_some()
    }

    pub(super) fn failure(&self) -> MutexGuard<'_, Option<String>> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the guest out of service. Returns whether it was in service before.
    pub(super) fn fail(&self, why: &str) -> bool {
        let mut failure = self.failure();
        let first = failure.is_none();
        if first {
            *failure = Some(why.to_owned());
            tracing::error!(
                "guest {:?} is not served any more, until its driver starts anew: {why}",
                self.name
            );
        }
        first
    }

    /// Takes the guest into service again.
    pub(super) fn recover(&self) {
        *self.failure() = None;
    }

    /// Forgets the guest's ephemeral pages.
    pub(super) fn abandon(&self) {
        // Of all pools, so that none can be missing.
        let _ = self.flush_ephemeral(None);
    }

    /// Forgets all that the guest put. No virtqueue of it runs.
    pub(super) fn end(&self) -> Dropped {
        self.ended.store(true, Ordering::SeqCst);
        // Before there is no such guest to lend anything.
        if let Some(lender) = &self.lender {
            lender.end();
        }
        self.pools.end()
    }

    /// Says who is to be woken when an event is due.
    pub(super) fn set_waker(&self, waker: Option<Waker>) {
        *self.waker.lock().unwrap_or_else(PoisonError::into_inner) = waker;
    }

    /// Returns the credits for a response or an event. Where they are low, an event follows once they are not.
    pub(super) fn credits_to_tell(self: &Arc<Self>) -> Credits {
        let credits = self.store.credits_of(self.pools.guest());
        let lowest = credits.persistent.min(credits.ephemeral);
        // Asking what is useful takes a lock.
        if lowest < LOW_CREDITS
            && lowest < self.store.useful_credits()
            && !self.watching.swap(true, Ordering::SeqCst)
        {
            let watcher = Arc::downgrade(self);
            self.store.watch_credits_of(self.pools.guest(), watcher);
        }
        credits
    }

    /// Returns the event that is due, if any; it is not due any more then.
    pub(super) fn take_event(self: &Arc<Self>) -> Option<Event> {
        let (kind, pages) = if self.epoch_due.swap(false, Ordering::SeqCst) {
            (EventKind::Epoch, 0)
        } else if self.credits_due.swap(false, Ordering::SeqCst) {
            (EventKind::Credits, 0)
        } else {
            match self.recall_due.swap(0, Ordering::SeqCst) {
                0 => match self.shrink_due.swap(0, Ordering::SeqCst) {
                    0 => return None,
                    pages => (EventKind::Shrink, pages),
                },
                slots => (EventKind::Recall, slots),
            }
        };
        let credits = self.credits_to_tell();
        Some(Event {
            kind: kind.to_wire().into(),
            reserved: [0; 6],
            persistent_credits: credits.persistent.into(),
            ephemeral_credits: credits.ephemeral.into(),
            epoch: self.epoch().into(),
            pages: pages.into(),
        })
    }

    /// Returns whether an event is due.
    pub(super) fn event_due(&self) -> bool {
        let due = [&self.epoch_due, &self.credits_due];
        let asked = [&self.recall_due, &self.shrink_due];
        let mut asked = asked.into_iter().map(|due| due.load(Ordering::SeqCst));
        due.iter().any(|due| due.load(Ordering::SeqCst)) || asked.any(|due| due > 0)
    }

    /// Tells the guest of its epoch.
    pub(super) fn tell_epoch(&self) {
        self.epoch_due.store(true, Ordering::SeqCst);
        self.wake();
    }

    /// Asks the guest for so many persistent chunks of its window.
    pub(super) fn recall(&self, chunks: u32) {
        self.recall_due.store(slots_of(chunks), Ordering::SeqCst);
        self.wake();
    }

    /// Asks the guest for so many bytes of persistent memory: for chunks of its window, as far as it
    /// has such, and for pages of the store.
    pub(crate) fn drain(&self, bytes: u64) {
        let window = self.window().filter(|window| window.open);
        let chunks = window.map_or(0, |window| u64::from(window.chunks.persistent));
        let recalled = bytes.div_ceil(CHUNK).min(chunks);
        if recalled > 0 {
            self.recall(recalled as u32);
        }
        let pages = bytes
            .saturating_sub(recalled * CHUNK)
            .div_ceil(PAGE_SIZE as u64);
        if pages > 0 {
            self.shrink_due.store(pages, Ordering::SeqCst);
            self.wake();
        }
    }

    /// Counts a request that breaks a rule, and says so now and then.
    pub(super) fn note_malformed(&self, why: impl std::fmt::Debug) {
        self.counters.malformed.add(1);
        if self.may_log() {
            let total = self.counters.malformed.get();
            tracing::warn!(
                "guest {:?} sent a malformed request ({why:?}); {total} so far",
                self.name
            );
        }
    }

    /// Counts requests, or pages, in memory that cannot be reached, and says so now and then.
    pub(super) fn note_out_of_reach(&self, count: u64) {
        if count == 0 {
            return;
        }
        self.counters.out_of_reach.add(count);
        if self.may_log() {
            let (name, total) = (&self.name, self.counters.out_of_reach.get());
            tracing::warn!(
                "guest {name:?} has memory that is not shared: {total} pages or requests in it \
                 could not be reached so far; give each memory backend share=on"
            );
        }
    }

    /// The driver, or who has it in hand, has reset the device: frees the pools that this
    /// releases, and takes back what is granted of the window.
    pub(super) fn reset(&self) {
        if let Some(lender) = &self.lender {
            lender.reset();
        }
        let dropped = self.pools.reset();
        if dropped != Dropped::default() {
            tracing::info!(
                "guest {:?} was reset: {} persistent and {} ephemeral pages released",
                self.name,
                dropped.persistent.pages,
                dropped.ephemeral.pages
            );
        }
    }

    /// Counts a virtqueue that the guest broke, and says so now and then.
    pub(super) fn note_ring_error(&self, queue: &str, error: &virtio_queue::Error) {
        self.counters.ring_errors.add(1);
        if self.may_log() {
            let name = &self.name;
            tracing::warn!("guest {name:?} broke its {queue} virtqueue: {error}");
        }
    }

    /// Says now and then that the guest took memory of its window without a grant.
    ///
    /// One that has not opened it looks whether there is a header, and takes a page by that, and so a
    /// huge one: that is no news.
    pub(super) fn note_trimmed(&self, bytes: u64) {
        let open = self.window().is_some_and(|window| window.open);
        if open && self.may_log() {
            let (name, pages) = (&self.name, bytes / crate::store::PAGE_SIZE as u64);
            tracing::warn!(
                "guest {name:?} wrote to its window where nothing is granted: {pages} pages were \
                 taken away again"
            );
        }
    }

    /// A virtqueue runs.
    pub(super) fn note_started(&self) {
        self.running.fetch_add(1, Ordering::SeqCst);
        self.starts.fetch_add(1, Ordering::SeqCst);
    }

    /// A virtqueue does not run any more. With the last one, the driver is gone, or rests.
    pub(super) fn note_stopped(&self) {
        if self.running.fetch_sub(1, Ordering::SeqCst) == 1
            && self.driven.swap(false, Ordering::Relaxed)
            && self.log.may_tell_life()
        {
            let pages: u64 = self.pools().iter().map(|pool| pool.pages).sum();
            tracing::info!(
                "the driver of guest {:?} is down; {pages} of its pages are kept",
                self.name
            );
        }
    }

    /// The driver created a pool: what uses the virtqueues is a driver, and works.
    pub(super) fn note_pool(&self) {
        if !self.driven.swap(true, Ordering::Relaxed) && self.log.may_tell_life() {
            tracing::info!("the driver of guest {:?} is up", self.name);
        }
    }

    /// A put was refused, which is told once.
    pub(super) fn note_refusal(&self, why: PageResult) {
        if self.refused.load(Ordering::Relaxed) || self.refused.swap(true, Ordering::Relaxed) {
            return;
        }
        if self.log.may_tell_life() {
            tracing::info!(
                "pages of guest {:?} are refused ({why:?}), which goes to its own disk then; \
                 it is not said again",
                self.name
            );
        }
    }

    /// Wakes who sends events.
    fn wake(&self) {
        if let Some(wake) = &*self.waker.lock().unwrap_or_else(PoisonError::into_inner) {
            wake();
        }
    }

    fn may_log(&self) -> bool {
        self.log.may_tell_fault()
    }
}

impl CreditWatcher for Session {
    fn room_again(&self) {
        self.watching.store(false, Ordering::SeqCst);
        self.credits_due.store(true, Ordering::SeqCst);
        self.wake();
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("name", &self.name)
            .field("epoch", &self.epoch())
            .finish_non_exhaustive()
    }
}
