// SPDX-License-Identifier: GPL-2.0

//! What a shard does in cases that are worth a name.

mod common;

use virtio_tmem_logic::index::{
    Completed,
    Config,
    Entry,
    Flush,
    Found,
    Inserted,
    Shard,
    VERSION_MAX, //
};

use common::{
    add_nodes,
    add_objects,
    harvest,
    shard,
    store,
    STORED,
    TAG, //
};

/// A page is found from its put on, and is not found after it has been taken.
#[test]
fn life_of_a_page() {
    let mut shard = shard();
    assert_eq!(shard.peek(TAG, 9), None);
    let Inserted { wire, version, .. } = shard.insert_pending(TAG, 9, 77).unwrap();
    let pending = Entry::Pending { version, slot: 77 };
    assert_eq!(
        shard.peek(TAG, 9),
        Some(Found {
            wire,
            entry: pending
        })
    );
    assert!(shard.is_current(TAG, wire, 9, version));
    assert!(!shard.is_current(TAG, wire, 9, version + 1));
    assert!(!shard.is_current(TAG, wire + 1, 9, version));
    shard.complete(TAG, wire, 9, version, STORED);
    assert!(!shard.is_current(TAG, wire, 9, version));
    let remote = Entry::Remote { version, crc: 5 };
    let found = Some(Found {
        wire,
        entry: remote,
    });
    assert_eq!(shard.peek(TAG, 9), found);
    assert_eq!(shard.take(TAG, 9), found);
    assert_eq!(shard.take(TAG, 9), None);
    assert_eq!(shard.stats().objects, 0);
    assert_eq!(harvest(&mut shard), []);
}

/// What has been erased page by page is flushed page by page.
#[test]
fn erased_pages() {
    let mut shard = shard();
    let a = store(&mut shard, TAG, 0);
    let b = store(&mut shard, TAG, u64::MAX);
    assert_eq!(
        shard.erase(TAG, u64::MAX),
        Some(Entry::Remote {
            version: b.version,
            crc: 5
        })
    );
    assert_eq!(shard.erase(TAG, u64::MAX), None);
    assert_eq!(shard.peek(TAG, u64::MAX), None);
    assert_eq!(shard.stats().stale, 1);
    let flush = Flush::Page {
        wire: b.wire,
        index: u64::MAX,
        version: b.version,
    };
    assert_eq!(harvest(&mut shard), [flush]);
    assert_eq!((shard.stats().stale, shard.stats().nodes_used), (0, 0));
    assert_eq!(shard.peek(TAG, 0).unwrap().wire, a.wire);
}

/// An object without live pages is flushed as a whole, once there are more than a few stale ones.
#[test]
fn erased_one_by_one() {
    let mut shard = shard();
    let wire = store(&mut shard, TAG, 0).wire;
    for index in 1..100 {
        store(&mut shard, TAG, index);
    }
    for index in 0..100 {
        shard.erase(TAG, index);
    }
    assert_eq!(harvest(&mut shard), [Flush::Object { wire }]);
    assert_ne!(store(&mut shard, TAG, 0).wire, wire);
}

/// A range that leaves nothing costs one flush, and one that leaves something does not.
#[test]
fn erased_ranges() {
    let mut shard = shard();
    let wire = store(&mut shard, TAG, 0).wire;
    for index in 1..6 {
        store(&mut shard, TAG, index * 1000);
    }
    let mut seen = 0;
    let erased = shard.erase_range(TAG, 1, 3000, |_| seen += 1);
    assert_eq!((erased.count, erased.next, seen), (3, None, 3));
    assert_eq!(shard.contains_range(TAG, 0, u64::MAX), 3);
    assert_eq!(harvest(&mut shard).len(), 3);
    let erased = shard.erase_range(TAG, 0, u64::MAX, |_| seen += 1);
    assert_eq!((erased.count, erased.next, seen), (3, None, 6));
    assert_eq!(harvest(&mut shard), [Flush::Object { wire }]);
    assert_eq!((shard.stats().objects, shard.stats().nodes_used), (0, 0));
}

