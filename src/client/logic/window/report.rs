// SPDX-License-Identifier: GPL-2.0

//! What the device is told of the window, in a place that it reads without asking.
//!
//! The device sees no get, so that only the driver knows which of its chunks are worth their memory.
//! Each processor counts for itself; the worker adds it all up, and writes it down.

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
    /// Hits of pages that were put less than 2ⁿ seconds before, and not less than half of that; the
    /// last one has all that are older.
    pub hits_by_age: [u64; AGES],
}

impl Report {
    /// Counts a page that was found so many seconds after it had been put.
    #[inline]
    pub fn hit(&mut self, age: u32) {
        self.gets = self.gets.wrapping_add(1);
        self.hits = self.hits.wrapping_add(1);
        let bits = u32::BITS.wrapping_sub(age.leading_zeros()) as usize;
        if let Some(hits) = self.hits_by_age.get_mut(bits.min(AGES.wrapping_sub(1))) {
            *hits = hits.wrapping_add(1);
        }
    }

    /// Counts a page that was looked for, and was gone with its chunk.
    #[inline]
    pub fn miss(&mut self) {
        self.gets = self.gets.wrapping_add(1);
    }

    /// Counts pages that were put.
    #[inline]
    pub fn put(&mut self, pages: usize) {
        // CAST: To as many bits.
        self.puts = self.puts.wrapping_add(pages as u64);
    }

    /// Counts pages for which there was no slot.
    #[inline]
    pub fn refuse(&mut self, pages: usize) {
        // CAST: To as many bits.
        self.refused = self.refused.wrapping_add(pages as u64);
    }

    /// Adds what another processor has counted.
    pub fn add(&mut self, other: &Self) {
        for (sum, more) in self.counters().into_iter().zip(other.all()) {
            *sum = sum.wrapping_add(more);
        }
    }

    /// Returns what is written to the window, with the free slots of either kind.
    pub fn encode(&self, ephemeral_free: u32, persistent_free: u32) -> [u8; REPORT_SIZE] {
        let mut bytes = [0; REPORT_SIZE];
        let free = u64::from(ephemeral_free) | (u64::from(persistent_free) << 32);
        let (counters, by_age) = bytes.split_at_mut(BY_AGE);
        let words = self.all().take(6).chain([free]);
        write(counters, words);
        write(by_age, self.hits_by_age.into_iter());
        bytes
    }

    fn all(&self) -> impl Iterator<Item = u64> {
        [
            self.puts,
            self.refused,
            self.gets,
            self.hits,
            self.replaced,
            self.moved,
        ]
        .into_iter()
        .chain(self.hits_by_age)
    }

    fn counters(&mut self) -> impl IntoIterator<Item = &mut u64> {
        [
            &mut self.puts,
            &mut self.refused,
            &mut self.gets,
            &mut self.hits,
            &mut self.replaced,
            &mut self.moved,
        ]
        .into_iter()
        .chain(&mut self.hits_by_age)
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
/// The lower half has the slots in use, the upper one the hits, which stay at the highest number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChunkReport {
    /// Slots in use.
    pub used: u16,
    /// Pages that were got from it.
    pub hits: u32,
}

impl ChunkReport {
    /// Counts a page that was got.
    #[inline]
    pub fn hit(&mut self) {
        self.hits = self.hits.saturating_add(1);
    }

    /// Returns what is written to the window.
    pub fn encode(self) -> [u8; 8] {
        (u64::from(self.used) | (u64::from(self.hits) << 32)).to_le_bytes()
    }
}
