// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The store under many threads at once.

mod pages;

use std::{
    sync::{
        atomic::{AtomicUsize, Ordering},
        Arc, Barrier,
    },
    thread,
};

use pages::{contents, key, random_page, Stamped, COMPRESSIONS};
use vhost_device_tmem::store::{
    Compression, CreditWatcher, Guest, PageBytes, PageSource, PoolKind, Store,
};
use virtio_tmem_abi::{PageResult, Range};

const PERSISTENT: u32 = 0;
const EPHEMERAL: u32 = 1;

fn store(capacity: u64, compression: Compression) -> Arc<Store> {
    Arc::new(Store::new(&pages::config(capacity, compression)).unwrap())
}

fn guest(store: &Store) -> Guest {
    let guest = store.add_guest();
    store
        .create_pool(&guest, PERSISTENT, PoolKind::Persistent)
        .unwrap();
    store
        .create_pool(&guest, EPHEMERAL, PoolKind::Ephemeral)
        .unwrap();
    guest
}

/// Guests that crowd each other out never see each other's pages, nor lose persistent ones.
#[test]
fn guests_on_threads_of_their_own_keep_their_pages_apart() {
    for compression in COMPRESSIONS {
        const GUESTS: u64 = 4;
        const PAGES: u64 = 24;
        let store = store(1 << 20, compression);
        let start = Barrier::new(GUESTS as usize);
        thread::scope(|scope| {
            for who in 0..GUESTS {
                let (store, start) = (&store, &start);
                scope.spawn(move || {
                    let guest = guest(store);
                    start.wait();
                    for round in 0..150 {
                        let stamp = (who << 32) | (round << 8);
                        let keys: Vec<_> = (0..PAGES).map(|i| key(round % 7, i, round)).collect();
                        let mut results = [PageResult::Absent; PAGES as usize];
                        for pool in [PERSISTENT, EPHEMERAL] {
                            store
                                .put(&guest, pool, &keys, &mut Stamped(stamp), &mut results)
                                .unwrap();
                            let put = results;
                            let take = pool == EPHEMERAL && round % 2 == 0;
                            store
                                .get(&guest, pool, take, &keys, &mut Stamped(stamp), &mut results)
                                .unwrap();
                            for (put, got) in put.iter().zip(results) {
                                let lost = *put == PageResult::Stored && got != PageResult::Hit;
                                assert!(pool == EPHEMERAL || !lost);
                            }
                        }
                        let all = Range {
                            object: keys[0].object,
                            first: 0.into(),
                            last: u64::MAX.into(),
                        };
                        let mut result = [PageResult::Absent];
                        store
                            .flush_ranges(&guest, PERSISTENT, &[all], &mut result)
                            .unwrap();
                    }
                    store.remove_guest(&guest);
                });
            }
        });
        let report = store.report();
        assert_eq!((report.used_pages, report.objects), (0, 0));
    }
}

/// A page that is read stays whole, while others put over it, flush it and evict it.
#[test]
fn a_page_that_is_being_read_is_not_written_over() {
    for compression in COMPRESSIONS {
        let store = store(1 << 20, compression);
        let guest = guest(&store);
        let running = AtomicUsize::new(2);
        thread::scope(|scope| {
            for writer in 0..2u64 {
                let (store, guest, running) = (&store, &guest, &running);
                scope.spawn(move || {
                    for round in 0..1000u64 {
                        let stamp = round % 3 * 1000;
                        // Both writers use some keys, and more frames than there are.
                        let keys = [0, 1, 2, 3 + writer * 500 + round % 500].map(|index| {
                            // The version says what the contents have to be.
                            key(0, index, round % 3)
                        });
                        let mut results = [PageResult::Absent; 4];
                        store
                            .put(guest, EPHEMERAL, &keys, &mut Stamped(stamp), &mut results)
                            .unwrap();
                        if round % 5 == 0 {
                            store
                                .flush_pages(guest, EPHEMERAL, &keys[..1], &mut results[..1])
                                .unwrap();
                        }
                    }
                    running.fetch_sub(1, Ordering::SeqCst);
                });
            }
            for take in [false, true] {
                let (store, guest, running) = (&store, &guest, &running);
                scope.spawn(move || {
                    let mut hits = 0;
                    while running.load(Ordering::SeqCst) > 0 {
                        for version in 0..3u64 {
                            let keys = [0, 1, 2].map(|index| key(0, index, version));
                            let mut results = [PageResult::Absent; 3];
                            let mut sink = Stamped(version * 1000);
                            store
                                .get(guest, EPHEMERAL, take, &keys, &mut sink, &mut results)
                                .unwrap();
                            hits += results.iter().filter(|r| **r == PageResult::Hit).count();
                        }
                    }
                    hits
                });
            }
        });
        store.flush_pool(&guest, EPHEMERAL).unwrap();
        assert_eq!(store.report().used_pages, 0, "a frame was lost");
    }
}

