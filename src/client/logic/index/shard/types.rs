// SPDX-License-Identifier: GPL-2.0

//! What goes in and out of a shard.

use super::super::entry::{
    Entry,
    Older, //
};

/// How a shard is to be.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// The number of the shard, below `shards`.
    pub number: u32,
    /// The number of shards of the index.
    pub shards: u32,
    /// The number of pages that the shard is for.
    ///
    /// This bounds its memory, not the number of pages: see [`Shard::new()`](super::Shard::new).
    pub max_pages: usize,
    /// The version before the first one that is given out. Any will do.
    pub version: u32,
}

/// What an object may have had at the place of a put that replaced it.
///
/// To be kept with the put, for [`Shard::abandon()`](super::Shard::abandon).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Supersedes(u32);

impl Supersedes {
    /// The device has nothing there, unless it got a put of this wire id at this place before.
    const NOTHING: Self = Self(u32::MAX);

    /// Returns what is covered by a put that replaces an entry of an object with so many orphans.
    #[inline]
    pub(super) fn after(replaced: Option<Entry>, orphans: u32) -> Self {
        match replaced {
            // Later than all orphans.
            Some(Entry::Remote { version, .. }) => Self(version),
            _ if orphans != 0 => Self(0),
            None
            | Some(
                Entry::Lost
                | Entry::Window {
                    older: Older::NOTHING,
                    ..
                },
            ) => Self::NOTHING,
            Some(Entry::Stale { version }) => Self(version),
            Some(Entry::Window { older, .. }) => Self(older.mark()),
            Some(Entry::Pending { .. } | Entry::Moving { .. }) => Self(0),
        }
    }

    /// Returns what the store may have, should the page be in the window after all.
    #[inline]
    pub(super) fn older(self) -> Older {
        match self {
            Self::NOTHING => Older::NOTHING,
            Self(version) => Older::of_mark(version),
        }
    }

    /// Returns the mark to be left where the put is abandoned.
    #[inline]
    pub(super) fn mark(self) -> Option<Entry> {
        (self != Self::NOTHING).then_some(Entry::Stale { version: self.0 })
    }
}

/// What became of [`Shard::insert_pending()`](super::Shard::insert_pending).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inserted {
    /// The name of the object to the device.
    pub wire: u64,
    /// The version of the page; never zero, nor that of `replaced`.
    pub version: u32,
    /// What was there before.
    pub replaced: Option<Entry>,
    /// What the device may have in its place, should the put be abandoned.
    pub supersedes: Supersedes,
}

/// The device's answer to a put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The page is stored.
    Stored {
        /// What [`Entry::Remote`] is to say.
        crc: u32,
    },
    /// The page is not stored, nor any earlier one under the key.
    Refused,
}

/// What [`Shard::complete()`](super::Shard::complete) found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Completed {
    /// The entry was there and is [`Entry::Remote`] now, or removed, or that of a page in the window
    /// where it was before.
    Current,
    /// The entry had gone before.
    Gone,
}

/// A page that can be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// The name of the object to the device.
    pub wire: u64,
    /// Anything but [`Entry::Stale`].
    pub entry: Entry,
}

/// What became of [`Shard::erase_range()`](super::Shard::erase_range).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "there may be more to erase"]
pub struct Erased {
    /// The number of pages erased.
    pub count: u64,
    /// Where to go on, perhaps after the lock has been released and taken again.
    pub next: Option<u64>,
}

/// What the device is to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Flush {
    /// To forget an object; nothing will be put under this wire id again.
    Object {
        /// The name of the object to the device.
        wire: u64,
    },
    /// To forget one version of a page.
    Page {
        /// The name of the object to the device.
        wire: u64,
        /// The page's place.
        index: u64,
        /// The version of the page.
        version: u32,
    },
    /// To forget whatever version of a page there is. Must not be overtaken by a put.
    Any {
        /// The name of the object to the device.
        wire: u64,
        /// The page's place.
        index: u64,
    },
}

/// Memory that a shard would like to have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wants {
    /// A [`NodeChunk`](super::super::NodeChunk).
    pub nodes: bool,
    /// An [`ObjectChunk`](super::super::ObjectChunk).
    pub objects: bool,
    /// So many [`Buckets`](super::super::Buckets).
    pub buckets: Option<usize>,
}

impl Wants {
    /// Returns whether there is anything to be wanted.
    pub fn any(&self) -> bool {
        self.nodes || self.objects || self.buckets.is_some()
    }
}

/// The state of a shard in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Pages that can be had.
    pub live: u64,
    /// Those of them that are on their way: in the staging memory, or moving.
    pub pending: u64,
    /// Pages that the device has to be told about one by one.
    pub stale: u64,
    /// Objects that can be found by their tag.
    pub objects: usize,
    /// Nodes of trees in use.
    pub nodes_used: usize,
    /// Nodes of trees not in use.
    pub nodes_free: usize,
    /// Pages that the device may have had until their object was flushed, in all.
    pub leaked: u64,
    /// Memory in use by the shard, in bytes.
    pub bytes: usize,
}
