// SPDX-License-Identifier: GPL-2.0

//! Pages to copy to and from where nothing may be allocated.

use kernel::{
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc,
        CondVar,
        CondVarTimeoutResult,
        SpinLockIrq, //
    },
};

use crate::bindings::page::{
    OwnedPage,
    PageRef, //
};

/// How many pages are freed at once.
const BATCH: usize = 32;

/// The right to write one page of a [`PagePool`].
pub(crate) struct Slot {
    number: u32,
    page: Arc<OwnedPage>,
}

impl Slot {
    /// Returns the number of the page, for [`PagePool::copy_out`].
    pub(crate) fn number(&self) -> u32 {
        self.number
    }

    /// Returns the page.
    pub(super) fn page(&self) -> &OwnedPage {
        &self.page
    }

    /// Copies `from` into the page. Any context.
    pub(crate) fn copy_in(&mut self, from: PageRef) {
        self.page.copy_from(from);
    }

    /// Returns the CRC-32C of the page's content. Any context.
    pub(crate) fn crc(&self) -> u32 {
        self.page.crc()
    }
}

/// The pages that nobody has the right to write.
struct Free {
    slots: KVVec<Slot>,
    /// Numbers without a page.
    vacant: KVVec<u32>,
}

/// A number of pages that can grow, and shrink by those that are not in use.
#[pin_data]
pub(crate) struct PagePool {
    capacity: usize,
    #[pin]
    free: SpinLockIrq<Free>,
    /// The pages, by their number.
    #[pin]
    pages: SpinLockIrq<KVVec<Option<Arc<OwnedPage>>>>,
    /// How many pages nobody has, to be read without the lock.
    left: Atomic<usize>,
    /// How many pages there are, used or not.
    held: Atomic<usize>,
    #[pin]
    came_back: CondVar,
    waiters: Atomic<u32>,
}

impl PagePool {
    /// Makes a pool without pages, for up to `capacity`.
    ///
    /// May sleep.
    pub(crate) fn new(capacity: usize) -> impl PinInit<Self, Error> {
        pin_init::pin_init_scope(move || {
            let slots = KVVec::with_capacity(capacity, GFP_KERNEL)?;
            let mut vacant = KVVec::with_capacity(capacity, GFP_KERNEL)?;
            let mut pages = KVVec::with_capacity(capacity, GFP_KERNEL)?;

            // The last one first, so that numbers are low as long as there are few.
            for number in (0..u32::try_from(capacity)?).rev() {
                vacant.push(number, GFP_KERNEL)?;
                pages.push(None, GFP_KERNEL)?;
            }
            let free = Free { slots, vacant };
            Ok(try_pin_init!(Self {
                capacity,
                free <- kernel::new_spinlock_irq!(free, "PagePool::free"),
                pages <- kernel::new_spinlock_irq!(pages, "PagePool::pages"),
                left: Atomic::new(0),
                held: Atomic::new(0),
                came_back <- kernel::new_condvar!("PagePool::came_back"),
                waiters: Atomic::new(0),
            }? Error))
        })
    }

    /// Makes a pool of `count` pages.
    ///
    /// May sleep.
    pub(crate) fn full(count: usize) -> Result<Arc<Self>> {
        let pool = Arc::pin_init(Self::new(count), GFP_KERNEL)?;

        pool.grow(count)?;
        Ok(pool)
    }

    /// Allocates pages until there are `total`, as far as there is room for them.
    ///
    /// May sleep, and enters reclaim: to be called by nobody whom reclaim waits for.
    pub(crate) fn grow(&self, total: usize) -> Result {
        while self.held() < total {
            let Some(number) = self.free.lock().vacant.pop() else {
                return Ok(());
            };
            let page = OwnedPage::new()
                .and_then(|page| Ok(Arc::new(page, GFP_KERNEL)?))
                .inspect_err(|_| {
                    // It has been there before.
                    let _ = self.free.lock().vacant.push_within_capacity(number);
                })?;

            if let Some(place) = self.pages.lock().get_mut(number as usize) {
                *place = Some(page.clone());
            }
            self.held.add(1, Relaxed);
            self.give([Slot { number, page }]);
        }
        Ok(())
    }

    /// Frees up to `count` pages that are not in use, and returns how many. Any context.
    pub(crate) fn shrink(&self, count: usize) -> usize {
        let mut freed = 0;

        while freed < count {
            let mut slots = [const { None }; BATCH];
            let taken = self.take((count - freed).min(BATCH), &mut slots);
            if taken == 0 {
                break;
            }
            for slot in slots.into_iter().flatten() {
                let page = self
                    .pages
                    .lock()
                    .get_mut(slot.number as usize)
                    .and_then(Option::take);

                // There is room for all numbers.
                let _ = self.free.lock().vacant.push_within_capacity(slot.number);
                drop((page, slot));
            }
            self.held.fetch_sub(taken, Relaxed);
            freed += taken;
        }
        freed
    }

    /// Takes up to `count` pages out of the pool, into the first of `slots`; returns how many.
    ///
    /// Any context.
    pub(crate) fn take(&self, count: usize, slots: &mut [Option<Slot>]) -> usize {
        let mut taken = 0;
        let mut free = self.free.lock();

        for slot in slots.iter_mut().take(count) {
            *slot = free.slots.pop();
            if slot.is_none() {
                break;
            }
            taken += 1;
        }
        self.left.store(free.slots.len(), Relaxed);
        taken
    }

    /// Gives pages back.
    ///
    /// Any context.
    pub(crate) fn give(&self, slots: impl IntoIterator<Item = Slot>) {
        let mut free = self.free.lock();

        for slot in slots {
            // The vector has room for all slots that there can be.
            let _ = free.slots.push_within_capacity(slot);
        }
        self.left.store(free.slots.len(), Relaxed);
        drop(free);
        if self.waiters.load(Relaxed) > 0 {
            self.came_back.notify_all();
        }
    }

    /// Returns how many pages there can be.
    pub(crate) fn capacity(&self) -> usize {
        self.capacity
    }

    /// Returns how many pages there are, in the pool or not. Any context.
    pub(crate) fn held(&self) -> usize {
        self.held.load(Relaxed)
    }

    /// Returns how many pages there are, in the pool or not, for a file.
    pub(crate) fn held_counter(&self) -> &Atomic<usize> {
        &self.held
    }

    /// Returns how many pages are in the pool. Any context.
    pub(crate) fn free(&self) -> usize {
        self.left.load(Relaxed)
    }

    /// Waits until `count` pages, or as many as there are, are in the pool.
    ///
    /// Returns false if none comes back for so many jiffies, or there is a signal. Sleeps.
    pub(crate) fn wait(&self, count: usize, patience: usize) -> bool {
        let mut free = self.free.lock();
        let enough = |free: &Free| free.slots.len() >= count.min(self.held());

        self.waiters.add(1, Relaxed);
        let enough = loop {
            if enough(&free) {
                break true;
            }
            match self
                .came_back
                .wait_interruptible_timeout(&mut free, patience)
            {
                CondVarTimeoutResult::Woken { .. } => (),
                _ => break enough(&free),
            }
        };
        self.waiters.fetch_sub(1, Relaxed);
        enough
    }

    /// Copies the page with this number out to `to`.
    ///
    /// It is up to the caller that nobody writes the page meanwhile; if someone does, the copy is
    /// torn. Any context.
    pub(crate) fn copy_out(&self, number: u32, to: PageRef) {
        if let Some(Some(from)) = self.pages.lock().get(number as usize) {
            from.copy_to(to);
        }
    }
}
