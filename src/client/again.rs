// SPDX-License-Identifier: GPL-2.0

//! Asking again for a page that only the device has and did not return.
//!
//! The device may not reach all of the guest's memory: a module that was plugged in without being
//! shared with it, for instance. It says that it does not have a page when it cannot write to where
//! the page is wanted. So what it should have is asked for once more, to be written to pages that
//! were there before it could be told of any others, and copied from there.
//!
//! That is done by the client's thread, with one request at a time, in memory that is set aside.

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

use super::{
    frame::MAX_PAGES,
    logic::{
        standing::Access,
        wire::{
            Lie,
            Operation,
            Outcomes, //
        },
    },
    pages::PagePool,
    request::{
        Blank,
        Origin, //
    },
    Client,
    Pool, //
};

/// How often the device may be unable to read a request, or to answer it, before it is taken for one
/// that never is.
const TRIES: u32 = 100;

/// Requests that are to be asked again, and what with.
#[pin_data]
pub(super) struct Again<O: Origin> {
    pages: Arc<PagePool>,
    #[pin]
    waiting: SpinLockIrq<KVec<(Blank<O>, Outcomes)>>,
    count: Atomic<usize>,
    /// The request to ask with, unless it is in flight.
    #[pin]
    spare: SpinLockIrq<Option<Blank<O>>>,
}

impl<O: Origin> Again<O> {
    /// Sets memory aside for up to `total` requests to be asked again.
    ///
    /// `place` is that of one more request. May sleep.
    pub(super) fn new(total: usize, place: usize) -> impl PinInit<Self, Error> {
        pin_init::pin_init_scope(move || {
            let waiting = KVec::with_capacity(total, GFP_KERNEL)?;
            let spare = Some(Blank::new(place)?);
            let pages = PagePool::full(MAX_PAGES)?;

            Ok(try_pin_init!(Self {
                pages,
                waiting <- new_spinlock_irq!(waiting, "Again::waiting"),
                count: Atomic::new(0),
                spare <- new_spinlock_irq!(spare, "Again::spare"),
            }))
        })
    }

    /// Returns how many requests wait to be asked again. Any context.
    pub(super) fn count(&self) -> usize {
        self.count.load(Relaxed)
    }
}

impl<O: Origin> Client<O> {
    /// Has a request asked again for the pages that did not come. Any context.
    pub(super) fn ask_again(&self, blank: Blank<O>, outcomes: Outcomes) {
        let mut waiting = self.again.waiting.lock();

        // The vector has room for all requests that there are.
        let _ = waiting.push_within_capacity((blank, outcomes));
        self.again.count.store(waiting.len(), Relaxed);
        drop(waiting);
        self.requests.wake();
        self.bell.ring();
    }

    /// Asks again, if there is what for and what with; returns in how many jiffies to come back.
    ///
    /// For the thread itself.
    pub(super) fn offer_again(&self) -> Option<usize> {
        let again = &self.again;

        if again.count() == 0 {
            return None;
        }
        match self.standing().persistent() {
            Access::Ask => (),
            Access::Wait => return None,
            Access::Never => {
                self.fail_again();
                return None;
            }
        }
        // Whoever brings it back rings the bell.
        let mut spare = again.spare.lock().take()?;
        let (original, outcomes) = {
            let mut waiting = again.waiting.lock();
            let next = waiting.pop();

            again.count.store(waiting.len(), Relaxed);
            let Some(next) = next else {
                drop(waiting);
                *again.spare.lock() = Some(spare);
                return None;
            };
            next
        };

        let tries = original.record.tries;
        let mut slots = [const { None }; MAX_PAGES];
        let entries = original.record.entries();
        let wanted = entries.len() - outcomes.done();

        spare.begin(Operation::Get, Pool::Frontswap);
        spare.record.tries = tries;
        again.pages.take(wanted, &mut slots);
        let mut slots = slots.into_iter().flatten();
        for (n, entry) in entries.iter().enumerate() {
            if outcomes.is_done(n) {
                continue;
            }
            // It fits, and there are as many pages as a request has entries.
            let _ = spare.push_key(*entry);
            if let Some(slot) = slots.next() {
                let _ = spare.request.frame.attach(&again.pages, slot);
            }
        }
        spare.seal(0, self.epoch());
        spare.record.instead_of = Some((original, outcomes));

        if let Err((spare, _)) = self.offer(self.lanes.get(0), spare, None) {
            self.take_apart(spare);
            return Some(1);
        }
        None
    }

    /// Takes the answer to a request that was asked again. Any context.
    pub(super) fn asked_again(
        &self,
        spare: Blank<O>,
        came: Outcomes,
        mut original: Blank<O>,
        mut outcomes: Outcomes,
    ) {
        let entries = original.record.entries().len();
        let before = outcomes;
        let missing = (0..entries).filter(|n| !before.is_done(*n));

        for (k, n) in missing.enumerate() {
            if !came.is_done(k) {
                continue;
            }
            if let Some(to) = original.request.frame.page(n) {
                spare.request.frame.copy_slot(k, to);
                outcomes.set_done(n);
            }
        }
        let counters = &self.pool(Pool::Frontswap).counters;
        counters.bounced.add(outcomes.done() - before.done());

        let tries = spare.record.tries.wrapping_add(1);
        let read = spare.record.was_read;
        self.give_spare(spare);
        original.record.tries = tries;
        if !outcomes.all_done() && !read && !self.is_gone() {
            if tries < TRIES {
                return self.ask_again(original, outcomes);
            }
            self.accuse(&Lie::Short { written: 0 });
        }
        self.doubt(&original, outcomes);
        self.count_gets(&original, outcomes);
        self.finish(original, outcomes);
    }

    /// Trusts the device with no more pages if it has lost one that it had promised to keep.
    fn doubt(&self, asked: &Blank<O>, outcomes: Outcomes) {
        for (n, entry) in asked.record.entries().iter().enumerate() {
            // One that was drained or replaced meanwhile it need not have any more.
            if !outcomes.is_done(n)
                && self.is_stored(Pool::Frontswap, entry.tag, entry.index, entry.version)
            {
                return self.distrust(entry.tag, entry.index);
            }
        }
    }

    /// Has what the spare request asked for asked later.
    fn take_apart(&self, mut spare: Blank<O>) {
        if let Some((original, outcomes)) = spare.record.instead_of.take() {
            self.ask_again(original, outcomes);
        }
        self.give_spare(spare);
    }

    fn give_spare(&self, mut spare: Blank<O>) {
        spare.request.frame.detach();
        *self.again.spare.lock() = Some(spare);
        self.bell.ring();
    }

    /// Ends all requests that were to be asked again, since there is no device any more.
    pub(super) fn fail_again(&self) {
        loop {
            let mut waiting = self.again.waiting.lock();
            let next = waiting.pop();

            self.again.count.store(waiting.len(), Relaxed);
            drop(waiting);
            let Some((original, outcomes)) = next else {
                return;
            };
            self.count_gets(&original, outcomes);
            self.finish(original, outcomes);
        }
    }
}
