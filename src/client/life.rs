// SPDX-License-Identifier: GPL-2.0

//! The device's comings and goings: what the client does when it falls silent, is reset, names
//! another epoch, breaks the rules, or goes.
//!
//! A device that is slow is waited for, and one that is reset is gone back to. Only where there is
//! no device any more is what it had given up.

use core::fmt;

use kernel::{
    device::Core,
    prelude::*,
    sync::{
        atomic::{
            Acquire,
            Full,
            Relaxed, //
        },
        Arc, //
    },
};
use virtio_tmem_abi::{
    Opcode,
    Status,
    QUEUE_CONTROL,
    QUEUE_EVENT, //
};

use crate::virtio::{
    self,
    queue::{
        Live,
        Stopped, //
    },
    VIRTIO_RING_F_INDIRECT_DESC, //
};

use super::{
    frame::MAX_PAGES,
    logic::{
        epoch::Told,
        standing::{
            self,
            Access,
            Standing, //
        },
        window::Kind,
        wire::{
            DeviceState,
            Lie,
            Operation, //
        },
    },
    request::{
        Origin,
        Request, //
    },
    Client,
    Pool,
    END,
    LET_GO, //
};

/// The device's virtqueues, in the state in which they are.
pub(super) enum Link<O: Origin> {
    /// There are none, and will not be.
    None,
    /// They are stopped, and can be found again.
    Stopped(Stopped<Client<O>>),
    /// They are live.
    Live(Live<Client<O>>),
}

impl<O: Origin> Link<O> {
    fn take(&mut self) -> Self {
        core::mem::replace(self, Self::None)
    }
}

impl<O: Origin> Client<O> {
    /// Returns how the driver stands with the device. Any context.
    #[inline]
    pub(crate) fn standing(&self) -> Standing {
        Standing::from_word(self.reasons.load(Acquire))
    }

    /// Returns whether pages may be put. Any context.
    #[inline]
    pub(crate) fn running(&self) -> bool {
        self.standing().may_put()
    }

    /// Returns whether there is no device any more. Any context.
    pub(crate) fn is_gone(&self) -> bool {
        self.standing().is(standing::GONE)
    }

    /// Changes the reasons, and returns what they were.
    fn change_reasons(&self, change: impl Fn(u32) -> u32) -> u32 {
        let mut old = self.reasons.load(Relaxed);

        while let Err(now) = self.reasons.cmpxchg(old, change(old), Full) {
            old = now;
        }
        old
    }

    /// Adds a reason not to do all; returns false if it was there already.
    fn add_reason(&self, reason: u32) -> bool {
        let added = self.change_reasons(|reasons| reasons | reason) & reason == 0;

        // Whoever waits may have no reason to any more.
        self.requests.wake();
        added
    }

    /// Takes a reason away; what waited because of it goes on.
    fn remove_reason(&self, reason: u32) {
        self.change_reasons(|reasons| reasons & !reason);
        self.requests.wake();
        self.bell.ring();
    }

    /// Waits until it can be told whether a page of a pool can be got, or never will. Sleeps.
    pub(super) fn await_standing(&self, pool: Pool) {
        self.requests
            .wait_while(|| self.access(pool) == Access::Wait);
    }

    /// Lets puts happen from now on.
    pub(crate) fn run(&self) {
        self.remove_reason(standing::FRESH);
    }

    /// Lets no put happen from now on: what is there is on its way out.
    pub(crate) fn quiesce(&self) {
        self.add_reason(standing::LEAVING);
    }

    /// Lets puts happen again.
    pub(crate) fn go_on(&self) {
        self.remove_reason(standing::LEAVING);
    }

