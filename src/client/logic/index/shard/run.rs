// SPDX-License-Identifier: GPL-2.0

//! Pages next to each other: the way to them is gone once for all that are in one leaf.

use super::{
    super::{
        entry::{
            self,
            next_version,
            Entry, //
        },
        node::PLACES,
        object::state,
        NoRoom, //
    },
    Found,
    Inserted,
    Shard, //
    Supersedes,
};

impl Shard {
    /// Inserts a page that has been copied to the staging memory and is to be put.
    ///
    /// As [`Shard::insert_run()`], for one page.
    pub fn insert_pending(&mut self, tag: u64, index: u64, slot: u32) -> Result<Inserted, NoRoom> {
        let mut inserted = Err(NoRoom);

        self.insert_in_leaf(tag, index, 1, true, |_, page| {
            inserted = Ok(page);
            let version = page.version;
            Entry::Pending { version, slot }
        })?;
        inserted
    }

    /// Inserts pages at `index..` that have been copied to the staging memory and are to be put.
    ///
    /// `f` is told of each in turn, with how far it is from the first, and says where in the staging
    /// memory it is. Replaces what the index has at those places. The slot of a replaced
    /// [`Entry::Pending`] remains in use until the put that it belongs to is completed or abandoned.
    ///
    /// The slot of a replaced [`Entry::Window`] is not in use any more.
    ///
    /// Returns how many of the first it was, if there is not memory for all.
    pub fn insert_run(
        &mut self,
        tag: u64,
        index: u64,
        count: u64,
        mut f: impl FnMut(u64, Inserted) -> u32,
    ) -> u64 {
        self.insert_entries(tag, index, count, true, |n, page| Entry::Pending {
            version: page.version,
            slot: f(n, page),
        })
    }

    /// Inserts what `f` says, for as many of the first pages at `index..` as there is memory for.
    ///
    /// With `named` they are on their way to the device, and the object has a wire id from now on.
    /// Else they are in the window.
    #[inline]
    pub(super) fn insert_entries(
        &mut self,
        tag: u64,
        index: u64,
        count: u64,
        named: bool,
        mut f: impl FnMut(u64, Inserted) -> Entry,
    ) -> u64 {
        let mut done = 0u64;

        while done < count {
            let inserted = self.insert_in_leaf(
                tag,
                index.wrapping_add(done),
                count.wrapping_sub(done),
                named,
                |n, page| f(done.wrapping_add(n), page),
            );
            match inserted {
                Ok(more) => done = done.wrapping_add(more),
                Err(NoRoom) => break,
            }
        }
        done
    }

    /// Inserts those of the pages that are in the first's leaf; as [`Shard::insert_entries()`].
    fn insert_in_leaf(
        &mut self,
        tag: u64,
        index: u64,
        count: u64,
        named: bool,
        mut f: impl FnMut(u64, Inserted) -> Entry,
    ) -> Result<u64, NoRoom> {
        let count = count.min((PLACES as u64).wrapping_sub(index % PLACES as u64));
        let last = index.saturating_add(count.saturating_sub(1));
        let (at, wire) = match self.objects.find(tag) {
            Some((at, object)) if !object.is(state::RETIRED) => (at, object.wire),
            found => (
                self.insert_object(tag, found.map(|found| found.0), last)?,
                0,
            ),
        };
        let wire = match wire {
            0 if !named => 0,
            0 if self.next_wire == 0 => return Err(NoRoom),
            0 => self.next_wire,
            wire => wire,
        };
        let object = self.objects.get_mut(at).ok_or(NoRoom)?;

        let mut version = self.version;
        let mut orphans = object.orphans;
        let (mut live, mut stale, mut pending) = (0i32, 0i32, 0i32);
        // For an object that has just been made this cannot fail: see there.
        let inserted = object
            .tree
            .store_run(&mut self.nodes, index, count, |n, raw| {
                // Most places are vacant: see to those first.
                let replaced = if raw == 0 { None } else { Entry::unpack(raw) };
                let supersedes = Supersedes::after(replaced, orphans);

                version = next_version(version);
                if entry::has_version(raw, version) {
                    version = next_version(version);
                }
                let entry = f(
                    n,
                    Inserted {
                        wire,
                        version,
                        replaced,
                        supersedes,
                    },
                );
                let new = entry.pack();

                stale = stale.wrapping_add(entry::is_stale(new).into());
                // Most places are vacant.
                if raw != 0 {
                    let was_pending = entry::is_pending(raw);
                    orphans = orphans.wrapping_add(was_pending.into());
                    live = live.wrapping_sub(entry::is_live(raw).into());
                    stale = stale.wrapping_sub(entry::is_stale(raw).into());
                    pending = pending.wrapping_sub(was_pending.into());
                }
                new
            })?;

        // CAST: At most as many as a leaf has places.
        live = live.wrapping_add(inserted as i32);
        if named {
            // CAST: As above.
            pending = pending.wrapping_add(inserted as i32);
        }
        self.version = version;
        if object.wire == 0 && named {
            // INVARIANT: The next one is above this one, if there is one.
            object.wire = wire;
            self.next_wire = wire.checked_add(self.shards.into()).unwrap_or(0);
        }
        object.orphans = orphans;
        object.live = object.live.wrapping_add_signed(live);
        self.live = self.live.wrapping_add_signed(live.into());
        object.stale = object.stale.wrapping_add_signed(stale);
        self.stale = self.stale.wrapping_add_signed(stale.into());
        object.pending = object.pending.wrapping_add_signed(pending);
        self.pending = self.pending.wrapping_add_signed(pending.into());
        Ok(inserted)
    }

