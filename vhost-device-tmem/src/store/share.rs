// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Who gets how much: what others decided is carried out here.

use std::collections::BTreeMap;

use super::{
    evicted::NearMisses,
    fairness::{Holding, Part, Parts},
    inner::Inner,
    Guest, Store, BATCH,
};

impl Store {
    /// Promises the guests of these numbers, and nobody else, their shares of half of the capacity,
    /// from now on. What others have by then nobody takes from them.
    pub fn share_among(&self, guests: impl IntoIterator<Item = u32>) {
        let guests: Vec<_> = guests.into_iter().collect();
        let shares = 2 * guests.len().max(1) as u64;
        let mut inner = self.lock();
        let each = inner.budget.capacity() as u64 / shares;
        inner.accounts.set_parts(Parts::alike(guests, each));
        drop(inner);
        self.wake_watchers();
    }

    /// Gives guests their parts, by their numbers, from now on; others have none. Nothing is taken
    /// from anybody by that.
    pub fn set_parts(&self, parts: BTreeMap<u32, Part>) {
        self.lock().accounts.set_parts(Parts(parts));
        self.wake_watchers();
    }

    /// Returns by how many bytes a guest is above its share of ephemeral memory, [`None`] if it has
    /// none of its own.
    pub fn above_share(&self, guest: &Guest) -> Option<i128> {
        let inner = self.lock();
        let guest = inner.guests.get(&guest.number())?;
        inner.accounts.above_share(guest.account)
    }

    /// Returns what guests hold that are there, or whose pages are still to go, by their numbers.
    pub fn holdings(&self) -> BTreeMap<u32, Holding> {
        self.lock().accounts.holdings()
    }

    /// Returns which misses a little more memory would have spared the guests that are there, by their
    /// numbers.
    pub fn near_misses(&self) -> BTreeMap<u32, NearMisses> {
        self.lock().accounts.near_misses()
    }

    /// Returns the bytes that guests share, with what finds their pages.
    pub fn shareable(&self) -> u64 {
        self.lock().budget.shareable() as u64
    }

    /// Withholds so many bytes of the capacity from all guests, in place of those before. What of it
    /// ephemeral pages take is evicted, by the guests' shares, and its memory given back to the
    /// operating system. What persistent pages, and chunks that are lent, take is had as they go.
    pub fn withhold(&self, bytes: u64) {
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        let mut inner = self.lock();
        inner.budget = inner.budget.withholding(bytes);
        while inner.is_over() && inner.shed() {
            // Whoever waits for the lock comes first.
            drop(inner);
            inner = self.lock();
        }
        let limit = inner.budget.span_limit();
        // What is free and cannot be had now goes when the store is tidied.
        inner.trim(limit);
        drop(inner);
        self.wake_watchers();
    }
}

impl Inner {
    fn is_over(&self) -> bool {
        self.slots.spans().used() > self.budget.span_limit()
    }

    /// Makes some room, under one hold of the lock; false if there is none to be made.
    fn shed(&mut self) -> bool {
        for _ in 0..BATCH {
            if !self.is_over() {
                break;
            }
            if self.make_room().is_err() {
                return false;
            }
        }
        true
    }
}
