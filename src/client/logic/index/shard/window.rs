// SPDX-License-Identifier: GPL-2.0

//! Pages in the window: they are put and got by a copy, and the device is not asked.
//!
//! An entry that says that its page is in a slot is the only one that does. So whoever takes such an
//! entry out of the index, or replaces it, owns the slot from then on, and frees it.
//!
//! # Moves
//!
//! A page moves from its slot to the store, to another slot, or to where it would be without the
//! device. To the index a move is a put like any other: [`Shard::begin_move()`] gives it a version,
//! and it is over with exactly one [`Shard::complete()`], [`Shard::moved()`] or
//! [`Shard::abandon()`]. Until then the slot is that of whoever moves the page, even if the entry is
//! gone meanwhile, so that nothing else can come to be in it. All that is said of puts in
//! [`super::super`] holds.

use super::{
    super::{
        entry::{
            self,
            Entry,
            Older, //
        },
        object::state, //
    },
    Completed,
    Inserted,
    Shard,
    Supersedes, //
};

impl Shard {
    /// Inserts pages at `index..` that have been copied to slots of the window.
    ///
    /// `f` is told what each replaces, with how far it is from the first, and says which slot it is
    /// in. The slot of a replaced [`Entry::Window`] is not in use any more.
    ///
    /// Returns how many of the first it was, if there is not memory for all.
    pub fn insert_slots(
        &mut self,
        tag: u64,
        index: u64,
        count: u64,
        mut f: impl FnMut(u64, Option<Entry>) -> u32,
    ) -> u64 {
        let inserted = self.insert_entries(tag, index, count, false, |n, page| Entry::Window {
            older: Older::below(page.replaced),
            slot: f(n, page.replaced),
        });

        if inserted > 0 {
            if let Some((at, object)) = self.find_usable(tag) {
                let stale = object.stale != 0;
                if let Some(object) = self.objects.get_mut(at) {
                    object.state |= state::WINDOW;
                }
                if stale {
                    // INVARIANT: It has stale entries.
                    self.objects.enqueue(at);
                }
            }
        }
        inserted
    }

    /// Takes note that a page that the store has in this version is in a slot of the window, too.
    ///
    /// Returns whether it is: it may not be the same any more, or not be there.
    pub fn promote(&mut self, tag: u64, index: u64, version: u32, slot: u32) -> bool {
        self.is_stored(tag, index, version) && self.insert_slots(tag, index, 1, |_, _| slot) == 1
    }

    /// Returns whether a page is in a slot of the window, and not moving.
    #[inline]
    pub fn is_in_slot(&self, tag: u64, index: u64, slot: u32) -> bool {
        self.peek(tag, index)
            .is_some_and(|found| found.entry.slot() == Some(slot))
    }

    /// Returns whether a page is in the window, moving or not.
    pub fn has_slot(&self, tag: u64, index: u64) -> bool {
        self.peek(tag, index)
            .is_some_and(|found| matches!(found.entry, Entry::Window { .. } | Entry::Moving { .. }))
    }

    /// Erases a page if it is in a slot of the window; returns whether it was, so that the slot is
    /// the caller's.
    ///
    /// This is for whoever takes a slot over, and for slots of chunks that were taken back.
    pub fn erase_slot(&mut self, tag: u64, index: u64, slot: u32) -> bool {
        self.is_in_slot(tag, index, slot) && self.erase(tag, index).is_some()
    }

    /// Calls `f` with the slots of pages at `index..`, up to `count`, as far as they are in the window,
    /// until it returns `false`.
    ///
    /// Returns for how many of the first it was `true`. The pages stay where they are. Those that are
    /// moving are there, too.
    pub fn slots_of(
        &self,
        tag: u64,
        index: u64,
        count: u64,
        mut f: impl FnMut(u32) -> bool,
    ) -> u64 {
        let Some((_, object)) = self.find_usable(tag) else {
            return 0;
        };
        object.tree.look_at_run(&self.nodes, index, count, |raw| {
            entry::slot_to_copy(raw).is_some_and(&mut f)
        })
    }

    /// Takes pages at `index..`, up to `count`, out of the index as far as they are in the window,
    /// and calls `f` with the slot of each, which is the caller's.
    ///
    /// Returns how many of the first it was.
    pub fn take_slots(&mut self, tag: u64, index: u64, count: u64, mut f: impl FnMut(u32)) -> u64 {
        let Some((at, _)) = self.find_usable(tag) else {
            return 0;
        };
        let Some(object) = self.objects.get_mut(at) else {
            return 0;
        };
        let taken = object.tree.take_run(&mut self.nodes, index, count, |raw| {
            entry::slot(raw).map(&mut f).is_some()
        });
        // CAST: At most as many as the object has pages.
        object.live = object.live.wrapping_sub(taken as u32);
        self.live = self.live.wrapping_sub(taken);
        if taken > 0 {
            self.settle(at, true);
        }
        taken
    }

