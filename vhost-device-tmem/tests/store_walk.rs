// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Walks over many pages: in steps, and over each object once.

mod pages;

use std::sync::Arc;

use pages::{key, Stamped};
use vhost_device_tmem::store::{Config, Guest, PoolError, PoolKind, Progress, Store, Walk};
use virtio_tmem_abi::{PageResult, Range};

const PERSISTENT: u32 = 0;

fn world(capacity: u64) -> (Arc<Store>, Guest) {
    let store = Arc::new(Store::new(&Config::new(capacity)).unwrap());
    let guest = store.add_guest();
    store
        .create_pool(&guest, PERSISTENT, PoolKind::Persistent)
        .unwrap();
    (store, guest)
}

/// A source of pages that nobody looks at.
struct Blank;

impl vhost_device_tmem::store::PageSource for Blank {
    fn read_page(&mut self, _n: usize, _frame: &mut vhost_device_tmem::store::PageBytes) -> bool {
        true
    }
}

fn put(store: &Store, guest: &Guest, object: u64, indices: impl Iterator<Item = u64>) {
    let keys: Vec<_> = indices.map(|index| key(object, index, 1)).collect();
    for keys in keys.chunks(256) {
        let mut results = vec![PageResult::Absent; keys.len()];
        store
            .put(guest, PERSISTENT, keys, &mut Blank, &mut results)
            .unwrap();
        assert!(results.iter().all(|result| *result == PageResult::Stored));
    }
}

fn range(object: u64, first: u64, last: u64) -> Range {
    Range {
        object: key(object, 0, 0).object,
        first: first.into(),
        last: last.into(),
    }
}

fn pages(store: &Store, guest: &Guest) -> u64 {
    store.pool_report(guest, PERSISTENT).unwrap().pages
}

/// The worst request: each range is wide, and meets nothing.
#[test]
fn a_request_of_many_ranges_looks_at_each_page_once() {
    const PAGES: u64 = 100_000;
    let (store, guest) = world(512 << 20);
    put(&store, &guest, 1, 0..PAGES);
    for ranges in [
        vec![range(1, 1 << 40, (1 << 40) + (1 << 30)); 1024],
        (0..1024)
            .map(|n| range(1, (1 << 40) + n, (1 << 41) + n))
            .collect(),
    ] {
        let mut walk = Walk::flush_ranges(&*store, &guest, PERSISTENT, &ranges).unwrap();
        walk.finish();
        assert_eq!(walk.results(), [PageResult::Absent; 1024]);
        assert!(walk.visited() <= PAGES + 1024, "{}", walk.visited());
    }
    // Nor is there more work where all of them meet all pages.
    let mut walk =
        Walk::flush_ranges(&*store, &guest, PERSISTENT, &[range(1, 0, u64::MAX); 1024]).unwrap();
    walk.finish();
    assert!(walk.visited() <= PAGES + 1024, "{}", walk.visited());
    // The first had all of them, and what has nothing any more is absent.
    assert_eq!(walk.results()[0], PageResult::Flushed);
    assert!(walk.results()[1..].iter().all(|r| *r == PageResult::Absent));
    assert_eq!(pages(&store, &guest), 0);
}

#[test]
fn each_range_is_answered_as_if_they_had_come_one_by_one() {
    let (store, guest) = world(4 << 20);
    put(&store, &guest, 1, (0..100).map(|n| n * 1000));
    put(&store, &guest, 2, 0..10);
    let ranges = [
        range(1, 0, 0),
        range(2, 5, 20),
        range(1, 0, 1000),
        range(1, 500, 999),
        range(2, 0, 6),
        range(1, 90_000, u64::MAX),
        range(2, 6, 7),
        range(3, 0, u64::MAX),
    ];
    let mut results = [PageResult::Hit; 8];
    store
        .flush_ranges(&guest, PERSISTENT, &ranges, &mut results)
        .unwrap();
    use PageResult::{Absent, Flushed};
    let expected = [
        Flushed, Flushed, Flushed, Absent, Flushed, Flushed, Absent, Absent,
    ];
    assert_eq!(results, expected);
    assert_eq!(pages(&store, &guest), 100 - 12);
    let counters = store.pool_report(&guest, PERSISTENT).unwrap().counters;
    assert_eq!((counters.flushes, counters.pages_flushed), (8, 22));
}