    /// Tells that the device has stored pages at `index..` of an object that goes by `wire`.
    ///
    /// `pages` are their versions, and what the caller wants to keep with each. Returns for how many
    /// of the first that was all that there is to say; the next one, if there is one, is for
    /// [`Shard::complete()`].
    pub fn complete_run(
        &mut self,
        tag: u64,
        wire: u64,
        index: u64,
        pages: impl IntoIterator<Item = (u32, u32)>,
    ) -> u64 {
        let Some((at, _)) = self.find_wire(tag, wire) else {
            return 0;
        };
        let Some(object) = self.objects.get_mut(at) else {
            return 0;
        };
        let leaf = object.tree.leaf_of(&self.nodes, index);
        let Some(leaf) = leaf.and_then(|leaf| self.nodes.get_mut(leaf)) else {
            return 0;
        };
        let mut place = index % PLACES as u64;
        let mut done = 0u32;

        for (version, crc) in pages {
            if place == PLACES as u64 {
                break;
            }
            if !entry::is_on_its_way(leaf.get(place), version) {
                break;
            }
            // INVARIANT: The one is as live as the other.
            leaf.put(place, Entry::Remote { version, crc }.pack());
            place = place.wrapping_add(1);
            done = done.wrapping_add(1);
        }
        object.pending = object.pending.wrapping_sub(done);
        self.pending = self.pending.wrapping_sub(done.into());
        done.into()
    }

    /// Returns how many of the first puts of pages at `index..`, of an object that goes by `wire`,
    /// are still to be submitted, as far as they are in one leaf.
    ///
    /// The next one, if there is one, is for [`Shard::is_current()`].
    pub fn current_run(
        &self,
        tag: u64,
        wire: u64,
        index: u64,
        versions: impl IntoIterator<Item = u32>,
    ) -> u64 {
        let Some((_, object)) = self.find_wire(tag, wire) else {
            return 0;
        };
        let leaf = object.tree.leaf_of(&self.nodes, index);
        let Some(leaf) = leaf.and_then(|leaf| self.nodes.get(leaf)) else {
            return 0;
        };
        let mut place = index % PLACES as u64;
        let mut count = 0u64;

        for version in versions {
            if !entry::is_on_its_way(leaf.get(place), version) {
                break;
            }
            count = count.wrapping_add(1);
            place = place.wrapping_add(1);
            if place == PLACES as u64 {
                break;
            }
        }
        count
    }

    /// Takes pages at `index..` that can be had out of the index, up to `count`, and calls `f` with
    /// each.
    ///
    /// Returns how many of the first it was. As for [`Shard::take()`], the caller gets them from the
    /// device, or from the staging memory.
    pub fn take_run(&mut self, tag: u64, index: u64, count: u64, mut f: impl FnMut(Found)) -> u64 {
        let Some((at, _)) = self.find_usable(tag) else {
            return 0;
        };
        let Some(object) = self.objects.get_mut(at) else {
            return 0;
        };
        let wire = object.wire;
        let mut pending = 0u32;
        let taken = object.tree.take_run(&mut self.nodes, index, count, |raw| {
            let Some(entry) = Entry::unpack(raw) else {
                return false;
            };
            pending = pending.wrapping_add(entry::is_pending(raw).into());
            f(Found { wire, entry });
            true
        });
        // CAST: At most as many as the object has pages.
        object.live = object.live.wrapping_sub(taken as u32);
        object.pending = object.pending.wrapping_sub(pending);
        object.orphans = object.orphans.wrapping_add(pending);
        self.live = self.live.wrapping_sub(taken);
        self.pending = self.pending.wrapping_sub(pending.into());
        if taken > 0 {
            // To give up the object now might flush the pages before they are asked for.
            self.settle(at, false);
        }
        taken
    }
}