/// A large range is erased in steps, and nothing more than the range.
#[test]
fn erased_in_steps() {
    let mut shard = shard();
    for _ in 0..10 {
        add_nodes(&mut shard);
    }
    for index in 0..20_000 {
        shard.insert_pending(TAG, index, 0).unwrap();
    }
    let (mut from, mut count, mut steps) = (Some(7), 0, 0);
    while let Some(first) = from {
        let erased = shard.erase_range(TAG, first, 19_990, |_| ());
        assert!(erased.count <= 4096);
        (from, count, steps) = (erased.next, count + erased.count, steps + 1);
    }
    assert_eq!((count, steps), (19_984, 5));
    assert_eq!(shard.stats().live, 16);
}

/// To erase or drop an object takes no time, and its nodes come back step by step.
#[test]
fn given_up() {
    for drop in [false, true] {
        let mut shard = shard();
        for _ in 0..10 {
            add_nodes(&mut shard);
        }
        let wire = store(&mut shard, TAG, 0).wire;
        for index in 1..30_000 {
            shard.insert_pending(TAG, index, 0).unwrap();
        }
        if drop {
            shard.drop_object(TAG);
        } else {
            assert_eq!(shard.erase_all(TAG), 30_000);
            assert_eq!(shard.erase_all(TAG), 0);
        }
        assert_eq!((shard.stats().live, shard.stats().pending), (0, 0));
        let used = shard.stats().nodes_used;
        let mut flushes = Vec::new();
        assert!(shard.harvest(100, |flush| flushes.push(flush)));
        assert!((1..used).contains(&shard.stats().nodes_used));
        assert_eq!(flushes, [Flush::Object { wire }]);
        assert_eq!(harvest(&mut shard), []);
        assert_eq!(shard.stats().nodes_used, 0);
    }
}

/// Flags outlive the pages, and end with the object.
#[test]
fn flags() {
    let mut shard = shard();
    assert_eq!(shard.set_flags(TAG, 3), Ok(()));
    let first = store(&mut shard, TAG, 3).wire;
    shard.erase_all(TAG);
    assert_eq!(shard.flags(TAG), 3);
    // Before the first wire id has been flushed, and after it.
    let second = store(&mut shard, TAG, 3).wire;
    shard.erase_all(TAG);
    let third = store(&mut shard, TAG, 3).wire;
    let flushes = [first, second].map(|wire| Flush::Object { wire });
    assert_eq!(harvest(&mut shard), flushes);
    assert!(first < second && second < third);
    assert_eq!(shard.peek(TAG, 3).unwrap().wire, third);
    shard.forget_all();
    assert_eq!((shard.flags(TAG), shard.peek(TAG, 3)), (3, None));
    shard.drop_object(TAG);
    assert_eq!((shard.flags(TAG), shard.stats().objects), (0, 0));
}

/// An object that was known only for its flags is not known without them.
#[test]
fn flags_taken_back() {
    for harvested in [false, true] {
        let mut shard = shard();
        assert_eq!(shard.set_flags(TAG, 1), Ok(()));
        store(&mut shard, TAG, 3);
        shard.erase_all(TAG);
        if harvested {
            harvest(&mut shard);
        }
        assert_eq!(shard.stats().objects, 1);
        assert_eq!(shard.set_flags(TAG, 0), Ok(()));
        harvest(&mut shard);
        assert_eq!(shard.stats().objects, 0);
    }
}

/// The device is not told of an object that it has nothing of.
#[test]
fn nothing_to_tell() {
    let mut shard = shard();
    assert_eq!(shard.set_flags(TAG, 1), Ok(()));
    let wire = store(&mut shard, TAG, 3).wire;
    shard.take(TAG, 3);
    assert_eq!(shard.erase_range(TAG, 0, u64::MAX, |_| ()).count, 0);
    assert_eq!(shard.erase_all(TAG), 0);
    assert!(!shard.has_work());
    assert_eq!(store(&mut shard, TAG, 3).wire, wire);
    shard.take(TAG, 3);
    shard.drop_object(TAG);
    assert!(!shard.has_work());
}

/// The same, of an object that the worker was to look at.
#[test]
fn nothing_to_tell_any_more() {
    let mut shard = shard();
    store(&mut shard, TAG, 0);
    store(&mut shard, TAG, 1);
    shard.erase(TAG, 1);
    assert!(shard.has_work());
    store(&mut shard, TAG, 1);
    shard.take(TAG, 0);
    shard.take(TAG, 1);
    store(&mut shard, TAG + 1, 0);
    shard.drop_object(TAG);
    assert_eq!(harvest(&mut shard), []);
    assert_eq!(shard.stats().objects, 1);
    store(&mut shard, TAG + 2, 0);
    store(&mut shard, TAG + 3, 0);
    assert!((1..4).all(|i| shard.peek(TAG + i, 0).is_some()));
}

