// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Where pools, and accesses to shared ones, are described.

use super::{
    inner::{Inner, PoolSlot},
    records::Known,
};

impl Inner {
    /// Describes something new, and returns its place; [`None`] if all are taken.
    pub(super) fn describe_new(&mut self, known: Known) -> Option<PoolSlot> {
        let slot = match self.free_pools.pop() {
            Some(slot) => slot,
            None if self.pools.len() < self.records.len() => {
                self.pools.push(None);
                self.pools.len() as PoolSlot - 1
            }
            None => return None,
        };
        self.records[slot as usize].set(known);
        Some(slot)
    }

    /// Describes nothing any more at a place.
    pub(super) fn clear_place(&mut self, slot: PoolSlot) {
        self.records[slot as usize].clear();
        self.free_pools.push(slot);
    }

    /// Returns how many places nothing is described at.
    pub(super) fn free_places(&self) -> usize {
        self.free_pools.len() + self.records.len() - self.pools.len()
    }

    /// Has a place be in the table.
    pub(super) fn add_place(&mut self, slot: PoolSlot) {
        let len = self.pools.len().max(slot as usize + 1);
        self.pools.resize_with(len, || None);
    }

    /// Changes the description of a pool.
    pub(super) fn describe(&mut self, slot: PoolSlot, change: impl FnOnce(&mut Known)) {
        let record = &mut self.records[slot as usize];
        // It was written by this process, or was found to be sound.
        if let Ok(Some(mut known)) = record.known() {
            change(&mut known);
            record.set(known);
        }
    }

    /// Lists the places between those that something is described at.
    pub(super) fn list_free_pools(&mut self) {
        let free = (0..self.pools.len()).filter(|at| self.records[*at].known() == Ok(None));
        self.free_pools = free.map(|at| at as PoolSlot).collect();
    }
}
