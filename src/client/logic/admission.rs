// SPDX-License-Identifier: GPL-2.0

//! Which clean pages are worth being put.
//!
//! When a page is evicted for the first time, nothing tells whether it will ever be read again: the
//! first reading of what is going to be read for ever looks just like the only reading of a backup.
//! So files are trusted at first, and lose that trust as their pages are put and do not come back.
//!
//! Trust is counted in pages, for each file and for all of them together. A put spends it; a page
//! that comes back earns [`GAIN`] times as much, since what it spares, a read from a disk, costs so
//! much more than a put. A page is put as long as there is trust left in both its file and all
//! together. A file is trusted at first with half of the guest's memory, which a set of files
//! hardly notices, and a single long stream does; all files together with four times the memory,
//! so that a set that is written and then read for the first time has some left.
//!
//! A file that is not trusted any more still has a sample of its pages put, for nothing: one range
//! of [`RANGE`] pages out of [`SAMPLE`]. If those come back, so does the trust. Of a file that is
//! read over and over, and is too large for the host, a part is kept so, instead of all of it being
//! put and none of it found.

/// How many pages a page that comes back earns.
pub const GAIN: u32 = 64;

/// Neighbouring pages that are put together or not at all, for a sample.
pub const RANGE: u64 = 32;

/// Of so many ranges one is the sample.
pub const SAMPLE: u64 = 128;

/// How much trust there is at first, and at most.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// In a file that nothing is known of.
    first: u32,
    /// In a file, and in all of them together.
    most: u32,
}

/// The trust in one file, which fits into a word; the files share a table of such words.
///
/// A file takes over the place of another that falls on the same one, and is as one that nothing
/// is known of. The trust in all files together holds nevertheless.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct File {
    /// Tells apart the files that share a place.
    name: u32,
    left: u32,
}

/// Returns the place of a file in a table, of which the length is a power of two.
#[inline]
pub fn place(tag: u64, len: usize) -> usize {
    // CAST: Only some of the lower bits are of interest.
    mix(tag) as usize & len.wrapping_sub(1)
}

#[inline]
fn name(tag: u64) -> u32 {
    // CAST: The upper half.
    (mix(tag) >> 32) as u32
}

#[inline]
fn mix(word: u64) -> u64 {
    // The finalizer of MurmurHash3, whose upper and lower bits depend on all others.
    let word = (word ^ (word >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let word = (word ^ (word >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    word ^ (word >> 33)
}

/// Returns whether a page is one of the sample.
#[inline]
pub fn is_sample(tag: u64, index: u64) -> bool {
    // It is a power of two.
    mix(tag.wrapping_add(index / RANGE)) & SAMPLE.wrapping_sub(1) == 0
}

impl File {
    /// The word for it.
    #[inline]
    pub fn to_word(self) -> u64 {
        (u64::from(self.name) << 32) | u64::from(self.left)
    }
}

impl Policy {
    /// Returns the policy for a guest with so many pages of memory.
    pub fn new(memory: u64) -> Self {
        let pages = |pages: u64| u32::try_from(pages).unwrap_or(u32::MAX / 2).max(1);
        Self {
            first: pages(memory / 2),
            most: pages(memory.saturating_mul(4)),
        }
    }

    /// Returns how much trust there is in all files together at first.
    #[inline]
    pub fn at_first(&self) -> u32 {
        self.most
    }

    /// Returns the file with this tag, out of the word in its place.
    #[inline]
    pub fn file(&self, tag: u64, word: u64) -> File {
        let name = name(tag);
        // CAST: The upper and the lower half. An empty word is that of no file, or of one that
        // happens to be called zero and is trusted anew.
        let (other, left) = ((word >> 32) as u32, word as u32);
        let left = if other == name && word != 0 {
            left
        } else {
            self.first
        };
        File { name, left }
    }

    /// Returns the file as one that nothing is known of.
    #[inline]
    pub fn forget(&self, file: File) -> File {
        File {
            left: self.first,
            ..file
        }
    }

    /// Puts pages of a file, if there is trust in it, and in all together, left.
    ///
    /// Returns what is left in them then, or [`None`] if the pages are not to be put.
    #[inline]
    pub fn put(&self, file: File, all: u32, pages: u32) -> Option<(File, u32)> {
        (file.left > 0 && all > 0).then(|| {
            let left = file.left.saturating_sub(pages);
            (File { left, ..file }, all.saturating_sub(pages))
        })
    }

    /// Has pages of a file come back.
    ///
    /// Returns how much trust there is in it, and in all together, then.
    #[inline]
    pub fn came_back(&self, file: File, all: u32, pages: u32) -> (File, u32) {
        let earned = pages.saturating_mul(GAIN);
        let earn = |left: u32| left.saturating_add(earned).min(self.most);
        let left = earn(file.left);
        (File { left, ..file }, earn(all))
    }
}
