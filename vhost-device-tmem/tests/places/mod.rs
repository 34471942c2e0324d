// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Pools whose pages the next process takes over, and pages to find in them.

// Not every test uses all of it.
#![allow(dead_code)]

use vhost_device_tmem::store::{Guest, Hold, PageBytes, PageSink, PageSource, PoolKind, Store};
use virtio_tmem_abi::{Key, ObjectId, PageResult};

use crate::pages::contents;

/// Small, so that pages are evicted and moved.
pub(crate) const CAPACITY: u64 = 1 << 20;
pub(crate) const PERSISTENT: u32 = 0;
pub(crate) const EPHEMERAL: u32 = 1;
pub(crate) const POOLS: [(u32, PoolKind); 2] = [
    (PERSISTENT, PoolKind::Persistent),
    (EPHEMERAL, PoolKind::Ephemeral),
];

/// A pool, an object and an index.
pub(crate) type Place = (u32, u64, u64);

pub(crate) fn key((_, object, index): Place, version: u64) -> Key {
    Key {
        object: ObjectId([object.into(), 0.into(), 7.into()]),
        index: index.into(),
        version: version.into(),
    }
}

pub(crate) struct Stamps<'s>(pub(crate) &'s [u64]);

impl PageSource for Stamps<'_> {
    fn read_page(&mut self, n: usize, frame: &mut PageBytes) -> bool {
        *frame = contents(self.0[n]);
        true
    }
}

/// Takes pages whose number has to be that of their version.
pub(crate) struct Versions<'s>(pub(crate) &'s [u64]);

impl PageSink for Versions<'_> {
    fn write_page(&mut self, n: usize, page: &PageBytes) -> bool {
        assert!(*page == contents(self.0[n]), "contents of another page");
        true
    }
}

pub(crate) fn create(store: &Store, guest: &Guest, pool: u32) {
    let kind = POOLS[pool as usize].1;
    let hold = if pool == PERSISTENT {
        Hold::Kept
    } else {
        Hold::Held
    };
    store.create_pool_with(guest, pool, kind, hold).unwrap();
}

/// Asks for a page in a version.
pub(crate) fn get(store: &Store, guest: &Guest, place: Place, version: u64) -> PageResult {
    let mut result = [PageResult::Absent];
    let keys = [key(place, version)];
    let versions = [version];
    let mut sink = Versions(&versions);
    let got = store.get(guest, place.0, false, &keys, &mut sink, &mut result);
    drop(got.unwrap());
    result[0]
}