#[test]
fn a_step_looks_at_no_more_than_its_budget() {
    let (store, guest) = world(64 << 20);
    put(&store, &guest, 1, (0..5000).map(|n| n << 20));
    let all = [range(1, 0, 2500 << 20)];
    let mut walk = Walk::flush_ranges(Arc::clone(&store), &guest, PERSISTENT, &all).unwrap();
    let mut steps = 0;
    loop {
        let before = walk.visited();
        let progress = walk.step(700);
        assert!(walk.visited() - before <= 700);
        steps += 1;
        if progress == Progress::Done {
            break;
        }
        // The store is free for others in between, also to forget what comes next.
        put(&store, &guest, 2, steps..steps + 1);
        let mut result = [PageResult::Absent];
        let next = [key(1, (walk.visited() + 100) << 20, 1)];
        store
            .flush_pages(&guest, PERSISTENT, &next, &mut result)
            .unwrap();
    }
    assert!(steps >= 5000 / 700);
    assert_eq!(walk.results(), [PageResult::Flushed]);
    let (mut gone, mut left) = ([PageResult::Hit; 2501], [PageResult::Hit; 2499]);
    let keys: Vec<_> = (0..5000).map(|n| key(1, n << 20, 1)).collect();
    store
        .flush_pages(&guest, PERSISTENT, &keys[..2501], &mut gone)
        .unwrap();
    assert_eq!(gone, [PageResult::Absent; 2501]);
    store
        .flush_pages(&guest, PERSISTENT, &keys[2501..], &mut left)
        .unwrap();
    let lost = left.iter().filter(|r| **r == PageResult::Absent).count();
    assert!(
        lost as u64 <= steps,
        "{lost} pages out of the range are gone"
    );
}

#[test]
fn two_walks_over_one_object_each_find_what_they_look_for() {
    let (store, guest) = world(64 << 20);
    put(&store, &guest, 1, (0..4000).map(|n| n << 20));
    let ranges = [
        range(1, 0, 1999 << 20),
        range(1, 2000 << 20, 3999 << 20),
        range(1, 1000 << 20, 2999 << 20),
    ];
    let mut walks =
        ranges.map(|range| Walk::flush_ranges(&*store, &guest, PERSISTENT, &[range]).unwrap());
    let mut left = walks.len();
    while left > 0 {
        left = walks
            .iter_mut()
            .map(|walk| usize::from(walk.step(33) == Progress::More))
            .sum();
    }
    assert!(walks[..2]
        .iter()
        .all(|walk| walk.results() == [PageResult::Flushed]));
    assert_eq!(pages(&store, &guest), 0);
}

#[test]
fn a_walk_ends_where_its_pool_does() {
    let (store, guest) = world(64 << 20);
    put(&store, &guest, 1, (0..4000).map(|n| n << 20));
    let all = [range(1, 0, u64::MAX), range(2, 0, u64::MAX)];
    let mut walk = Walk::flush_ranges(&*store, &guest, PERSISTENT, &all).unwrap();
    assert_eq!(walk.step(100), Progress::More);
    store.destroy_pool(&guest, PERSISTENT).unwrap();
    // Another pool has its place and its number now, and objects of the same names.
    store
        .create_pool(&guest, PERSISTENT, PoolKind::Persistent)
        .unwrap();
    for object in [1, 2] {
        put(&store, &guest, object, 0..100);
    }
    assert_eq!(walk.step(1000), Progress::Done);
    assert_eq!(pages(&store, &guest), 200);
    let none = Walk::flush_pool(&*store, &guest, 7);
    assert_eq!(none.err(), Some(PoolError::NoPool));
}

#[test]
fn a_walk_that_is_dropped_leaves_nothing_behind() {
    let (store, guest) = world(64 << 20);
    put(&store, &guest, 1, (0..4000).map(|n| n << 20));
    for _ in 0..3 {
        let all = [range(1, 1, 2)];
        let wide = [range(1, 1 << 50, 1 << 60)];
        for ranges in [all, wide] {
            let mut walk = Walk::flush_ranges(&*store, &guest, PERSISTENT, &ranges).unwrap();
            let _ = walk.step(100);
        }
    }
    let (mut walk, before) = Walk::destroy_pool(&*store, &guest, PERSISTENT).unwrap();
    assert_eq!(
        (before.persistent.pages, walk.step(100)),
        (4000, Progress::More)
    );
    drop(walk);
    assert_eq!(store.pools(&guest), []);
    // A pool of the same number is another.
    store
        .create_pool(&guest, PERSISTENT, PoolKind::Persistent)
        .unwrap();
    put(&store, &guest, 1, 0..5);
    assert!(store.report().used_pages > 3000);
    while store.tidy_step(1000) == Progress::More {}
    assert_eq!(store.report().used_pages, 5);
    let mut stamp = Stamped(0);
    let mut result = [PageResult::Absent];
    let keys = [key(1, 2, 2)];
    let got = store.get(&guest, PERSISTENT, false, &keys, &mut stamp, &mut result);
    drop(got.unwrap());
    assert_eq!(result, [PageResult::Miss]);
}

#[test]
fn a_guest_goes_in_steps_with_all_its_pools() {
    let (store, guest) = world(64 << 20);
    put(&store, &guest, 1, 0..3000);
    store.create_pool(&guest, 9, PoolKind::Ephemeral).unwrap();
    let (mut walk, dropped) = Walk::remove_guest(Arc::clone(&store), &guest);
    assert_eq!(
        (dropped.persistent.pages, dropped.ephemeral.pools),
        (3000, 1)
    );
    while walk.step(500) == Progress::More {
        // The next who has its number has nothing of it.
        let next = store.guest(guest.number());
        assert_eq!(store.pools(&next), []);
    }
    assert_eq!(store.report().used_pages, 0);
}
