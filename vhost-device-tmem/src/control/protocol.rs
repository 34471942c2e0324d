// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What is said on the operator's socket.
//!
//! ```text
//! → {"version":1,"command":"stat"}
//! ← {"reply":"stat","version":1,"capacity_bytes":…}
//! → {"version":1,"command":"stop","force":false}
//! ← {"reply":"error","version":1,"message":"…"}
//! → {"version":1,"command":"upgrade"}
//! ← {"reply":"done","version":1,"message":"…"}
//! ```

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{
    config::{GuestEdit, SharedEdit},
    device::WindowState,
    store::{AccessCounters, Compression, Contents, Dropped, PoolCounters, PoolReport},
    tier::TierReport,
};

/// The version of requests and replies.
pub const VERSION: u32 = 1;

/// The longest request, in bytes, with the end of its line.
pub(super) const MAX_LINE: usize = 64 << 10;

/// What the operator asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Envelope {
    /// [`VERSION`].
    pub(super) version: u32,
    /// The request.
    #[serde(flatten)]
    pub(super) request: Request,
}

/// The requests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case")]
pub enum Request {
    /// All statistics.
    Stat,
    /// To stop the daemon.
    Stop {
        /// Even if guests lose pages by it.
        #[serde(default)]
        force: bool,
    },
    /// To go on with a new binary.
    Upgrade,
    /// To read the configuration again. The connection ends with the answer.
    Reload {
        /// Even if guests go that are connected.
        #[serde(default)]
        force: bool,
    },
    /// To add, remove or rename a guest, or to give it other terms. The connection ends with the answer.
    Guest(GuestEdit),
    /// To have guests share a pool, or to take them off. The connection ends with the answer.
    Shared(SharedEdit),
    /// To drop what is in a shared pool. The connection ends with the answer.
    FlushShared {
        /// The pool's UUID.
        uuid: String,
    },
    /// To take nothing more of a guest, or to take pages again. The connection ends with the answer.
    Freeze {
        /// The guest's name; all that there are without it.
        #[serde(default)]
        guest: Option<String>,
        /// Whether nothing more is taken.
        frozen: bool,
    },
    /// To drop a guest's ephemeral pages. The connection ends with the answer.
    Flush {
        /// The guest's name.
        guest: String,
        /// Those of one pool.
        #[serde(default)]
        pool: Option<u32>,
    },
    /// To drop all that a guest has put. The connection ends with the answer.
    Destroy {
        /// The guest's name.
        guest: String,
        /// What is in one pool.
        #[serde(default)]
        pool: Option<u32>,
        /// Persistent pages, too.
        #[serde(default)]
        force: bool,
    },
    /// To drop all that a guest has put since it is of a former life. The connection ends with the
    /// answer.
    Epoch {
        /// The guest's name.
        guest: String,
        /// Though it is connected.
        #[serde(default)]
        force: bool,
    },
    /// To save a guest's persistent pages. After [`Reply::Ready`] the connection ends with the
    /// [stream](crate::saved).
    Save {
        /// The guest's name.
        guest: String,
        /// To begin while it runs.
        #[serde(default)]
        live: bool,
    },
    /// To give a guest the pages of a [stream](crate::saved), which is sent after [`Reply::Ready`]. The
    /// connection ends with the answer.
    Restore {
        /// The guest's name.
        guest: String,
    },
}

/// The replies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "kebab-case")]
pub enum Reply {
    /// To [`Request::Stat`].
    Stat(Stat),
    /// To [`Request::Save`], of which the stream follows, and to [`Request::Restore`], for which it may
    /// come.
    Ready {
        /// [`VERSION`].
        version: u32,
    },
    /// To another request that is carried out.
    Done {
        /// [`VERSION`].
        version: u32,
        /// What happens now.
        message: String,
    },
    /// To a request that was not carried out.
    Error {
        /// [`VERSION`].
        version: u32,
        /// Why.
        message: String,
    },
}

