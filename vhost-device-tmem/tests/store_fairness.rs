// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Guests beside one that takes all that it can get.

mod pages;

use std::sync::{
    atomic::{AtomicUsize, Ordering},
    Arc,
};

use pages::{key, random_page, Stamped};
use vhost_device_tmem::store::{Config, CreditWatcher, Guest, PoolKind, Store, StoreError};
use virtio_tmem_abi::PageResult;

const CAPACITY: u64 = 32 << 20;
const PERSISTENT: u32 = 0;
const EPHEMERAL: u32 = 1;

struct World {
    store: Store,
    victim: Guest,
    hog: Guest,
}

impl World {
    fn new() -> Self {
        let store = Store::new(&Config::shared(CAPACITY, 2)).unwrap();
        let [victim, hog] = [0, 1].map(|number| store.guest(number));
        for guest in [&victim, &hog] {
            for (pool, kind) in [
                (PERSISTENT, PoolKind::Persistent),
                (EPHEMERAL, PoolKind::Ephemeral),
            ] {
                store.create_pool(guest, pool, kind).unwrap();
            }
        }
        Self { store, victim, hog }
    }

    fn put(&self, guest: &Guest, pool: u32, index: u64) -> PageResult {
        let mut result = [PageResult::Absent];
        let mut page = Stamped(random_page(index));
        self.store
            .put(guest, pool, &[key(1, index, 1)], &mut page, &mut result)
            .unwrap();
        result[0]
    }

    fn hits(&self, guest: &Guest, pool: u32, count: u64) -> usize {
        let there = |index: &u64| {
            let mut result = [PageResult::Absent];
            let mut page = Stamped(random_page(*index));
            let keys = [key(1, *index, 1)];
            let got = self
                .store
                .get(guest, pool, false, &keys, &mut page, &mut result);
            drop(got.unwrap());
            result == [PageResult::Hit]
        };
        (0..count).filter(there).count()
    }

    /// Puts persistent pages until one is refused, and returns how many were stored.
    fn fill(&self, guest: &Guest) -> u64 {
        (0..)
            .find(|index| self.put(guest, PERSISTENT, *index) != PageResult::Stored)
            .unwrap()
    }
}

#[test]
fn a_stream_of_ephemeral_pages_takes_none_of_those_who_hold_less() {
    let world = World::new();
    for index in 0..992 {
        assert_eq!(
            world.put(&world.victim, EPHEMERAL, index),
            PageResult::Stored
        );
    }
    for index in 0..20_000 {
        assert_eq!(world.put(&world.hog, EPHEMERAL, index), PageResult::Stored);
    }
    assert_eq!(world.hits(&world.victim, EPHEMERAL, 992), 992);
    // The one who streams has all of the rest.
    let report = world.store.report();
    assert_eq!(report.used_pages, report.capacity_pages);
}

#[test]
fn each_guest_finds_what_it_was_promised() {
    let world = World::new();
    let told = u64::from(world.store.credits_of(&world.hog).persistent);
    let hogged = world.fill(&world.hog);
    let all = world.store.report().capacity_pages;
    // Three quarters: its own half, and the half of the rest that nobody was promised.
    assert!(hogged >= told && hogged <= told + 64, "{hogged} {told}");
    assert!(hogged.abs_diff(all * 3 / 4) < 64, "{hogged} of {all}");
    assert_eq!(world.store.credits_of(&world.hog).persistent, 0);
    // Ephemeral pages take what nobody else asks for.
    assert_eq!(world.put(&world.hog, EPHEMERAL, 0), PageResult::Stored);
    for index in 0..4000 {
        let _ = world.put(&world.hog, EPHEMERAL, index);
    }
    let promised = CAPACITY / 4 / 4160;
    let told = u64::from(world.store.credits_of(&world.victim).persistent);
    assert!(told + 64 >= promised, "{told} {promised}");
    let stored = world.fill(&world.victim);
    assert!(stored >= told && stored >= promised, "{stored} {told}");
    assert_eq!(hogged + stored, all);
    assert_eq!(
        world.hits(&world.victim, PERSISTENT, stored),
        stored as usize
    );
    assert_eq!(world.hits(&world.hog, PERSISTENT, hogged), hogged as usize);
}

