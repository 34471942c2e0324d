// SPDX-License-Identifier: GPL-2.0

//! Misses that a little more memory would have spared, noted by any number of processors at once.

use kernel::{
    prelude::*,
    sync::atomic::{
        Atomic,
        Relaxed, //
    },
};

use super::super::{
    counters::Counter,
    logic::window::near::{
        places,
        remembered,
        Digest, //
    },
};

/// The clean pages that made room for others of late.
///
/// # Invariants
///
/// There are as many marks as a power of two.
pub(super) struct Near {
    marks: KVVec<Atomic<u32>>,
    /// How many pages made room, modulo 2³².
    turns: Atomic<u32>,
    missed: Counter,
}

impl Near {
    /// Makes the table for a window of so many slots.
    ///
    /// May sleep.
    pub(super) fn new(slots: u32) -> Result<Self> {
        let places = places(slots);
        let mut marks = KVVec::with_capacity(places, GFP_KERNEL)?;
        for _ in 0..places {
            marks.push(Atomic::new(0), GFP_KERNEL)?;
        }
        // INVARIANT: `places()` returns a power of two.
        Ok(Self {
            marks,
            turns: Atomic::new(0),
            missed: Counter::new(),
        })
    }

    /// Takes note that so many pages make room, and returns their turn, which is that of the last.
    ///
    /// Any context.
    pub(super) fn turn(&self, pages: u32) -> u32 {
        self.turns.fetch_add(pages, Relaxed).wrapping_add(pages)
    }

    /// Takes note of a page that makes room for another one, in its turn. Any context.
    #[inline]
    pub(super) fn replace(&self, tag: u64, index: u64, turn: u32) {
        let digest = Digest::of(tag, index);

        if let Some(place) = self.marks.get(digest.place(self.marks.len())) {
            place.store(digest.mark(turn), Relaxed);
        }
    }

    /// Takes note of a page that is read from elsewhere, with so many slots in use. It counts if it
    /// made room of late. Any context.
    #[inline]
    pub(super) fn miss(&self, tag: u64, index: u64, used: u32) {
        let digest = Digest::of(tag, index);
        let Some(place) = self.marks.get(digest.place(self.marks.len())) else {
            return;
        };

        if digest.is_near(
            place.load(Relaxed),
            self.turns.load(Relaxed),
            remembered(used),
        ) {
            place.store(0, Relaxed);
            self.missed.add(1);
        }
    }

    /// Returns how many counted, and how many more slots they would have taken, with so many in use.
    /// Any context.
    pub(super) fn told(&self, used: u32) -> (u64, u64) {
        let reach = remembered(used).min(self.turns.load(Relaxed));

        (self.missed.as_atomic().load(Relaxed), reach.into())
    }
}
