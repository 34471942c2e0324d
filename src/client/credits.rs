// SPDX-License-Identifier: GPL-2.0

//! How many pages the device would accept, as far as the driver knows.

use kernel::sync::atomic::{
    Atomic,
    Relaxed, //
};
use virtio_tmem_abi::CREDITS_UNLIMITED;

/// The credits of one kind of pool.
///
/// They are advice: a put without credit would be refused, and is therefore not made. Any context.
pub(super) struct Credits {
    available: Atomic<i64>,
    in_flight: Atomic<i64>,
}

impl Credits {
    /// Returns no credits at all: the device has to speak first.
    pub(super) const fn new() -> Self {
        Self {
            available: Atomic::new(0),
            in_flight: Atomic::new(0),
        }
    }

    /// Takes the credit for up to `pages` pages, and returns for how many there was any.
    pub(super) fn take(&self, pages: usize) -> usize {
        let wanted = pages as i64;
        let available = self.available.load(Relaxed);

        if available <= 0 {
            return 0;
        }
        let available = self.available.fetch_sub(wanted, Relaxed);
        let taken = wanted.min(available).max(0);
        if taken < wanted {
            self.available.add(wanted - taken, Relaxed);
        }
        self.in_flight.add(taken, Relaxed);
        taken as usize
    }

    /// Says that the device has seen `pages` that credit was taken for, or that it never will.
    pub(super) fn settle(&self, pages: usize) {
        self.in_flight.fetch_sub(pages as i64, Relaxed);
    }

    /// Takes note of what the device said.
    pub(super) fn set(&self, credits: u32) {
        let credits = match credits {
            CREDITS_UNLIMITED => i64::MAX / 2,
            credits => i64::from(credits),
        };

        // What is on its way to the device is not counted in what it said.
        let available = credits.saturating_sub(self.in_flight.load(Relaxed).max(0));
        self.available.store(available, Relaxed);
    }

    /// Takes all credits away.
    pub(super) fn clear(&self) {
        self.available.store(0, Relaxed);
    }

    /// Returns how many pages could be put now.
    pub(super) fn available(&self) -> i64 {
        self.available.load(Relaxed).max(0)
    }
}
