// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Going over all persistent pages of a guest.

mod pages;

use pages::{config, contents, key, Stamped, COMPRESSIONS};
use vhost_device_tmem::{
    saved::Contents,
    store::{Guest, PageBytes, PageSink, PoolKind, Store},
};
use virtio_tmem_abi::{
    Key,
    PageResult::{self, Absent, Hit, Miss, Stored},
};

/// Pages of each pool: more than are found at once.
const COUNT: u64 = 600;

fn put(store: &Store, guest: &Guest, pool: u32, index: u64) {
    let mut result = [Absent];
    let (keys, mut source) = ([key(1, index, 1)], Stamped(index));
    let put = store.put(guest, pool, &keys, &mut source, &mut result);
    assert_eq!((put, result), (Ok(()), [Stored]));
}

fn all(store: &Store, guest: &Guest) -> Vec<(u32, Key)> {
    let (mut from, mut found) = (Some(0), Vec::new());
    while let Some(place) = from {
        from = store.scan(guest, place, &mut found);
    }
    found.sort_by_key(|(pool, key)| (*pool, key.index.get()));
    found
}

struct Copies(Vec<Option<Contents>>);

impl PageSink for Copies {
    fn write_page(&mut self, n: usize, page: &PageBytes) -> bool {
        self.0[n] = Some(Contents::of(page));
        true
    }
}

#[test]
fn all_persistent_pages_of_a_guest_are_found_and_no_others() {
    for compression in COMPRESSIONS {
        let store = Store::new(&config(32 << 20, compression)).unwrap();
        let [guest, other] = [store.add_guest(), store.add_guest()];
        let kinds = [
            PoolKind::Persistent,
            PoolKind::Ephemeral,
            PoolKind::Persistent,
        ];
        for guest in [&guest, &other] {
            for (pool, kind) in (0..).zip(kinds) {
                store.create_pool(guest, pool, kind).unwrap();
            }
        }
        for index in 0..COUNT {
            for pool in 0..3 {
                put(&store, &guest, pool, index);
                put(&store, &other, pool, index);
            }
        }
        let found = all(&store, &guest);
        let expected = [0, 2].map(|pool| (0..COUNT).map(move |index| (pool, key(1, index, 1))));
        assert_eq!(found, expected.into_iter().flatten().collect::<Vec<_>>());
        let keys: Vec<_> = (0..32).map(|index| key(1, index, 1)).collect();
        let missing = [&keys[..31], &[key(1, COUNT, 1)]].concat();
        let mut copies = Copies(vec![None; 32]);
        let mut results = [PageResult::Absent; 32];
        let copied = store.copy_out_of(&guest, 2, &missing, &mut copies, &mut results);
        assert_eq!(copied, Ok(()));
        assert_eq!((results[30], results[31]), (Hit, Miss));
        for (index, copy) in (0..31).zip(&copies.0) {
            let mut page = [0; 4096];
            copy.as_ref().unwrap().fill(&mut page);
            assert!(page == contents(index), "page {index} is another");
        }
        let counters = store.pool_report(&guest, 2).unwrap().counters;
        assert_eq!((counters.gets, counters.gets_hit), (0, 0));
        store.flush_pool(&guest, 0).unwrap();
        assert_eq!(all(&store, &guest).len() as u64, COUNT);
        store.remove_guest(&guest);
        assert_eq!(all(&store, &guest), []);
        assert_eq!(all(&store, &other).len() as u64, 2 * COUNT);
    }
}
