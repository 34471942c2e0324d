// SPDX-License-Identifier: GPL-2.0

//! A shard of the index: looking up, putting, and what becomes of puts.

mod erase;
mod flush;
mod memory;
mod run;
mod stored;
mod types;
mod window;

use super::{
    entry::{
        self,
        Entry,
        Older, //
    },
    node::Nodes,
    object::{
        state,
        Directory,
        Object, //
    },
    NoRoom, //
};

pub use types::{
    Completed,
    Config,
    Erased,
    Flush,
    Found,
    Inserted,
    Outcome,
    Stats,
    Supersedes,
    Wants, //
};

/// A shard of the index.
///
/// The caller of everything that takes `&mut self` or `&self` holds the shard's lock, with
/// interrupts off. Creating and dropping may sleep and happen outside of it.
///
/// # Invariants
///
/// - `live`, `pending` and `stale` are the sums of the same counts of all objects.
/// - An object that can be found by its tag has entries, orphans or flags, or leaks, or is on the
///   work list.
/// - `next_wire` is above all wire ids given out, or zero if there are no more.
pub struct Shard {
    nodes: Nodes,
    objects: Directory,
    next_wire: u64,
    shards: u32,
    version: u32,
    live: u64,
    pending: u64,
    stale: u64,
    leaked: u64,
}

impl Shard {
    /// The number of stale marks beyond which an object without live pages is given up at once.
    const FEW: u32 = 8;

    /// Tells what became of a put that was submitted.
    ///
    /// A page that was moving to the store, and was refused, is in its slot, as before. In all other
    /// cases the slot that the put was from is not in use any more.
    ///
    /// [`Outcome::Stored`] with an entry that is not there any more leaves a stale mark, where the
    /// device has to be told.
    pub fn complete(
        &mut self,
        tag: u64,
        wire: u64,
        index: u64,
        version: u32,
        outcome: Outcome,
    ) -> Completed {
        let Some((at, _)) = self.find_wire(tag, wire) else {
            return Completed::Gone;
        };
        let Some(object) = self.objects.get_mut(at) else {
            return Completed::Gone;
        };
        let spot = object.tree.find(&self.nodes, index);
        let entry = Entry::unpack(spot.raw);
        let completed = match entry {
            Some(Entry::Pending { version: v, .. } | Entry::Moving { version: v, .. })
                if v == version =>
            {
                object.pending = object.pending.wrapping_sub(1);
                self.pending = self.pending.wrapping_sub(1);
                let raw = match (outcome, entry) {
                    (Outcome::Stored { crc }, _) => Entry::Remote { version, crc }.pack(),
                    (Outcome::Refused, Some(Entry::Moving { slot, .. })) => {
                        let older = Older::NOTHING;
                        Entry::Window { older, slot }.pack()
                    }
                    (Outcome::Refused, _) => {
                        object.live = object.live.wrapping_sub(1);
                        self.live = self.live.wrapping_sub(1);
                        0
                    }
                };
                object.tree.store(&mut self.nodes, index, spot, raw);
                Completed::Current
            }
            _ => {
                object.orphans = object.orphans.saturating_sub(1);
                match (outcome, entry) {
                    (Outcome::Refused, _) => (),
                    (Outcome::Stored { .. }, None) => {
                        self.mark_stale(at, index, Entry::Stale { version });
                    }
                    (Outcome::Stored { .. }, Some(Entry::Stale { version: v })) => {
                        // A mark for any version supersedes this one, too.
                        if v != 0 && entry::is_newer(version, v) {
                            let raw = Entry::Stale { version }.pack();
                            object.tree.store(&mut self.nodes, index, spot, raw);
                        }
                    }
                    (Outcome::Stored { .. }, Some(Entry::Window { older, slot })) => {
                        let both = (older, older.or_newer(version));
                        self.set_older(at, index, both, slot);
                    }
                    // It may have been lost in the window, from where nothing is dropped.
                    (Outcome::Stored { .. }, Some(Entry::Lost)) => self.leak(at),
                    // The newer put has dropped this page, or will.
                    (Outcome::Stored { .. }, Some(_)) => (),
                }
                Completed::Gone
            }
        };
        self.settle(at, true);
        completed
    }

