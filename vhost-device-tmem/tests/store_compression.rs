// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a store that compresses makes of its capacity.

mod pages;

use pages::{key, random_page, Stamped, COMPRESSIONS, KINDS};
use vhost_device_tmem::store::{Compression, Contents, Guest, PoolKind, Store, PAGE_SIZE};
use virtio_tmem_abi::PageResult::{self, Absent, Hit, Miss, OverQuota, Stored};

const PERSISTENT: u32 = 0;
const EPHEMERAL: u32 = 1;

/// Numbers of pages of one kind each.
const fn zeros(n: u64) -> u64 {
    n * KINDS
}

const fn word(n: u64) -> u64 {
    n * KINDS + 1
}

const fn text(n: u64) -> u64 {
    n * KINDS + 2
}

const fn sparse(n: u64) -> u64 {
    n * KINDS + 5
}

struct World {
    store: Store,
    guest: Guest,
}

impl World {
    fn new(compression: Compression, capacity: u64) -> Self {
        let store = Store::new(&pages::config(capacity, compression)).unwrap();
        let guest = store.add_guest();
        for (pool, kind) in [
            (PERSISTENT, PoolKind::Persistent),
            (EPHEMERAL, PoolKind::Ephemeral),
        ] {
            store.create_pool(&guest, pool, kind).unwrap();
        }
        Self { store, guest }
    }

    /// Returns a world for each way to compress.
    fn each(capacity: u64) -> impl Iterator<Item = Self> {
        let compress = COMPRESSIONS
            .into_iter()
            .filter(|compression| *compression != Compression::None);
        compress.map(move |compression| Self::new(compression, capacity))
    }

    fn put(&self, pool: u32, index: u64, number: u64) -> PageResult {
        let mut result = [Absent];
        let keys = [key(1, index, 1)];
        self.store
            .put(&self.guest, pool, &keys, &mut Stamped(number), &mut result)
            .unwrap();
        result[0]
    }

    fn get(&self, pool: u32, index: u64, number: u64) -> PageResult {
        let mut result = [Absent];
        let (keys, mut sink) = ([key(1, index, 1)], Stamped(number));
        self.store
            .get(&self.guest, pool, false, &keys, &mut sink, &mut result)
            .unwrap();
        result[0]
    }

    fn flush(&self, pool: u32, index: u64) {
        let keys = [key(1, index, 1)];
        self.store
            .flush_pages(&self.guest, pool, &keys, &mut [Absent])
            .unwrap();
    }

    /// Puts persistent pages from `index` on until there is no room, and returns how many.
    fn fill(&self, index: u64, number: impl Fn(u64) -> u64) -> u64 {
        (0..)
            .find(|n| self.put(PERSISTENT, index + n, number(index + n)) != Stored)
            .unwrap()
    }

    fn contents(&self) -> Contents {
        let report = self.store.report();
        assert!(report.resident_bytes <= report.capacity_bytes, "{report:?}");
        report.contents
    }
}

#[test]
fn more_pages_fit_the_smaller_they_become() {
    for world in World::each(4 << 20) {
        let raw = world.store.report().capacity_pages;
        let stored = world.fill(0, text);
        assert!(stored > raw * 2, "{stored} {raw}");
        for index in 0..stored {
            assert_eq!(world.get(PERSISTENT, index, text(index)), Hit);
        }
        let contents = world.contents();
        assert_eq!(contents.compressed_pages, stored);
        assert!(contents.compressed_bytes < contents.slot_bytes);
        assert!(contents.ratio().unwrap() > 2.0);
    }
}

#[test]
fn pages_that_repeat_a_word_take_an_entry_only() {
    for world in World::each(4 << 20) {
        for (index, number) in [zeros(5), word(6), word(7), sparse(8)]
            .into_iter()
            .enumerate()
        {
            assert_eq!(world.put(PERSISTENT, index as u64, number), Stored);
        }
        let contents = world.contents();
        assert_eq!(contents.same_filled_pages, 3);
        assert_eq!((contents.compressed_pages, contents.raw_pages), (1, 0));
        assert!(contents.slot_bytes < 256);
        for (index, number) in [zeros(5), word(6), word(7), sparse(8)]
            .into_iter()
            .enumerate()
        {
            assert_eq!(world.get(PERSISTENT, index as u64, number), Hit);
        }
        let stored = world.fill(4, word);
        assert!(stored > 14 * world.store.report().capacity_bytes / PAGE_SIZE as u64);
    }
}