/// A tag is free for another object at once, whatever is still to be done for the last one.
#[test]
fn reused_tag() {
    let mut shard = shard();
    assert_eq!(shard.set_flags(TAG, 1), Ok(()));
    let old = shard.insert_pending(TAG, 4, 0).unwrap();
    shard.drop_object(TAG);
    let new = shard.insert_pending(TAG, 4, 1).unwrap();
    assert_eq!((new.replaced, shard.flags(TAG)), (None, 0));
    assert!(!shard.is_current(TAG, old.wire, 4, old.version));
    assert_eq!(
        shard.complete(TAG, old.wire, 4, old.version, STORED),
        Completed::Gone
    );
    assert!(shard.is_current(TAG, new.wire, 4, new.version));
    assert_eq!(harvest(&mut shard), [Flush::Object { wire: old.wire }]);
}

/// The device has to be told of a page that was stored after it had been erased.
#[test]
fn stored_too_late() {
    let mut shard = shard();
    store(&mut shard, TAG, 0);
    let Inserted { wire, version, .. } = shard.insert_pending(TAG, 1, 0).unwrap();
    assert!(shard.erase(TAG, 1).is_some());
    assert_eq!(harvest(&mut shard), []);
    assert_eq!(
        shard.complete(TAG, wire, 1, version, STORED),
        Completed::Gone
    );
    let flush = Flush::Page {
        wire,
        index: 1,
        version,
    };
    assert_eq!(harvest(&mut shard), [flush]);
}

/// The same, where there is no node to remember it by, and how it is made good.
#[test]
fn leaked() {
    let (mut shard, wire) = leaky();
    assert_eq!((shard.stats().leaked, shard.stats().stale), (1, 0));
    assert_eq!(harvest(&mut shard), []);
    shard.erase(TAG, 0);
    assert_eq!(harvest(&mut shard), [Flush::Object { wire }]);
}

/// The same, where the rest of the object is taken before it is dropped.
#[test]
fn leaked_and_dropped() {
    let (mut shard, wire) = leaky();
    shard.take(TAG, 0);
    assert_eq!(harvest(&mut shard), []);
    shard.drop_object(TAG);
    assert_eq!(harvest(&mut shard), [Flush::Object { wire }]);
}

/// Returns a shard with an object that has leaked, and the object's wire id.
fn leaky() -> (Shard, u64) {
    let mut shard = shard();
    store(&mut shard, TAG, 0);
    let Inserted { wire, version, .. } = shard.insert_pending(TAG, 1, 0).unwrap();
    assert!(shard.erase(TAG, 1).is_some());
    // Take all nodes, the ones of a way of ten at once.
    let mut tag = 0;
    while shard.stats().nodes_free != 0 {
        let nodes = shard.stats().nodes_free.min(10) as u32;
        shard
            .insert_pending(tag, 1 << (6 * (nodes - 1)), 0)
            .unwrap();
        tag += 1;
    }
    shard.complete(TAG, wire, 1, version, STORED);
    (shard, wire)
}

/// To ask for the last page does not have the object flushed before the device is asked.
#[test]
fn last_page_taken() {
    let mut shard = shard();
    for index in 0..100 {
        store(&mut shard, TAG, index);
    }
    for index in 1..100 {
        shard.erase(TAG, index);
    }
    shard.take(TAG, 0);
    let flushes = harvest(&mut shard);
    assert_eq!(flushes.len(), 99);
    assert!(flushes.iter().all(|f| matches!(f, Flush::Page { .. })));
    assert_eq!(shard.stats().objects, 0);
}

/// What an abandoned put would have dropped is dropped by a flush, in the version that it has.
#[test]
fn abandoned() {
    let mut shard = shard();
    let old = store(&mut shard, TAG, 1);
    let new = shard.insert_pending(TAG, 1, 0).unwrap();
    shard.abandon(TAG, new.wire, 1, new.version, new.supersedes);
    let flush = Flush::Page {
        wire: old.wire,
        index: 1,
        version: old.version,
    };
    assert_eq!(harvest(&mut shard), [flush]);
    // There was nothing before this one.
    let new = shard.insert_pending(TAG, 1, 0).unwrap();
    shard.abandon(TAG, new.wire, 1, new.version, new.supersedes);
    assert_eq!(harvest(&mut shard), []);
}

