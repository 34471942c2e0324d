// SPDX-License-Identifier: GPL-2.0

//! Items of one size that are named by 32-bit references.

use super::super::mem::{
    Block,
    NoMemory,
    Table, //
};

/// The reference that refers to nothing.
pub(super) const NIL: u32 = u32::MAX;

/// What a slab can hold.
pub trait Item: Copy {
    /// An item as it is after it has been allocated.
    const EMPTY: Self;

    /// Returns what [`Item::set_link()`] was given.
    fn link(&self) -> u32;

    /// Keeps a reference in the item, at the cost of whatever else the item holds.
    fn set_link(&mut self, link: u32);
}

/// Memory for `N` items.
pub struct Chunk<T: Item, const N: usize>(Block<T, N>);

impl<T: Item, const N: usize> Chunk<T, N> {
    /// Allocates a chunk.
    ///
    /// May sleep, and may enter reclaim: whoever calls must not be someone that reclaim waits for.
    pub fn new() -> Result<Self, NoMemory> {
        Ok(Self(Block::new(T::EMPTY)?))
    }
}

/// A slab.
///
/// It grows by the chunks that it is given and by nothing else, and gives none back.
///
/// # Invariants
///
/// - A reference is the number of a chunk, shifted by `SHIFT`, plus the place of the item in it.
/// - An item is either in use, or on the list that begins with `free`, or at or after `fresh` in
///   the order of references. `used` is the number of those in use.
pub(super) struct Slab<T: Item, const N: usize> {
    chunks: Table<Chunk<T, N>>,
    free: u32,
    fresh: u32,
    used: usize,
}

impl<T: Item, const N: usize> Slab<T, N> {
    const SHIFT: u32 = N.next_power_of_two().trailing_zeros();
    const MASK: usize = (1 << Self::SHIFT) - 1;

    /// Creates a slab that can grow to `limit` items, rounded up to whole chunks.
    pub(super) fn new(limit: usize) -> Result<Self, NoMemory> {
        // No reference may come to be `NIL`, nor `NIL - 1`, so that one can be added.
        let most = (1usize << (31 - Self::SHIFT)).saturating_sub(1);
        Ok(Self {
            // INVARIANT: There are no items.
            chunks: Table::with_capacity(limit.div_ceil(N).min(most))?,
            free: NIL,
            fresh: 0,
            used: 0,
        })
    }

    /// Adds memory, or gives it back if the limit has been reached.
    pub(super) fn add(&mut self, chunk: Chunk<T, N>) -> Result<(), Chunk<T, N>> {
        // INVARIANT: All items of the new chunk come after `fresh`.
        self.chunks.push(chunk)
    }

    /// Returns the item that `at` refers to.
    #[inline]
    pub(super) fn get(&self, at: u32) -> Option<&T> {
        // CAST: `usize` has at least 32 bits wherever there is virtio.
        let chunk = self.chunks.get((at >> Self::SHIFT) as usize)?;
        chunk.0.get(at as usize & Self::MASK)
    }

    /// Returns the item that `at` refers to.
    #[inline]
    pub(super) fn get_mut(&mut self, at: u32) -> Option<&mut T> {
        // CAST: As above.
        let chunk = self.chunks.get_mut((at >> Self::SHIFT) as usize)?;
        chunk.0.get_mut(at as usize & Self::MASK)
    }

    /// Takes an item into use and returns its reference.
    pub(super) fn alloc(&mut self) -> Option<u32> {
        let at;
        if self.free != NIL {
            at = self.free;
            let item = self.get_mut(at)?;
            let next = item.link();
            *item = T::EMPTY;
            // INVARIANT: The first item of the list leaves it.
            self.free = next;
        } else {
            at = self.fresh;
            *self.get_mut(at)? = T::EMPTY;
            // INVARIANT: The item at `fresh` exists, and its successor becomes `fresh`, which is
            // the first of the next chunk after the last of a chunk.
            self.fresh = at.wrapping_add(1);
            // CAST: As above.
            if self.fresh as usize & Self::MASK == N & Self::MASK {
                self.fresh = ((at >> Self::SHIFT).wrapping_add(1)) << Self::SHIFT;
            }
        }
        self.used = self.used.wrapping_add(1);
        Some(at)
    }

    /// Gives back an item, to which there must be no more references.
    pub(super) fn free(&mut self, at: u32) {
        let head = self.free;
        if let Some(item) = self.get_mut(at) {
            item.set_link(head);
            // INVARIANT: The item was in use and becomes the first of the list.
            self.free = at;
            self.used = self.used.saturating_sub(1);
        }
    }

    /// Gives back all items at once.
    pub(super) fn clear(&mut self) {
        // INVARIANT: All items come after `fresh`.
        self.free = NIL;
        self.fresh = 0;
        self.used = 0;
    }

    /// Returns the number of items in use.
    #[inline]
    pub(super) fn used(&self) -> usize {
        self.used
    }

    /// Returns the number of items that can be taken into use.
    #[inline]
    pub(super) fn room(&self) -> usize {
        self.chunks
            .len()
            .saturating_mul(N)
            .saturating_sub(self.used)
    }

    /// Returns whether [`Slab::add()`] would add a chunk.
    pub(super) fn may_grow(&self) -> bool {
        self.chunks.len() < self.chunks.capacity()
    }

    /// Returns the number of bytes allocated.
    pub(super) fn bytes(&self) -> usize {
        let table = self.chunks.capacity().saturating_mul(size_of::<usize>());
        let chunks = self.chunks.len().saturating_mul(size_of::<Chunk<T, N>>());
        let items = self.chunks.len().saturating_mul(size_of::<[T; N]>());
        table.max(chunks).saturating_add(items)
    }
}