    /// Finds the device's virtqueues, and has them be used.
    ///
    /// Fails with a line that says why where they are of no use. May sleep.
    pub(crate) fn attach(this: &Arc<Self>, vdev: &virtio::Device<Core<'_>>) -> Result {
        let mut link = this.link.lock();
        let Link::Stopped(stopped) = link.take() else {
            return Err(ENODEV);
        };
        let found = match stopped.find(vdev, this.clone()) {
            Ok(found) => found,
            Err(error) => {
                *link = Link::Stopped(error.stopped);
                dev_err!(
                    vdev,
                    "the device does not have the {} virtqueues that its configuration promises \
                     ({:?})\n",
                    this.queue_count,
                    error.error
                );
                return Err(error.error);
            }
        };

        // Where there are no tables of descriptors, a request has to fit into the ring itself.
        let tables = found.has_feature(VIRTIO_RING_F_INDIRECT_DESC);
        let smallest = (0..this.queue_count)
            .map(|queue| found.ring_size(queue) as usize)
            .min()
            .unwrap_or(0);
        let pages = match smallest {
            1.. if tables => MAX_PAGES,
            _ => smallest.saturating_sub(2).min(MAX_PAGES),
        };
        if pages == 0 {
            dev_err!(
                vdev,
                "the device's virtqueues have {smallest} descriptors, and a request takes 3: give \
                 it larger ones\n"
            );
            return Err(EINVAL);
        }
        let each = if tables { 1 } else { pages + 2 };
        this.ring_requests.store(smallest / each, Relaxed);
        let most = this.max_pages.load(Relaxed);
        this.max_pages.store(most.min(pages), Relaxed);
        *link = Link::Live(found.start());
        drop(link);
        this.listen()
    }

    /// Takes back what the device had when its virtqueues were stopped.
    fn take_back(&self, queue: usize, request: KBox<Request<O>>) {
        match queue as u16 {
            QUEUE_CONTROL => self.control.done(request, None),
            QUEUE_EVENT => drop(request),
            _ => self.unanswered(queue, request),
        }
    }

    /// Resets the device, if it has virtqueues. May sleep.
    fn detach(&self) {
        self.shared.begin_life();
        let mut link = self.link.lock();

        *link = match link.take() {
            Link::Live(live) => {
                Link::Stopped(live.stop(|queue, request| self.take_back(queue, request)))
            }
            other => other,
        };
    }

    /// Takes note that the device does not answer.
    pub(super) fn falls_silent(this: &Arc<Self>, waited: u64) {
        if this.add_reason(standing::SILENT) {
            pr_warn!(
                "the host does not answer: a request has waited for {}.{} s; {} swap pages that \
                 it has are waited for, all else goes on without it\n",
                waited / 1000,
                waited % 1000 / 100,
                this.pages(Pool::Frontswap).load(Relaxed)
            );
        }
        Self::leave_behind(this);
    }

    /// Lets whoever can go on without answers do so, by work that may sleep.
    pub(super) fn leave_behind(this: &Arc<Self>) {
        let _ = this.urgent.enqueue::<_, LET_GO>(this.clone());
    }

    /// Does that.
    pub(super) fn let_go(&self) {
        if !self.standing().is(standing::SILENT) {
            return;
        }
        for place in 0..self.flights.places() {
            if let Some((blank, written)) = self.flights.leave(place) {
                self.answered(usize::from(QUEUE_CONTROL), blank, written);
            }
        }
    }

    /// Takes note that the device answers again.
    pub(super) fn answers_again(&self, after: u64) {
        pr_info!(
            "the host answers again, after {}.{} s\n",
            after / 1000,
            after % 1000 / 100
        );
        self.remove_reason(standing::SILENT);
    }

    /// Prepares for the device to be reset and to come back.
    ///
    /// What is in flight is waited for as long as the device answers. Fails if it does not: then
    /// everything is as before. May sleep.
    pub(crate) fn suspend(&self) -> Result {
        self.add_reason(standing::SUSPENDED);
        let answers = || !self.standing().is(standing::SILENT | standing::GONE);

        // Those that the device has not been given are given to it when it is back.
        let not_given = || self.parked.count() + self.again.count();

        if !self.requests.wait_all(not_given, answers) && !self.is_gone() {
            pr_err!(
                "the host does not answer, and the guest cannot sleep before it does: \
                 {} swap pages are with it\n",
                self.pages(Pool::Frontswap).load(Relaxed)
            );
            self.remove_reason(standing::SUSPENDED);
            return Err(EBUSY);
        }
        // Where there is nothing to come back to, as before hibernation, nothing is gone back to:
        // until then another kernel may have used the device.
        let pages = |pool| self.pages(pool).load(Relaxed);
        let keep = pages(Pool::Frontswap) + pages(Pool::Cleancache) > 0;
        self.kept.store(keep, Relaxed);
        if keep && !self.is_gone() {
            self.keep_pools();
            self.keep_window();
        }
        self.close_window();
        self.detach();
        Ok(())
    }

