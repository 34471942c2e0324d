// SPDX-License-Identifier: GPL-2.0

//! Pages that the device has lost: nobody gets one, and nobody takes anything else for it.

mod common;

use virtio_tmem_logic::index::{
    Completed,
    Entry,
    Flush,
    Found,
    Inserted, //
};

use common::{
    harvest,
    shard,
    store,
    STORED,
    TAG, //
};

#[test]
fn a_lost_page_is_still_somebodys() {
    let mut shard = shard();
    let page = store(&mut shard, TAG, 3);
    assert_eq!(shard.lose_all(), 1);
    assert_eq!(
        shard.peek(TAG, 3),
        Some(Found {
            wire: page.wire,
            entry: Entry::Lost
        })
    );
    assert_eq!(shard.contains_range(TAG, 0, 8), 1);
    assert_eq!(shard.stats().live, 1);
    // It is lost once.
    assert_eq!(shard.lose_all(), 0);
}

#[test]
fn the_device_is_not_told_of_what_it_lost() {
    let mut shard = shard();
    store(&mut shard, TAG, 3);
    store(&mut shard, TAG, 4);
    store(&mut shard, TAG, 500);
    shard.lose_all();
    assert_eq!(shard.erase(TAG, 3), Some(Entry::Lost));
    assert_eq!(shard.peek(TAG, 3), None);
    assert_eq!(shard.stats().stale, 0);
    let erased = shard.erase_range(TAG, 0, 100, |_| ());
    assert_eq!((erased.count, erased.next), (1, None));
    assert_eq!((shard.stats().live, shard.stats().stale), (1, 0));
    assert_eq!(harvest(&mut shard), []);
}

#[test]
fn a_new_page_takes_the_place_of_a_lost_one() {
    let mut shard = shard();
    store(&mut shard, TAG, 3);
    shard.lose_all();
    let Inserted {
        wire,
        version,
        supersedes,
        ..
    } = shard.insert_pending(TAG, 3, 0).unwrap();
    assert_eq!(shard.stats().live, 1);
    // Given up, there is nothing of it, nor of the lost one.
    shard.abandon(TAG, wire, 3, version, supersedes);
    assert_eq!((shard.stats().live, shard.stats().stale), (0, 0));
    assert_eq!(shard.peek(TAG, 3), None);

    let page = store(&mut shard, TAG, 3);
    assert_eq!(
        shard.peek(TAG, 3).map(|found| found.entry),
        Some(Entry::Remote {
            version: page.version,
            crc: 5
        })
    );
}

#[test]
fn puts_on_their_way_are_not_lost() {
    let mut shard = shard();
    let Inserted { wire, version, .. } = shard.insert_pending(TAG, 3, 0).unwrap();
    assert_eq!(shard.lose_all(), 0);
    assert_eq!(
        shard.complete(TAG, wire, 3, version, STORED),
        Completed::Current
    );
    assert!(matches!(
        shard.peek(TAG, 3).map(|found| found.entry),
        Some(Entry::Remote { .. })
    ));
}

#[test]
fn what_was_erased_before_is_flushed_all_the_same() {
    let mut shard = shard();
    let page = store(&mut shard, TAG, 3);
    store(&mut shard, TAG, 4);
    shard.erase(TAG, 3);
    assert_eq!(shard.lose_all(), 1);
    assert_eq!(
        harvest(&mut shard),
        [Flush::Page {
            wire: page.wire,
            index: 3,
            version: page.version
        }]
    );
}
