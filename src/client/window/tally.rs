// SPDX-License-Identifier: GPL-2.0

//! What is counted for the host, by any number of processors at once.

use kernel::sync::atomic::Relaxed;

use super::super::{
    counters::Counter,
    logic::window::{
        Report,
        AGES, //
    },
};

/// What has been done with the window since it was made, in pages.
pub(in super::super) struct Tally {
    puts: Counter,
    refused: Counter,
    hits: Counter,
    misses: Counter,
    /// Clean pages that made room for others.
    pub(super) replaced: Counter,
    /// Pages that went to the store.
    pub(super) moved: Counter,
    hits_by_age: [Counter; AGES],
}

impl Tally {
    pub(super) const fn new() -> Self {
        Self {
            puts: Counter::new(),
            refused: Counter::new(),
            hits: Counter::new(),
            misses: Counter::new(),
            replaced: Counter::new(),
            moved: Counter::new(),
            hits_by_age: [const { Counter::new() }; AGES],
        }
    }

    /// Counts pages that were put. Any context.
    #[inline]
    pub(in super::super) fn put(&self, pages: usize) {
        self.puts.add(pages);
    }

    /// Counts pages for which there was no slot. Any context.
    #[inline]
    pub(in super::super) fn refuse(&self, pages: usize) {
        self.refused.add(pages);
    }

    /// Counts pages that were looked for, and found. Any context.
    #[inline]
    pub(in super::super) fn hit(&self, pages: usize) {
        self.hits.add(pages);
    }

    /// Counts a page that was looked for, and was gone with its chunk. Any context.
    pub(in super::super) fn miss(&self) {
        self.misses.add(1);
    }

    /// Counts how long before so many of the pages that were found had been put. Any context.
    #[inline]
    pub(super) fn age(&self, seconds: u32, pages: usize) {
        if let Some(counter) = self.hits_by_age.get(Report::age(seconds)) {
            counter.add(pages);
        }
    }

    /// Returns what it all is now, with what is told of [near misses](super::near). Any context.
    pub(super) fn report(&self, (near_misses, near_reach): (u64, u64)) -> Report {
        let now = |counter: &Counter| counter.as_atomic().load(Relaxed);
        let hits = now(&self.hits);

        Report {
            puts: now(&self.puts),
            refused: now(&self.refused),
            gets: hits.wrapping_add(now(&self.misses)),
            hits,
            replaced: now(&self.replaced),
            moved: now(&self.moved),
            near_misses,
            near_reach,
            hits_by_age: self.hits_by_age.each_ref().map(now),
        }
    }
}
