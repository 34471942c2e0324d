// SPDX-License-Identifier: GPL-2.0

//! Pages that only the device has, for whoever takes them back.

use super::{
    Client,
    Origin,
    Pool, //
};

impl<O: Origin> Client<O> {
    /// Returns whether a page is what the device has stored as this version of it. Any context.
    pub(crate) fn is_stored(&self, pool: Pool, tag: u64, index: u64, version: u32) -> bool {
        self.pool(pool)
            .shard(tag)
            .is_some_and(|shard| shard.is_stored(tag, index, version))
    }

    /// Forgets a page if it still is what the device has stored as this version of it, and returns
    /// whether it was.
    ///
    /// Any context.
    pub(crate) fn flush_stored(&self, pool: Pool, tag: u64, index: u64, version: u32) -> bool {
        let state = self.pool(pool);
        let erased = state
            .shard(tag)
            .is_some_and(|mut shard| shard.erase_stored(tag, index, version));

        if erased {
            state.counters.flushes.add(1);
            self.flush_later();
        }
        erased
    }

    /// Returns how many pages of a pool are on their way to the device. Any context.
    pub(crate) fn pending(&self, pool: Pool) -> u64 {
        self.pool(pool)
            .shards()
            .map(|shard| shard.stats().pending)
            .sum()
    }
}
