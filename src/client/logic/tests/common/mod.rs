// SPDX-License-Identifier: GPL-2.0

//! What the tests of single cases have in common.

// Each of them is a crate of its own, and uses some of this.
#![allow(dead_code, unreachable_pub)]

use virtio_tmem_logic::index::{
    Completed,
    Config,
    Flush,
    Inserted,
    NodeChunk,
    ObjectChunk,
    Outcome,
    Shard, //
};

/// A put that has worked.
pub const STORED: Outcome = Outcome::Stored { crc: 5 };
/// An object.
pub const TAG: u64 = 0xffff_8880_1234_5678;

/// Returns a shard without memory.
pub fn empty(max_pages: usize) -> Shard {
    Shard::new(Config {
        number: 0,
        shards: 1,
        max_pages,
        version: 0,
    })
    .unwrap()
}

/// Returns whether there may be more nodes.
pub fn add_nodes(shard: &mut Shard) -> bool {
    shard.add_nodes(NodeChunk::new().unwrap()).is_ok()
}

/// Returns whether there may be more objects.
pub fn add_objects(shard: &mut Shard) -> bool {
    shard.add_objects(ObjectChunk::new().unwrap()).is_ok()
}

/// Returns a shard with some memory.
pub fn shard() -> Shard {
    let mut shard = empty(1 << 20);
    assert!(add_nodes(&mut shard));
    assert!(add_objects(&mut shard));
    shard
}

/// Puts a page until the device has stored it.
pub fn store(shard: &mut Shard, tag: u64, index: u64) -> Inserted {
    let inserted = shard.insert_pending(tag, index, 0).unwrap();
    let Inserted { wire, version, .. } = inserted;
    let completed = shard.complete(tag, wire, index, version, STORED);
    assert_eq!(completed, Completed::Current);
    inserted
}

/// Returns all that the device is to be told.
pub fn harvest(shard: &mut Shard) -> Vec<Flush> {
    let mut flushes = Vec::new();
    while shard.harvest(5, |flush| flushes.push(flush)) {}
    assert!(!shard.has_work());
    flushes
}
