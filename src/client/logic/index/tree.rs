// SPDX-License-Identifier: GPL-2.0

//! The tree of one object: from page indices to entries.
//!
//! It is a radix tree as the kernel's, of nodes with 64 places. It is as high as its highest index
//! requires; at height 0 the root is the entry of index 0 itself, so that the many files of one
//! page need no node. A node is 528 bytes: a densely filled tree costs 8.4 bytes a page.
//!
//! Nothing here recurses, allocates or panics.

mod walk;

use super::{
    entry,
    node::{
        child,
        link,
        Nodes,
        LEVEL_BITS,
        PLACES, //
    },
    slab::NIL,
    NoRoom, //
};

pub(super) use walk::Kind;

/// The number of levels that 64-bit indices require.
const MAX_HEIGHT: usize = 11;

/// Returns the highest index of a tree of a height.
#[inline]
fn last_index(height: u32) -> u64 {
    match 1u64.checked_shl(height.wrapping_mul(LEVEL_BITS)) {
        Some(count) => count.wrapping_sub(1),
        None => u64::MAX,
    }
}

/// Returns the place of an index in the node of a level; only the lowest bits count.
#[inline]
fn place(index: u64, level: u32) -> u64 {
    index.wrapping_shr(level.wrapping_mul(LEVEL_BITS)) % PLACES as u64
}

/// Returns the height that a tree must have for an index.
#[inline]
fn height_for(index: u64) -> u32 {
    (u64::BITS - index.leading_zeros()).div_ceil(LEVEL_BITS)
}

/// Returns the number of nodes that a tree with a single entry has.
#[inline]
pub(super) fn needs(index: u64) -> usize {
    // CAST: A height is a small number.
    height_for(index) as usize
}

/// Returns the bits of the places `first..`.
#[inline]
fn from_place(first: u64) -> u64 {
    u64::MAX << (first % PLACES as u64)
}

/// Returns the bits of so many places, from the first on.
#[inline]
fn first_places(count: u64) -> u64 {
    // CAST: More than there are places is as good as all of them.
    match 1u64.checked_shl(count as u32) {
        Some(next) => next.wrapping_sub(1),
        None => u64::MAX,
    }
}

/// The nodes from a leaf to the root, by their level.
struct Path {
    index: u64,
    nodes: [u32; MAX_HEIGHT],
}

impl Path {
    fn new(index: u64) -> Self {
        Self {
            index,
            nodes: [NIL; MAX_HEIGHT],
        }
    }

    #[inline]
    fn get(&self, level: u32) -> u32 {
        // CAST: A level is a small number.
        self.nodes.get(level as usize).copied().unwrap_or(NIL)
    }

    #[inline]
    fn set(&mut self, level: u32, at: u32) {
        // CAST: As above.
        if let Some(slot) = self.nodes.get_mut(level as usize) {
            *slot = at;
        }
    }
}

/// What has been found at an index.
#[derive(Clone, Copy)]
pub(super) struct Spot {
    /// The entry, or zero.
    pub(super) raw: u64,
    /// The node of level 0, if the tree has a height and `raw` is not zero.
    leaf: u32,
}

impl Spot {
    const VACANT: Self = Self { raw: 0, leaf: NIL };
}

/// The tree of one object.
///
/// # Invariants
///
/// - `root` is zero if the tree is empty; then `height` is zero. Else it is an entry if `height`
///   is zero, and otherwise the link to a node of level `height - 1`.
/// - The height is the least possible.
/// - No node is empty.
#[derive(Clone, Copy)]
pub(super) struct Tree {
    root: u64,
    height: u32,
}

impl Tree {
    /// A tree without entries.
    pub(super) const EMPTY: Self = Self { root: 0, height: 0 };

    /// How many nodes can be given back in the time that it takes to look for the slots of one.
    const COST_OF_SLOTS: usize = 7;

    /// Returns what is at an index.
    #[inline]
    pub(super) fn get(&self, nodes: &Nodes, index: u64) -> u64 {
        self.find(nodes, index).raw
    }

    /// Finds what is at an index.
    #[inline]
    pub(super) fn find(&self, nodes: &Nodes, index: u64) -> Spot {
        if index > last_index(self.height) {
            return Spot::VACANT;
        }
        let mut leaf = NIL;
        let mut value = self.root;
        for level in (0..self.height).rev() {
            leaf = child(value);
            match nodes.get(leaf) {
                Some(node) => value = node.get(place(index, level)),
                None => return Spot::VACANT,
            }
            if value == 0 {
                break;
            }
        }
        Spot { leaf, raw: value }
    }

