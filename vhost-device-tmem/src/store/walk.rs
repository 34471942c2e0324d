// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Going over many pages in steps that others can come between.

use std::ops::Deref;

use virtio_tmem_abi::{ObjectId, PageResult, Range};

use super::{
    guest::Dropped,
    id::{ObjectSlot, PageId},
    index::CursorId,
    inner::{Cause, Inner, PoolRef},
    ranges::{targets, Target},
    Guest, PoolError, Store,
};

/// Pages that a walk looks at under one hold of the lock.
pub(super) const HOLD: usize = 256;

/// Whether there is more to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Progress {
    /// All is done.
    Done,
    /// The budget was spent before.
    More,
}

/// A flush of ranges, of objects or of a whole pool, or the end of pools, which is under way.
///
/// The caller has it carried out by [`Self::step`], as often as that says that there is more, and
/// may do anything else in between, on any thread. What is put under a key of the walk after it
/// began may be forgotten by it or not. A walk that is dropped forgets no more pages; but pools
/// that were to end are emptied by [`Store::tidy_step`] all the same.
///
/// `S` is what leads to the store: a reference, or an [`Arc`](std::sync::Arc) for walks that last.
///
/// # Locking
///
/// A step takes the store's lock for a few hundred pages at a time.
pub struct Walk<S: Deref<Target = Store>> {
    store: S,
    job: Job,
    results: Vec<PageResult>,
    visited: u64,
}

enum Job {
    Ranges {
        pool: PoolRef,
        targets: Vec<Target>,
        /// The target that is gone over.
        at: usize,
        within: Within,
    },
    /// So many pages are left of those that the pool had.
    Pool { pool: PoolRef, left: u64 },
    /// All pages, and then the pool, the last one first.
    End { pools: Vec<PoolRef> },
}

/// How far a walk is within an object.
#[derive(Clone, Copy)]
enum Within {
    /// Nothing was looked at.
    Nothing,
    /// Each index is looked for: this is the next one, and its segment.
    Indices { segment: usize, next: u64 },
    /// Each page of the object is looked at, from the cursor on, as many as there were.
    Pages { cursor: CursorId, left: u64 },
}

