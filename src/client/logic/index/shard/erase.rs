// SPDX-License-Identifier: GPL-2.0

//! Taking pages out of a shard.

use super::{
    super::{
        entry::{
            self,
            Entry, //
        },
        object::state,
        tree::Kind, //
    },
    Erased,
    Found,
    Shard, //
};

impl Shard {
    /// The number of leaves that [`Shard::erase_range()`] goes through at once.
    const LEAVES_AT_ONCE: usize = 64;

    /// Takes a page that can be had out of the index.
    ///
    /// The caller gets an [`Entry::Remote`] from the device with a request that removes it there,
    /// too, an [`Entry::Pending`] from the staging memory, and an [`Entry::Window`] from its slot,
    /// which it frees when it has copied the page. An [`Entry::Moving`] is copied from its slot before
    /// the lock is released: the slot is that of whoever moves it.
    pub fn take(&mut self, tag: u64, index: u64) -> Option<Found> {
        let (at, _) = self.find_usable(tag)?;
        let object = self.objects.get_mut(at)?;
        let spot = object.tree.find(&self.nodes, index);
        let entry = Entry::unpack(spot.raw)?;
        match entry {
            Entry::Pending { .. } | Entry::Moving { .. } => {
                object.pending = object.pending.wrapping_sub(1);
                self.pending = self.pending.wrapping_sub(1);
                object.orphans = object.orphans.wrapping_add(1);
            }
            Entry::Remote { .. } | Entry::Window { .. } | Entry::Lost => (),
            Entry::Stale { .. } => return None,
        }
        object.live = object.live.wrapping_sub(1);
        self.live = self.live.wrapping_sub(1);
        object
            .tree
            .store(&mut self.nodes, index, spot, entry::taken(spot.raw));
        let found = Found {
            wire: object.wire,
            entry,
        };
        // To give up the object now might flush the page before it is asked for.
        self.settle(at, false);
        Some(found)
    }

    /// Erases a page, and returns what was there if it could be had.
    ///
    /// The slot of an [`Entry::Window`] is the caller's to free, here and wherever entries are erased.
    pub fn erase(&mut self, tag: u64, index: u64) -> Option<Entry> {
        let (at, _) = self.find_usable(tag)?;
        let object = self.objects.get_mut(at)?;
        let spot = object.tree.find(&self.nodes, index);
        let entry = Entry::unpack(spot.raw)?;
        let left = match entry {
            Entry::Pending { .. } | Entry::Moving { .. } => {
                object.pending = object.pending.wrapping_sub(1);
                self.pending = self.pending.wrapping_sub(1);
                object.orphans = object.orphans.wrapping_add(1);
                0
            }
            Entry::Remote { version, .. } => {
                object.stale = object.stale.wrapping_add(1);
                self.stale = self.stale.wrapping_add(1);
                Entry::Stale { version }.pack()
            }
            // What the store has of it, if anything, is counted already.
            Entry::Window { .. } => entry::taken(spot.raw),
            Entry::Lost => 0,
            Entry::Stale { .. } => return None,
        };
        object.live = object.live.wrapping_sub(1);
        self.live = self.live.wrapping_sub(1);
        object.tree.store(&mut self.nodes, index, spot, left);
        self.settle(at, true);
        Some(entry)
    }

    /// Erases the pages at `first..=last`, and calls `f` for each that could be had.
    ///
    /// Goes through a few thousand pages at most, and says where to go on if there may be more.
    /// When there is no live page left in the object in the end, it is given up at once.
    pub fn erase_range(
        &mut self,
        tag: u64,
        first: u64,
        last: u64,
        mut f: impl FnMut(Entry),
    ) -> Erased {
        let mut erased = Erased {
            count: 0,
            next: None,
        };
        let Some((at, _)) = self.find_usable(tag) else {
            return erased;
        };
        let Some(object) = self.objects.get_mut(at) else {
            return erased;
        };
        let (mut live, mut pending, mut marks) = (0u32, 0u32, 0u32);
        erased.next = object.tree.rewrite(
            &mut self.nodes,
            first,
            last,
            Kind::Live,
            Self::LEAVES_AT_ONCE,
            |_, raw| {
                live = live.wrapping_add(1);
                if entry::is_pending(raw) {
                    pending = pending.wrapping_add(1);
                }
                if let Some(entry) = Entry::unpack(raw) {
                    f(entry);
                    if matches!(entry, Entry::Remote { .. }) {
                        marks = marks.wrapping_add(1);
                    }
                }
                Some(entry::erased(raw))
            },
        );
        object.live = object.live.wrapping_sub(live);
        object.pending = object.pending.wrapping_sub(pending);
        object.orphans = object.orphans.wrapping_add(pending);
        object.stale = object.stale.wrapping_add(marks);
        self.live = self.live.wrapping_sub(live.into());
        self.pending = self.pending.wrapping_sub(pending.into());
        self.stale = self.stale.wrapping_add(marks.into());
        erased.count = live.into();
        if object.live == 0 && !object.is_clean() {
            erased.next = None;
            self.retire(at);
        } else {
            self.settle(at, true);
        }
        erased
    }

    /// Erases all pages of an object, in constant time, and returns how many could be had.
    ///
    /// Slots of the window come free with [`Shard::harvest_slots()`].
    pub fn erase_all(&mut self, tag: u64) -> u64 {
        let Some((at, object)) = self.find_usable(tag) else {
            return 0;
        };
        let count = object.live.into();
        if !object.is_clean() {
            self.retire(at);
        }
        count
    }

    /// Forgets an object, with all of its pages and its flags, in constant time.
    ///
    /// Its tag may be that of another object from now on.
    pub fn drop_object(&mut self, tag: u64) {
        let Some((at, _)) = self.objects.find(tag) else {
            return;
        };
        let Some(object) = self.objects.get_mut(at) else {
            return;
        };
        object.flags = 0;
        if object.is(state::RETIRED) {
            self.objects.unhash(at);
        } else if !object.is_clean() {
            self.retire(at);
        } else if object.is(state::QUEUED) {
            // The device has nothing, but the work list has the record.
            object.wire = 0;
            self.retire(at);
        } else {
            self.objects.unhash(at);
            self.objects.free(at);
        }
    }

    /// Takes note that the device has lost all pages that it had, and returns how many it was.
    ///
    /// Whoever has the right to one keeps it, so that nobody takes for it what lies elsewhere. Puts
    /// that have been inserted go on. What the device was to be told it still is; that does no
    /// harm.
    ///
    /// Takes time in proportion to the number of pages.
    pub fn lose_all(&mut self) -> u64 {
        let nodes = &mut self.nodes;
        let mut lost = 0u64;

        self.objects.for_each_mut(|object| {
            if object.is(state::RETIRED) {
                return;
            }
            let lose = |_, raw| match Entry::unpack(raw) {
                Some(Entry::Remote { .. }) => {
                    lost = lost.wrapping_add(1);
                    Some(Entry::Lost.pack())
                }
                _ => Some(raw),
            };
            object
                .tree
                .rewrite(nodes, 0, u64::MAX, Kind::Live, usize::MAX, lose);
        });
        lost
    }

    /// Forgets all pages without telling the device; flags stay.
    ///
    /// This is for a device that has forgotten them itself, or is gone. Puts that have been
    /// inserted need no outcome any more; one that comes does no harm.
    ///
    /// Takes time in proportion to the number of objects.
    pub fn forget_all(&mut self) {
        self.objects.forget_all();
        self.nodes.clear();
        self.live = 0;
        self.pending = 0;
        self.stale = 0;
    }
}
