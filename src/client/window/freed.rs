// SPDX-License-Identifier: GPL-2.0

//! Slots on their way from the index back to those that can be taken.

use super::{
    super::{
        frame::MAX_PAGES,
        logic::{
            index::Entry,
            window::Kind, //
        },
        Pool, //
    },
    Slots,
    Window, //
};

/// Slots whose pages have left the index; they are freed at the latest when it is dropped.
///
/// May be made, and dropped, with the lock of the index's shard held.
pub(in super::super) struct Freed<'a> {
    window: Option<&'a Window>,
    kind: Kind,
    slots: Slots,
    count: usize,
}

impl<'a> Freed<'a> {
    /// None so far.
    #[inline]
    pub(in super::super) fn new(window: Option<&'a Window>, pool: Pool) -> Self {
        Self {
            window,
            kind: pool.kind(),
            slots: [0; MAX_PAGES],
            count: 0,
        }
    }

    /// Takes the slot of an entry that has left the index, if it has one.
    #[inline]
    pub(in super::super) fn entry(&mut self, entry: Option<Entry>) {
        if let Some(slot) = entry.and_then(Entry::slot) {
            self.slot(slot);
        }
    }

    /// Takes a slot.
    pub(in super::super) fn slot(&mut self, slot: u32) {
        if let Some(place) = self.slots.get_mut(self.count) {
            *place = slot;
            self.count += 1;
        }
        if self.count == self.slots.len() {
            self.free();
        }
    }

    fn free(&mut self) {
        let count = core::mem::take(&mut self.count);

        if let (Some(window), Some(slots)) = (self.window, self.slots.get(..count)) {
            window.free(self.kind, slots);
        }
    }
}

impl Drop for Freed<'_> {
    fn drop(&mut self) {
        if self.count > 0 {
            self.free();
        }
    }
}