/// Walks over one object at the same time each find what they look for.
#[test]
fn range_flushes_at_the_same_time_find_all_their_pages() {
    for compression in COMPRESSIONS {
        const PAGES: u64 = 2048;
        /// Indices are so far apart that looking for each index of a range would take longer than
        /// looking at all pages.
        const STEP: u64 = 2 * PAGES;
        let store = store(16 << 20, compression);
        let guest = guest(&store);
        for round in 0..10 {
            for first in (0..PAGES).step_by(64) {
                let keys: Vec<_> = (first..first + 64)
                    .map(|i| key(1, i * STEP, round))
                    .collect();
                let mut results = [PageResult::Absent; 64];
                store
                    .put(&guest, PERSISTENT, &keys, &mut Stamped(0), &mut results)
                    .unwrap();
                assert_eq!(results, [PageResult::Stored; 64]);
            }
            let start = Barrier::new(2);
            thread::scope(|scope| {
                for walker in 0..2 {
                    let (store, guest, start) = (&store, &guest, &start);
                    scope.spawn(move || {
                        // One page here and there.
                        let ranges: Vec<_> = (0..16)
                            .map(|n| (n * 128 + walker) * STEP)
                            .map(|first| Range {
                                object: key(1, 0, 0).object,
                                first: first.into(),
                                last: (first + STEP - 1).into(),
                            })
                            .collect();
                        let mut results = [PageResult::Absent; 16];
                        start.wait();
                        store
                            .flush_ranges(guest, PERSISTENT, &ranges, &mut results)
                            .unwrap();
                        assert_eq!(results, [PageResult::Flushed; 16]);
                    });
                }
            });
            let left = store.pool_report(&guest, PERSISTENT).unwrap().pages;
            assert_eq!(left, PAGES - 32);
            store.flush_pool(&guest, PERSISTENT).unwrap();
        }
    }
}

#[derive(Default)]
struct Told(AtomicUsize);

impl CreditWatcher for Told {
    fn room_again(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// A watcher is told once, and only when there is room.
#[test]
fn a_watcher_is_told_once_when_there_is_room() {
    for compression in COMPRESSIONS {
        let store = store(1 << 20, compression);
        let guest = guest(&store);
        let mut index = 0;
        let mut put = || {
            index += 1;
            let mut result = [PageResult::Absent];
            let keys = [key(1, index, 1)];
            store
                .put(
                    &guest,
                    PERSISTENT,
                    &keys,
                    &mut Stamped(random_page(index)),
                    &mut result,
                )
                .unwrap();
            result[0] == PageResult::Stored
        };
        while put() {}
        assert_eq!(store.credits().persistent, 0);
        let told = Arc::new(Told::default());
        let watcher = Arc::downgrade(&told);
        store.watch_credits(watcher);
        let mut result = [PageResult::Absent];
        store
            .flush_pages(&guest, PERSISTENT, &[key(1, 1, 1)], &mut result)
            .unwrap();
        assert_eq!(result, [PageResult::Flushed]);
        assert_eq!(
            told.0.load(Ordering::SeqCst),
            0,
            "one page is not worth telling"
        );
        store.flush_pool(&guest, PERSISTENT).unwrap();
        assert_eq!(told.0.load(Ordering::SeqCst), 1);
        store.flush_pool(&guest, PERSISTENT).unwrap();
        assert_eq!(told.0.load(Ordering::SeqCst), 1);
        let watcher = Arc::downgrade(&told);
        store.watch_credits(watcher);
        assert_eq!(told.0.load(Ordering::SeqCst), 2, "there is room already");
    }
}

/// Pages that no compression makes smaller.
struct Random;

impl PageSource for Random {
    fn read_page(&mut self, n: usize, frame: &mut PageBytes) -> bool {
        *frame = contents(random_page(n as u64));
        true
    }
}

/// What is forgotten goes back to the operating system, but for a little.
#[test]
fn memory_goes_back_when_pages_are_forgotten() {
    for compression in COMPRESSIONS {
        let store = store(64 << 20, compression);
        let guest = guest(&store);
        let resident = || {
            let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
            statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
        };
        let mut results = [PageResult::Absent; 100];
        let mut random = Random;
        for first in (0..12_000).step_by(100) {
            let keys: Vec<_> = (first..first + 100).map(|i| key(i, i, 0)).collect();
            store
                .put(&guest, PERSISTENT, &keys, &mut random, &mut results)
                .unwrap();
        }
        let full = resident();
        store.flush_pool(&guest, PERSISTENT).unwrap();
        let empty = resident();
        // Other tests run in this process; the difference dwarfs what they take.
        assert!(full - empty > 20 << 20, "{full} {empty}");
    }
}
