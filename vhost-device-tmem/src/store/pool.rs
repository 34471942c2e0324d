// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Pools and their counters.

use serde::{Deserialize, Serialize};

use super::id::Link;

/// What a pool promises of the pages that it stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PoolKind {
    /// Any page may be forgotten at any time.
    Ephemeral,
    /// No page is ever forgotten.
    Persistent,
}

/// What happened in a pool since it was created.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolCounters {
    /// Pages put, stored or refused.
    pub puts: u64,
    /// Pages put and stored.
    pub puts_stored: u64,
    /// Pages put and refused, for whatever reason.
    pub puts_refused: u64,
    /// Pages refused because the capacity is used up.
    pub refused_over_quota: u64,
    /// Pages refused because a resource other than the capacity was used up, or to test that.
    pub refused_no_memory: u64,
    /// Stored pages that replaced another under their key.
    pub puts_replaced: u64,
    /// Pages asked for.
    pub gets: u64,
    /// Pages asked for and returned.
    pub gets_hit: u64,
    /// Pages, ranges and objects asked to be forgotten.
    pub flushes: u64,
    /// Pages forgotten because of that.
    pub pages_flushed: u64,
    /// Pages that the store forgot by itself.
    pub pages_evicted: u64,
}

/// What a pool holds, and what happened in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolReport {
    /// The number that the guest gave the pool.
    pub pool: u32,
    /// Its kind.
    pub kind: PoolKind,
    /// Pages that it holds now.
    pub pages: u64,
    /// Objects that those pages belong to.
    pub objects: u64,
    /// Bytes that those pages take, with what the store needs to find them.
    pub bytes: u64,
    /// Its counters.
    #[serde(flatten)]
    pub counters: PoolCounters,
}

/// A pool of one guest.
#[derive(Debug)]
pub(super) struct Pool {
    pub(super) kind: PoolKind,
    /// Tells the pool from others that had its place before.
    pub(super) generation: u64,
    pub(super) pages: u64,
    pub(super) objects: u64,
    pub(super) first: Link,
    pub(super) last: Link,
    pub(super) counters: PoolCounters,
}

impl Pool {
    pub(super) fn new(kind: PoolKind, generation: u64) -> Self {
        Self {
            kind,
            generation,
            pages: 0,
            objects: 0,
            first: None,
            last: None,
            counters: PoolCounters::default(),
        }
    }
}
