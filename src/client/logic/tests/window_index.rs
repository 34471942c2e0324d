// SPDX-License-Identifier: GPL-2.0

//! Pages in slots of the window, several at a time.

mod common;

use common::{
    add_nodes,
    shard, //
};
use virtio_tmem_logic::index::{
    Completed,
    Entry,
    Flush,
    Older,
    Outcome,
    Shard, //
};

const TAG: u64 = 7;

/// Puts `count` pages at `index..` into slots from `slot` on; returns those that were replaced.
fn put(shard: &mut Shard, index: u64, count: u64, slot: u32) -> Vec<Option<Entry>> {
    let mut replaced = Vec::new();
    let inserted = shard.insert_slots(TAG, index, count, |n, old| {
        replaced.push(old);
        slot + n as u32
    });
    assert_eq!(inserted, count);
    replaced
}

fn slots_of(shard: &Shard, index: u64, count: u64) -> Vec<u32> {
    let mut slots = Vec::new();
    let seen = shard.slots_of(TAG, index, count, |slot| {
        slots.push(slot);
        true
    });
    assert_eq!(seen, slots.len() as u64);
    slots
}

fn take_slots(shard: &mut Shard, index: u64, count: u64) -> Vec<u32> {
    let mut slots = Vec::new();
    let taken = shard.take_slots(TAG, index, count, |slot| slots.push(slot));
    assert_eq!(taken, slots.len() as u64);
    slots
}

/// Puts a page by request, and has it stored.
fn store(shard: &mut Shard, index: u64) -> u32 {
    let put = shard.insert_pending(TAG, index, 0).unwrap();
    let stored = Outcome::Stored { crc: 0 };
    let completed = shard.complete(TAG, put.wire, index, put.version, stored);
    assert_eq!(completed, Completed::Current);
    put.version
}

fn harvest(shard: &mut Shard) -> Vec<Flush> {
    let mut flushes = Vec::new();
    while shard.harvest(8, |flush| flushes.push(flush)) {}
    flushes
}

#[test]
fn runs_end_where_a_page_is_not_in_the_window() {
    let mut shard = shard();
    while add_nodes(&mut shard) {}
    put(&mut shard, 60, 10, 100);
    store(&mut shard, 70);
    put(&mut shard, 71, 1, 200);

    assert_eq!(slots_of(&shard, 60, 20), (100..110).collect::<Vec<_>>());
    assert_eq!(slots_of(&shard, 60, 3), [100, 101, 102]);
    assert_eq!(slots_of(&shard, 70, 2), []);
    assert_eq!(slots_of(&shard, 59, 2), []);
    assert_eq!(slots_of(&shard, 60, 0), []);

    let mut looked_at = Vec::new();
    let seen = shard.slots_of(TAG, 60, 20, |slot| {
        looked_at.push(slot);
        slot < 102
    });
    assert_eq!((seen, looked_at), (2, vec![100, 101, 102]));

    assert_eq!(take_slots(&mut shard, 59, 5), []);
    assert_eq!(take_slots(&mut shard, 60, 0), []);
    assert_eq!(
        take_slots(&mut shard, 62, 20),
        (102..110).collect::<Vec<_>>()
    );
    assert_eq!(shard.contains_range(TAG, 0, 100), 4);
    assert_eq!(take_slots(&mut shard, 62, 20), []);
    assert_eq!(take_slots(&mut shard, 71, 9), [200]);
    assert_eq!(slots_of(&shard, 60, 20), [100, 101]);
}

#[test]
fn what_is_taken_is_gone_with_its_object() {
    let mut shard = shard();
    put(&mut shard, 0, 3, 10);
    assert_eq!(take_slots(&mut shard, 0, 3), [10, 11, 12]);
    assert_eq!(shard.stats().live, 0);
    assert_eq!(shard.stats().objects, 0);
    assert_eq!(harvest(&mut shard), []);
}

#[test]
fn what_the_store_has_below_a_page_that_is_taken_is_flushed() {
    let mut shard = shard();
    let version = store(&mut shard, 5);
    let replaced = put(&mut shard, 5, 1, 10);
    assert_eq!(replaced, [Some(Entry::Remote { version, crc: 0 })]);
    assert_eq!(take_slots(&mut shard, 5, 1), [10]);
    let flushes = harvest(&mut shard);
    assert!(matches!(
        flushes[..],
        [Flush::Page { index: 5, version: v, .. }] if v == version
    ));
}