    /// Tells that a put will not be submitted.
    ///
    /// What the put would have dropped is marked stale. A page that was moving is in its slot, as
    /// before.
    pub fn abandon(
        &mut self,
        tag: u64,
        wire: u64,
        index: u64,
        version: u32,
        supersedes: Supersedes,
    ) {
        let Some((at, _)) = self.find_wire(tag, wire) else {
            return;
        };
        let Some(object) = self.objects.get_mut(at) else {
            return;
        };
        let spot = object.tree.find(&self.nodes, index);
        match (Entry::unpack(spot.raw), supersedes.mark()) {
            (Some(Entry::Moving { version: v, slot }), _) if v == version => {
                self.end_move(at, index, supersedes.older(), slot);
            }
            (Some(Entry::Pending { version: v, .. }), mark) if v == version => {
                object.pending = object.pending.wrapping_sub(1);
                self.pending = self.pending.wrapping_sub(1);
                object.live = object.live.wrapping_sub(1);
                self.live = self.live.wrapping_sub(1);
                let raw = match mark {
                    Some(mark) => {
                        object.stale = object.stale.wrapping_add(1);
                        self.stale = self.stale.wrapping_add(1);
                        mark.pack()
                    }
                    None => 0,
                };
                object.tree.store(&mut self.nodes, index, spot, raw);
            }
            (there, mark) => {
                object.orphans = object.orphans.saturating_sub(1);
                match (there, mark) {
                    (None, Some(mark)) => self.mark_stale(at, index, mark),
                    (Some(Entry::Window { older, slot }), _) => {
                        let both = (older, older.or(supersedes.older()));
                        self.set_older(at, index, both, slot);
                    }
                    (Some(there @ Entry::Stale { .. }), Some(mark)) if there != mark => {
                        let raw = Entry::Stale { version: 0 }.pack();
                        object.tree.store(&mut self.nodes, index, spot, raw);
                    }
                    // As for an outcome.
                    (Some(Entry::Lost), Some(_)) => self.leak(at),
                    // Covered by what is there.
                    _ => (),
                }
            }
        }
        self.settle(at, true);
    }

    /// Returns whether a put that has been inserted is still to be submitted.
    #[inline]
    pub fn is_current(&self, tag: u64, wire: u64, index: u64, version: u32) -> bool {
        self.find_wire(tag, wire).is_some_and(|(_, object)| {
            entry::is_on_its_way(object.tree.get(&self.nodes, index), version)
        })
    }

    /// Returns a page that can be had, and leaves it where it is.
    #[inline]
    pub fn peek(&self, tag: u64, index: u64) -> Option<Found> {
        let (_, object) = self.find_usable(tag)?;
        let entry = Entry::unpack(object.tree.get(&self.nodes, index))?;
        entry.is_live().then_some(Found {
            wire: object.wire,
            entry,
        })
    }

    /// Returns the number of pages at `index..index + n` that can be had.
    pub fn contains_range(&self, tag: u64, index: u64, n: u64) -> u64 {
        let Some(last) = n.checked_sub(1) else {
            return 0;
        };
        match self.find_usable(tag) {
            Some((_, object)) if n == 1 => {
                entry::is_live(object.tree.get(&self.nodes, index)).into()
            }
            Some((_, object)) if object.live != 0 => {
                object
                    .tree
                    .count(&self.nodes, index, index.saturating_add(last))
            }
            _ => 0,
        }
    }

    /// Calls `f` with the tag, the index and the entry of each page that can be had.
    ///
    /// Takes time in proportion to their number, and is for tests and for looking into a problem.
    pub fn for_each_live(&self, mut f: impl FnMut(u64, u64, Entry)) {
        self.objects.for_each(|object| {
            if !object.is(state::RETIRED) {
                object.tree.for_each(&self.nodes, |index, raw| {
                    if let Some(entry) = Entry::unpack(raw) {
                        f(object.tag, index, entry);
                    }
                });
            }
        });
    }

    /// Returns the flags of an object; of one that is not known, none.
    #[inline]
    pub fn flags(&self, tag: u64) -> u8 {
        self.objects.find(tag).map_or(0, |(_, object)| object.flags)
    }

