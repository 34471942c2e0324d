// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The rules of coherency, one test each.

mod pages;

use pages::{key, random_page, Stamped, COMPRESSIONS};
use vhost_device_tmem::store::{Compression, Config, Faults, Guest, PoolError, PoolKind, Store};
use virtio_tmem_abi::PageResult::{self, Absent, Flushed, Hit, Miss, NoMemory, OverQuota, Stored};

const PERSISTENT: u32 = 0;
const EPHEMERAL: u32 = 1;
const POOLS: [u32; 2] = [PERSISTENT, EPHEMERAL];

struct World {
    store: Store,
    guest: Guest,
}

impl World {
    /// Returns a world for each way to compress.
    fn each() -> impl Iterator<Item = Self> {
        Self::each_with(Faults::default())
    }

    fn each_with(faults: Faults) -> impl Iterator<Item = Self> {
        COMPRESSIONS
            .into_iter()
            .map(move |compression| Self::new(compression, faults))
    }

    fn new(compression: Compression, faults: Faults) -> Self {
        let config = Config {
            faults,
            ..pages::config(1 << 20, compression)
        };
        let store = Store::new(&config).unwrap();
        let guest = store.add_guest();
        store
            .create_pool(&guest, PERSISTENT, PoolKind::Persistent)
            .unwrap();
        store
            .create_pool(&guest, EPHEMERAL, PoolKind::Ephemeral)
            .unwrap();
        Self { store, guest }
    }

    fn put(&self, pool: u32, index: u64, version: u64, stamp: u64) -> PageResult {
        let mut result = [Absent];
        let keys = [key(1, index, version)];
        self.store
            .put(&self.guest, pool, &keys, &mut Stamped(stamp), &mut result)
            .unwrap();
        result[0]
    }

    fn get(&self, pool: u32, take: bool, index: u64, version: u64, stamp: u64) -> PageResult {
        let mut result = [Absent];
        let keys = [key(1, index, version)];
        let mut sink = Stamped(stamp);
        self.store
            .get(&self.guest, pool, take, &keys, &mut sink, &mut result)
            .unwrap();
        result[0]
    }

    fn flush(&self, pool: u32, index: u64, version: u64) -> PageResult {
        let mut result = [Hit];
        let keys = [key(1, index, version)];
        self.store
            .flush_pages(&self.guest, pool, &keys, &mut result)
            .unwrap();
        result[0]
    }

    /// Puts persistent pages that cannot be compressed from `index` on until there is no room, and returns how many.
    fn fill(&self, index: u64) -> u64 {
        (0..)
            .find(|n| self.put(PERSISTENT, index + n, 1, random_page(index + n)) != Stored)
            .unwrap()
    }
}

#[test]
fn r1_a_get_finds_the_last_put_or_nothing() {
    for world in World::each() {
        for pool in POOLS {
            for (version, next) in [(1, 1), (1, 2), (9, 3)] {
                assert_eq!(world.put(pool, 5, version, 100), Stored);
                assert_eq!(world.put(pool, 5, next, 200), Stored);
                assert_eq!(world.get(pool, false, 5, next, 200), Hit);
                if version != next {
                    assert_eq!(world.get(pool, false, 5, version, 100), Miss);
                }
            }
        }
    }
}

#[test]
fn r1_a_refused_put_drops_the_earlier_page() {
    for world in World::each_with(Faults {
        refuse_percent: 50,
        ..Faults::default()
    }) {
        for pool in POOLS {
            let mut refused = 0;
            for round in 0..50 {
                let put = world.put(pool, 1, round, round);
                let got = world.get(pool, false, 1, round, round);
                let earlier = round.checked_sub(1);
                let before = earlier.map(|round| world.get(pool, false, 1, round, round));
                assert!(before.is_none_or(|before| before == Miss));
                assert_eq!(
                    (put, got),
                    if put == Stored {
                        (Stored, Hit)
                    } else {
                        (NoMemory, Miss)
                    }
                );
                refused += u32::from(put == NoMemory);
            }
            assert!((1..50).contains(&refused), "{refused}");
        }
    }
}

#[test]
fn r2_what_a_get_missed_stays_away() {
    for world in World::each_with(Faults {
        forget_percent: 50,
        ..Faults::default()
    }) {
        let mut forgotten = 0;
        for index in 0..100 {
            world.put(EPHEMERAL, index, 1, index);
            if world.get(EPHEMERAL, false, index, 1, index) == Miss {
                forgotten += 1;
                for _ in 0..5 {
                    assert_eq!(world.get(EPHEMERAL, false, index, 1, index), Miss);
                }
            }
        }
        assert!((1..100).contains(&forgotten), "{forgotten}");
    }
}

