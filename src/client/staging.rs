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
    virtio::{
        frame::MAX_PAGES,
        pages::{
            PagePool,
            PageRef,
            Slot, //
        },
    },
};

use super::{
    half::Half,
    logic::index::Covers,
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

    /// Adds a page: there is room for all slots.
    fn push(&mut self, staged: Staged) {
        let at = self.wrap(self.head.wrapping_add(self.len));

        if let Some(place) = self.items.get_mut(at) {
            *place = Some(staged);
            self.len += 1;
        }
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

    /// Takes the pages that have waited longest for virtqueue `n`, as many as there is room for.
    pub(super) fn pop(&self, n: usize, into: &mut [Option<Staged>]) {
        let Some(fifo) = self.fifos.get(n) else {
            return;
        };
        let mut fifo = fifo.lock();
        let mut count = 0;

        for place in into {
            *place = fifo.pop();
            if place.is_none() {
                break;
            }
            count += 1;
        }
        self.waiting.fetch_sub(count, Relaxed);
    }

    /// Forgets all pages that wait.
    pub(super) fn drain(&self) {
        for n in 0..self.fifos.len() {
            loop {
                let mut staged = [None];

                self.pop(n, &mut staged);
                let [Some(staged)] = staged else {
                    break;
                };
                self.pages.give([staged.slot]);
            }
        }
    }
}

impl<O: Origin> Client<O> {
    /// Puts copies of `count` neighbouring pages, at most [`MAX_PAGES`], into the ephemeral pool.
    ///
    /// Returns how many of the first can be got from now on. Earlier pages in the places of all of
    /// them cannot be got any more, whatever happens. With `checked` what comes back later is
    /// compared with what was put. They are not put if `refuse` says so, which is asked in the same
    /// critical section of the index in which they would be inserted: a flush is either before it,
    /// and what comes before the flush is seen by `refuse`, or after it. Any context; nothing waits,
    /// nothing is allocated.
    pub(crate) fn stage(
        &self,
        tag: u64,
        index: u64,
        count: usize,
        pages: impl Iterator<Item = PageRef>,
        checked: bool,
        refuse: impl FnOnce() -> bool,
    ) -> usize {
        let half = &self.cleancache;
        let last = index.wrapping_add(count as u64).wrapping_sub(1);
        let mut slots = [const { None }; MAX_PAGES];

        let admitted = if self.running() {
            half.admit(count.min(MAX_PAGES))
        } else {
            0
        };
        let taken = self.staging.pages.take(admitted, &mut slots);
        half.counters.no_staging.add(admitted - taken);
        let Some(mut shard) = half.shard(tag).filter(|_| taken > 0) else {
            half.admitted(admitted, 0);
            self.flush_range(Pool::Cleancache, tag, index, last);
            return 0;
        };
        for (slot, page) in slots.iter_mut().flatten().zip(pages) {
            self.staging.pages.copy_in(slot, page);
        }

        let lane = Half::shard_of(tag) % self.staging.queues().max(1);
        let (mut staged, mut before) = (0, 0);
        if refuse() {
            half.counters.unsafe_inode.add(taken);
        } else if let Some(mut fifo) = self.staging.fifos.get(lane).map(|fifo| fifo.lock()) {
            let mut copies = slots.iter_mut();

            // CAST: There are at most 32.
            staged = shard.insert_run(tag, index, taken as u64, |n, inserted| {
                let Some(slot) = copies.next().and_then(Option::take) else {
                    return u32::MAX;
                };
                let number = slot.number();

                fifo.push(Staged {
                    slot,
                    tag,
                    wire: inserted.wire,
                    index: index.wrapping_add(n),
                    version: inserted.version,
                    covers: inserted.covers,
                    checked,
                });
                number
            }) as usize;
            // Before the lock is let go of: then somebody may take them out.
            before = self.staging.waiting.fetch_add(staged, Relaxed);
            drop(fifo);
            half.counters.no_memory.add(taken - staged);
        }
        if staged < count {
            let first = index.wrapping_add(staged as u64);
            // So few pages are gone through at once.
            let _ = shard.erase_range(tag, first, last, |_| ());
        }
        let short = shard.wants().any();
        drop(shard);

        half.admitted(admitted, staged);
        self.staging.pages.give(slots.into_iter().flatten());
        if short {
            self.want_growth();
        }
        if staged < count {
            self.flush_later();
        }
        self.staged(before, staged);
        staged
    }

    /// Returns whether there is staging memory for so many pages. Any context.
    pub(crate) fn can_stage(&self, count: usize) -> bool {
        self.staging.pages.free() >= count
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
        self.cleancache.counters.held_up.add(count);
        if !self.staging.pages.wait(count, msecs_to_jiffies(PATIENCE)) {
            let until = now.wrapping_add(msecs_to_jiffies(IMPATIENCE));

            impatient.store(until, Relaxed);
        }
    }
}
