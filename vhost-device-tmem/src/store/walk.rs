// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Flushes of many pages, in steps that others can come between.
//!
//! The steps are as small as the flushes allow that are there: a range, an object, or all of a
//! pool.

use std::ops::Deref;

use virtio_tmem_abi::{ObjectId, PageResult, Range};

use super::{Guest, PoolError, PoolReport, Store};

/// Whether there is more to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Progress {
    /// All is done.
    Done,
    /// The budget was spent before.
    More,
}

/// A flush that is under way.
pub struct Walk<S: Deref<Target = Store>> {
    store: S,
    guest: Guest,
    number: u32,
    ranges: Vec<Range>,
    results: Vec<PageResult>,
    done: usize,
}

impl<S: Deref<Target = Store>> Walk<S> {
    /// Begins to forget all versions of the pages in `ranges`.
    ///
    /// # Errors
    ///
    /// [`PoolError::NoPool`].
    pub fn flush_ranges(
        store: S,
        guest: &Guest,
        number: u32,
        ranges: &[Range],
    ) -> Result<Self, PoolError> {
        store.pool_kind(guest, number)?;
        Ok(Self {
            guest: guest.again(),
            number,
            ranges: ranges.to_vec(),
            results: vec![PageResult::Absent; ranges.len()],
            done: 0,
            store,
        })
    }

    /// Begins to forget all pages of `objects`.
    ///
    /// # Errors
    ///
    /// [`PoolError::NoPool`].
    pub fn flush_objects(
        store: S,
        guest: &Guest,
        number: u32,
        objects: &[ObjectId],
    ) -> Result<Self, PoolError> {
        let whole = |object: &ObjectId| Range {
            object: *object,
            first: 0.into(),
            last: u64::MAX.into(),
        };
        let ranges: Vec<_> = objects.iter().map(whole).collect();
        Self::flush_ranges(store, guest, number, &ranges)
    }

    /// Begins to forget all pages that a pool has now.
    ///
    /// # Errors
    ///
    /// [`PoolError::NoPool`].
    pub fn flush_pool(store: S, guest: &Guest, number: u32) -> Result<Self, PoolError> {
        store.flush_pool(guest, number)?;
        Self::flush_ranges(store, guest, number, &[])
    }

    /// Begins to forget a pool and all its pages. Returns what it was before.
    ///
    /// # Errors
    ///
    /// [`PoolError::NoPool`].
    pub fn destroy_pool(
        store: S,
        guest: &Guest,
        number: u32,
    ) -> Result<(Self, PoolReport), PoolError> {
        let report = store.destroy_pool(guest, number)?;
        let walk = Self {
            guest: guest.again(),
            number,
            ranges: Vec::new(),
            results: Vec::new(),
            done: 0,
            store,
        };
        Ok((walk, report))
    }

    /// Goes on, and looks at about `budget` pages at most.
    pub fn step(&mut self, _budget: usize) -> Progress {
        if let Some(range) = self.ranges.get(self.done..=self.done) {
            let result = &mut self.results[self.done..=self.done];
            let flushed = self
                .store
                .flush_ranges(&self.guest, self.number, range, result);
            // It was destroyed meanwhile, and with it all that was in it.
            self.done = flushed.map_or(self.ranges.len(), |()| self.done + 1);
        }
        if self.done < self.ranges.len() {
            Progress::More
        } else {
            Progress::Done
        }
    }

    /// Returns, for each range or object, whether there were pages. Final once all is done.
    pub fn results(&self) -> &[PageResult] {
        &self.results
    }

    /// Returns how many pages, or ranges, were looked at so far.
    pub fn visited(&self) -> u64 {
        self.done as u64
    }
}
