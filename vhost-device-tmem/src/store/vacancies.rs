// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Which entries of a table are free.

use std::io;

use super::mapping::Table;

/// A set of free entries of which the lowest is found fast, so that those at the end become free
/// and the table can shrink.
///
/// # Invariants
///
/// - No entry at or past `granted` is in the set; `free` are.
/// - A word of `words` is other than zero exactly where its bit in `summary` is set.
/// - No word of `summary` before `first` is other than zero.
#[derive(Debug)]
pub(super) struct Vacancies {
    words: Table<u64>,
    summary: Table<u64>,
    first: usize,
    granted: usize,
    free: usize,
}

impl Vacancies {
    /// Starts with no entry, with room for `max`.
    ///
    /// # Errors
    ///
    /// The operating system's, where it has no address space left.
    pub(super) fn new(max: usize) -> io::Result<Self> {
        let words = max.div_ceil(64);
        Ok(Self {
            words: Table::new(words)?,
            summary: Table::new(words.div_ceil(64))?,
            first: 0,
            granted: 0,
            free: 0,
        })
    }

    /// Returns the bytes of memory that the set takes.
    pub(super) fn taken(&self) -> u64 {
        self.words.taken() + self.summary.taken()
    }

    /// Returns how many entries there are.
    pub(super) fn granted(&self) -> usize {
        self.granted
    }

    /// Returns how many of them are free.
    pub(super) fn free(&self) -> usize {
        self.free
    }

    /// Adds entries at the end, all of them free.
    pub(super) fn grant(&mut self, count: usize) {
        let first = self.granted;
        self.granted += count;
        for entry in first..self.granted {
            self.give(entry);
        }
    }

    /// Removes the last `count` entries if all of them are free.
    pub(super) fn revoke(&mut self, count: usize) -> bool {
        let first = self.granted - count;
        if (first..self.granted).any(|entry| !self.is_free(entry)) {
            return false;
        }
        for entry in first..self.granted {
            self.remove(entry);
        }
        self.granted = first;
        true
    }

    /// Returns whether the last `count` entries are free, as far as some of them tell.
    pub(super) fn may_revoke(&self, count: usize) -> bool {
        self.granted >= count
            && self.free >= count
            && (self.is_free(self.granted - 1) && self.is_free(self.granted - count))
    }

    /// Takes the lowest free entry.
    pub(super) fn take(&mut self) -> Option<usize> {
        if self.free == 0 {
            return None;
        }
        while self.summary[self.first] == 0 {
            self.first += 1;
        }
        let word = self.first * 64 + self.summary[self.first].trailing_zeros() as usize;
        let entry = word * 64 + self.words[word].trailing_zeros() as usize;
        self.remove(entry);
        Some(entry)
    }

    /// Takes an entry that is free.
    pub(super) fn claim(&mut self, entry: usize) {
        debug_assert!(self.is_free(entry), "taken twice");
        self.remove(entry);
    }

    /// Makes an entry free.
    pub(super) fn give(&mut self, entry: usize) {
        debug_assert!(!self.is_free(entry), "freed twice");
        self.words[entry / 64] |= 1 << (entry % 64);
        self.summary[entry / 4096] |= 1 << (entry / 64 % 64);
        self.first = self.first.min(entry / 4096);
        self.free += 1;
    }

    fn remove(&mut self, entry: usize) {
        let word = &mut self.words[entry / 64];
        *word &= !(1 << (entry % 64));
        if *word == 0 {
            self.summary[entry / 4096] &= !(1 << (entry / 64 % 64));
        }
        self.free -= 1;
    }

    fn is_free(&self, entry: usize) -> bool {
        self.words[entry / 64] & (1 << (entry % 64)) != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_comes_first() {
        let mut set = Vacancies::new(10_000).unwrap();
        assert_eq!(set.take(), None);
        set.grant(10_000);
        let all: Vec<_> = std::iter::from_fn(|| set.take()).collect();
        assert_eq!(all, (0..10_000).collect::<Vec<_>>());
        for entry in [9_999, 4_096, 77] {
            set.give(entry);
        }
        assert_eq!(set.free(), 3);
        assert_eq!([set.take(), set.take()], [Some(77), Some(4_096)]);
        assert_eq!([set.take(), set.take()], [Some(9_999), None]);
    }

    #[test]
    fn only_free_entries_are_revoked() {
        let mut set = Vacancies::new(300).unwrap();
        set.grant(200);
        while set.take().is_some_and(|entry| entry < 120) {}
        assert!(!set.revoke(100));
        assert!(set.may_revoke(60) && set.revoke(60));
        assert_eq!((set.granted(), set.free()), (140, 19));
        set.grant(100);
        assert_eq!(std::iter::from_fn(|| set.take()).count(), 119);
        assert!(!set.may_revoke(1));
    }
}
