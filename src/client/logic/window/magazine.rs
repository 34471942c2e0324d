// SPDX-License-Identifier: GPL-2.0

//! Free slots of one processor.

use super::{
    chunk_of,
    Depot,
    Given,
    Kind, //
};

/// Free slots of one kind, for the puts of one processor: the last one in is the first one out, so
/// that what is written next was touched last.
///
/// It is filled, and emptied, by half, so that a put and a get by turns do not go to the depot each
/// time.
#[derive(Clone, Debug)]
pub struct Magazine {
    slots: [u32; Self::SIZE],
    len: usize,
}

impl Magazine {
    /// The most slots of a magazine: as many as the largest request that there was before.
    pub const SIZE: usize = 64;

    /// A magazine without slots.
    pub const EMPTY: Self = Self {
        slots: [0; Self::SIZE],
        len: 0,
    };

    /// Takes those slots out that came last, into the first of `slots`, as many as there are, or as
    /// there are places for; returns how many.
    #[inline]
    pub fn take(&mut self, slots: &mut [u32]) -> usize {
        let left = self.len.saturating_sub(slots.len());
        let last = self.slots.get(left..self.len).unwrap_or_default();
        for (place, slot) in slots.iter_mut().zip(last) {
            *place = *slot;
        }
        self.len = left;
        last.len()
    }

    /// Puts slots in, as many of the first as there is room for; returns how many: see
    /// [`Magazine::spill()`].
    #[inline]
    pub fn put(&mut self, slots: &[u32]) -> usize {
        let room = self.slots.get_mut(self.len..).unwrap_or_default();
        let count = room.len().min(slots.len());
        for (place, slot) in room.iter_mut().zip(slots) {
            *place = *slot;
        }
        self.len = self.len.wrapping_add(count);
        count
    }

    /// Takes slots out of the depot until the magazine is half full; returns how many.
    pub fn fill(&mut self, depot: &mut Depot, kind: Kind) -> usize {
        let before = self.len;
        let free = self.slots.get_mut(before..Self::SIZE / 2);
        let got = free.map_or(0, |free| depot.take(kind, free));
        self.len = before.wrapping_add(got);
        got
    }

    /// Gives those slots to the depot that have been longest in the magazine, until it is half full.
    ///
    /// `f` is told of each chunk that can be collected.
    pub fn spill(&mut self, depot: &mut Depot, f: impl FnMut(u32)) {
        self.give_first(self.len.saturating_sub(Self::SIZE / 2), depot, f);
    }

    /// Gives the slots of chunks that are to leave to the depot.
    ///
    /// `f` is told of each chunk that can be collected.
    pub fn let_go(&mut self, depot: &mut Depot, mut f: impl FnMut(u32)) {
        let mut kept = 0usize;
        for n in 0..self.len {
            let Some(&slot) = self.slots.get(n) else {
                break;
            };
            if depot.is_leaving(chunk_of(slot)) {
                if let Ok(Given::Complete(chunk)) = depot.give(slot) {
                    f(chunk);
                }
            } else if let Some(place) = self.slots.get_mut(kept) {
                *place = slot;
                kept = kept.wrapping_add(1);
            }
        }
        self.len = kept;
    }

    /// Gives all slots to the depot.
    pub fn empty(&mut self, depot: &mut Depot, f: impl FnMut(u32)) {
        self.give_first(self.len, depot, f);
    }

    /// Gives the first slots to the depot, of which there are so many, and keeps the others in order.
    fn give_first(&mut self, count: usize, depot: &mut Depot, f: impl FnMut(u32)) {
        let Some(first) = self.slots.get(..count) else {
            return;
        };
        depot.give_all(first, f);
        if let Some(slots) = self.slots.get_mut(..self.len) {
            slots.copy_within(count.min(slots.len()).., 0);
        }
        self.len = self.len.saturating_sub(count);
    }
}
