// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The pages that the device really has.

use std::collections::HashMap;

use virtio_tmem_abi::{Key, ObjectId, PageResult, Range};

type Place = (u32, ObjectId, u64);

/// All pages of all pools.
#[derive(Default)]
pub(crate) struct Store(HashMap<Place, (u64, Box<[u8]>)>);

fn place(pool: u32, key: &Key) -> Place {
    (pool, key.object, key.index.get())
}

impl Store {
    /// Stores a page.
    pub(crate) fn put(&mut self, pool: u32, key: &Key, page: Box<[u8]>) -> PageResult {
        self.0.insert(place(pool, key), (key.version.get(), page));
        PageResult::Stored
    }

    /// Finds a page of the version that the key names.
    pub(crate) fn get(&self, pool: u32, key: &Key) -> Option<&[u8]> {
        let (version, page) = self.0.get(&place(pool, key))?;
        (*version == key.version.get()).then_some(page)
    }

    /// Forgets a page, whatever its version.
    pub(crate) fn forget_page(&mut self, pool: u32, key: &Key) {
        self.0.remove(&place(pool, key));
    }

    /// Returns how many pages there are.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Forgets all pages.
    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    /// Forgets a page of the version that the key names.
    pub(crate) fn flush(&mut self, pool: u32, key: &Key) -> PageResult {
        let there = self.get(pool, key).is_some();
        if there {
            self.0.remove(&place(pool, key));
        }
        flushed(there)
    }

    /// Forgets all pages of a range.
    pub(crate) fn flush_range(&mut self, pool: u32, range: &Range) -> PageResult {
        let indexes = range.first.get()..=range.last.get();
        self.forget(|(its_pool, object, index)| {
            *its_pool == pool && *object == range.object && indexes.contains(index)
        })
    }

    /// Forgets all pages of an object.
    pub(crate) fn flush_object(&mut self, pool: u32, object: &ObjectId) -> PageResult {
        self.forget(|(its_pool, its_object, _)| *its_pool == pool && its_object == object)
    }

    /// Forgets all pages of a pool.
    pub(crate) fn flush_pool(&mut self, pool: u32) {
        self.forget(|(its_pool, _, _)| *its_pool == pool);
    }

    fn forget(&mut self, which: impl Fn(&Place) -> bool) -> PageResult {
        let before = self.0.len();
        self.0.retain(|place, _| !which(place));
        flushed(self.0.len() != before)
    }
}

fn flushed(there: bool) -> PageResult {
    if there {
        PageResult::Flushed
    } else {
        PageResult::Absent
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(index: u64, version: u64) -> Key {
        Key {
            index: index.into(),
            version: version.into(),
            ..Key::default()
        }
    }

    #[test]
    fn only_the_version_put_last_is_there() {
        let mut store = Store::default();
        store.put(0, &key(1, 1), [1].into());
        store.put(0, &key(1, 2), [2].into());
        assert_eq!(store.get(0, &key(1, 1)), None);
        assert_eq!(store.get(0, &key(1, 2)), Some(&[2][..]));
        assert_eq!(store.get(1, &key(1, 2)), None);
        assert_eq!(store.flush(0, &key(1, 1)), PageResult::Absent);
        assert_eq!(store.flush(0, &key(1, 2)), PageResult::Flushed);
        assert_eq!(store.get(0, &key(1, 2)), None);
    }

    #[test]
    fn ranges_have_both_ends() {
        let mut store = Store::default();
        for index in 0..4 {
            store.put(0, &key(index, 1), [0].into());
        }
        let range = Range {
            first: 1.into(),
            last: 2.into(),
            ..Range::default()
        };
        assert_eq!(store.flush_range(0, &range), PageResult::Flushed);
        assert_eq!(store.flush_range(0, &range), PageResult::Absent);
        let there = (0..4).filter(|&index| store.get(0, &key(index, 1)).is_some());
        assert_eq!(there.collect::<Vec<_>>(), [0, 3]);
    }
}
