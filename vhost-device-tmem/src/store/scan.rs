// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Going over all persistent pages of a guest, without the guest's doing.

use std::collections::BTreeMap;

use virtio_tmem_abi::{Key, PageResult};

use super::{
    entry::PageState,
    id::ObjectSlot,
    inner::{Inner, PoolSlot},
    walk::HOLD,
    Guest, PageSink, PoolError, PoolKind, Store,
};

impl Store {
    /// Finds persistent pages of a guest, from a place in the store on: each is the number of its pool
    /// and its key. Begins at place 0, and returns where to go on; [`None`] at the end.
    ///
    /// Of pages that are put or forgotten between two calls some are found, and some not; all others are
    /// found once.
    pub fn scan(&self, guest: &Guest, from: usize, found: &mut Vec<(u32, Key)>) -> Option<usize> {
        let inner = self.lock();
        let numbers = inner.persistent_pools(guest.number());
        let to = inner.index.places().min(from.saturating_add(HOLD));
        for place in from..to {
            let page = &inner.index.pages[place];
            let object = ObjectSlot::from_link(page.object);
            let (Some(object), PageState::Linked) = (object, page.state()) else {
                continue;
            };
            let object = &inner.index.objects[object.index()];
            if let Some(number) = numbers.get(&object.pool) {
                let key = Key {
                    object: object.id,
                    index: page.index.get().into(),
                    version: page.version().into(),
                };
                found.push((*number, key));
            }
        }
        (to < inner.index.places()).then_some(to)
    }

    /// Copies pages as [`Self::get`] does, which the guest did not ask for: its counters stay as they
    /// are.
    ///
    /// # Errors
    ///
    /// [`PoolError::NoPool`].
    ///
    /// # Panics
    ///
    /// If there are not as many results as keys.
    pub fn copy_out_of(
        &self,
        guest: &Guest,
        number: u32,
        keys: &[Key],
        sink: &mut dyn PageSink,
        results: &mut [PageResult],
    ) -> Result<(), PoolError> {
        drop(self.get(guest, number, false, keys, sink, results)?);
        let found = results.iter().filter(|result| **result != PageResult::Miss);
        let found = found.count() as u64;
        let mut inner = self.lock();
        // One that came in the place of the pool has counted nothing yet.
        let slot = inner.require_pool(guest, number)?;
        let counters = &mut inner.pool_mut(slot).counters;
        counters.gets = counters.gets.saturating_sub(keys.len() as u64);
        counters.gets_hit = counters.gets_hit.saturating_sub(found);
        Ok(())
    }
}

impl Inner {
    /// Returns the numbers of a guest's persistent pools, by their places.
    fn persistent_pools(&self, guest: u32) -> BTreeMap<PoolSlot, u32> {
        let pools = self.guests.get(&guest).into_iter();
        let pools = pools.flat_map(|guest| &guest.pools);
        pools
            .filter(|(_, slot)| self.pool(**slot).kind == PoolKind::Persistent)
            .map(|(number, slot)| (*slot, *number))
            .collect()
    }
}
