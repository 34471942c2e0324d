// SPDX-License-Identifier: GPL-2.0

//! The nodes of the trees.

use core::ops::Range;

use super::{
    entry,
    slab::{
        Chunk,
        Item,
        Slab,
        NIL, //
    }, //
};

/// The number of bits of an index that one level of a tree takes.
pub(super) const LEVEL_BITS: u32 = 6;

/// The number of places of a node.
pub(super) const PLACES: usize = 1 << LEVEL_BITS;

/// The number of nodes of a [`NodeChunk`].
///
/// As many as fit in 32 KiB: `kvmalloc()` prefers pages that are contiguous, and those come in
/// powers of two.
pub const NODES_PER_CHUNK: usize = 32768 / size_of::<Node>();

/// Memory for [`NODES_PER_CHUNK`] nodes of trees, allocated outside of the lock.
pub type NodeChunk = Chunk<Node, NODES_PER_CHUNK>;

/// The nodes of all trees of a shard.
pub(super) type Nodes = Slab<Node, NODES_PER_CHUNK>;

/// A node of a tree.
///
/// # Invariants
///
/// - A place is zero, or an entry (at level 0), or the link to a node of the next lower level.
/// - A bit of `live` is set if there is a live entry at, or anywhere below, that place, and a bit
///   of `stale` if there is a stale one. A place is zero if and only if neither bit is set.
#[derive(Clone, Copy)]
pub struct Node {
    places: [u64; PLACES],
    pub(super) live: u64,
    pub(super) stale: u64,
}

impl Item for Node {
    const EMPTY: Self = Self {
        places: [0; PLACES],
        live: 0,
        stale: 0,
    };

    fn link(&self) -> u32 {
        match self.get(0) {
            0 => NIL,
            link => child(link),
        }
    }

    fn set_link(&mut self, at: u32) {
        self.put(0, if at == NIL { 0 } else { link(at) });
    }
}

/// Returns what a place holds as link to a node. It is not zero.
#[inline]
pub(super) const fn link(at: u32) -> u64 {
    // CAST: To more bits.
    (at as u64).wrapping_add(1)
}

/// Returns the node that a link leads to.
#[inline]
pub(super) const fn child(link: u64) -> u32 {
    // CAST: Links are made from 32 bits, by the function above.
    link.wrapping_sub(1) as u32
}

/// Returns the places from one on, at most so many.
#[inline]
fn range(start: u64, count: u64) -> Range<usize> {
    // CAST: Where `start` is a place, both are small numbers.
    start as usize..start.saturating_add(count).min(PLACES as u64) as usize
}

impl Node {
    /// Returns what is at a place; only the lowest bits of `place` count.
    #[inline]
    pub(super) fn get(&self, place: u64) -> u64 {
        // The compiler sees that this is in bounds.
        self.places[(place % PLACES as u64) as usize]
    }

    /// Sets what is at a place without regard to the bits of `live` and `stale`.
    #[inline]
    pub(super) fn put(&mut self, place: u64, value: u64) {
        self.places[(place % PLACES as u64) as usize] = value;
    }

    /// Returns what is at the places from one on, at most so many.
    #[inline]
    pub(super) fn places(&self, start: u64, count: u64) -> &[u64] {
        self.places.get(range(start, count)).unwrap_or_default()
    }

    /// As above, to be set without regard to the bits of `live` and `stale`.
    #[inline]
    pub(super) fn places_mut(&mut self, start: u64, count: u64) -> &mut [u64] {
        self.places.get_mut(range(start, count)).unwrap_or_default()
    }

    /// Sets an entry of a node of level 0.
    #[inline]
    pub(super) fn put_entry(&mut self, place: u64, raw: u64) {
        self.put(place, raw);
        self.mark(place, entry::is_live(raw), entry::is_stale(raw));
    }

    /// Sets the bits of a place.
    #[inline]
    pub(super) fn mark(&mut self, place: u64, live: bool, stale: bool) {
        let place = place % PLACES as u64;
        let others = !(1 << place);
        self.live = (self.live & others) | (u64::from(live) << place);
        self.stale = (self.stale & others) | (u64::from(stale) << place);
    }

    /// Returns whether there is a live entry, and whether there is a stale one.
    #[inline]
    pub(super) fn summary(&self) -> (bool, bool) {
        (self.live != 0, self.stale != 0)
    }

    /// Calls `f` with each slot of the window that an entry of this node of level 0 has.
    pub(super) fn for_each_slot(&self, mut f: impl FnMut(u32)) {
        let mut bits = self.live;
        while bits != 0 {
            if let Some(slot) = entry::slot(self.get(bits.trailing_zeros().into())) {
                f(slot);
            }
            bits &= bits.wrapping_sub(1);
        }
    }

    /// Returns a bit for each place that is not zero.
    #[inline]
    pub(super) fn used(&self) -> u64 {
        self.live | self.stale
    }
}
