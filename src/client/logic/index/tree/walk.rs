// SPDX-License-Identifier: GPL-2.0

//! Going through a tree.

use core::slice;

use super::{
    super::{
        entry,
        node::{
            child,
            Node,
            Nodes,
            LEVEL_BITS,
            PLACES, //
        }, //
    },
    first_places,
    from_place,
    last_index,
    place,
    Path,
    Tree, //
};

/// Which entries to go through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Kind {
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

impl Tree {
    /// Returns the first leaf with entries of a kind at or after an index.
    ///
    /// The tree must have a height.
    fn leaf(&self, nodes: &Nodes, from: u64, kind: Kind) -> Option<Leaf> {
        if from > last_index(self.height) || self.root == 0 {
            return None;
        }
        let mut path = Path::new(0);
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
                path.index = base;
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
            if rest != 0 {
                detour = Some((level, base, rest));
            }
            at = child(nodes.get(at)?.get(next));
            base |= next.wrapping_shl(level.wrapping_mul(LEVEL_BITS));
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
    pub(in super::super) fn rewrite(
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
            self.mend(nodes, &leaf.path);
            if stopped.is_some() {
                return stopped;
            }
            // CAST: To more bits.
            from = (leaf.base | (PLACES as u64 - 1)).checked_add(1)?;
        }
        (from <= last).then_some(from)
    }

    /// Takes live entries at `first..` that are next to each other, up to `count`, as far as `f`
    /// returns true for them. Nothing is left of them but what the device has to be told.
    ///
    /// Returns how many have been taken.
    #[inline]
    pub(in super::super) fn take_run(
        &mut self,
        nodes: &mut Nodes,
        first: u64,
        count: u64,
        mut f: impl FnMut(u64) -> bool,
    ) -> u64 {
        let mut taken = 0u64;
        while taken < count {
            let Some(from) = first.checked_add(taken) else {
                break;
            };
            let more = self.take_in_leaf(nodes, from, count.wrapping_sub(taken), &mut f);
            taken = taken.wrapping_add(more);
            // The run goes on in the next leaf if it reaches the end of this one.
            if more == 0 || place(from.wrapping_add(more), 0) != 0 {
                break;
            }
        }
        taken
    }

    /// Takes those of the entries that are in the first's leaf.
    #[inline]
    fn take_in_leaf(
        &mut self,
        nodes: &mut Nodes,
        first: u64,
        count: u64,
        mut f: impl FnMut(u64) -> bool,
    ) -> u64 {
        if self.height == 0 {
            let there = first == 0 && entry::is_live(self.root) && f(self.root);
            if there {
                self.root = entry::taken(self.root);
            }
            return there.into();
        }
        let leaf = self.leaf_of(nodes, first);
        let Some(node) = leaf.and_then(|leaf| nodes.get_mut(leaf)) else {
            return 0;
        };
        let start = place(first, 0);
        let live = u64::from((node.live >> start).trailing_ones());
        let mut taken = 0u64;
        for raw in node.places_mut(start, live.min(count)) {
            if !f(*raw) {
                break;
            }
            *raw = entry::taken(*raw);
            taken = taken.wrapping_add(1);
        }
        let before = node.summary();
        // INVARIANT: What is left of an entry is not live, and is as stale as the entry was.
        node.live &= !(first_places(taken) << start);
        let changed = node.summary() != before;
        self.mend_leaf(nodes, first, changed);
        taken
    }

    /// Calls `f` with what is at the places `first..`, live or not, up to `count` and as far as
    /// there are places, until it returns false.
    ///
    /// Returns for how many of the first it returned true.
    #[inline]
    pub(in super::super) fn look_at_run(
        &self,
        nodes: &Nodes,
        first: u64,
        count: u64,
        mut f: impl FnMut(u64) -> bool,
    ) -> u64 {
        let mut seen = 0u64;
        while seen < count {
            let Some(from) = first.checked_add(seen) else {
                break;
            };
            let places = self.places(nodes, from, count.wrapping_sub(seen));
            if places.is_empty() {
                break;
            }
            for raw in places {
                if !f(*raw) {
                    return seen;
                }
                seen = seen.wrapping_add(1);
            }
        }
        seen
    }

    /// Returns what is at the places from one on, at most so many, as far as they are in one leaf;
    /// none where there is no leaf.
    #[inline]
    fn places<'a>(&'a self, nodes: &'a Nodes, first: u64, count: u64) -> &'a [u64] {
        if self.height == 0 {
            let there = first == 0 && count != 0;
            return if there {
                slice::from_ref(&self.root)
            } else {
                &[]
            };
        }
        let leaf = self.leaf_of(nodes, first).and_then(|leaf| nodes.get(leaf));
        leaf.map_or(&[], |node| node.places(place(first, 0), count))
    }

    /// Returns the number of live entries at `first..=last`.
    pub(in super::super) fn count(&self, nodes: &Nodes, first: u64, last: u64) -> u64 {
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

    /// Calls `f` for each live entry at `from..`, in the order of the indices, in at most `leaves`
    /// leaves.
    ///
    /// False ends the visit before the entry. Returns where to go on, or [`None`] after the last
    /// entry.
    pub(in super::super) fn visit(
        &self,
        nodes: &Nodes,
        mut from: u64,
        leaves: usize,
        mut f: impl FnMut(u64, u64) -> bool,
    ) -> Option<u64> {
        if self.height == 0 {
            let more = from != 0 || !entry::is_live(self.root) || f(0, self.root);

            return (!more).then_some(0);
        }
        for _ in 0..leaves {
            let mut leaf = self.leaf(nodes, from, Kind::Live)?;
            let node = nodes.get(leaf.at)?;

            while leaf.bits != 0 {
                let place = u64::from(leaf.bits.trailing_zeros());

                if !f(leaf.base | place, node.get(place)) {
                    return Some(leaf.base | place);
                }
                leaf.bits &= leaf.bits.wrapping_sub(1);
            }
            // CAST: To more bits.
            from = (leaf.base | (PLACES as u64 - 1)).checked_add(1)?;
        }
        Some(from)
    }

    /// Calls `f` for each live entry, in the order of the indices.
    pub(in super::super) fn for_each(&self, nodes: &Nodes, mut f: impl FnMut(u64, u64)) {
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
}
