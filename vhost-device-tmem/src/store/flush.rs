// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Forgetting pages.

use virtio_tmem_abi::{Key, ObjectId, PageResult, Range};

use super::{
    guest::{Dropped, Guest},
    inner::{Cause, Inner, PoolSlot},
    walk::Walk,
    PoolError, Store, BATCH,
};

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
            inner.note_flushes(slot, guest, number, keys.len());
            inner.index.fetch_pages(slot, keys);
            for (key, result) in keys.iter().zip(results) {
                *result = if inner.flush_page(slot, key) {
                    PageResult::Flushed
                } else {
                    PageResult::Absent
                };
            }
            much |= inner.much_to_release();
        }
        self.after_free(much);
        Ok(())
    }

    /// Forgets all versions of the pages in `ranges`: [`Walk::flush_ranges`], to its end.
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
        let mut walk = Walk::flush_ranges(self, guest, number, ranges)?;
        walk.finish();
        results.copy_from_slice(walk.results());
        Ok(())
    }

    /// Forgets all pages of `objects`: [`Walk::flush_objects`], to its end.
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
        let mut walk = Walk::flush_objects(self, guest, number, objects)?;
        walk.finish();
        results.copy_from_slice(walk.results());
        Ok(())
    }

    /// Forgets all pages of a pool: [`Walk::flush_pool`], to its end.
    ///
    /// # Errors
    ///
    /// [`PoolError::NoPool`].
    pub fn flush_pool(&self, guest: &Guest, number: u32) -> Result<(), PoolError> {
        Walk::flush_pool(self, guest, number)?.finish();
        Ok(())
    }

    /// Forgets all pages of a pool, and the pool: [`Walk::destroy_pool`], to its end.
    ///
    /// # Errors
    ///
    /// [`PoolError::NoPool`].
    pub fn destroy_pool(&self, guest: &Guest, number: u32) -> Result<Dropped, PoolError> {
        let (mut walk, dropped) = Walk::destroy_pool(self, guest, number)?;
        walk.finish();
        Ok(dropped)
    }

    /// Forgets a guest and all its pages: [`Walk::remove_guest`], to its end.
    pub fn remove_guest(&self, guest: &Guest) -> Dropped {
        let (mut walk, dropped) = Walk::remove_guest(self, guest);
        walk.finish();
        dropped
    }
}

impl Inner {
    /// Counts that a guest asked so many pages, ranges or objects of a pool to be forgotten.
    pub(super) fn note_flushes(
        &mut self,
        slot: PoolSlot,
        guest: &Guest,
        number: u32,
        count: usize,
    ) {
        let count = count as u64;
        self.pool_mut(slot).counters.flushes += count;
        self.note_access(guest, number, |counters| counters.flushes += count);
    }

    fn flush_page(&mut self, slot: PoolSlot, key: &Key) -> bool {
        match self.find(slot, &key.object, key.index.get()) {
            Some(id) if self.index.pages[id.index()].version() == key.version.get() => {
                self.forget(id, Cause::Flushed);
                true
            }
            _ => false,
        }
    }
}