impl<S: Deref<Target = Store>> Walk<S> {
    /// Begins to forget all versions of the pages in `ranges`. A range that ends before it begins
    /// is one without pages.
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
        let pool = {
            let mut inner = store.lock();
            let slot = inner.require_pool(guest, number)?;
            inner.note_flushes(slot, guest, number, ranges.len());
            inner.pool_ref(slot)
        };
        Ok(Self {
            store,
            job: Job::Ranges {
                pool,
                targets: targets(ranges),
                at: 0,
                within: Within::Nothing,
            },
            results: vec![PageResult::Absent; ranges.len()],
            visited: 0,
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
        let (pool, left) = {
            let mut inner = store.lock();
            let slot = inner.require_pool(guest, number)?;
            inner.note_flushes(slot, guest, number, 1);
            (inner.pool_ref(slot), inner.pool(slot).pages)
        };
        Ok(Self::new(store, Job::Pool { pool, left }))
    }

    /// Begins to forget a pool and all its pages, or ends the access to a shared one, which goes with
    /// the last. The guest has no such pool from here on, and may create another of the same number at
    /// once. Returns what the guest lost by that of its own.
    ///
    /// # Errors
    ///
    /// [`PoolError::NoPool`].
    pub fn destroy_pool(
        store: S,
        guest: &Guest,
        number: u32,
    ) -> Result<(Self, Dropped), PoolError> {
        let (dropped, pools) = {
            let mut inner = store.lock();
            let slot = inner.require_pool(guest, number)?;
            match inner.leave(guest.number(), number) {
                Some(ended) => (Dropped::default(), ended),
                None => {
                    let dropped = Dropped::one(&inner.report(number, slot));
                    (dropped, vec![inner.end_pool(guest.number(), number)?])
                }
            }
        };
        Ok((Self::new(store, Job::End { pools }), dropped))
    }

    /// Begins to forget a guest and all its pages, and returns what these were. Its accesses to shared
    /// pools end. Nothing of the
    /// guest is under way, and nothing follows.
    pub fn remove_guest(store: S, guest: &Guest) -> (Self, Dropped) {
        let mut dropped = Dropped::default();
        let pools = {
            let mut inner = store.lock();
            for pool in inner.reports(guest.number()) {
                dropped.add(&pool);
            }
            inner.end_guest(guest.number())
        };
        (Self::new(store, Job::End { pools }), dropped)
    }

    fn new(store: S, job: Job) -> Self {
        Self {
            store,
            job,
            results: Vec::new(),
            visited: 0,
        }
    }

    /// Goes on, and looks at `budget` pages or indices at most.
    pub fn step(&mut self, budget: usize) -> Progress {
        let mut left = budget.max(1);
        loop {
            let mut inner = self.store.lock();
            let mut visits = Visits {
                left: left.min(HOLD),
                spent: 0,
            };
            let progress = self.job.step(&mut inner, &mut visits, &mut self.results);
            let much = inner.much_to_release();
            drop(inner);
            self.store.after_free(much);
            self.visited += visits.spent as u64;
            left -= visits.spent;
            if progress == Progress::Done || left == 0 {
                return progress;
            }
        }
    }

    /// Goes on to the end, lets others have their turn now and then, and gives empty chunks of memory
    /// back.
    pub fn finish(&mut self) {
        while self.step(HOLD) == Progress::More {
            std::thread::yield_now();
        }
        while self.store.release_chunk() {}
    }

    /// Returns, for each range or object, whether there were pages that no other before it in the
    /// request has: [`PageResult::Flushed`] or [`PageResult::Absent`]. Final once all is done.
    pub fn results(&self) -> &[PageResult] {
        &self.results
    }

    /// Returns how many pages, and indices, were looked at so far.
    pub fn visited(&self) -> u64 {
        self.visited
    }
}

impl<S: Deref<Target = Store>> Drop for Walk<S> {
    fn drop(&mut self) {
        if let Job::Ranges {
            within: Within::Pages { cursor, .. },
            ..
        } = self.job
        {
            self.store.lock().index.close_cursor(cursor);
        }
    }
}

/// What may be looked at under one hold of the lock.
struct Visits {
    left: usize,
    spent: usize,
}

impl Visits {
    /// Takes one; false if none is left.
    fn take(&mut self) -> bool {
        let any = self.spent < self.left;
        self.spent += usize::from(any);
        any
    }
}

impl Job {
    /// Spends at least one visit, unless all is done.
    fn step(
        &mut self,
        inner: &mut Inner,
        visits: &mut Visits,
        results: &mut [PageResult],
    ) -> Progress {
        match self {
            Self::Ranges {
                pool,
                targets,
                at,
                within,
            } => {
                while let Some(target) = targets.get(*at) {
                    if within.step(inner, *pool, target, visits, results) == Progress::More {
                        return Progress::More;
                    }
                    *at += 1;
                    // An object that there is not is looked at as well.
                    if !visits.take() && *at < targets.len() {
                        return Progress::More;
                    }
                }
                Progress::Done
            }
            Self::Pool { pool, left } => {
                while *left > 0 && inner.is_current(*pool) {
                    if !visits.take() {
                        return Progress::More;
                    }
                    *left -= 1;
                    if !inner.flush_first_of_pool(pool.slot) {
                        break;
                    }
                }
                Progress::Done
            }
            Self::End { pools } => {
                while let Some(pool) = pools.last() {
                    if !visits.take() {
                        return Progress::More;
                    }
                    if !inner.end_step(*pool) {
                        pools.pop();
                    }
                }
                Progress::Done
            }
        }
    }
}

impl Within {
    /// Goes on within an object. At its end this is [`Self::Nothing`] again.
    fn step(
        &mut self,
        inner: &mut Inner,
        pool: PoolRef,
        target: &Target,
        visits: &mut Visits,
        results: &mut [PageResult],
    ) -> Progress {
        loop {
            match self {
                Self::Nothing => {
                    let found = inner.is_current(pool).then_some(&target.object);
                    let found = found.and_then(|id| inner.index.find_object(pool.slot, id));
                    let Some(object) = found else {
                        return Progress::Done;
                    };
                    let pages = u64::from(inner.index.objects[object.index()].pages);
                    *self = if target.is_narrower_than(pages) {
                        Self::Indices {
                            segment: 0,
                            next: target.segments[0].first,
                        }
                    } else {
                        Self::Pages {
                            cursor: inner.index.open_cursor(object),
                            left: pages,
                        }
                    };
                }
                Self::Indices { segment, next } => {
                    let Some(here) = target.segments.get(*segment).copied() else {
                        break;
                    };
                    if !inner.is_current(pool) {
                        break;
                    }
                    if !visits.take() {
                        return Progress::More;
                    }
                    if let Some(page) = inner.find(pool.slot, &target.object, *next) {
                        inner.forget(page, Cause::Flushed);
                        results[here.range] = PageResult::Flushed;
                    }
                    if *next < here.last {
                        *next += 1;
                    } else {
                        *segment += 1;
                        *next = target.segments.get(*segment).map_or(0, |next| next.first);
                    }
                }
                Self::Pages { cursor, left } => {
                    // Pages that are linked meanwhile join at the end, and are too many.
                    let page = inner.index.cursor(*cursor).filter(|_| *left > 0);
                    let Some(page) = page else {
                        inner.index.close_cursor(*cursor);
                        break;
                    };
                    if !visits.take() {
                        return Progress::More;
                    }
                    *left -= 1;
                    inner.index.advance_cursor(*cursor);
                    let index = inner.index.pages[page.index()].index.get();
                    if let Some(segment) = target.find(index) {
                        inner.forget(page, Cause::Flushed);
                        results[segment.range] = PageResult::Flushed;
                    }
                }
            }
        }
        *self = Self::Nothing;
        Progress::Done
    }
}

impl Inner {
    /// Forgets the first page of the first object of a pool; false if there is none.
    fn flush_first_of_pool(&mut self, slot: super::inner::PoolSlot) -> bool {
        let first = ObjectSlot::from_link(self.pool(slot).first)
            .and_then(|object| PageId::from_link(self.index.objects[object.index()].first));
        if let Some(id) = first {
            self.forget(id, Cause::Flushed);
        }
        first.is_some()
    }

    /// Forgets a page of a pool that ends, or the pool if it has none; false if it is gone.
    pub(super) fn end_step(&mut self, pool: PoolRef) -> bool {
        if !self.is_current(pool) {
            return false;
        }
        if !self.flush_first_of_pool(pool.slot) {
            self.remove_pool(pool.slot);
            return false;
        }
        true
    }
}
