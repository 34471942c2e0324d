// SPDX-License-Identifier: GPL-2.0

//! A fixed set of pages to copy into from where nothing may be allocated.

use kernel::{
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        CondVar,
        CondVarTimeoutResult,
        SpinLockIrq, //
    },
};

use crate::bindings::page::{
    OwnedPage,
    PageRef, //
};

/// The right to write one page of a [`PagePool`].
pub(crate) struct Slot(u32);

impl Slot {
    /// Returns the number of the page, for [`PagePool::copy_out`].
    pub(crate) fn number(&self) -> u32 {
        self.0
    }
}

/// A fixed set of pages.
#[pin_data]
pub(crate) struct PagePool {
    pages: KVVec<OwnedPage>,
    #[pin]
    free: SpinLockIrq<KVVec<Slot>>,
    /// The length of `free`, to be read without its lock.
    left: Atomic<usize>,
    #[pin]
    came_back: CondVar,
    waiters: Atomic<u32>,
}

impl PagePool {
    /// Allocates a pool of `count` pages.
    ///
    /// May sleep.
    pub(crate) fn new(count: u32) -> impl PinInit<Self, Error> {
        pin_init::pin_init_scope(move || {
            let mut pages = KVVec::with_capacity(count as usize, GFP_KERNEL)?;
            let mut free = KVVec::with_capacity(count as usize, GFP_KERNEL)?;

            for number in 0..count {
                pages.push(OwnedPage::new()?, GFP_KERNEL)?;
                free.push(Slot(number), GFP_KERNEL)?;
            }

            Ok(try_pin_init!(Self {
                pages,
                free <- kernel::new_spinlock_irq!(free, "PagePool::free"),
                left: Atomic::new(count as usize),
                came_back <- kernel::new_condvar!("PagePool::came_back"),
                waiters: Atomic::new(0),
            }))
        })
    }

    /// Takes up to `count` pages out of the pool, into the first of `slots`; returns how many.
    ///
    /// Any context.
    pub(crate) fn take(&self, count: usize, slots: &mut [Option<Slot>]) -> usize {
        let mut taken = 0;
        let mut free = self.free.lock();

        for slot in slots.iter_mut().take(count) {
            *slot = free.pop();
            if slot.is_none() {
                break;
            }
            taken += 1;
        }
        self.left.store(free.len(), Relaxed);
        taken
    }

    /// Gives pages back.
    ///
    /// Any context.
    pub(crate) fn give(&self, slots: impl IntoIterator<Item = Slot>) {
        let mut free = self.free.lock();

        for slot in slots {
            // The vector has room for all slots that there are.
            let _ = free.push_within_capacity(slot);
        }
        self.left.store(free.len(), Relaxed);
        drop(free);
        if self.waiters.load(Relaxed) > 0 {
            self.came_back.notify_all();
        }
    }

    /// Returns how many pages there are, in the pool or not.
    pub(crate) fn total(&self) -> usize {
        self.pages.len()
    }

    /// Returns how many pages are in the pool. Any context.
    pub(crate) fn free(&self) -> usize {
        self.left.load(Relaxed)
    }

    /// Waits until `count` pages, or as many as there are, are in the pool.
    ///
    /// Returns false if none comes back for so many jiffies, or there is a signal. Sleeps.
    pub(crate) fn wait(&self, count: usize, patience: usize) -> bool {
        let count = count.min(self.pages.len());
        let mut free = self.free.lock();

        self.waiters.add(1, Relaxed);
        let enough = loop {
            if free.len() >= count {
                break true;
            }
            match self
                .came_back
                .wait_interruptible_timeout(&mut free, patience)
            {
                CondVarTimeoutResult::Woken { .. } => (),
                _ => break free.len() >= count,
            }
        };
        self.waiters.fetch_sub(1, Relaxed);
        enough
    }

    /// Copies `from` into the page of `slot`.
    ///
    /// Any context.
    pub(crate) fn copy_in(&self, slot: &mut Slot, from: PageRef) {
        if let Some(to) = self.page(slot) {
            to.copy_from(from);
        }
    }

    /// Copies the page with this number out to `to`.
    ///
    /// It is up to the caller that nobody writes the page meanwhile; if someone does, the copy is
    /// torn. Any context.
    pub(crate) fn copy_out(&self, number: u32, to: PageRef) {
        if let Some(from) = self.pages.get(number as usize) {
            from.copy_to(to);
        }
    }

    /// Returns the page of `slot`.
    pub(super) fn page(&self, slot: &Slot) -> Option<&OwnedPage> {
        self.pages.get(slot.0 as usize)
    }

    /// Returns the CRC-32C of the content of the page of `slot`.
    pub(crate) fn crc(&self, slot: &Slot) -> u32 {
        self.page(slot).map_or(0, OwnedPage::crc)
    }
}
