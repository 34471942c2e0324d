// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Guests of whom nothing more is taken.

mod pages;

use std::sync::{
    atomic::{AtomicU32, Ordering},
    Arc, Weak,
};

use pages::{config, key, random_page, Stamped, COMPRESSIONS};
use vhost_device_tmem::store::{CreditWatcher, Guest, PoolKind, Store};
use virtio_tmem_abi::PageResult::{self, Absent, Flushed, Frozen, Hit, Miss, Stored};

const POOLS: [(u32, PoolKind); 2] = [(0, PoolKind::Persistent), (1, PoolKind::Ephemeral)];

fn put(store: &Store, guest: &Guest, pool: u32, index: u64, version: u64) -> PageResult {
    let mut result = [Absent];
    let (keys, mut source) = ([key(1, index, version)], Stamped(random_page(index)));
    let put = store.put(guest, pool, &keys, &mut source, &mut result);
    put.unwrap();
    result[0]
}

fn get(store: &Store, guest: &Guest, pool: u32, index: u64, version: u64) -> PageResult {
    let mut result = [Absent];
    let (keys, mut sink) = ([key(1, index, version)], Stamped(random_page(index)));
    let got = store.get(guest, pool, false, &keys, &mut sink, &mut result);
    drop(got.unwrap());
    result[0]
}

#[test]
fn nothing_is_taken_of_a_frozen_guest_and_the_rest_goes_on() {
    for compression in COMPRESSIONS {
        let store = Store::new(&config(4 << 20, compression)).unwrap();
        let [guest, other] = [store.add_guest(), store.add_guest()];
        for (pool, kind) in POOLS {
            for guest in [&guest, &other] {
                store.create_pool(guest, pool, kind).unwrap();
                for index in 0..3 {
                    assert_eq!(put(&store, guest, pool, index, 1), Stored);
                }
            }
        }
        store.set_frozen(guest.number(), true);
        let credits = store.credits_of(&guest);
        assert_eq!((credits.persistent, credits.ephemeral), (0, 0));
        assert!(store.credits_of(&other).persistent > 0);
        for (pool, _) in POOLS {
            assert_eq!(put(&store, &guest, pool, 9, 1), Frozen);
            assert_eq!(get(&store, &guest, pool, 9, 1), Miss);
            // What was there under the key is not the page that is there now.
            assert_eq!(put(&store, &guest, pool, 0, 2), Frozen);
            for version in [1, 2] {
                assert_eq!(get(&store, &guest, pool, 0, version), Miss);
            }
            assert_eq!(get(&store, &guest, pool, 1, 1), Hit);
            let mut flushed = [Absent];
            let flush = store.flush_pages(&guest, pool, &[key(1, 1, 1)], &mut flushed);
            assert_eq!((flush, flushed), (Ok(()), [Flushed]));
            let report = store.pool_report(&guest, pool).unwrap();
            assert_eq!(report.pages, 1);
            let counters = report.counters;
            assert_eq!((counters.puts, counters.puts_stored), (5, 3));
            assert_eq!((counters.puts_refused, counters.refused_frozen), (2, 2));
            assert_eq!(put(&store, &other, pool, 0, 2), Stored);
        }
        // Whoever comes under its number is frozen, too.
        store.remove_guest(&guest);
        let guest = store.guest(guest.number());
        store.create_pool(&guest, 0, PoolKind::Persistent).unwrap();
        assert_eq!(put(&store, &guest, 0, 0, 1), Frozen);
        store.set_frozen(guest.number(), false);
        assert!(!store.is_frozen(guest.number()));
        assert_eq!(put(&store, &guest, 0, 0, 1), Stored);
    }
}

#[derive(Default)]
struct Told(AtomicU32);

impl CreditWatcher for Told {
    fn room_again(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn who_is_thawed_hears_of_credits() {
    let store = Store::new(&config(4 << 20, COMPRESSIONS[0])).unwrap();
    let guest = store.add_guest();
    store.set_frozen(guest.number(), true);
    let told = Arc::new(Told::default());
    let watcher: Weak<Told> = Arc::downgrade(&told);
    store.watch_credits_of(&guest, watcher);
    assert_eq!(told.0.load(Ordering::SeqCst), 0);
    store.set_frozen(guest.number(), false);
    assert_eq!(told.0.load(Ordering::SeqCst), 1);
}