    /// Takes note that the page in a slot of the window is not there any more, if it still is the
    /// page of this entry; the slot is the caller's then.
    ///
    /// Whoever has the right to the page keeps it: see [`Shard::lose_all()`].
    pub fn lose_slot(&mut self, tag: u64, index: u64, slot: u32) -> bool {
        let Some((at, _)) = self.find_usable(tag) else {
            return false;
        };
        let Some(object) = self.objects.get_mut(at) else {
            return false;
        };
        let spot = object.tree.find(&self.nodes, index);
        let Some(Entry::Window { older, slot: is }) = Entry::unpack(spot.raw) else {
            return false;
        };
        if is != slot {
            return false;
        }
        let raw = Entry::Lost.pack();
        object.tree.store(&mut self.nodes, index, spot, raw);
        if older != Older::NOTHING {
            // What the store may have of it goes with the object.
            object.stale = object.stale.wrapping_sub(1);
            self.stale = self.stale.wrapping_sub(1);
            self.leak(at);
        }
        true
    }

    /// Begins to move a page out of a slot of the window, if it is there.
    pub fn begin_move(&mut self, tag: u64, index: u64, slot: u32) -> Option<Inserted> {
        if !self.is_in_slot(tag, index, slot) {
            return None;
        }
        let mut begun = None;

        self.insert_entries(tag, index, 1, true, |_, page| {
            begun = Some(page);
            Entry::Moving {
                version: page.version,
                slot,
            }
        });
        begun
    }

    /// Tells that a page has been moved, and that the slot where it was is not in use any more: to
    /// the slot `to`, or to where it is without the device.
    ///
    /// Where it is not the page any more that was to be moved, `to` is not in use either.
    pub fn moved(
        &mut self,
        tag: u64,
        (wire, index, version): (u64, u64, u32),
        supersedes: Supersedes,
        to: Option<u32>,
    ) -> Completed {
        let Some((at, slot)) = self.find_moving(tag, wire, index, version) else {
            self.abandon(tag, wire, index, version, supersedes);
            return Completed::Gone;
        };
        self.end_move(at, index, supersedes.older(), to.unwrap_or(slot));
        if to.is_none() {
            self.erase(tag, index);
        } else {
            self.settle(at, true);
        }
        Completed::Current
    }

    /// As [`Shard::forget_all()`], and calls `freed` with each slot that was that of an entry.
    ///
    /// Takes time in proportion to the number of pages of objects with pages in the window.
    pub fn forget_all_slots(&mut self, mut freed: impl FnMut(u32)) {
        let nodes = &self.nodes;

        self.objects.for_each_tree(|object| {
            if object.is(state::WINDOW) {
                object.tree.for_each(nodes, |_, raw| {
                    if let Some(slot) = Entry::unpack(raw).and_then(Entry::slot) {
                        freed(slot);
                    }
                });
            }
        });
        self.forget_all();
    }

    /// Returns the object and the slot of a page that is being moved.
    fn find_moving(&self, tag: u64, wire: u64, index: u64, version: u32) -> Option<(u32, u32)> {
        let (at, object) = self.find_wire(tag, wire)?;

        match Entry::unpack(object.tree.get(&self.nodes, index))? {
            Entry::Moving { version: v, slot } if v == version => Some((at, slot)),
            _ => None,
        }
    }

    /// Has a page that is being moved in a slot again.
    pub(super) fn end_move(&mut self, at: u32, index: u64, older: Older, slot: u32) {
        let Some(object) = self.objects.get_mut(at) else {
            return;
        };
        object.pending = object.pending.wrapping_sub(1);
        self.pending = self.pending.wrapping_sub(1);
        let spot = object.tree.find(&self.nodes, index);
        let raw = Entry::Window { older, slot }.pack();
        object.tree.store(&mut self.nodes, index, spot, raw);
        if older != Older::NOTHING {
            object.stale = object.stale.wrapping_add(1);
            self.stale = self.stale.wrapping_add(1);
        }
    }

    /// Takes note of what the store may have under the key of a page in the window.
    pub(super) fn set_older(&mut self, at: u32, index: u64, (was, is): (Older, Older), slot: u32) {
        let Some(object) = self.objects.get_mut(at).filter(|_| was != is) else {
            return;
        };
        let spot = object.tree.find(&self.nodes, index);
        let raw = Entry::Window { older: is, slot }.pack();
        object.tree.store(&mut self.nodes, index, spot, raw);
        // There is never less than before.
        if was == Older::NOTHING {
            object.stale = object.stale.wrapping_add(1);
            self.stale = self.stale.wrapping_add(1);
        }
    }
}
