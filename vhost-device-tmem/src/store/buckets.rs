// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The heads of a hash table's chains.

use std::io;

use super::{id::Link, mapping::Table};

/// A table of chains that grows by one at a time, so that no operation has to wait until all is
/// hashed anew (linear hashing): the new bucket gets what belongs there from one other.
///
/// # Invariants
///
/// `0 < count ≤ 2^bits < 2 · count`, but for `count` 1, and all buckets past `count` are empty.
#[derive(Debug)]
pub(super) struct Buckets {
    heads: Table<Link>,
    count: usize,
    mask: usize,
}

impl Buckets {
    /// Reserves room for `max` buckets, and starts with `count` of them, both at least one.
    ///
    /// # Errors
    ///
    /// The operating system's, where it has no address space left.
    pub(super) fn new(max: usize, count: usize) -> io::Result<Self> {
        Ok(Self {
            heads: Table::new(max)?,
            count,
            mask: count.next_power_of_two() - 1,
        })
    }

    /// Asks for huge pages, for a table all of whose memory is accounted for.
    pub(super) fn prefer_huge_pages(&self) {
        self.heads.prefer_huge_pages();
    }

    /// Returns the bytes of memory that they take.
    pub(super) fn taken(&self) -> u64 {
        self.heads.taken()
    }

    /// Returns how many buckets there are.
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// Returns the bucket of a hash.
    pub(super) fn of(&self, hash: u64) -> usize {
        let bucket = hash as usize & self.mask;
        if bucket < self.count {
            bucket
        } else {
            bucket & (self.mask >> 1)
        }
    }

    /// Returns where the chain of a bucket starts.
    pub(super) fn head(&self, bucket: usize) -> Link {
        self.heads[bucket]
    }

    /// Lets the processor fetch a bucket that will be asked for.
    pub(super) fn prefetch(&self, bucket: usize) {
        self.heads.prefetch(bucket);
    }

    /// Makes the chain of a bucket start elsewhere.
    pub(super) fn set_head(&mut self, bucket: usize, head: Link) {
        self.heads[bucket] = head;
    }

    /// Adds a bucket, and returns the one whose chain has to be filed anew, in which all is that
    /// belongs into either.
    pub(super) fn grow(&mut self) -> usize {
        let new = self.count;
        self.count += 1;
        if new > self.mask {
            self.mask = (self.mask << 1) | 1;
        }
        new & (self.mask >> 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growing_moves_hashes_only_from_the_bucket_that_it_names() {
        let mut buckets = Buckets::new(300, 1).unwrap();
        let hashes: Vec<u64> = (0..2000)
            .map(|n: u64| n.wrapping_mul(0x9e37_79b9_7f4a_7c15))
            .collect();
        while buckets.count() < 300 {
            let before: Vec<_> = hashes.iter().map(|hash| buckets.of(*hash)).collect();
            let new = buckets.count();
            let split = buckets.grow();
            for (hash, before) in hashes.iter().zip(before) {
                let after = buckets.of(*hash);
                assert!(after == before || (before == split && after == new));
            }
        }
        // All are in use, and none by many.
        let mut uses = [0; 300];
        for hash in hashes {
            uses[buckets.of(hash)] += 1;
        }
        assert!(uses.iter().all(|n| (1..40).contains(n)), "{uses:?}");
    }
}
