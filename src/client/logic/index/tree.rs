// SPDX-License-Identifier: GPL-2.0

//! The tree of one object: from page indices to entries.
//!
//! It is a radix tree as the kernel's, of nodes with 64 places. It is as high as its highest index
//! requires; at height 0 the root is the entry of index 0 itself, so that the many files of one
//! page need no node. A node is 528 bytes: a densely filled tree costs 8.4 bytes a page.
//!
//! Nothing here recurses, allocates or panics.

use super::{
    entry,
    node::{
        child,
        link,
        Node,
        Nodes,
        LEVEL_BITS,
        PLACES, //
    },
    NoRoom, //
};

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

/// The nodes from a leaf to the root, by their level.
struct Path([u32; MAX_HEIGHT]);

impl Path {
    fn new() -> Self {
        Self([0; MAX_HEIGHT])
    }

    #[inline]
    fn get(&self, level: u32) -> u32 {
        // CAST: A level is a small number.
        self.0.get(level as usize).copied().unwrap_or(0)
    }

    #[inline]
    fn set(&mut self, level: u32, at: u32) {
        // CAST: As above.
        if let Some(slot) = self.0.get_mut(level as usize) {
            *slot = at;
        }
    }
}

/// Which entries to go through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Those that can be had.
    Live,
    /// Those that the device has to be told about.
    Stale,
}

impl Kind {
    #[inline]
    fn bits(self, node: &Node) -> u64 {
        match self {
            Self::Live => node.live,
            Self::Stale => node.stale,
        }
    }

    #[inline]
    fn matches(self, raw: u64) -> bool {
        match self {
            Self::Live => entry::is_live(raw),
            Self::Stale => entry::is_stale(raw),
        }
    }
}

/// A node of level 0.
struct Leaf {
    at: u32,
    /// The index of its first place.
    base: u64,
    /// The places looked for.
    bits: u64,
    path: Path,
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