#[test]
fn pages_that_grow_are_no_way_around_a_promise() {
    let config = Config {
        compression: vhost_device_tmem::store::Compression::Lz4,
        ..Config::shared(CAPACITY, 2)
    };
    let store = Store::new(&config).unwrap();
    let [victim, hog] = [0, 1].map(|number| store.guest(number));
    for guest in [&victim, &hog] {
        store
            .create_pool(guest, PERSISTENT, PoolKind::Persistent)
            .unwrap();
    }
    let world = World { store, victim, hog };
    // Zeros first, which take next to nothing.
    for index in 0..8000 {
        let mut result = [PageResult::Absent];
        let keys = [key(1, index, 1)];
        world
            .store
            .put(&world.hog, PERSISTENT, &keys, &mut Stamped(0), &mut result)
            .unwrap();
        assert_eq!(result, [PageResult::Stored]);
    }
    for index in 0..8000 {
        let _ = world.put(&world.hog, PERSISTENT, index);
    }
    let promised = CAPACITY / 4 / 4160;
    assert!(world.fill(&world.victim) >= promised);
}

#[test]
fn more_than_there_is_cannot_be_promised() {
    let config = Config {
        guaranteed: CAPACITY,
        ..Config::shared(CAPACITY, 2)
    };
    let error = Store::new(&config).expect_err("too much is promised");
    assert!(matches!(error, StoreError::Promised(..)), "{error}");
}

#[derive(Default)]
struct Told(AtomicUsize);

impl CreditWatcher for Told {
    fn room_again(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn a_watcher_is_told_of_the_credits_of_its_guest() {
    let world = World::new();
    let hogged = world.fill(&world.hog);
    let told = [(); 2].map(|()| Arc::new(Told::default()));
    for (guest, told) in [&world.victim, &world.hog].into_iter().zip(&told) {
        let watcher: Arc<dyn CreditWatcher> = told.clone();
        world
            .store
            .watch_credits_of(guest, Arc::downgrade(&watcher));
    }
    let counts = || [0, 1].map(|n: usize| told[n].0.load(Ordering::SeqCst));
    // One of them has what it was promised, and the other has nothing.
    assert_eq!(counts(), [1, 0]);
    let keys: Vec<_> = (0..hogged / 2).map(|index| key(1, index, 1)).collect();
    let mut results = vec![PageResult::Absent; keys.len()];
    world
        .store
        .flush_pages(&world.hog, PERSISTENT, &keys, &mut results)
        .unwrap();
    assert_eq!(counts(), [1, 1]);
}

#[test]
fn the_promise_outlives_the_guest() {
    let world = World::new();
    world.fill(&world.victim);
    world.store.remove_guest(&world.victim);
    let victim = world.store.guest(0);
    world
        .store
        .create_pool(&victim, PERSISTENT, PoolKind::Persistent)
        .unwrap();
    world.fill(&world.hog);
    assert!(world.fill(&victim) >= CAPACITY / 4 / 4160);
}

#[test]
fn shares_are_others_when_guests_come_and_go() {
    let world = World::new();
    let mut count = 0;
    let mut put = || {
        count += 1;
        world.put(&world.hog, PERSISTENT, count)
    };
    while put() == PageResult::Stored {}
    // The other one's share is nobody's while there is no such guest.
    world.store.share_among([1]);
    assert_eq!(put(), PageResult::Stored);
    // One that has put nothing yet, and has any number, is promised the same.
    world.store.share_among([1, 9]);
    assert_eq!(put(), PageResult::OverQuota);
    world.store.share_among([1]);
    assert_eq!(put(), PageResult::Stored);
    // Nothing is taken from who has more than its new share.
    world.store.share_among([0, 1]);
    assert_eq!(put(), PageResult::OverQuota);
    assert_eq!(world.put(&world.victim, PERSISTENT, 1), PageResult::Stored);
    assert!(world.store.credits_of(&world.victim).persistent > 1000);
}
