// SPDX-License-Identifier: GPL-2.0

//! The memory for clean pages on their way to the device, and the order in which they go.

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
};

use crate::bindings::{
    memory::total_pages,
    page::PageRef,
    thread, //
};

use super::{
    logic::index::Supersedes,
    pages::{
        PagePool,
        Slot, //
    },
};

/// The part of the guest's memory that is used, if nothing else is asked for.
const PART: u64 = 32;

/// The fewest and the most pages that it is then.
const FEWEST: u64 = 256;
const MOST: u64 = 16384;

/// How many pages of staging memory there are to be.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum StagingSize {
    /// None: no clean pages are put.
    Nothing,
    /// So many.
    Pages(u32),
    /// A part of the memory that the guest has at the time.
    OfMemory,
}

impl StagingSize {
    /// Returns how many pages are wanted now, where pages are staged at all.
    pub(super) fn target(self) -> usize {
        match self {
            Self::Nothing => 0,
            Self::Pages(pages) => pages as usize,
            // CAST: Clamped.
            Self::OfMemory => (total_pages() / PART).clamp(FEWEST, MOST) as usize,
        }
    }
}

/// One page that waits to be sent.
pub(super) struct Staged {
    pub(super) slot: Slot,
    pub(super) tag: u64,
    pub(super) wire: u64,
    pub(super) index: u64,
    pub(super) version: u32,
    pub(super) supersedes: Supersedes,
    /// Whether the CRC is to be remembered.
    pub(super) checked: bool,
}

/// Pages that wait, in the order in which they came.
///
/// # Invariants
///
/// `items` has room for all slots that there can be.
pub(super) struct Fifo<T> {
    items: KVVec<Option<T>>,
    head: usize,
    len: usize,
}

impl<T> Fifo<T> {
    /// Makes room for pages of `capacity` slots, which is how many there can be. May sleep.
    pub(super) fn new(capacity: usize) -> Result<Self> {
        let mut items = KVVec::with_capacity(capacity, GFP_KERNEL)?;
        for _ in 0..capacity {
            items.push(None, GFP_KERNEL)?;
        }
        // INVARIANT: There can be as many slots.
        Ok(Self {
            items,
            head: 0,
            len: 0,
        })
    }

    /// Returns the place of what is at most one turn further.
    fn wrap(&self, at: usize) -> usize {
        at.checked_sub(self.items.len()).unwrap_or(at)
    }

    /// Adds a page: there is room for all slots.
    pub(super) fn push(&mut self, item: T) {
        let at = self.wrap(self.head.wrapping_add(self.len));

        if let Some(place) = self.items.get_mut(at) {
            *place = Some(item);
            self.len += 1;
        }
    }

    /// Takes the pages that have waited longest, as many as there is room for; returns how many.
    fn pop(&mut self, into: &mut [Option<T>]) -> usize {
        let count = into.len().min(self.len);

        for place in into.iter_mut().take(count) {
            if let Some(item) = self.items.get_mut(self.head) {
                *place = item.take();
            }
            self.head = self.wrap(self.head.wrapping_add(1));
        }
        self.len -= count;
        count
    }

    /// Returns the page that has waited longest.
    pub(super) fn first(&self) -> Option<&T> {
        self.items.get(self.head)?.as_ref()
    }

    /// As [`Self::pop`], but stops at the first page of which `more` is not true.
    pub(super) fn pop_while(&mut self, into: &mut [Option<T>], more: impl Fn(&T) -> bool) -> usize {
        let mut count = 0;

        for place in into {
            if !self.first().is_some_and(&more) {
                break;
            }
            count += self.pop(core::slice::from_mut(place));
        }
        count
    }
}

/// The staging memory.
#[pin_data]
pub(super) struct Staging {
    size: StagingSize,
    pages: Arc<PagePool>,
    pub(super) fifos: KVec<Pin<KBox<SpinLockIrq<Fifo<Staged>>>>>,
    pub(super) waiting: Atomic<usize>,
    /// Until when, in jiffies, nobody waits for a page to be free.
    pub(super) impatient_until: Atomic<usize>,
}

impl Staging {
    /// Makes staging memory without pages, to be sent over `queues` virtqueues.
    ///
    /// May sleep.
    pub(super) fn new(size: StagingSize, queues: usize) -> impl PinInit<Self, Error> {
        pin_init::pin_init_scope(move || {
            // What there is a place for never becomes more, so that little is taken for places.
            let capacity = size.target();
            let mut fifos = KVec::with_capacity(queues, GFP_KERNEL)?;
            for _ in 0..queues {
                let fifo = Fifo::new(capacity)?;
                fifos.push(
                    KBox::pin_init(new_spinlock_irq!(fifo, "Staging::fifos"), GFP_KERNEL)?,
                    GFP_KERNEL,
                )?;
            }

            Ok(try_pin_init!(Self {
                size,
                pages: Arc::pin_init(PagePool::new(capacity), GFP_KERNEL)?,
                fifos,
                waiting: Atomic::new(0),
                impatient_until: Atomic::new(thread::jiffies()),
            }? Error))
        })
    }

    /// Returns the pages.
    pub(super) fn pages(&self) -> &Arc<PagePool> {
        &self.pages
    }

    /// Copies a page that waits, or is on its way, to `to`. Any context.
    pub(super) fn copy_out(&self, slot: u32, to: PageRef) {
        self.pages.copy_out(slot, to);
    }

    /// Returns whether there are fewer pages than are wanted now. Any context.
    pub(super) fn may_grow(&self) -> bool {
        self.pages.held() < self.size.target().min(self.pages.capacity())
    }

    /// Allocates the pages that are wanted now, where pages are staged at all.
    ///
    /// Fails where there is not memory for all of them. May sleep, and enters reclaim.
    pub(super) fn grow(&self) -> Result {
        self.pages.grow(self.size.target())
    }

    /// Frees pages that are not wanted any more, as far as they are not in use: all of them unless
    /// pages are `staged`. Any context.
    pub(super) fn trim(&self, staged: bool) {
        let target = if staged { self.size.target() } else { 0 };

        self.pages.shrink(self.pages.held().saturating_sub(target));
    }

    /// Returns how many pages could be freed without all of them being. Any context.
    pub(super) fn spare(&self) -> usize {
        let few = self.pages.capacity() / 8;

        self.pages.free().min(self.pages.held().saturating_sub(few))
    }

    /// Returns how many pages wait.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.load(Relaxed)
    }

    /// Returns whether pages wait.
    #[inline]
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
        let count = fifo.pop(into);

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