#[test]
fn pages_that_do_not_become_smaller_are_stored_as_they_are() {
    for world in World::each(4 << 20) {
        for index in 0..100 {
            assert_eq!(world.put(PERSISTENT, index, random_page(index)), Stored);
        }
        let contents = world.contents();
        assert_eq!((contents.raw_pages, contents.compressed_pages), (100, 0));
        for index in 0..100 {
            assert_eq!(world.get(PERSISTENT, index, random_page(index)), Hit);
        }
    }
}

#[test]
fn eviction_makes_room_for_pages_of_any_size() {
    for world in World::each(4 << 20) {
        for index in 0..8000 {
            assert_eq!(world.put(EPHEMERAL, index, index), Stored);
        }
        let report = world.store.report();
        assert!(report.evictions > 0 && report.ephemeral_pages > report.capacity_pages);
        let stored = world.fill(0, random_page);
        let report = world.store.report();
        assert_eq!(report.ephemeral_pages, 0);
        // Little is lost to what the small pages needed to be found.
        assert!(stored * PAGE_SIZE as u64 > report.capacity_bytes * 90 / 100);
        assert_eq!(world.put(EPHEMERAL, 0, random_page(0)), OverQuota);
    }
}

#[test]
fn what_is_left_scattered_does_not_take_the_room_of_others() {
    let number = |n: u64| n - n % KINDS + 2 + 5 * (n % 2);
    // Little of each span is left, or most.
    for (every, left) in [(16, 1), (8, 5)] {
        for world in World::each(16 << 20) {
            let stored = world.fill(0, number);
            let (kept, flushed): (Vec<_>, Vec<_>) =
                (0..stored).partition(|index| index % every < left);
            for index in flushed {
                world.flush(PERSISTENT, index);
            }
            let report = world.store.report();
            let credits = u64::from(world.store.credits().persistent);
            let free = report.capacity_bytes - report.used_bytes;
            assert!(credits * PAGE_SIZE as u64 > free * 65 / 100, "{report:?}");
            for n in 0..credits {
                let put = world.put(PERSISTENT, stored + n, random_page(n));
                assert_eq!(put, Stored, "{n} of {credits}");
            }
            for index in kept {
                assert_eq!(world.get(PERSISTENT, index, number(index)), Hit);
            }
            for n in 0..credits {
                assert_eq!(world.get(PERSISTENT, stored + n, random_page(n)), Hit);
            }
        }
    }
}

#[test]
fn what_finding_pages_takes_goes_back_with_them() {
    for world in World::each(16 << 20) {
        let before = world.fill(0, random_page);
        world.store.flush_pool(&world.guest, PERSISTENT).unwrap();
        assert!(world.fill(0, zeros) > 10 * before);
        let full = world.store.report().resident_bytes;
        world.store.flush_pool(&world.guest, PERSISTENT).unwrap();
        let empty = world.store.report().resident_bytes;
        assert!(full - empty > 3 << 20, "{full} {empty}");
        let after = world.fill(0, random_page);
        assert!(after > before * 98 / 100, "{after} {before}");
    }
}

#[test]
fn a_page_put_over_another_may_have_another_size() {
    for world in World::each(1 << 20) {
        for round in 0..200 {
            for index in 0..8 {
                let number = round * 7 + index * 3;
                assert_eq!(world.put(PERSISTENT, index, number), Stored);
                assert_eq!(world.get(PERSISTENT, index, number), Hit);
            }
        }
        for index in 0..8 {
            world.flush(PERSISTENT, index);
            assert_eq!(world.get(PERSISTENT, index, 0), Miss);
        }
        assert_eq!(world.contents(), Contents::default());
    }
}
