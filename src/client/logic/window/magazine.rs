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

    /// Returns the number of slots.
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Returns whether there are none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Takes a slot out.
    #[inline]
    pub fn pop(&mut self) -> Option<u32> {
        let last = self.len.checked_sub(1)?;
        let slot = *self.slots.get(last)?;
        self.len = last;
        Some(slot)
    }

    /// Puts a slot in, or gives it back if the magazine is full: see [`Magazine::spill()`].
    #[inline]
    pub fn push(&mut self, slot: u32) -> Result<(), u32> {
        match self.slots.get_mut(self.len) {
            Some(place) => {
                *place = slot;
                self.len = self.len.wrapping_add(1);
                Ok(())
            }
            None => Err(slot),
        }
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
        let count = self.len.saturating_sub(Self::SIZE / 2);
        let mut n = 0usize;
        self.give_back(depot, f, |_| {
            n = n.wrapping_add(1);
            n <= count
        });
    }

    /// Gives the slots of chunks that are to leave to the depot.
    ///
    /// `f` is told of each chunk that can be collected.
    pub fn let_go(&mut self, depot: &mut Depot, f: impl FnMut(u32)) {
        let leaving = |depot: &Depot, slot| depot.is_leaving(chunk_of(slot));
        let mut leave = [false; Self::SIZE];
        for (slot, leave) in self.slots.iter().zip(&mut leave) {
            *leave = leaving(depot, *slot);
        }
        let mut leave = leave.into_iter();
        self.give_back(depot, f, |_| leave.next().unwrap_or(false));
    }

    /// Gives all slots to the depot.
    pub fn empty(&mut self, depot: &mut Depot, f: impl FnMut(u32)) {
        self.give_back(depot, f, |_| true);
    }

    /// Gives those slots to the depot that `which` says, and keeps the others in order.
    fn give_back(
        &mut self,
        depot: &mut Depot,
        mut f: impl FnMut(u32),
        mut which: impl FnMut(u32) -> bool,
    ) {
        let mut kept = 0usize;
        for n in 0..self.len {
            let Some(&slot) = self.slots.get(n) else {
                break;
            };
            if which(slot) {
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
}
