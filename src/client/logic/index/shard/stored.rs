// SPDX-License-Identifier: GPL-2.0

//! Pages that only the device has, for whoever takes them back one after the other.

use super::{
    super::entry::Entry,
    Shard, //
};

impl Shard {
    /// The number of leaves that [`Shard::away_from()`] goes through at once.
    const LEAVES_TO_LOOK_AT: usize = 64;

    /// Calls `f` with the index and the entry of the pages at `from..` that the device has stored, or
    /// that are in a slot of the window, in the order of their indices, until it returns false.
    ///
    /// Pages that are on their way are left out. Goes through a few thousand places at most. Returns
    /// where to go on, which is the page that `f` returned false for if it did, or [`None`] after the
    /// last page of the object.
    pub fn away_from(
        &self,
        tag: u64,
        from: u64,
        mut f: impl FnMut(u64, Entry) -> bool,
    ) -> Option<u64> {
        let (_, object) = self.find_usable(tag)?;

        object
            .tree
            .visit(
                &self.nodes,
                from,
                Self::LEAVES_TO_LOOK_AT,
                |index, raw| match Entry::unpack(raw) {
                    Some(entry @ (Entry::Remote { .. } | Entry::Window { .. })) => f(index, entry),
                    _ => true,
                },
            )
    }

    /// Returns whether a page is what the device has stored as this version of it.
    pub fn is_stored(&self, tag: u64, index: u64, version: u32) -> bool {
        self.peek(tag, index).is_some_and(
            |found| matches!(found.entry, Entry::Remote { version: v, .. } if v == version),
        )
    }

    /// Returns whether a page is what the device has stored as this version of it, or what is moving
    /// from the window in this version.
    pub fn is_away(&self, tag: u64, index: u64, version: u32) -> bool {
        self.peek(tag, index).is_some_and(|found| {
            matches!(found.entry, Entry::Remote { version: v, .. } | Entry::Moving { version: v, .. }
                if v == version)
        })
    }

    /// Erases a page if it still is what the device has stored as this version of it.
    ///
    /// Returns whether it was.
    pub fn erase_stored(&mut self, tag: u64, index: u64, version: u32) -> bool {
        self.is_stored(tag, index, version) && self.erase(tag, index).is_some()
    }
}