#[test]
fn a_page_that_moves_can_be_got_from_its_slot() {
    let mut shard = shard();
    put(&mut shard, 0, 3, 10);
    let begun = shard.begin_move(TAG, 1, 11).unwrap();
    assert_eq!(slots_of(&shard, 0, 3), [10, 11, 12]);
    assert!(shard.has_slot(TAG, 1));
    assert!(shard.is_away(TAG, 1, begun.version));
    assert!(!shard.is_away(TAG, 1, begun.version + 1));
    assert!(!shard.is_away(TAG, 0, begun.version));
    // It is somebody's who moves it.
    assert_eq!(take_slots(&mut shard, 0, 3), [10]);
    let stored = Outcome::Stored { crc: 0 };
    shard.complete(TAG, begun.wire, 1, begun.version, stored);
    assert!(!shard.has_slot(TAG, 1));
    assert!(shard.is_away(TAG, 1, begun.version));
}

#[test]
fn a_page_that_is_lost_is_nobody_elses() {
    let mut shard = shard();
    put(&mut shard, 0, 2, 10);
    assert!(!shard.lose_slot(TAG, 0, 11));
    assert!(shard.lose_slot(TAG, 0, 10));
    assert!(!shard.lose_slot(TAG, 0, 10));
    assert_eq!(
        shard.peek(TAG, 0).map(|found| found.entry),
        Some(Entry::Lost)
    );
    assert_eq!(shard.stats().live, 2);
    assert_eq!(slots_of(&shard, 0, 2), []);
    assert_eq!(shard.erase(TAG, 0), Some(Entry::Lost));
}

#[test]
fn a_lost_page_takes_what_is_below_it_along() {
    let mut shard = shard();
    store(&mut shard, 0);
    put(&mut shard, 0, 1, 10);
    put(&mut shard, 1, 1, 11);
    assert_eq!(shard.stats().stale, 1);
    assert!(shard.lose_slot(TAG, 0, 10));
    assert_eq!(shard.stats().stale, 0);
    assert_eq!(harvest(&mut shard), []);
    // The object is given up as soon as it has nothing that can be had, and all of it is flushed.
    shard.erase(TAG, 0);
    shard.erase(TAG, 1);
    assert!(matches!(harvest(&mut shard)[..], [Flush::Object { .. }]));
    assert_eq!(shard.stats().live, 0);
}

#[test]
fn what_is_stored_below_a_lost_page_goes_with_the_object() {
    let mut shard = shard();
    let put = |shard: &mut Shard, index| shard.insert_pending(TAG, index, 0).unwrap();
    let (stored, dropped) = (put(&mut shard, 0), put(&mut shard, 1));
    store(&mut shard, 2);
    let abandoned = put(&mut shard, 2);
    for index in 0..3 {
        shard.insert_slots(TAG, index, 1, |_, _| index as u32);
        assert!(shard.lose_slot(TAG, index, index as u32));
    }
    let outcome = Outcome::Stored { crc: 0 };
    shard.complete(TAG, stored.wire, 0, stored.version, outcome);
    assert_eq!(shard.stats().leaked, 1);
    shard.complete(TAG, dropped.wire, 1, dropped.version, Outcome::Refused);
    assert_eq!(shard.stats().leaked, 1);
    shard.abandon(
        TAG,
        abandoned.wire,
        2,
        abandoned.version,
        abandoned.supersedes,
    );
    assert_eq!(shard.stats().leaked, 2);
    assert_eq!(harvest(&mut shard), []);
    for index in 0..3 {
        assert_eq!(shard.erase(TAG, index), Some(Entry::Lost));
    }
    let wire = stored.wire;
    assert_eq!(harvest(&mut shard), [Flush::Object { wire }]);
}

#[test]
fn all_that_is_away_is_found_in_order() {
    let mut shard = shard();
    let version = store(&mut shard, 3);
    put(&mut shard, 4, 2, 20);
    shard.begin_move(TAG, 5, 21).unwrap();
    shard.insert_pending(TAG, 6, 0).unwrap();
    put(&mut shard, 7, 1, 30);
    let older = Older::NOTHING;
    let mut found = Vec::new();
    let next = shard.away_from(TAG, 0, |index, entry| {
        found.push((index, entry));
        found.len() < 3
    });
    let expected = [
        (3, Entry::Remote { version, crc: 0 }),
        (4, Entry::Window { older, slot: 20 }),
        (7, Entry::Window { older, slot: 30 }),
    ];
    assert_eq!(found, expected);
    assert_eq!(next, Some(7));
    assert_eq!(shard.away_from(TAG, 8, |_, _| true), None);
}