    /// Stores an entry, or makes the place vacant, where an entry has been found.
    ///
    /// `spot` is where `index` is, and is not vacant; the tree has not changed since. Needs no
    /// nodes.
    #[inline]
    pub(super) fn store(&mut self, nodes: &mut Nodes, index: u64, spot: Spot, raw: u64) {
        if spot.raw == 0 {
            return;
        }
        if self.height == 0 {
            self.root = raw;
        } else {
            self.store_in(nodes, index, spot.leaf, raw);
        }
    }

    /// Stores an entry, or makes the place vacant, in the node of level 0 that has the index.
    #[inline]
    fn store_in(&mut self, nodes: &mut Nodes, index: u64, leaf: u32, raw: u64) {
        let Some(node) = nodes.get_mut(leaf) else {
            return;
        };
        let before = node.summary();
        node.put_entry(place(index, 0), raw);
        let changed = node.summary() != before;
        self.mend_leaf(nodes, index, changed);
    }

    /// Stores an entry and returns what was at the index.
    ///
    /// If there are not enough nodes, nothing changes.
    pub(super) fn set(&mut self, nodes: &mut Nodes, index: u64, raw: u64) -> Result<u64, NoRoom> {
        if index > last_index(self.height) {
            self.grow(nodes, index)?;
        }
        if self.height == 0 {
            let old = self.root;
            self.root = raw;
            return Ok(old);
        }

        let mut at = NIL;
        let mut value = self.root;
        for level in (0..self.height).rev() {
            if value == 0 {
                // Before the first node of several, see whether there are all.
                // CAST: A level is a small number.
                if nodes.room() <= level as usize {
                    return Err(NoRoom);
                }
                value = link(nodes.alloc().ok_or(NoRoom)?);
                match nodes.get_mut(at) {
                    Some(parent) => parent.put(place(index, level.wrapping_add(1)), value),
                    None => self.root = value,
                }
            }
            at = child(value);
            value = nodes.get(at).ok_or(NoRoom)?.get(place(index, level));
        }
        // INVARIANT: The bits of all new nodes follow from those of the leaf.
        self.store_in(nodes, index, at, raw);
        Ok(value)
    }

    /// Stores what `f` makes of what is at the indices `first..`, in one leaf, up to `count` of them.
    ///
    /// `f` is called with how far each is from the first, and with what is there; what it returns
    /// must be a live entry. Returns how many there were. If there are not enough nodes, nothing
    /// changes, and `f` is not called.
    pub(super) fn store_run(
        &mut self,
        nodes: &mut Nodes,
        first: u64,
        count: u64,
        mut f: impl FnMut(u64, u64) -> u64,
    ) -> Result<u64, NoRoom> {
        let start = place(first, 0);
        let count = count.min((PLACES as u64).wrapping_sub(start));
        let Some(more) = count.checked_sub(1) else {
            return Ok(0);
        };
        // The last one makes the tree as high, and gives it the nodes, that all of them require.
        let at_last = self.set(nodes, first.wrapping_add(more), entry::SOME_LIVE)?;
        if self.height == 0 {
            self.root = f(more, at_last);
            return Ok(count);
        }

        let path = self.path(nodes, first);
        let node = nodes.get_mut(path.get(0)).ok_or(NoRoom)?;
        let before = node.summary();
        for n in 0..count {
            let place = start.wrapping_add(n);
            let old = if n == more { at_last } else { node.get(place) };
            node.put_entry(place, f(n, old));
        }
        // INVARIANT: Nothing else follows from the change unless this does.
        if node.summary() != before {
            self.mend(nodes, &path);
        }
        Ok(count)
    }

    /// Returns the node of level 0 that has an index, if there is one.
    #[inline]
    pub(super) fn leaf_of(&self, nodes: &Nodes, index: u64) -> Option<u32> {
        if self.height == 0 || index > last_index(self.height) {
            return None;
        }
        let mut value = self.root;
        for level in (1..self.height).rev() {
            value = nodes.get(child(value))?.get(place(index, level));
            if value == 0 {
                return None;
            }
        }
        Some(child(value))
    }

    /// Makes the tree high enough for an index that is too high.
    ///
    /// That there is room for the rest of the way to the index is made sure of, too.
    fn grow(&mut self, nodes: &mut Nodes, index: u64) -> Result<(), NoRoom> {
        let height = height_for(index);
        // CAST: A height is a small number.
        if self.root == 0 {
            if nodes.room() < height as usize {
                return Err(NoRoom);
            }
            // INVARIANT: Broken until the caller has added the nodes.
            self.height = height;
            return Ok(());
        }
        // The way down to the index leaves the new nodes above the old root at the first of them.
        let above = height.saturating_sub(self.height);
        let below = height.saturating_sub(1);
        if nodes.room() < above.wrapping_add(below) as usize {
            return Err(NoRoom);
        }
        while self.height < height {
            let (live, stale) = if self.height == 0 {
                (entry::is_live(self.root), entry::is_stale(self.root))
            } else {
                match nodes.get(child(self.root)) {
                    Some(node) => node.summary(),
                    None => return Err(NoRoom),
                }
            };
            let at = nodes.alloc().ok_or(NoRoom)?;
            if let Some(node) = nodes.get_mut(at) {
                node.put(0, self.root);
                node.mark(0, live, stale);
            }
            // INVARIANT: The new root is one level above the old one. That its height is the least
            // possible is up to the caller, who adds an entry beyond the old root.
            self.root = link(at);
            self.height = self.height.wrapping_add(1);
        }
        Ok(())
    }