    /// Sets the flags of an object, to which the index gives no meaning.
    ///
    /// They stay until they are set again or the object is dropped. Fails if the object is not
    /// known, and there is no memory to know it; never if it is, nor to set no flags.
    pub fn set_flags(&mut self, tag: u64, flags: u8) -> Result<(), NoRoom> {
        let at = match self.objects.find(tag) {
            Some((at, _)) => at,
            None if flags == 0 => return Ok(()),
            None => self.objects.insert(tag).ok_or(NoRoom)?,
        };
        let Some(object) = self.objects.get_mut(at) else {
            return Err(NoRoom);
        };
        object.flags = flags;
        if flags == 0 && object.is(state::RETIRED) {
            self.objects.unhash(at);
        } else {
            self.settle(at, false);
        }
        Ok(())
    }

    /// Returns a record that has not been retired.
    #[inline]
    fn find_usable(&self, tag: u64) -> Option<(u32, &Object)> {
        self.objects
            .find(tag)
            .filter(|(_, object)| !object.is(state::RETIRED))
    }

    /// Returns a record that goes by a wire id.
    #[inline]
    fn find_wire(&self, tag: u64, wire: u64) -> Option<(u32, &Object)> {
        self.objects
            .find(tag)
            .filter(|(_, object)| object.goes_by(wire))
    }

    /// Adds a record for an object that there is none of, or only one that has been retired.
    ///
    /// Makes sure that there are nodes for an entry at `index`.
    fn insert_object(&mut self, tag: u64, old: Option<u32>, index: u64) -> Result<u32, NoRoom> {
        if self.nodes.room() < super::tree::needs(index) || self.next_wire == 0 {
            return Err(NoRoom);
        }
        if self.objects.room() == 0 {
            return Err(NoRoom);
        }
        let mut flags = 0;
        if let Some(old) = old {
            // What is left of the retired one is on the work list.
            flags = self.objects.get(old).map_or(0, |object| object.flags);
            self.objects.unhash(old);
        }
        let at = self.objects.insert(tag).ok_or(NoRoom)?;
        if let Some(object) = self.objects.get_mut(at) {
            object.flags = flags;
        }
        Ok(at)
    }

    /// Leaves a stale mark at a place that is vacant.
    fn mark_stale(&mut self, at: u32, index: u64, mark: Entry) {
        let Some(object) = self.objects.get_mut(at) else {
            return;
        };
        match object.tree.set(&mut self.nodes, index, mark.pack()) {
            Ok(_) => {
                object.stale = object.stale.wrapping_add(1);
                self.stale = self.stale.wrapping_add(1);
            }
            Err(NoRoom) => self.leak(at),
        }
    }

    /// Takes note that the device may have a page that it will be told of with the object only.
    fn leak(&mut self, at: u32) {
        if let Some(object) = self.objects.get_mut(at) {
            object.state |= state::LEAKY;
            self.leaked = self.leaked.wrapping_add(1);
        }
    }

    /// Sees what is to be done with a record after it has changed.
    ///
    /// Only with `may_retire` may it be given up for having nothing but stale pages.
    #[inline]
    fn settle(&mut self, at: u32, may_retire: bool) {
        let Some(object) = self.objects.get(at) else {
            return;
        };
        if object.live == 0 && may_retire && (object.stale > Self::FEW || object.is(state::LEAKY)) {
            self.retire(at);
        } else if object.stale != 0 {
            // INVARIANT: It has stale entries.
            self.objects.enqueue(at);
        } else if object.is_clean() && object.flags == 0 && !object.is(state::QUEUED) {
            // INVARIANT: It has nothing of what would keep it.
            self.objects.unhash(at);
            self.objects.free(at);
        }
    }

    /// Gives up the wire id of an object and all that goes by it.
    fn retire(&mut self, at: u32) {
        let Some(object) = self.objects.get_mut(at) else {
            return;
        };
        if object.is(state::RETIRED) {
            return;
        }
        self.live = self.live.wrapping_sub(object.live.into());
        self.pending = self.pending.wrapping_sub(object.pending.into());
        self.stale = self.stale.wrapping_sub(object.stale.into());
        object.live = 0;
        object.pending = 0;
        object.stale = 0;
        object.orphans = 0;
        object.state |= state::RETIRED;
        // INVARIANT: What is retired is on the work list, and is found only for its flags.
        if object.flags == 0 && object.is(state::HASHED) {
            self.objects.unhash(at);
        }
        self.objects.enqueue(at);
    }
}
