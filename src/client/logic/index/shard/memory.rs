// SPDX-License-Identifier: GPL-2.0

//! The memory of a shard.

use super::{
    super::{
        super::mem::NoMemory,
        node::{
            NodeChunk,
            Nodes,
            NODES_PER_CHUNK, //
        },
        object::{
            Buckets,
            Directory,
            ObjectChunk, //
        },
    },
    Config,
    Shard,
    Stats,
    Wants, //
};

impl Shard {
    /// The number of free nodes, and of free records, below which there should be more.
    const LOW: usize = NODES_PER_CHUNK / 2;

    /// Creates a shard without room for anything: see [`Shard::wants()`].
    ///
    /// A shard for `max_pages` pages grows to one record of an object (64 bytes) for each page and
    /// one node of a tree (528 bytes) for four. Both are what files of a few pages need; large
    /// files need one node for 63 pages. Some 0.1 bytes for each page are allocated here, which may
    /// sleep.
    pub fn new(config: Config) -> Result<Self, NoMemory> {
        let Config {
            number,
            shards,
            max_pages,
            version,
        } = config;
        Ok(Self {
            nodes: Nodes::new((max_pages / 4).saturating_add(NODES_PER_CHUNK))?,
            objects: Directory::new(max_pages.saturating_add(NODES_PER_CHUNK))?,
            // INVARIANT: There are none yet. It is not zero.
            next_wire: u64::from(shards.max(1)).wrapping_add(number.into()),
            shards: shards.max(1),
            version,
            live: 0,
            pending: 0,
            stale: 0,
            leaked: 0,
        })
    }

    /// Returns what memory the shard should be given.
    ///
    /// A worker is to ask this now and then, at the latest when an insertion has failed.
    pub fn wants(&self) -> Wants {
        Wants {
            nodes: self.nodes.room() < Self::LOW && self.nodes.may_grow(),
            objects: self.objects.room() < Self::LOW && self.objects.may_grow(),
            buckets: self.objects.wants_buckets(),
        }
    }

    /// Adds nodes, or gives them back if there are as many as there may be.
    ///
    /// What is given back is to be dropped outside of the lock.
    pub fn add_nodes(&mut self, chunk: NodeChunk) -> Result<(), NodeChunk> {
        self.nodes.add(chunk)
    }

    /// Adds records of objects, or gives them back if there are as many as there may be.
    ///
    /// What is given back is to be dropped outside of the lock.
    pub fn add_objects(&mut self, chunk: ObjectChunk) -> Result<(), ObjectChunk> {
        self.objects.add(chunk)
    }

    /// Replaces the hash table by one of another size, and returns the old one.
    ///
    /// What is returned is to be dropped outside of the lock. Takes time in proportion to the
    /// number of objects.
    pub fn rehash(&mut self, buckets: Buckets) -> Buckets {
        self.objects.rehash(buckets)
    }

    /// Returns the state of the shard in numbers.
    pub fn stats(&self) -> Stats {
        Stats {
            live: self.live,
            pending: self.pending,
            stale: self.stale,
            objects: self.objects.hashed(),
            nodes_used: self.nodes.used(),
            nodes_free: self.nodes.room(),
            leaked: self.leaked,
            bytes: size_of::<Self>()
                .saturating_add(self.nodes.bytes())
                .saturating_add(self.objects.bytes()),
        }
    }
}