    /// Returns the nodes on the way to an index that there is a node of level 0 for.
    fn path(&self, nodes: &Nodes, index: u64) -> Path {
        let mut path = Path::new(index);
        let mut value = self.root;
        for level in (0..self.height).rev() {
            let at = child(value);
            path.set(level, at);
            match nodes.get(at) {
                Some(node) => value = node.get(place(index, level)),
                None => break,
            }
        }
        path
    }

    /// Puts right what follows from a change of the leaf of an index, and perhaps of its summary.
    #[inline]
    fn mend_leaf(&mut self, nodes: &mut Nodes, index: u64, summary: bool) {
        // INVARIANT: Nothing else follows from the change unless the summary changes.
        if summary {
            self.mend(nodes, &self.path(nodes, index));
        } else if self.height == 1 {
            self.shrink(nodes);
        }
    }

    /// Puts right what follows from a change of a leaf: the bits above it, the nodes that have
    /// become empty, and the height.
    fn mend(&mut self, nodes: &mut Nodes, path: &Path) {
        for level in 0..self.height {
            let at = path.get(level);
            let Some(node) = nodes.get(at) else { return };
            let (live, stale) = node.summary();
            let empty = !live && !stale;
            if empty {
                nodes.free(at);
            }
            let above = level.wrapping_add(1);
            if above == self.height {
                if empty {
                    // INVARIANT: The last entry is gone.
                    *self = Self::EMPTY;
                }
                break;
            }
            let Some(parent) = nodes.get_mut(path.get(above)) else {
                return;
            };
            let place = place(path.index, above);
            let before = (parent.live, parent.stale);
            parent.mark(place, live, stale);
            if empty {
                parent.put(place, 0);
            }
            if before == (parent.live, parent.stale) {
                return;
            }
        }
        self.shrink(nodes);
    }

    /// Makes the tree no higher than it must be.
    fn shrink(&mut self, nodes: &mut Nodes) {
        while self.height != 0 {
            let at = child(self.root);
            match nodes.get(at) {
                // INVARIANT: Nothing is beyond the first place of the root: one level less does.
                Some(node) if node.used() == 1 => self.root = node.get(0),
                _ => return,
            }
            nodes.free(at);
            self.height = self.height.wrapping_sub(1);
        }
    }

    /// Gives back the nodes of a tree that nobody asks for any more, at most about `budget`.
    ///
    /// With `windowed`, `freed` is called with the slots of the window that its entries had. Returns
    /// whether that was all. The tree must not be used for anything else after the first call.
    pub(super) fn dissolve(
        &mut self,
        nodes: &mut Nodes,
        budget: &mut usize,
        windowed: bool,
        mut freed: impl FnMut(u32),
    ) -> bool {
        if self.height == 0 {
            entry::slot(self.root).map(&mut freed);
        }
        while self.height != 0 {
            if *budget == 0 {
                return false;
            }
            // The way to the first of the lowest nodes.
            let mut path = Path::new(0);
            let mut at = child(self.root);
            for level in (0..self.height).rev() {
                path.set(level, at);
                match nodes.get(at) {
                    Some(node) if level != 0 => {
                        at = child(node.get(node.used().trailing_zeros().into()));
                    }
                    Some(node) if windowed => {
                        node.for_each_slot(&mut freed);
                        // As long as it takes to free a few nodes.
                        *budget = budget.saturating_sub(Self::COST_OF_SLOTS);
                        break;
                    }
                    Some(_) => break,
                    None => return true,
                }
            }
            // It, and those above that have nothing else below them.
            let mut level = 0;
            loop {
                nodes.free(path.get(level));
                *budget = budget.saturating_sub(1);
                level = level.wrapping_add(1);
                if level == self.height {
                    *self = Self::EMPTY;
                    break;
                }
                let Some(parent) = nodes.get_mut(path.get(level)) else {
                    return true;
                };
                let rest = parent.used() & parent.used().wrapping_sub(1);
                parent.live &= rest;
                parent.stale &= rest;
                if rest != 0 {
                    break;
                }
            }
        }
        *self = Self::EMPTY;
        true
    }
}
