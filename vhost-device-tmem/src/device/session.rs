// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One guest's connection: its place in the store, its epoch and its counters.

use std::{
    hash::{BuildHasher, Hasher, RandomState},
    io,
    sync::{
        atomic::{AtomicBool, AtomicU64, Ordering},
        Arc, Mutex, PoisonError,
    },
    time::{Duration, Instant},
};

use virtio_tmem_abi::{cap, Config, Event, EventKind, ABI_MAJOR, ABI_MINOR, EPOCH_NONE, MAGIC};
use vmm_sys_util::eventfd::EventFd;

use super::{pools::Pools, Limits};
use crate::store::{CreditWatcher, Credits, Dropped, PoolReport, Store, PAGE_SHIFT};

/// How often at most the log speaks of one guest's broken requests.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

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

/// A guest, from its connecting to its going away.
#[derive(Debug)]
pub struct Session {
    pub(super) name: String,
    pub(super) store: Arc<Store>,
    pub(super) pools: Pools,
    pub(super) limits: Limits,
    /// What happened on the connection.
    pub counters: Counters,
    /// Set when the workers are to stop, whatever is on the virtqueues.
    pub(super) stopping: AtomicBool,
    /// Wakes the worker that sends events.
    pub(super) wake: EventFd,
    epoch: u64,
    /// The store was asked to tell of credits.
    watching: AtomicBool,
    credits_due: AtomicBool,
    last_log: Mutex<Option<Instant>>,
}

impl Session {
    /// Gives a guest a place in the store, and an epoch that it never had.
    ///
    /// # Errors
    ///
    /// The operating system's, where it has no file descriptor left.
    pub fn new(name: &str, store: Arc<Store>, limits: Limits) -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            name: name.to_owned(),
            pools: Pools::new(Arc::clone(&store)),
            store,
            limits,
            counters: Counters::default(),
            stopping: AtomicBool::new(false),
            wake: EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?,
            epoch: random_epoch(),
            watching: AtomicBool::new(false),
            credits_due: AtomicBool::new(false),
            last_log: Mutex::new(None),
        }))
    }

    /// Returns the epoch, never zero and never [`EPOCH_NONE`].
    pub fn epoch(&self) -> u64 {
        self.epoch
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

    /// Forgets all that the guest put. No worker of the session is left.
    pub(super) fn end(&self) -> Dropped {
        self.pools.end()
    }

    /// Returns the configuration space.
    pub(super) fn config(&self) -> Config {
        Config {
            magic: MAGIC.into(),
            abi_major: ABI_MAJOR.into(),
            abi_minor: ABI_MINOR.into(),
            capabilities: (cap::EPHEMERAL | cap::PERSISTENT | cap::KEEP).into(),
            page_shift: PAGE_SHIFT,
            reserved0: 0,
            data_queues: self.limits.data_queues.into(),
            max_pages: self.limits.max_pages.into(),
            max_flushes: self.limits.max_flushes.into(),
            max_pools: self.limits.max_pools.into(),
            epoch: self.epoch.into(),
            reserved1: [0; 23],
            end: 0,
        }
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
        if !self.credits_due.swap(false, Ordering::SeqCst) {
            return None;
        }
        let credits = self.credits_to_tell();
        Some(Event {
            kind: EventKind::Credits.to_wire().into(),
            reserved: [0; 6],
            persistent_credits: credits.persistent.into(),
            ephemeral_credits: credits.ephemeral.into(),
            epoch: self.epoch.into(),
            pages: 0.into(),
        })
    }

    /// Returns whether an event is due.
    pub(super) fn event_due(&self) -> bool {
        self.credits_due.load(Ordering::SeqCst)
    }

    /// Counts a request that breaks a rule, and says so now and then.
    pub(super) fn note_malformed(&self, why: &str) {
        self.counters.malformed.add(1);
        if self.may_log() {
            let total = self.counters.malformed.get();
            tracing::warn!(
                "guest {:?} sent a malformed request ({why}); {total} so far",
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
    /// releases.
    pub(super) fn reset(&self) {
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

    fn may_log(&self) -> bool {
        let mut last = self.last_log.lock().unwrap_or_else(PoisonError::into_inner);
        let may = last.is_none_or(|last| last.elapsed() >= LOG_INTERVAL);
        if may {
            *last = Some(Instant::now());
        }
        may
    }
}

impl CreditWatcher for Session {
    fn room_again(&self) {
        self.watching.store(false, Ordering::SeqCst);
        self.credits_due.store(true, Ordering::SeqCst);
        // It can only fail where the counter is full, and then the worker is awake.
        let _ = self.wake.write(1);
    }
}

fn random_epoch() -> u64 {
    loop {
        let mut hasher = RandomState::new().build_hasher();
        hasher.write_u32(std::process::id());
        match hasher.finish() {
            0 | EPOCH_NONE => continue,
            epoch => return epoch,
        }
    }
}