#[test]
fn r3_a_taken_page_is_gone() {
    for world in World::each() {
        world.put(EPHEMERAL, 1, 1, 7);
        assert_eq!(world.get(EPHEMERAL, true, 1, 2, 7), Miss);
        assert_eq!(world.get(EPHEMERAL, true, 1, 1, 7), Hit);
        assert_eq!(world.get(EPHEMERAL, true, 1, 1, 7), Miss);
        assert_eq!(world.store.report().used_pages, 0);
        // Also where it is asked for twice at a time.
        world.put(EPHEMERAL, 1, 1, 7);
        let mut results = [Absent; 2];
        let keys = [key(1, 1, 1); 2];
        let mut sink = Stamped(7);
        world
            .store
            .get(
                &world.guest,
                EPHEMERAL,
                true,
                &keys,
                &mut sink,
                &mut results,
            )
            .unwrap();
        assert_eq!(results, [Hit, Miss]);
    }
}

#[test]
fn r4_a_get_that_does_not_take_leaves_the_page() {
    for world in World::each() {
        for pool in POOLS {
            world.put(pool, 1, 1, 7);
            for _ in 0..5 {
                assert_eq!(world.get(pool, false, 1, 1, 7), Hit);
            }
        }
    }
}

#[test]
fn r5_persistent_pages_stay_and_the_oldest_ephemeral_ones_go() {
    for world in World::each() {
        let mut kept = 0;
        for index in 0..400 {
            assert_eq!(world.put(EPHEMERAL, index, 1, random_page(index)), Stored);
            // One is used all the time.
            assert_eq!(world.get(EPHEMERAL, false, 0, 1, random_page(0)), Hit);
            if index % 4 == 0 {
                assert_eq!(world.put(PERSISTENT, index, 1, random_page(index)), Stored);
                kept += 1;
            }
        }
        for index in (0..400).step_by(4) {
            assert_eq!(
                world.get(PERSISTENT, false, index, 1, random_page(index)),
                Hit
            );
        }
        let there: Vec<_> = (1..400)
            .filter(|index| world.get(EPHEMERAL, false, *index, 1, random_page(*index)) == Hit)
            .collect();
        let oldest = there[0];
        assert!(oldest > 1);
        assert_eq!(there, (oldest..400).collect::<Vec<_>>());
        let report = world.store.report();
        assert_eq!(there.len() as u64 + 1 + kept, report.capacity_pages);
        assert_eq!(report.evictions, 400 - report.ephemeral_pages);
    }
}

#[test]
fn persistent_pages_make_ephemeral_ones_go_but_not_each_other() {
    for world in World::each() {
        for index in 0..100 {
            world.put(EPHEMERAL, index, 1, index);
        }
        let stored = world.fill(0);
        let report = world.store.report();
        assert_eq!((stored, report.ephemeral_pages), (report.capacity_pages, 0));
        assert_eq!(world.put(EPHEMERAL, 1, 2, random_page(1)), OverQuota);
        assert_eq!(world.store.credits().persistent, 0);
        assert_eq!(world.store.credits().ephemeral, 0);
    }
}

#[test]
fn a_page_that_is_put_anew_finds_the_room_that_it_had() {
    for world in World::each() {
        let stored = world.fill(0);
        for index in 0..stored {
            assert_eq!(world.put(PERSISTENT, index, 2, random_page(index)), Stored);
        }
        for index in 0..stored {
            assert_eq!(
                world.get(PERSISTENT, false, index, 2, random_page(index)),
                Hit
            );
        }
    }
}

#[test]
fn r11_indices_are_not_cut_off() {
    for world in World::each() {
        let indices = [0, 1 << 31, 1 << 32, 1 << 63, u64::MAX];
        for (stamp, index) in (0..).zip(indices) {
            assert_eq!(world.put(PERSISTENT, index, index, stamp), Stored);
        }
        for (stamp, index) in (0..).zip(indices) {
            assert_eq!(world.get(PERSISTENT, false, index, index, stamp), Hit);
        }
    }
}

#[test]
fn r12_a_flush_that_comes_late_does_not_hit_a_newer_page() {
    for world in World::each() {
        world.put(PERSISTENT, 1, 1, 1);
        world.put(PERSISTENT, 1, 2, 2);
        assert_eq!(world.flush(PERSISTENT, 1, 1), Absent);
        assert_eq!(world.get(PERSISTENT, false, 1, 2, 2), Hit);
        assert_eq!(world.flush(PERSISTENT, 1, 2), Flushed);
        assert_eq!(world.get(PERSISTENT, false, 1, 2, 2), Miss);
    }
}

#[test]
fn pools_are_found_by_number_and_created_once() {
    for world in World::each() {
        let create = |number, kind| world.store.create_pool(&world.guest, number, kind);
        assert_eq!(create(PERSISTENT, PoolKind::Persistent), Ok(()));
        assert_eq!(
            create(PERSISTENT, PoolKind::Ephemeral),
            Err(PoolError::Exists)
        );
        let missing = world.store.flush_pool(&world.guest, u32::MAX);
        assert_eq!(missing, Err(PoolError::NoPool));
        let other = world.store.add_guest();
        let foreign = world.store.pool_report(&other, PERSISTENT);
        assert_eq!(foreign, Err(PoolError::NoPool));
    }
}
