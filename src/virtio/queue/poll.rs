// SPDX-License-Identifier: GPL-2.0

//! Looking at a virtqueue rather than being interrupted because of it.

use kernel::{
    sync::{
        atomic::Relaxed,
        rcu, //
    },
    time::{
        Delta,
        Instant,
        Monotonic, //
    },
};

use crate::bindings;

use super::{
    Handler,
    Queue,
    Queues, //
};

/// How often to look where the device counts what it has used, between two looks at the clock.
const LOOKS: u32 = 16;

/// How often to let the CPU relax between two looks at a ring that can only be looked at with its
/// lock held: less than a microsecond.
const RELAX: u32 = 16;

/// Somebody who looks for used tokens; until it is dropped, the device does not interrupt.
///
/// # Invariants
///
/// It is counted in the ring's `pollers`.
pub(crate) struct Poller<'a, H: Handler> {
    set: &'a Queues<H>,
    queue: &'a Queue,
}

impl<H: Handler> Queues<H> {
    /// Looks for used tokens from now on, rather than have the device interrupt.
    ///
    /// Any context in which the [`Handler`] may be called; does not sleep.
    pub(crate) fn poll(&self, queue: usize) -> Option<Poller<'_, H>> {
        let queue = self.queues().get(queue)?;
        let mut ring = queue.ring.lock();

        if !queue.is_open() {
            return None;
        }
        ring.pollers += 1;
        // SAFETY: The ring is open, and its lock is held.
        unsafe { bindings::virtqueue_disable_cb(ring.vq) };
        // INVARIANT: Counted now.
        Some(Poller { set: self, queue })
    }
}

impl<H: Handler> Poller<'_, H> {
    /// Spins until the device has used as many tokens as were added, but no longer than `limit`.
    /// Returns for how long, if it was not longer.
    ///
    /// What has been used is given to the handler. Any context in which that may be called; does
    /// not sleep.
    pub(crate) fn spin(&self, limit: Delta) -> Option<Delta> {
        let added = self.queue.added.load(Relaxed);
        let start = Instant::<Monotonic>::now();

        loop {
            if self.queue.wait_a_little() {
                self.set.take_back(self.queue);
            }
            // Others may have taken some of them back. That more are used than were added then, or
            // in another order, does no harm: it is only a matter of how long to spin.
            let left = added.wrapping_sub(self.queue.used.load(Relaxed)) as i64;
            let spent = start.elapsed();

            if left <= 0 {
                return Some(spent);
            }
            if spent >= limit {
                return None;
            }
        }
    }
}

impl<H: Handler> Drop for Poller<'_, H> {
    fn drop(&mut self) {
        let mut ring = self.queue.ring.lock();

        ring.pollers -= 1;
        let quiet = self.queue.enable_interrupts(&ring);
        drop(ring);
        if !quiet {
            self.set.reap(self.queue);
        }
    }
}

impl Queue {
    /// Lets the CPU relax for a while; returns whether it is worthwhile to take tokens back then.
    fn wait_a_little(&self) -> bool {
        // The ring may be closed, but what is looked at stays.
        let _guard = rcu::read_lock();

        if self.used_index.is_null() || !self.is_open() {
            for _ in 0..RELAX {
                core::hint::spin_loop();
            }
            return true;
        }
        // Not more than a hint: whoever takes tokens back counts them, with the lock held.
        // CAST: The device counts modulo 2^16.
        let taken = self.used.load(Relaxed) as u16;
        for _ in 0..LOOKS {
            // SAFETY: By the type invariants it is valid: the ring was open within the critical
            // section.
            let used = unsafe { self.used_index.read_volatile() };

            if used != taken.to_le() {
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
