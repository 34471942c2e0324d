// SPDX-License-Identifier: GPL-2.0

//! How a shard does with little memory, and how much it takes.

mod common;

use virtio_tmem_logic::index::{
    shard_of,
    Buckets,
    Flush,
    NoRoom,
    NODES_PER_CHUNK,
    OBJECTS_PER_CHUNK, //
};

use common::{
    add_nodes,
    add_objects,
    empty,
    harvest,
    store,
    TAG, //
};

/// Flags are set without memory, if the object is known.
#[test]
fn flags_without_memory() {
    let mut shard = empty(0);
    assert_eq!(shard.set_flags(TAG, 0), Ok(()));
    assert_eq!(shard.set_flags(TAG, 1), Err(NoRoom));
    assert!(add_objects(&mut shard));
    let tags = || 0..OBJECTS_PER_CHUNK as u64;
    for tag in tags() {
        shard.insert_pending(tag, 0, 0).unwrap();
    }
    assert_eq!(shard.set_flags(TAG, 1), Err(NoRoom));
    for tag in tags() {
        assert_eq!(shard.set_flags(tag, 1), Ok(()));
    }
}

/// Without memory every put is refused, and nothing else fails.
#[test]
fn no_memory() {
    let mut shard = empty(1000);
    assert!(shard.wants().nodes && shard.wants().objects && shard.wants().any());
    assert_eq!(shard.insert_pending(TAG, 0, 0), Err(NoRoom));
    assert_eq!(shard.peek(TAG, 0), None);
    assert_eq!(shard.take(TAG, 0), None);
    assert_eq!(shard.erase(TAG, 0), None);
    assert_eq!(shard.erase_range(TAG, 0, u64::MAX, |_| ()).count, 0);
    assert_eq!(shard.contains_range(TAG, 0, u64::MAX), 0);
    shard.drop_object(TAG);
    shard.forget_all();
    assert_eq!(harvest(&mut shard), []);
    assert!(add_objects(&mut shard));
    // A file of one page needs no node.
    assert!(shard.insert_pending(TAG, 0, 0).is_ok());
    assert_eq!(shard.insert_pending(TAG, 1, 0), Err(NoRoom));
    assert_eq!(shard.insert_pending(TAG + 1, 1, 0), Err(NoRoom));
    assert_eq!(shard.stats().objects, 1);
}

/// A put that fails leaves an object as it was: known for its flags, or given up.
#[test]
fn no_memory_for_a_known_object() {
    let mut shard = empty(0);
    assert!(add_objects(&mut shard));
    assert_eq!(shard.set_flags(TAG, 1), Ok(()));
    assert_eq!(shard.insert_pending(TAG, 70, 0), Err(NoRoom));
    let wire = store(&mut shard, TAG, 0).wire;
    assert_eq!(shard.stats().nodes_used, 0);
    shard.erase_all(TAG);
    for tag in 1..OBJECTS_PER_CHUNK as u64 {
        store(&mut shard, tag, 0);
    }
    assert_eq!(shard.insert_pending(TAG, 0, 0), Err(NoRoom));
    assert_eq!(shard.flags(TAG), 1);
    assert_eq!(harvest(&mut shard), [Flush::Object { wire }]);
    assert_ne!(store(&mut shard, TAG, 0).wire, wire);
}

/// Memory beyond the limit is given back.
#[test]
fn limits() {
    let mut shard = empty(10_000);
    let mut nodes = 0;
    while add_nodes(&mut shard) {
        nodes += NODES_PER_CHUNK;
    }
    let mut objects = 0;
    while add_objects(&mut shard) {
        objects += OBJECTS_PER_CHUNK;
    }
    assert!((2500..2700).contains(&nodes), "{nodes}");
    assert!((10_000..10_300).contains(&objects), "{objects}");
    assert!(!shard.wants().any());
    assert_eq!(shard.stats().nodes_free, nodes);
    for tag in 0..objects as u64 {
        assert!(shard.insert_pending(tag, 0, 0).is_ok(), "{tag}");
    }
    assert_eq!(shard.insert_pending(TAG, 0, 0), Err(NoRoom));
    // Also when memory is low, none is wanted if there may be no more.
    assert!(!shard.wants().objects);
}

/// All objects are found among as many buckets as are wanted.
#[test]
fn rehashed() {
    let mut shard = empty(1 << 12);
    while add_objects(&mut shard) {}
    let tags = || (0..3000u64).map(|i| TAG + (i << 10));
    let mut rehashed = 0;
    for tag in tags() {
        shard.insert_pending(tag, 0, 0).unwrap();
        if let Some(count) = shard.wants().buckets {
            drop(shard.rehash(Buckets::new(count).unwrap()));
            assert_eq!(shard.wants().buckets, None);
            rehashed += 1;
        }
    }
    assert!((5..8).contains(&rehashed), "{rehashed}");
    assert!(tags().all(|tag| shard.peek(tag, 0).is_some()));
    assert_eq!(shard.peek(TAG + 1, 0), None);
    // To one bucket, and from it.
    drop(shard.rehash(Buckets::new(0).unwrap()));
    assert!(tags().step_by(100).all(|tag| shard.peek(tag, 0).is_some()));
    drop(shard.rehash(Buckets::new(8192).unwrap()));
    for tag in tags() {
        shard.drop_object(tag);
    }
    assert_eq!(shard.stats().objects, 0);
}

/// The tags of a slab cache spread over the shards.
#[test]
fn spread() {
    for shards in [1, 2, 7, 16, 64, 100] {
        let mut counts = vec![0; shards as usize];
        for i in 0..10_000u64 {
            counts[shard_of(TAG + i * 1096, shards) as usize] += 1;
        }
        let mean = 10_000 / shards;
        let (min, max) = (*counts.iter().min().unwrap(), *counts.iter().max().unwrap());
        assert!(
            min > mean / 2 && max < mean * 3 / 2,
            "{shards}: {min}..{max}"
        );
    }
}

/// What the index costs, in bytes a page: the promise of the documentation.
#[test]
fn cost() {
    let pages = 1 << 16;
    let mut shard = empty(pages);
    let mut chunks = 0;
    add_objects(&mut shard);
    for index in 0..pages as u64 {
        if shard.stats().nodes_free < 4 {
            add_nodes(&mut shard);
            chunks += 1;
        }
        shard.insert_pending(TAG, index, 0).unwrap();
    }
    let stats = shard.stats();
    assert_eq!(stats.nodes_used, 1024 + 16 + 1);
    assert_eq!(chunks, 17);
    let bytes = stats.bytes as f64 / pages as f64;
    // The benchmark reads it.
    println!("{bytes:.3} bytes a page");
    assert!((8.3..9.0).contains(&bytes), "{bytes}");
}
