// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Measuring what a turn takes.

use std::time::{Duration, Instant};

use super::turns::Allowance;

/// Pages after which the clock is looked at.
const TICK: u32 = 8;

/// The most pages that are copied without looking at what is left: what the store looks up under
/// one hold of its lock.
const MOST: usize = 32;

/// What is left of a turn, and how long things take.
///
/// Reading the clock is not free: small requests are counted, and their time is taken now and then.
#[derive(Debug)]
pub(super) struct Meter {
    left: Allowance,
    last: Instant,
    /// Pages since the clock was read.
    unread: u32,
    /// What a page takes, as far as was seen lately.
    page: Duration,
}

impl Meter {
    /// A meter that says that there is nothing left.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            left: Allowance::default(),
            last: now,
            unread: 0,
            page: Duration::from_micros(1),
        }
    }

    /// A turn begins. The time since the last one ended is counted, unless there was a
    /// [`Self::pause`].
    pub(super) fn begin(&mut self, left: Allowance) {
        self.left = left;
        self.unread = 0;
    }

    /// There was nothing to do until now.
    pub(super) fn pause(&mut self, now: Instant) {
        self.last = now;
    }

    /// Returns the time at which the clock was read last.
    pub(super) fn last(&self) -> Instant {
        self.last
    }

    /// The turn ends. Returns what is left of it, and the time.
    pub(super) fn end(&mut self) -> (Allowance, Instant) {
        self.read();
        (self.left, self.last)
    }

    /// So many pages were copied.
    pub(super) fn copied(&mut self, pages: usize) {
        let pages = u32::try_from(pages).unwrap_or(u32::MAX);
        self.left.spend(pages, Duration::ZERO);
        self.unread = self.unread.saturating_add(pages);
        if self.unread >= TICK {
            let (pages, time) = (self.unread, self.read());
            // A page now and then takes long, which says nothing of the next.
            let page = (time / pages).min(self.page * 2);
            self.page = (self.page * 7 + page) / 8;
        }
    }

    /// Work was done that may have taken any time.
    pub(super) fn walked(&mut self, pages: usize) {
        let pages = u32::try_from(pages).unwrap_or(u32::MAX).max(1);
        self.left.spend(pages, Duration::ZERO);
        self.read();
    }

    fn read(&mut self) -> Duration {
        let now = Instant::now();
        let time = now.saturating_duration_since(self.last);
        self.left.spend(0, time);
        self.last = now;
        self.unread = 0;
        time
    }

    /// Returns whether others are to have their turn.
    pub(super) fn is_spent(&self) -> bool {
        self.left.is_spent()
    }

    /// Returns how many pages may be copied before the meter is asked again: at least one.
    pub(super) fn pages(&self) -> usize {
        self.left.pages(self.page).min(MOST)
    }
}