    /// Goes on with a device that was reset. May sleep.
    ///
    /// If it fails, there is no device any more.
    pub(crate) fn resume(this: &Arc<Self>, vdev: &virtio::Device<Core<'_>>) -> Result {
        if this.is_gone() {
            return Ok(());
        }
        let result = Self::attach(this, vdev).and_then(|()| {
            if this.kept.load(Relaxed) {
                this.find_pools()?;
                this.create_pools()?;
                this.open_window(true)
            } else {
                this.begin_pools()?;
                this.open_window(false)
            }
        });

        if result.is_err() && this.is_outdated() {
            // It is another device than before, or has lost what it had.
            Self::renew(this);
        } else if let Err(error) = result {
            Self::give_up(
                this,
                format_args!("it did not come back after a reset ({error:?})"),
            );
            return Err(error);
        }
        this.remove_reason(standing::SUSPENDED);
        Ok(())
    }

    /// Takes note of what the device says of itself, in the answer to a request that named the
    /// epoch `asked`, or in an event. Any context.
    #[inline]
    pub(super) fn heed(&self, state: &DeviceState, asked: Option<u64>) {
        if state.epoch != self.epoch() {
            return self.epoch_told(state.epoch, asked);
        }
        self.frontswap.credits.set(state.persistent_credits);
        self.cleancache.credits.set(state.ephemeral_credits);
        if self.shared.possible() {
            self.shared_pools.credits.set(state.ephemeral_credits);
        }
    }

    #[cold]
    fn epoch_told(&self, told: u64, asked: Option<u64>) {
        let said = self.epochs.lock().told(told, asked);

        match said {
            Told::Same | Told::Late => (),
            Told::Lie => self.accuse(&Lie::Epoch(told)),
            Told::New => {
                self.next_epoch.store(told, Relaxed);
                // It is taken over by work that may sleep, which the thread has done.
                self.add_reason(standing::OUTDATED);
                self.bell.ring();
            }
        }
    }

    /// Returns whether there is an epoch to be taken over.
    pub(super) fn is_outdated(&self) -> bool {
        self.standing().is(standing::OUTDATED)
    }

    /// Goes over to the epoch that the device has named: nothing that it had before is got any
    /// more. May sleep.
    pub(super) fn renew(this: &Arc<Self>) {
        // One at a time.
        let _turn = this.renewing.lock();

        if !this.is_outdated() || this.is_gone() {
            return;
        }
        loop {
            let next = this.next_epoch.load(Relaxed);

            // In this order: nothing names the new epoch before all of the old one is forgotten.
            this.close_window();
            this.staging.drain();
            this.shared.begin_life();
            this.drop_shared();
            this.lose_pages(Pool::Cleancache);
            this.lose_pages(Pool::Frontswap);
            {
                let mut epochs = this.epochs.lock();

                epochs.change(next);
                this.epoch.store(next, Relaxed);
            }
            pr_warn!("the host's epoch changed: what it had before is not used any more\n");

            match this.create_pools().and_then(|()| this.open_window(false)) {
                Ok(()) if this.next_epoch.load(Relaxed) == next => break,
                // There is one more by now.
                Ok(()) => (),
                Err(_) if this.next_epoch.load(Relaxed) != next => (),
                Err(error) => {
                    return Self::give_up(
                        this,
                        format_args!("it has no pools after its epoch changed ({error:?})"),
                    );
                }
            }
            if this.is_gone() {
                return;
            }
        }
        this.remove_reason(standing::OUTDATED);
    }

    /// Takes note that the device did not carry out a request as a whole.
    pub(super) fn note_declined(&self, operation: Operation, status: Status) {
        // Another epoch is taken over, and of a device that is gone all has been said.
        if status == Status::StaleEpoch || self.is_gone() {
            return;
        }
        // One that does so does so with all requests: once is enough.
        if !self.said_declined.xchg(true, Full) {
            pr_warn!("the host answers {status:?} to {operation:?}: its pages are not used\n");
        }
    }

    /// Takes note that the device does not return a page that it had promised to keep. Any context.
    pub(super) fn distrust(&self, tag: u64, index: u64) {
        if !self.is_gone() && self.add_reason(standing::UNTRUSTED) {
            pr_err!(
                "the host does not return a swap page that it had taken (object {tag:#x}, page \
                 {index}), which is an I/O error for who wants it: nothing more is put there\n"
            );
        }
    }

    /// Declares the device broken: it does what no device does that keeps to the rules. Any
    /// context.
    pub(super) fn accuse(&self, lie: &Lie) {
        self.lose(format_args!("it breaks the rules ({lie})"));
        // It is reset by the thread, in a context that may sleep.
        self.bell.ring();
    }

