// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Which ephemeral pages of a guest were evicted of late: so it is known which misses a little more
//! memory would have spared. Of a page there is a digest of its key.

use super::PAGE_SIZE;

/// The part of what a guest has that is remembered on top of it.
const PART: u64 = 4;

/// The fewest, and the most, pages that are remembered.
const LEAST: u32 = 64;
const MOST: u32 = 1 << 16;

/// A page that was evicted.
#[derive(Clone, Copy, Debug, Default)]
struct Mark {
    digest: u32,
    /// Which eviction it was, counted from 1.
    at: u32,
}

/// Misses that a little more memory would have spared, and how much more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NearMisses {
    /// Pages, since the guest is there.
    pub pages: u64,
    /// The bytes of all pages that are remembered.
    pub reach: u64,
}

/// The pages of a guest that were evicted last.
///
/// # Invariants
///
/// There is no mark, or there are as many as a power of two. Each is where the lowest bits of its
/// digest say.
#[derive(Debug, Default)]
pub(super) struct Evicted {
    marks: Vec<Mark>,
    evictions: u32,
    missed: u64,
}

/// Returns how many pages are remembered of a guest that has so many bytes.
fn remembered(held: u64) -> u32 {
    let pages = held / PAGE_SIZE as u64 / PART;
    u32::try_from(pages).unwrap_or(MOST).clamp(LEAST, MOST)
}

impl Evicted {
    fn place(&self, digest: u32) -> usize {
        digest as usize & (self.marks.len() - 1)
    }

    /// Notes that a page was evicted of a guest that has so many bytes.
    pub(super) fn evict(&mut self, digest: u32, held: u64) {
        let places = remembered(held).next_power_of_two() as usize;
        if self.marks.len() < places {
            let before = std::mem::replace(&mut self.marks, vec![Mark::default(); places]);
            for mark in before.into_iter().filter(|mark| mark.at != 0) {
                let place = self.place(mark.digest);
                self.marks[place] = mark;
            }
        }
        self.evictions = self.evictions.wrapping_add(1).max(1);
        let place = self.place(digest);
        let at = self.evictions;
        self.marks[place] = Mark { digest, at };
    }

    /// Notes that a page was asked for in vain by a guest that has so many bytes. It counts if it was
    /// evicted of late; its digest is returned then.
    pub(super) fn miss(&mut self, digest: impl FnOnce() -> u32, held: u64) -> Option<u32> {
        if self.marks.is_empty() {
            return None;
        }
        let digest = digest();
        let place = self.place(digest);
        let Mark { digest: there, at } = self.marks[place];
        let since = self.evictions.wrapping_sub(at);
        let near = at != 0 && there == digest && since < remembered(held);
        if near {
            self.marks[place] = Mark::default();
            self.missed += 1;
        }
        near.then_some(digest)
    }

    /// Returns what was counted of a guest that has so many bytes.
    pub(super) fn near_misses(&self, held: u64) -> NearMisses {
        let pages = remembered(held).min(self.evictions);
        NearMisses {
            pages: self.missed,
            reach: u64::from(pages) * PAGE_SIZE as u64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: u64 = PAGE_SIZE as u64;

    /// Digests that do not come to be in the same place.
    fn digest(n: u32) -> u32 {
        n.wrapping_mul(0x9e37_79b1)
    }

    fn missed(evicted: &mut Evicted, n: u32, held: u64) -> bool {
        let before = evicted.missed;
        evicted.miss(|| digest(n), held);
        evicted.missed > before
    }

    #[test]
    fn what_was_evicted_of_late_is_missed_once() {
        let held = 4096 * PAGE;
        let mut evicted = Evicted::default();
        assert!(!missed(&mut evicted, 1, held));
        for n in 0..10 {
            evicted.evict(digest(n), held);
        }
        assert_eq!(evicted.near_misses(held).reach, 10 * PAGE);
        assert!(missed(&mut evicted, 3, held));
        assert!(!missed(&mut evicted, 3, held));
        assert!(!missed(&mut evicted, 11, held));
        assert_eq!(evicted.near_misses(held).pages, 1);
    }

    #[test]
    fn a_quarter_of_what_the_guest_has_is_remembered() {
        let held = 4000 * PAGE;
        let mut evicted = Evicted::default();
        for n in 0..3000 {
            evicted.evict(digest(n), held);
        }
        assert_eq!(evicted.near_misses(held).reach, 1000 * PAGE);
        // Some share a place.
        let found = (2000..3000).filter(|n| missed(&mut evicted, *n, held));
        assert!(found.count() > 500);
        assert_eq!((0..2000).find(|n| missed(&mut evicted, *n, held)), None);
    }

    #[test]
    fn what_is_remembered_follows_what_the_guest_has() {
        let mut evicted = Evicted::default();
        for n in 0..50 {
            evicted.evict(digest(n), 0);
        }
        let len = evicted.marks.len();
        let held = 40_000 * PAGE;
        evicted.evict(digest(50), held);
        assert!(evicted.marks.len() > len);
        // Nor is the one lost whose digest is that of no page.
        assert!(missed(&mut evicted, 0, held));
        let found = (1..=50).filter(|n| missed(&mut evicted, *n, held));
        assert!(found.count() > 25);
        // However much that is.
        evicted.evict(digest(51), u64::MAX);
        assert_eq!(evicted.marks.len(), MOST as usize);
    }
}