    /// Returns what is at an index.
    #[inline]
    pub(super) fn get(&self, nodes: &Nodes, index: u64) -> u64 {
        if index > last_index(self.height) {
            return 0;
        }
        let mut value = self.root;
        for level in (0..self.height).rev() {
            match nodes.get(child(value)) {
                Some(node) => value = node.get(place(index, level)),
                None => return 0,
            }
            if value == 0 {
                break;
            }
        }
        value
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

        let mut path = Path::new();
        let mut value = self.root;
        for level in (0..self.height).rev() {
            if value == 0 {
                // Before the first node of several, see whether there are all.
                // CAST: A level is a small number.
                if nodes.room() <= level as usize {
                    return Err(NoRoom);
                }
                let at = nodes.alloc().ok_or(NoRoom)?;
                value = link(at);
                let above = level.wrapping_add(1);
                if above == self.height {
                    self.root = value;
                } else if let Some(parent) = nodes.get_mut(path.get(above)) {
                    parent.put(place(index, above), value);
                }
            }
            let at = child(value);
            path.set(level, at);
            value = match nodes.get(at) {
                Some(node) => node.get(place(index, level)),
                None => return Err(NoRoom),
            };
        }
        if let Some(leaf) = nodes.get_mut(path.get(0)) {
            leaf.put_entry(place(index, 0), raw);
        }
        // INVARIANT: The bits of all new nodes follow from those of the leaf.
        self.mend(nodes, &path, index);
        Ok(value)
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
                    Some(node) => (node.live != 0, node.stale != 0),
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

    /// Makes a place vacant and returns what was there.
    pub(super) fn clear(&mut self, nodes: &mut Nodes, index: u64) -> u64 {
        self.replace(nodes, index, 0)
    }

    /// Stores an entry, or makes the place vacant, if there is an entry at the index.
    ///
    /// Returns what was at the index. Needs no nodes.
    pub(super) fn replace(&mut self, nodes: &mut Nodes, index: u64, raw: u64) -> u64 {
        if index > last_index(self.height) || self.root == 0 {
            return 0;
        }
        if self.height == 0 {
            let old = self.root;
            self.root = raw;
            return old;
        }
        let mut path = Path::new();
        let mut value = self.root;
        for level in (0..self.height).rev() {
            let at = child(value);
            path.set(level, at);
            match nodes.get(at) {
                Some(node) => value = node.get(place(index, level)),
                None => return 0,
            }
            if value == 0 {
                return 0;
            }
        }
        if let Some(leaf) = nodes.get_mut(path.get(0)) {
            leaf.put_entry(place(index, 0), raw);
        }
        self.mend(nodes, &path, index);
        value
    }

    /// Puts right what follows from a change of a leaf: the bits above it, the nodes that have
    /// become empty, and the height.
    fn mend(&mut self, nodes: &mut Nodes, path: &Path, index: u64) {
        for level in 0..self.height {
            let at = path.get(level);
            let Some(node) = nodes.get(at) else { return };
            let (live, stale) = (node.live != 0, node.stale != 0);
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
            let place = place(index, above);
            let before = (parent.live, parent.stale);
            parent.mark(place, live, stale);
            if empty {
                parent.put(place, 0);
            }
            if before == (parent.live, parent.stale) {
                return;
            }
        }
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

    /// Returns the first leaf with entries of a kind at or after an index.
    ///
    /// The tree must have a height.
    fn leaf(&self, nodes: &Nodes, from: u64, kind: Kind) -> Option<Leaf> {
        if from > last_index(self.height) || self.root == 0 {
            return None;
        }
        let mut path = Path::new();
        // Where to go on if there is nothing at or after `from` below the place that `from` leads
        // to: the lowest node of the way with bits behind that place.
        let mut detour: Option<(u32, u64, u64)> = None;
        let mut free = false;
        let mut level = self.height.wrapping_sub(1);
        let mut at = child(self.root);
        let mut base = 0;
        let mut bits = kind.bits(nodes.get(at)?) & from_place(place(from, level));
        loop {
            path.set(level, at);
            if bits == 0 {
                (level, base, bits) = detour.take()?;
                at = path.get(level);
                free = true;
            } else if level == 0 {
                return Some(Leaf {
                    at,
                    base,
                    bits,
                    path,
                });
            }
            let next = u64::from(bits.trailing_zeros());
            let rest = bits & bits.wrapping_sub(1);
            free |= next != place(from, level);
            if !free && rest != 0 {
                detour = Some((level, base, rest));
            }
            at = child(nodes.get(at)?.get(next));
            base |= next << level.wrapping_mul(LEVEL_BITS);
            level = level.wrapping_sub(1);
            bits = kind.bits(nodes.get(at)?);
            if !free {
                bits &= from_place(place(from, level));
            }
        }
    }

    /// Goes through the entries of a kind at `first..=last`, in at most `leaves` leaves.
    ///
    /// What `f` returns takes the entry's place; it must not be an entry of the other kind where
    /// there was none. [`None`] ends the walk before the entry. Returns where to go on, or [`None`]
    /// after the last entry.
    pub(super) fn rewrite(
        &mut self,
        nodes: &mut Nodes,
        first: u64,
        last: u64,
        kind: Kind,
        leaves: usize,
        mut f: impl FnMut(u64, u64) -> Option<u64>,
    ) -> Option<u64> {
        let mut from = first;
        for _ in 0..leaves {
            if from > last {
                return None;
            }
            if self.height == 0 {
                if from == 0 && kind.matches(self.root) {
                    match f(0, self.root) {
                        Some(raw) => self.root = raw,
                        None => return Some(0),
                    }
                }
                return None;
            }
            let mut leaf = self.leaf(nodes, from, kind)?;
            if leaf.base > last {
                return None;
            }
            let node = nodes.get_mut(leaf.at)?;
            let mut stopped = None;
            while leaf.bits != 0 {
                let place = u64::from(leaf.bits.trailing_zeros());
                let index = leaf.base | place;
                if index > last {
                    break;
                }
                match f(index, node.get(place)) {
                    Some(raw) => node.put_entry(place, raw),
                    None => {
                        stopped = Some(index);
                        break;
                    }
                }
                leaf.bits &= leaf.bits.wrapping_sub(1);
            }
            self.mend(nodes, &leaf.path, leaf.base);
            if stopped.is_some() {
                return stopped;
            }
            // CAST: To more bits.
            from = (leaf.base | (PLACES as u64 - 1)).checked_add(1)?;
        }
        (from <= last).then_some(from)
    }

    /// Returns the number of live entries at `first..=last`.
    pub(super) fn count(&self, nodes: &Nodes, first: u64, last: u64) -> u64 {
        let mut count = 0u64;
        let mut from = first;
        if self.height == 0 {
            return u64::from(first == 0 && entry::is_live(self.root));
        }
        while from <= last {
            let Some(leaf) = self.leaf(nodes, from, Kind::Live) else {
                break;
            };
            if leaf.base > last {
                break;
            }
            let mut bits = leaf.bits;
            // CAST: To more bits.
            let end = leaf.base | (PLACES as u64 - 1);
            if last < end {
                bits &= !(from_place(place(last, 0)) << 1);
            }
            count = count.wrapping_add(u64::from(bits.count_ones()));
            match end.checked_add(1) {
                Some(next) => from = next,
                None => break,
            }
        }
        count
    }

    /// Calls `f` for each live entry, in the order of the indices.
    pub(super) fn for_each(&self, nodes: &Nodes, mut f: impl FnMut(u64, u64)) {
        let mut from = 0;
        if self.height == 0 {
            if entry::is_live(self.root) {
                f(0, self.root);
            }
            return;
        }
        loop {
            let Some(leaf) = self.leaf(nodes, from, Kind::Live) else {
                return;
            };
            let Some(node) = nodes.get(leaf.at) else {
                return;
            };
            let mut bits = leaf.bits;
            while bits != 0 {
                let place = u64::from(bits.trailing_zeros());
                f(leaf.base | place, node.get(place));
                bits &= bits.wrapping_sub(1);
            }
            // CAST: To more bits.
            match (leaf.base | (PLACES as u64 - 1)).checked_add(1) {
                Some(next) => from = next,
                None => return,
            }
        }
    }

    /// Gives back the nodes of a tree that nobody asks for any more, at most about `budget`.
    ///
    /// Returns whether that was all. The tree must not be used for anything else after the first
    /// call.
    pub(super) fn dissolve(&mut self, nodes: &mut Nodes, budget: &mut usize) -> bool {
        while self.height != 0 {
            if *budget == 0 {
                return false;
            }
            // The way to the first of the lowest nodes.
            let mut path = Path::new();
            let mut at = child(self.root);
            for level in (0..self.height).rev() {
                path.set(level, at);
                match nodes.get(at) {
                    Some(node) if level != 0 => {
                        at = child(node.get(node.used().trailing_zeros().into()));
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
