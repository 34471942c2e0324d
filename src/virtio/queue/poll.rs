// SPDX-License-Identifier: GPL-2.0

//! Looking at a virtqueue rather than being interrupted because of it.

use core::cell::Cell;

use kernel::{
    prelude::*,
    sync::{
        atomic::Acquire,
        rcu, //
    },
    time::{
        Delta,
        Instant,
        Monotonic, //
    },
};

use super::{
    watchers::Kind,
    Handler,
    Notify,
    Queue,
    Queues,
    Rejected, //
};

/// How often to look where the device counts what it has used, between two looks at the clock.
const LOOKS: u32 = 16;

/// How often to let the CPU relax between two looks at a ring that can only be looked at with its
/// lock held: less than a microsecond.
const RELAX: u32 = 16;

/// Somebody who looks for the tokens that he submits.
///
/// The device does not interrupt because of those, until it is dropped; it still does for tokens
/// for which somebody else sleeps.
///
/// # Invariants
///
/// The queue's watchers know that somebody looks for tokens of `kind`.
pub(crate) struct Poller<'a, H: Handler> {
    set: &'a Queues<H>,
    queue: &'a Queue<H>,
    kind: Kind,
    /// Whether anything was submitted.
    busy: Cell<bool>,
    /// What the device's count of used tokens was when the ring was last looked at.
    seen: Cell<u16>,
}

impl<H: Handler> Queues<H> {
    /// Looks for tokens from now on, rather than have the device interrupt.
    ///
    /// [`None`] if the virtqueue is not live, or too many look already. Any context in which the
    /// [`Handler`] may be called; does not sleep.
    pub(crate) fn poll(&self, queue: usize) -> Option<Poller<'_, H>> {
        let queue = self.queue(queue)?;
        let mut ring = queue.ring.lock();

        let vq = ring.live()?;
        // INVARIANT: They know now.
        let kind = ring.watchers.poll()?;
        if !ring.watchers.want_interrupt() {
            vq.disable_callbacks();
        }
        Some(Poller {
            set: self,
            queue,
            kind,
            busy: Cell::new(false),
            seen: Cell::new(ring.taken()),
        })
    }
}

impl<H: Handler> Poller<'_, H> {
    /// As [`Queues::submit`], but for a token that [`Self::spin`] looks for.
    pub(crate) fn submit(
        &self,
        token: KBox<H::Token>,
        notify: Notify,
    ) -> Result<(), Rejected<H::Token>> {
        self.busy.set(true);
        self.set.submit_to(self.queue, self.kind, token, notify)
    }

    /// Spins until the device has used the tokens, but no longer than `limit`. Returns for how
    /// long, if it was not longer.
    ///
    /// What has been used, also by others, is given to the handler. Any context in which that may
    /// be called; does not sleep.
    pub(crate) fn spin(&self, limit: Delta) -> Option<Delta> {
        let start = Instant::<Monotonic>::now();

        loop {
            if self.busy.get() && self.queue.wait_a_little(self.seen.get()) {
                self.look();
            }
            let spent = start.elapsed();

            if !self.busy.get() {
                return Some(spent);
            }
            if spent >= limit {
                return None;
            }
        }
    }
}

impl<H: Handler> Poller<'_, H> {
    /// Takes back what there is, and takes note of whether any of the tokens are still out.
    fn look(&self) {
        self.set.look_at(self.queue);

        let ring = self.queue.ring.lock();
        self.busy.set(ring.watchers.out(self.kind) > 0);
        self.seen.set(ring.taken());
    }
}

impl<H: Handler> Drop for Poller<'_, H> {
    fn drop(&mut self) {
        let mut ring = self.queue.ring.lock();

        ring.watchers.leave(self.kind);
        let quiet = self.queue.arm(&ring);
        drop(ring);
        if !quiet {
            self.set.reap(self.queue);
        }
    }
}

impl<H: Handler> Queue<H> {
    /// Lets the CPU relax for a while; returns whether it is worthwhile to take tokens back then.
    ///
    /// The device's count was `seen` when somebody last did.
    fn wait_a_little(&self, seen: u16) -> bool {
        // The ring may be closed meanwhile, but what is looked at stays.
        let _guard = rcu::read_lock();
        let index = self.used_index.load(Acquire);

        if index.is_null() {
            for _ in 0..RELAX {
                core::hint::spin_loop();
            }
            return true;
        }
        for _ in 0..LOOKS {
            // SAFETY: By the type invariants it is valid: it was not null within the critical
            // section.
            let used = unsafe { index.read_volatile() };

            if used != seen.to_le() {
                return true;
            }
            // The device writes to it: it is left alone for some time.
            for _ in 0..8 {
                core::hint::spin_loop();
            }
        }
        false
    }
}
