// SPDX-License-Identifier: GPL-2.0

//! Which ephemeral pages made room for others of late: so it is known which misses a little more
//! memory would have spared, which the device is told.
//!
//! There is a table of marks, to which any number of processors write at once without a lock; what is
//! here says what a mark is, where it is, and what it means. Of two pages at the same place one is
//! forgotten, and one page of 65,536 is taken for another: the device is told how many there were, and
//! not which.

use super::hash_of;

/// The part of the slots in use that is remembered on top of them.
const PART: u32 = 4;

/// The fewest, and the most, pages that are remembered: what a mark can tell apart twice over.
const LEAST: u32 = 64;
const MOST: u32 = 1 << 15;

/// The bits of a mark that say which page made room; above them are bits of its digest.
const TURN_BITS: u32 = 16;
const TURN: u32 = (1 << TURN_BITS) - 1;

/// Returns how many of the pages that made room last are remembered where so many slots are in use.
pub fn remembered(used: u32) -> u32 {
    (used / PART).clamp(LEAST, MOST)
}

/// Returns how many places a table has for a window of so many slots: as many as a power of two.
pub fn places(slots: u32) -> usize {
    // CAST: To as many bits, or more.
    remembered(slots).next_power_of_two() as usize
}

/// A page, as it is known in a table of marks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Digest(u64);

impl Digest {
    /// Returns that of a page.
    #[inline]
    pub fn of(tag: u64, index: u64) -> Self {
        Self(hash_of(tag, index))
    }

    /// Returns where its mark is, among so many places, which are a power of two.
    #[inline]
    pub fn place(self, places: usize) -> usize {
        // CAST: Some of the bits are meant to be cut off.
        (self.0 >> 32) as usize & places.wrapping_sub(1)
    }

    /// Returns the mark that says that it made room, as the `turn`th page that did so, from 1 on. It
    /// is never zero, which is no mark.
    #[inline]
    pub fn mark(self, turn: u32) -> u32 {
        self.bits() | (turn & TURN)
    }

    /// Returns whether the mark at its place says that it is one of the `remembered` last pages that
    /// made room, of `turns` in all.
    #[inline]
    pub fn is_near(self, mark: u32, turns: u32, remembered: u32) -> bool {
        let since = turns.wrapping_sub(mark) & TURN;
        mark & !TURN == self.bits() && since < remembered
    }

    /// Returns some bits of the hash, one of which is set.
    #[inline]
    fn bits(self) -> u32 {
        // CAST: Some of the bits are meant to be cut off.
        ((self.0 as u32) | (1 << 31)) & !TURN
    }
}
