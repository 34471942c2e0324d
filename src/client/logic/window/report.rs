// SPDX-License-Identifier: GPL-2.0

//! What the device is told of the window, in a place that it reads without asking.
//!
//! The device sees no get, so that only the driver knows which of its chunks are worth their memory.
//! The worker writes down what was counted so far.

/// Times since a page was put that hits are told apart by.
pub const AGES: usize = 16;

/// The bytes of a [`Report`] in the window.
pub const REPORT_SIZE: usize = 256;

/// Where in it the hits by age are.
const BY_AGE: usize = 128;

/// What has been done with the window since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Pages put into slots.
    pub puts: u64,
    /// Puts for which there was no slot.
    pub refused: u64,
    /// Pages looked for in the window.
    pub gets: u64,
    /// Pages looked for and found.
    pub hits: u64,
    /// Ephemeral pages that were replaced by others.
    pub replaced: u64,
    /// Pages that went from slots to the store.
    pub moved: u64,
    /// Ephemeral pages that were read from elsewhere, had been replaced of late, and would not have
    /// been with `near_reach` slots more.
    pub near_misses: u64,
    /// See `near_misses`.
    pub near_reach: u64,
    /// Hits of pages that were put less than 2ⁿ seconds before, and not less than half of that; the
    /// last one has all that are older.
    pub hits_by_age: [u64; AGES],
}

impl Report {
    /// Returns the place in [`Self::hits_by_age`] of a page that was put so many seconds before.
    #[inline]
    pub fn age(seconds: u32) -> usize {
        // CAST: It is at most 32.
        let bits = u32::BITS.wrapping_sub(seconds.leading_zeros()) as usize;
        bits.min(AGES.wrapping_sub(1))
    }

    /// Returns what is written to the window, with the free slots of either kind.
    pub fn encode(&self, ephemeral_free: u32, persistent_free: u32) -> [u8; REPORT_SIZE] {
        let mut bytes = [0; REPORT_SIZE];
        let free = u64::from(ephemeral_free) | (u64::from(persistent_free) << 32);
        let (counters, by_age) = bytes.split_at_mut(BY_AGE);
        let told = [
            self.puts,
            self.refused,
            self.gets,
            self.hits,
            self.replaced,
            self.moved,
            free,
            self.near_misses,
            self.near_reach,
        ];
        write(counters, told.into_iter());
        write(by_age, self.hits_by_age.into_iter());
        bytes
    }
}

/// Writes words, the least significant byte first, as far as there is room.
fn write(to: &mut [u8], words: impl Iterator<Item = u64>) {
    for (place, word) in to.chunks_exact_mut(size_of::<u64>()).zip(words) {
        place.copy_from_slice(&word.to_le_bytes());
    }
}

/// What has been done with one chunk since it was granted, as a word.
///
/// The lower half has the slots in use, the upper one the hits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChunkReport {
    /// Slots in use.
    pub used: u16,
    /// Pages that were got from it.
    pub hits: u32,
}

impl ChunkReport {
    /// Returns what is written to the window.
    pub fn encode(self) -> [u8; 8] {
        (u64::from(self.used) | (u64::from(self.hits) << 32)).to_le_bytes()
    }
}