/// Statistics of the daemon.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stat {
    /// [`VERSION`].
    pub version: u32,
    /// Workers that the supervisor has started, with the one that answers.
    #[serde(default)]
    pub worker_starts: u64,
    /// The most memory that the store takes, in bytes.
    pub capacity_bytes: u64,
    /// How it compresses pages.
    pub compression: Compression,
    /// What its pages take now, in bytes, with what it needs to find them.
    pub used_bytes: u64,
    /// What it takes now, in bytes, with what is free but was not given back.
    pub resident_bytes: u64,
    /// What of the capacity is lent for windows, in bytes.
    #[serde(default)]
    pub lent_bytes: u64,
    /// What of the capacity guests do not get at the moment, since the host is short of memory, in
    /// bytes.
    #[serde(default)]
    pub withheld_bytes: u64,
    /// Pages that it could hold as they are, without compression.
    pub capacity_pages: u64,
    /// Pages that it holds.
    pub used_pages: u64,
    /// Pages of those that it may forget.
    pub ephemeral_pages: u64,
    /// Objects that the pages belong to.
    pub objects: u64,
    /// What the pages consist of.
    #[serde(flatten)]
    pub contents: Contents,
    /// Pages that it forgot by itself.
    pub evictions: u64,
    /// How the tier below the store is, if there is one.
    #[serde(default)]
    pub tier: Option<Box<TierReport>>,
    /// The guests, in the order of the command line.
    pub guests: Vec<GuestStat>,
    /// The pools that guests may share.
    #[serde(default)]
    pub shared: Vec<SharedStat>,
}

/// A guest's part of the memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartState {
    /// How much it counts beside others.
    pub weight: u32,
    /// Of persistent memory.
    pub persistent: KindState,
    /// Of ephemeral memory.
    pub ephemeral: KindState,
    /// What it is to give back of persistent memory, in bytes.
    pub drain_bytes: u64,
}

/// A guest's part of a kind of memory, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KindState {
    /// What it has, in the store and in its window.
    pub used_bytes: u64,
    /// What it may have now: its quota of persistent memory, its share of ephemeral memory.
    pub share_bytes: u64,
    /// What it can always have.
    pub min_bytes: u64,
    /// What it never has more of; [`None`] without a cap.
    pub max_bytes: Option<u64>,
}

/// Statistics of a pool that guests may share. It is empty while no guest has access.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SharedStat {
    /// What guests call it.
    pub uuid: Uuid,
    /// The guests that may have access.
    pub guests: Vec<String>,
    /// The bytes that it takes at most; [`None`] without a limit.
    pub max_bytes: Option<u64>,
    /// Its part of the memory, if that was decided.
    pub part: Option<PartState>,
    /// Pages that it holds.
    pub pages: u64,
    /// Objects that those pages belong to.
    pub objects: u64,
    /// Bytes that those pages take, with what the store needs to find them.
    pub bytes: u64,
    /// What those pages consist of.
    #[serde(flatten)]
    pub contents: Contents,
    /// What all guests did there, since it is there.
    #[serde(flatten)]
    pub counters: PoolCounters,
    /// The guests that have access.
    pub members: Vec<SharedMember>,
}

/// A guest that has access to a shared pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SharedMember {
    /// Its name.
    pub guest: String,
    /// What it did there, since it has access.
    #[serde(flatten)]
    pub counters: AccessCounters,
}

/// Statistics of a guest, or of the last one on its socket.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestStat {
    /// Its name.
    pub name: String,
    /// Whether it is connected.
    pub connected: bool,
    /// Whether the operator froze it: nothing more is taken of it.
    #[serde(default)]
    pub frozen: bool,
    /// Its epoch; 0 if there never was a guest.
    pub epoch: u64,
    /// Notifications received.
    pub kicks: u64,
    /// Times that a worker looked at a virtqueue for a while before it went to sleep.
    #[serde(default)]
    pub polls: u64,
    /// Of those, the ones that found a request.
    #[serde(default)]
    pub polls_found: u64,
    /// Interrupts sent.
    pub calls: u64,
    /// Events sent.
    pub events: u64,
    /// Requests, whatever became of them.
    pub requests: u64,
    /// Requests that break a rule.
    pub malformed: u64,
    /// Requests, and pages of others, in memory that the front-end does not share.
    #[serde(default)]
    pub out_of_reach: u64,
    /// Virtqueues found broken.
    pub ring_errors: u64,
    /// Pages that it could put into persistent pools.
    pub persistent_credits: u32,
    /// Pages that it could put into ephemeral pools.
    pub ephemeral_credits: u32,
    /// Its part of the memory, if that was decided.
    #[serde(default)]
    pub part: Option<PartState>,
    /// Its window, if it has one.
    #[serde(default)]
    pub window: Option<WindowState>,
    /// Its pools, by number, without those that it shares.
    pub pools: Vec<PoolReport>,
    /// The pools that it had, and what was done with them.
    #[serde(default)]
    pub dropped: Dropped,
}
