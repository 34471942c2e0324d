// SPDX-License-Identifier: GPL-2.0

//! Pages that were copied because their put cannot wait for the device.

use kernel::{
    new_spinlock_irq,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc,
        SpinLockIrq, //
    },
    time::msecs_to_jiffies,
};

use crate::{
    bindings::thread,
    virtio::pages::{
        PagePool,
        PageRef,
        Slot, //
    },
};

use super::{
    half::Half,
    logic::index::{
        Covers,
        NoRoom, //
    },
    request::Origin,
    Client,
    Pool, //
};

/// How long to wait for any staging memory to be free, in milliseconds.
const PATIENCE: u32 = 200;

/// For how long not to wait after that was in vain, in milliseconds.
const IMPATIENCE: u32 = 1000;

/// One page that waits to be sent.
pub(super) struct Staged {
    pub(super) slot: Slot,
    pub(super) tag: u64,
    pub(super) wire: u64,
    pub(super) index: u64,
    pub(super) version: u32,
    pub(super) covers: Covers,
    /// Whether the CRC is to be remembered.
    pub(super) checked: bool,
}

/// Pages of one virtqueue, in the order in which they came.
///
/// # Invariants
///
/// `items` has room for all slots that there are.
struct Fifo {
    items: KVVec<Option<Staged>>,
    head: usize,
    len: usize,
}

impl Fifo {
    /// Returns the place of what is at most one turn further.
    fn wrap(&self, at: usize) -> usize {
        at.checked_sub(self.items.len()).unwrap_or(at)
    }

    fn push(&mut self, staged: Staged) -> Result<(), Staged> {
        let capacity = self.items.len();

        if self.len >= capacity {
            return Err(staged);
        }
        let at = self.wrap(self.head.wrapping_add(self.len));
        match self.items.get_mut(at) {
            Some(place) => *place = Some(staged),
            None => return Err(staged),
        }
        self.len += 1;
        Ok(())
    }

    fn pop(&mut self) -> Option<Staged> {
        if self.len == 0 {
            return None;
        }
        let staged = self.items.get_mut(self.head)?.take();

        self.head = self.wrap(self.head.wrapping_add(1));
        self.len -= 1;
        staged
    }
}

/// The staging memory.
#[pin_data]
pub(super) struct Staging {
    pub(super) pages: Arc<PagePool>,
    fifos: KVec<Pin<KBox<SpinLockIrq<Fifo>>>>,
    waiting: Atomic<usize>,
    /// Until when, in jiffies, nobody waits for a page to be free.
    impatient_until: Atomic<usize>,
}

impl Staging {
    /// Allocates `pages` pages, to be sent over `queues` virtqueues.
    ///
    /// May sleep.
    pub(super) fn new(pages: u32, queues: usize) -> impl PinInit<Self, Error> {
        pin_init::pin_init_scope(move || {
            let mut fifos = KVec::with_capacity(queues, GFP_KERNEL)?;
            for _ in 0..queues {
                let mut items = KVVec::with_capacity(pages as usize, GFP_KERNEL)?;
                for _ in 0..pages {
                    items.push(None, GFP_KERNEL)?;
                }
                // INVARIANT: There are as many slots.
                let fifo = Fifo {
                    items,
                    head: 0,
                    len: 0,
                };
                fifos.push(
                    KBox::pin_init(new_spinlock_irq!(fifo, "Staging::fifos"), GFP_KERNEL)?,
                    GFP_KERNEL,
                )?;
            }

            Ok(try_pin_init!(Self {
                pages: Arc::pin_init(PagePool::new(pages), GFP_KERNEL)?,
                fifos,
                waiting: Atomic::new(0),
                impatient_until: Atomic::new(thread::jiffies()),
            }))
        })
    }

    /// Returns how many pages wait, for a file.
    pub(super) fn waiting_counter(&self) -> &Atomic<usize> {
        &self.waiting
    }