    /// Gives the device up, and resets it. May sleep.
    pub(crate) fn give_up(this: &Arc<Self>, why: fmt::Arguments<'_>) {
        this.lose(why);
        let _ = this.urgent.enqueue::<_, END>(this.clone());
    }

    /// Takes note that there is no device any more, and says so once. Any context.
    fn lose(&self, why: fmt::Arguments<'_>) {
        if !self.add_reason(standing::GONE) {
            return;
        }
        self.frontswap.credits.clear();
        self.cleancache.credits.clear();
        self.shared_pools.credits.clear();
        self.control.close();
        // What is in the window can be got without the device.
        let here = self
            .window()
            .map_or(0, |window| window.used(Kind::Persistent).load(Relaxed));
        let pages = self
            .pages(Pool::Frontswap)
            .load(Relaxed)
            .saturating_sub(here.into());
        if self.written_through {
            pr_err!(
                "the device is given up: {pages} swap pages are read from their swap area ({why})\n"
            );
        } else {
            pr_err!(
                "the device is given up: {pages} swap pages that only the host has are lost, and \
                 reading one is an I/O error ({why})\n"
            );
        }
    }

    /// Ends all that there is with a device that is gone, and resets it. May sleep.
    pub(crate) fn end(&self) {
        if !self.is_gone() {
            return;
        }
        self.detach();
        *self.link.lock() = Link::None;
        let asleep = self.standing().is(standing::SUSPENDED);
        if let Some(window) = self.window().filter(|_| !asleep) {
            // The reset may have had the device take it back.
            self.find_lost(window, false);
        }
        // What is staged, and all that is ephemeral, is not there any more.
        self.staging.drain();
        self.drop_shared();
        self.forget(Pool::Cleancache);
        self.offer_parked();
        self.fail_again();
    }

    /// Lets go of the device for good: tells it that it need not keep anything, and resets it.
    ///
    /// What only it has is lost, which is said. May sleep, but not for longer than the device is
    /// given time for.
    pub(crate) fn leave(&self) {
        self.tell_to_forget();
        if self.pages(Pool::Frontswap).load(Relaxed) > 0 {
            // What is in the window can be got without the device, if the reset leaves it there.
            let here = self
                .window()
                .is_some_and(|window| window.used(Kind::Persistent).load(Relaxed) > 0);
            if here && self.standing().answers() {
                self.keep_window();
            }
            self.lose(format_args!("it is taken away"));
        }
        self.part();
    }

    /// As [`Self::leave`], where nobody is left who could want a page.
    pub(crate) fn shut_down(&self) {
        self.tell_to_forget();
        self.part();
    }

    /// Has the device forget all that it has, if it answers.
    fn tell_to_forget(&self) {
        self.quiesce();
        if self.standing().answers() {
            self.leave_volumes();
            self.destroy_pools();
        }
    }

    /// Lets go of the device, and resets it. May sleep.
    pub(crate) fn part(&self) {
        self.add_reason(standing::GONE);
        self.control.close();
        self.end();
    }

    /// Says to the device that the pools are to be kept over the reset that follows.
    fn keep_pools(&self) {
        if self.keeps {
            for pool in self.pools() {
                // Whether it has kept it is asked when it is back.
                let _ = self.ask(Opcode::PoolKeep, pool, &[]);
            }
        }
    }

    /// Looks whether the device has kept the pools over a reset, and forgets what it has not.
    fn find_pools(&self) -> Result {
        if !self.keeps {
            return Ok(());
        }
        for pool in self.pools() {
            match self.ask(Opcode::PoolKeep, pool, &[])? {
                Status::NoPool => self.lose_pages(pool),
                // Another epoch is taken over as any is.
                _ => (),
            }
        }
        Ok(())
    }

    /// Takes note that the device has no page of a pool any more.
    fn lose_pages(&self, pool: Pool) {
        match pool {
            Pool::Cleancache => self.forget(pool),
            // What they have is found out by asking.
            Pool::Shared(_) => (),
            Pool::Frontswap => {
                let lost: u64 = self.frontswap.shards().map(|mut s| s.lose_all()).sum();

                if lost > 0 {
                    pr_err!(
                        "the host has lost {lost} swap pages that only it had: reading one is an \
                         I/O error\n"
                    );
                }
            }
        }
    }
}
