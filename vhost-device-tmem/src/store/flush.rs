// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Forgetting pages.

use std::thread;

use virtio_tmem_abi::{Key, ObjectId, PageResult, Range};

use super::{
    guest::Guest,
    id::{ObjectSlot, PageId},
    inner::{Cause, Inner, PoolSlot},
    PoolError, Store, BATCH,
};

/// Pages that a walk looks at under one hold of the lock.
const WALK: u64 = 256;

impl Store {
    /// Forgets the pages under `keys`, in the versions that they name.
    ///
    /// # Errors
    ///
    /// [`PoolError::NoPool`], and nothing was done.
    ///
    /// # Panics
    ///
    /// If there are not as many results as keys.
    pub fn flush_pages(
        &self,
        guest: &Guest,
        number: u32,
        keys: &[Key],
        results: &mut [PageResult],
    ) -> Result<(), PoolError> {
        assert_eq!(keys.len(), results.len());
        let mut much = false;
        for (keys, results) in keys.chunks(BATCH).zip(results.chunks_mut(BATCH)) {
            let mut inner = self.lock();
            let slot = inner.require_pool(guest, number)?;
            inner.pool_mut(slot).counters.flushes += keys.len() as u64;
            inner.index.fetch_pages(slot, keys);
            for (key, result) in keys.iter().zip(results) {
                *result = flushed(inner.flush_page(slot, key));
            }
            much |= inner.much_to_release();
        }
        self.after_free(much);
        Ok(())
    }

    /// Forgets all versions of the pages in `ranges`.
    ///
    /// # Errors
    ///
    /// [`PoolError::NoPool`], and nothing was done.
    ///
    /// # Panics
    ///
    /// If there are not as many results as ranges.
    pub fn flush_ranges(
        &self,
        guest: &Guest,
        number: u32,
        ranges: &[Range],
        results: &mut [PageResult],
    ) -> Result<(), PoolError> {
        assert_eq!(ranges.len(), results.len());
        let _walk = guest.walk();
        for (range, result) in ranges.iter().zip(results) {
            let mut inner = self.lock();
            let slot = inner.require_pool(guest, number)?;
            inner.pool_mut(slot).counters.flushes += 1;
            drop(inner);
            *result = flushed(self.flush_range(guest, number, range)?);
        }
        self.after_free(true);
        Ok(())
    }

    /// Forgets all pages of `objects`.
    ///
    /// # Errors
    ///
    /// [`PoolError::NoPool`], and nothing was done.
    ///
    /// # Panics
    ///
    /// If there are not as many results as objects.
    pub fn flush_objects(
        &self,
        guest: &Guest,
        number: u32,
        objects: &[ObjectId],
        results: &mut [PageResult],
    ) -> Result<(), PoolError> {
        let whole = |object: &ObjectId| Range {
            object: *object,
            first: 0.into(),
            last: u64::MAX.into(),
        };
        let ranges: Vec<_> = objects.iter().map(whole).collect();
        self.flush_ranges(guest, number, &ranges, results)
    }

    /// Forgets all pages of a pool.
    ///
    /// # Errors
    ///
    /// [`PoolError::NoPool`].
    pub fn flush_pool(&self, guest: &Guest, number: u32) -> Result<(), PoolError> {
        let walk = guest.walk();
        let mut inner = self.lock();
        let slot = inner.require_pool(guest, number)?;
        inner.pool_mut(slot).counters.flushes += 1;
        drop(inner);
        self.empty_pool(slot);
        drop(walk);
        Ok(())
    }

    /// Forgets all pages that a pool has now. The guest's walk is locked, so that the pool stays.
    pub(super) fn empty_pool(&self, slot: PoolSlot) {
        let mut left = None;
        loop {
            let mut inner = self.lock();
            // Pages put while this runs make it no longer.
            let budget = left.unwrap_or(inner.pool(slot).pages);
            let steps = budget.min(WALK);
            let done = (0..steps).all(|_| inner.flush_first_of_pool(slot));
            drop(inner);
            self.after_free(true);
            if !done || budget == steps {
                return;
            }
            left = Some(budget - steps);
            // Others have waited for the lock.
            thread::yield_now();
        }
    }

    /// Forgets a range, and returns whether there was anything. The guest's walk is locked.
    fn flush_range(&self, guest: &Guest, number: u32, range: &Range) -> Result<bool, PoolError> {
        let (first, last) = (range.first.get(), range.last.get());
        let mut any = false;
        let mut left = None;
        // The next index to look for, where looking for each is less than looking at all pages.
        let mut next = first;
        loop {
            let mut inner = self.lock();
            let slot = inner.require_pool(guest, number)?;
            let Some(object) = inner.index.find_object(slot, &range.object) else {
                return Ok(any);
            };
            let pages = u64::from(inner.index.objects[object.index()].pages);
            if left.is_none() && last - next < pages {
                for _ in 0..WALK {
                    any |= inner.flush_index(slot, &range.object, next);
                    if next == last {
                        return Ok(any);
                    }
                    next += 1;
                }
                drop(inner);
                thread::yield_now();
                continue;
            }
            // Every page that was there at first comes to the front once: others join at the end,
            // and nobody else changes the order.
            let budget = left.unwrap_or(pages);
            let steps = budget.min(WALK);
            for _ in 0..steps {
                // The object goes away with its last page.
                if inner.index.objects[object.index()].pages == 0 {
                    return Ok(any);
                }
                any |= inner.walk_step(object, first, last);
            }
            if budget == steps {
                return Ok(any);
            }
            left = Some(budget - steps);
            drop(inner);
            // Others have waited for the lock.
            thread::yield_now();
        }
    }
}

impl Inner {
    fn flush_page(&mut self, slot: PoolSlot, key: &Key) -> bool {
        match self.find(slot, &key.object, key.index.get()) {
            Some(id) if self.index.pages[id.index()].version.get() == key.version.get() => {
                self.forget(id, Cause::Flushed);
                true
            }
            _ => false,
        }
    }

    fn flush_index(&mut self, slot: PoolSlot, object: &ObjectId, index: u64) -> bool {
        let found = self.find(slot, object, index);
        if let Some(id) = found {
            self.forget(id, Cause::Flushed);
        }
        found.is_some()
    }

    /// Looks at the first page of an object, and returns whether it was forgotten; if not, it is
    /// the last page now.
    fn walk_step(&mut self, object: ObjectSlot, first: u64, last: u64) -> bool {
        let Some(id) = PageId::from_link(self.index.objects[object.index()].first) else {
            return false;
        };
        if (first..=last).contains(&self.index.pages[id.index()].index.get()) {
            self.forget(id, Cause::Flushed);
            return true;
        }
        self.index.rotate(id, object);
        false
    }

    /// Forgets the first page of the first object of a pool; false if there is none.
    fn flush_first_of_pool(&mut self, slot: PoolSlot) -> bool {
        let first = ObjectSlot::from_link(self.pool(slot).first)
            .and_then(|object| PageId::from_link(self.index.objects[object.index()].first));
        if let Some(id) = first {
            self.forget(id, Cause::Flushed);
        }
        first.is_some()
    }
}

fn flushed(any: bool) -> PageResult {
    if any {
        PageResult::Flushed
    } else {
        PageResult::Absent
    }
}