    /// Returns how many pages wait.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.load(Relaxed)
    }

    /// Returns whether pages wait.
    pub(super) fn any(&self) -> bool {
        self.waiting() > 0
    }

    /// Returns over how many virtqueues the pages go.
    pub(super) fn queues(&self) -> usize {
        self.fifos.len()
    }

    /// Takes the page that has waited longest for virtqueue `n`.
    pub(super) fn pop(&self, n: usize) -> Option<Staged> {
        let staged = self.fifos.get(n)?.lock().pop()?;

        self.waiting.fetch_sub(1, Relaxed);
        Some(staged)
    }

    fn push(&self, n: usize, staged: Staged) -> Result<usize, Staged> {
        let Some(fifo) = self.fifos.get(n) else {
            return Err(staged);
        };

        // Counted first: as soon as it is in, somebody may take it out.
        let waiting = self.waiting.fetch_add(1, Relaxed).wrapping_add(1);
        match fifo.lock().push(staged) {
            Ok(()) => Ok(waiting),
            Err(staged) => {
                self.waiting.fetch_sub(1, Relaxed);
                Err(staged)
            }
        }
    }

    /// Forgets all pages that wait.
    pub(super) fn drain(&self) {
        for n in 0..self.fifos.len() {
            while let Some(staged) = self.pop(n) {
                self.pages.give(staged.slot);
            }
        }
    }
}

impl<O: Origin> Client<O> {
    /// Puts a copy of a page into the ephemeral pool.
    ///
    /// The page can be got from when this returns true. An earlier page at this place cannot be
    /// got any more, whatever happens. With `checked` what comes back later is compared with what
    /// was put. An object with one of the marks `refuse` is not put. Any context; nothing waits,
    /// nothing is allocated.
    pub(crate) fn stage(
        &self,
        tag: u64,
        index: u64,
        page: PageRef,
        checked: bool,
        refuse: u8,
    ) -> bool {
        let half = &self.cleancache;
        if !self.running() || half.admit(1) == 0 {
            self.flush_page(Pool::Cleancache, tag, index);
            return false;
        }
        let Some(mut slot) = self.staging.pages.take() else {
            half.admitted(1, 0);
            half.counters.no_staging.add(1);
            self.flush_page(Pool::Cleancache, tag, index);
            return false;
        };
        self.staging.pages.copy_in(&mut slot, page);

        let Some(mut shard) = half.shard(tag) else {
            half.admitted(1, 0);
            self.staging.pages.give(slot);
            return false;
        };
        let inserted = if shard.flags(tag) & refuse == 0 {
            shard.insert_pending(tag, index, slot.number())
        } else {
            Err(NoRoom)
        };
        let short = shard.wants().any();
        if inserted.is_err() {
            shard.erase(tag, index);
        }
        drop(shard);
        half.admitted(1, usize::from(inserted.is_ok()));
        if short {
            self.want_growth();
        }
        let Ok(inserted) = inserted else {
            half.counters.no_memory.add(1);
            self.staging.pages.give(slot);
            return false;
        };

        let staged = Staged {
            slot,
            tag,
            wire: inserted.wire,
            index,
            version: inserted.version,
            covers: inserted.covers,
            checked,
        };
        match self
            .staging
            .push(Half::shard_of(tag) % self.staging.queues().max(1), staged)
        {
            Ok(waiting) => {
                self.staged(waiting);
                true
            }
            Err(staged) => {
                // There is room for all slots: this does not happen.
                self.abandon(staged);
                false
            }
        }
    }

    /// Waits until so many pages can be staged, or it has taken too long.
    ///
    /// Whoever evicts pages faster than the device takes them is held up a little, rather than
    /// have them go to waste. Where that does not help, nobody is held up for a while. Sleeps.
    pub(crate) fn await_staging(&self, count: usize) {
        let impatient = &self.staging.impatient_until;
        let now = thread::jiffies();

        if !self.running() || self.cleancache.credits.available() <= 0 {
            return;
        }
        if (impatient.load(Relaxed).wrapping_sub(now) as isize) > 0 {
            return;
        }
        if self.staging.pages.free() >= count {
            return;
        }
        self.cleancache.counters.held_up.add(count);
        if !self.staging.pages.wait(count, msecs_to_jiffies(PATIENCE)) {
            let until = now.wrapping_add(msecs_to_jiffies(IMPATIENCE));

            impatient.store(until, Relaxed);
        }
    }

    /// Gives a page up that was to be sent.
    pub(super) fn abandon(&self, staged: Staged) {
        if let Some(mut shard) = self.cleancache.shard(staged.tag) {
            shard.abandon(
                staged.tag,
                staged.wire,
                staged.index,
                staged.version,
                staged.covers,
            );
        }
        self.cleancache.credits.settle(1);
        self.staging.pages.give(staged.slot);
    }
}