/// The same, where it cannot be known which version that is.
#[test]
fn abandoned_after_orphans() {
    let mut shard = shard();
    let a = shard.insert_pending(TAG, 1, 0).unwrap();
    shard.erase(TAG, 1);
    let b = shard.insert_pending(TAG, 1, 0).unwrap();
    assert_eq!(b.replaced, None);
    shard.complete(TAG, a.wire, 1, a.version, STORED);
    shard.abandon(TAG, b.wire, 1, b.version, b.supersedes);
    let flush = Flush::Any {
        wire: a.wire,
        index: 1,
    };
    assert_eq!(harvest(&mut shard), [flush]);
}

/// Outcomes may come in another order than the puts took effect in.
#[test]
fn outcome_after_a_later_one() {
    let mut shard = shard();
    let a = shard.insert_pending(TAG, 1, 0).unwrap();
    let b = shard.insert_pending(TAG, 1, 0).unwrap();
    shard.complete(TAG, b.wire, 1, b.version, STORED);
    let c = shard.insert_pending(TAG, 1, 0).unwrap();
    assert!(shard.erase(TAG, 1).is_some());
    shard.complete(TAG, a.wire, 1, a.version, STORED);
    shard.abandon(TAG, c.wire, 1, c.version, c.supersedes);
    // There is a mark for the first, and the device has the second.
    let flush = Flush::Any {
        wire: a.wire,
        index: 1,
    };
    assert_eq!(harvest(&mut shard), [flush]);
}

/// Of two pages that were stored too late, it is the later one that the device has, also if its
/// version is the lower one.
#[test]
fn versions_wrap() {
    let mut shard = Shard::new(Config {
        number: 0,
        shards: 1,
        max_pages: 1000,
        version: VERSION_MAX - 2,
    })
    .unwrap();
    assert!(add_nodes(&mut shard) && add_objects(&mut shard));
    store(&mut shard, TAG, 0);
    let a = shard.insert_pending(TAG, 1, 0).unwrap();
    let b = shard.insert_pending(TAG, 1, 0).unwrap();
    assert_eq!((a.version, b.version), (VERSION_MAX, 1));
    assert!(shard.erase(TAG, 1).is_some());
    shard.complete(TAG, a.wire, 1, a.version, STORED);
    shard.complete(TAG, b.wire, 1, b.version, STORED);
    let flush = Flush::Page {
        wire: b.wire,
        index: 1,
        version: b.version,
    };
    assert_eq!(harvest(&mut shard), [flush]);
}

/// A mark says what one put has left, and not what another will leave.
#[test]
fn abandoned_over_a_mark() {
    let mut shard = shard();
    let a = shard.insert_pending(TAG, 1, 0).unwrap();
    let b = shard.insert_pending(TAG, 1, 0).unwrap();
    assert!(shard.erase(TAG, 1).is_some());
    shard.complete(TAG, a.wire, 1, a.version, STORED);
    let c = shard.insert_pending(TAG, 1, 0).unwrap();
    assert_eq!(c.replaced, Some(Entry::Stale { version: a.version }));
    shard.complete(TAG, b.wire, 1, b.version, STORED);
    shard.abandon(TAG, c.wire, 1, c.version, c.supersedes);
    let flush = Flush::Any {
        wire: a.wire,
        index: 1,
    };
    assert_eq!(harvest(&mut shard), [flush]);
}

/// A harvest stops after as many as it is asked for, and goes on there.
#[test]
fn harvested_in_steps() {
    let mut shard = shard();
    for index in 0..100 {
        store(&mut shard, TAG, index * 3);
    }
    for index in 1..100 {
        shard.erase(TAG, index * 3);
    }
    let mut indices = Vec::new();
    for step in 0..10 {
        let more = shard.harvest(10, |flush| match flush {
            Flush::Page { index, .. } => indices.push(index),
            _ => panic!("{flush:?}"),
        });
        assert_eq!(more, step < 9);
    }
    assert!(indices.into_iter().eq((1..100).map(|i| i * 3)));
    assert!(!shard.harvest(0, |_| ()));
}
