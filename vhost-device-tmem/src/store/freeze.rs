// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Guests of whom the store takes nothing more, until the operator says otherwise.

use super::{
    inner::{Cause, Inner, PoolSlot, Refusal},
    put::Batch,
    Guest, Store,
};

impl Store {
    /// Takes nothing more of the guest of this number, or takes pages again. Once this has returned,
    /// each put of a frozen guest is refused, and what it had under the keys is gone; gets and flushes
    /// go on. It stays so when the guest goes, and another one comes under its number.
    pub fn set_frozen(&self, guest: u32, frozen: bool) {
        let mut inner = self.lock();
        if frozen {
            inner.frozen.insert(guest);
        } else {
            inner.frozen.remove(&guest);
        }
        drop(inner);
        // Those who were told of no credits are told of some.
        self.wake_watchers();
    }

    /// Returns whether nothing more is taken of the guest of this number.
    pub fn is_frozen(&self, guest: u32) -> bool {
        self.lock().frozen.contains(&guest)
    }
}

impl Inner {
    pub(super) fn has_frozen(&self, guest: &Guest) -> bool {
        self.frozen.contains(&guest.number())
    }

    /// Refuses all of a batch, and forgets what there is under its keys.
    pub(super) fn refuse_batch(&mut self, batch: &mut Batch<'_>, slot: PoolSlot) {
        for (key, page) in batch.keys.iter().zip(&mut *batch.pages) {
            if let Some(older) = self.find(slot, &key.object, key.index.get()) {
                self.pool_mut(slot).counters.puts_replaced += 1;
                self.forget(older, Cause::Replaced);
            }
            *page = Err(Refusal::Frozen);
        }
        let counters = &mut self.pool_mut(slot).counters;
        let puts = batch.keys.len() as u64;
        counters.puts += puts;
        counters.puts_refused += puts;
        counters.refused_frozen += puts;
        self.note_access(batch.guest, batch.number, |counters| counters.puts += puts);
    }
}
