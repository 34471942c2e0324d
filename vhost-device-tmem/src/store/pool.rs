// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Pools and their counters.

use std::ops::AddAssign;

use serde::{Deserialize, Serialize};

use super::{
    accounts::AccountId,
    budget::slot_bytes,
    classes::RAW,
    entry::Body,
    id::Link,
    records::{Hold, Known},
    shared::FIRST_SHARED,
    PAGE_SIZE,
};

/// What a pool promises of the pages that it stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PoolKind {
    /// Any page may be forgotten at any time.
    Ephemeral,
    /// No page is ever forgotten.
    Persistent,
}

impl PoolKind {
    /// Both, in the order in which they are told.
    pub const ALL: [Self; 2] = [Self::Persistent, Self::Ephemeral];

    /// Returns its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Persistent => "persistent",
            Self::Ephemeral => "ephemeral",
        }
    }
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
    /// Pages refused because the operator froze the guest.
    #[serde(default)]
    pub refused_frozen: u64,
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
    /// Pages that were moved to the tier below the store.
    #[serde(default)]
    pub pages_moved_below: u64,
    /// Pages that were asked for, and came back from there.
    #[serde(default)]
    pub gets_below: u64,
    /// Pages that were asked for, and did not come back from there: they took too long, could not be
    /// read, or were damaged.
    #[serde(default)]
    pub gets_lost_below: u64,
}

impl AddAssign for PoolCounters {
    fn add_assign(&mut self, other: Self) {
        // Names all of them, so that none is left out.
        let Self {
            puts,
            puts_stored,
            puts_refused,
            refused_over_quota,
            refused_no_memory,
            refused_frozen,
            puts_replaced,
            gets,
            gets_hit,
            flushes,
            pages_flushed,
            pages_evicted,
            pages_moved_below,
            gets_below,
            gets_lost_below,
        } = other;
        self.puts += puts;
        self.puts_stored += puts_stored;
        self.puts_refused += puts_refused;
        self.refused_over_quota += refused_over_quota;
        self.refused_no_memory += refused_no_memory;
        self.refused_frozen += refused_frozen;
        self.puts_replaced += puts_replaced;
        self.gets += gets;
        self.gets_hit += gets_hit;
        self.flushes += flushes;
        self.pages_flushed += pages_flushed;
        self.pages_evicted += pages_evicted;
        self.pages_moved_below += pages_moved_below;
        self.gets_below += gets_below;
        self.gets_lost_below += gets_lost_below;
    }
}

/// What pages consist of that are stored now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contents {
    /// Pages that repeat one word, which takes no memory but that of their entry.
    pub same_filled_pages: u64,
    /// Pages that are compressed.
    pub compressed_pages: u64,
    /// Bytes that those were compressed to.
    pub compressed_bytes: u64,
    /// Pages that are stored as they are: all where there is no compression, and those that it
    /// does not make smaller where there is.
    pub raw_pages: u64,
    /// Bytes set aside for the last two kinds, with what is lost to rounding them up.
    pub slot_bytes: u64,
    /// Pages that are in the tier below the store, and take no memory but that of their entry.
    #[serde(default)]
    pub below_pages: u64,
}

impl Contents {
    /// Returns how many times as large the pages are as what is set aside for them; [`None`] if
    /// there are none.
    pub fn ratio(&self) -> Option<f64> {
        (self.slot_bytes > 0)
            .then(|| (self.here() * PAGE_SIZE as u64) as f64 / self.slot_bytes as f64)
    }

    /// Returns the pages whose contents are in the store.
    fn here(&self) -> u64 {
        self.pages() - self.below_pages
    }

    /// Returns the pages of which there are contents.
    pub(super) fn pages(&self) -> u64 {
        self.same_filled_pages + self.compressed_pages + self.raw_pages + self.below_pages
    }

    pub(super) fn add(&mut self, body: Body) {
        self.count(body, |count, n| *count += n);
    }

    pub(super) fn remove(&mut self, body: Body) {
        self.count(body, |count, n| *count -= n);
    }

    fn count(&mut self, body: Body, count: impl Fn(&mut u64, u64)) {
        match body {
            Body::Nothing => {}
            Body::Same(_) => count(&mut self.same_filled_pages, 1),
            Body::Below(_) => count(&mut self.below_pages, 1),
            Body::Slot { slot, len } => {
                if slot.class() == RAW {
                    count(&mut self.raw_pages, 1);
                } else {
                    count(&mut self.compressed_pages, 1);
                    count(&mut self.compressed_bytes, len.into());
                }
                count(&mut self.slot_bytes, slot_bytes(slot.class()));
            }
        }
    }
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
    /// What those pages consist of.
    #[serde(flatten)]
    pub contents: Contents,
    /// Its counters.
    #[serde(flatten)]
    pub counters: PoolCounters,
}

/// A pool of one guest.
#[derive(Debug)]
pub(super) struct Pool {
    /// No other pool ever has the same.
    pub(super) serial: u64,
    pub(super) kind: PoolKind,
    pub(super) hold: Hold,
    /// The number of who has the account: a guest, or the shared pool itself.
    pub(super) owner: u32,
    /// The number that its owner gave it, and what no other pool of that has.
    pub(super) number: u32,
    pub(super) life: u64,
    /// The place of that account.
    pub(super) account: AccountId,
    /// Guests' accesses to it, if it is a shared pool.
    pub(super) accesses: usize,
    pub(super) pages: u64,
    pub(super) objects: u64,
    pub(super) contents: Contents,
    pub(super) first: Link,
    pub(super) last: Link,
    pub(super) counters: PoolCounters,
}

impl Pool {
    /// Returns whether several guests may have access to it.
    pub(super) fn is_shared(&self) -> bool {
        self.owner >= FIRST_SHARED
    }

    pub(super) fn of(known: Known, account: AccountId) -> Self {
        Self {
            serial: 0,
            kind: known.kind,
            hold: known.hold,
            owner: known.guest,
            number: known.number,
            life: known.life,
            account,
            accesses: 0,
            pages: 0,
            objects: 0,
            contents: Contents::default(),
            first: None,
            last: None,
            counters: PoolCounters::default(),
        }
    }
}
