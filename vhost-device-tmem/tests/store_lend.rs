// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Parts of the capacity that are lent, and pages beside them.

mod pages;

use pages::{config, key, random_page, Stamped, COMPRESSIONS};
use proptest::prelude::*;
use vhost_device_tmem::store::{Config, Guest, PoolKind, Progress, Store};
use virtio_tmem_abi::PageResult;

const CAPACITY: u64 = 32 << 20;
const CHUNK: u64 = 2 << 20;
const PERSISTENT: PoolKind = PoolKind::Persistent;
const EPHEMERAL: PoolKind = PoolKind::Ephemeral;

fn put(store: &Store, guest: &Guest, pool: u32, index: u64) -> bool {
    let mut result = [PageResult::Absent];
    let mut page = Stamped(random_page(index));
    store
        .put(guest, pool, &[key(1, index, 1)], &mut page, &mut result)
        .unwrap();
    result == [PageResult::Stored]
}

fn pools(store: &Store, guest: &Guest) {
    store.create_pool(guest, 0, PERSISTENT).unwrap();
    store.create_pool(guest, 1, EPHEMERAL).unwrap();
}

fn lend_all(store: &Store, guest: &Guest, kind: PoolKind) -> u64 {
    (0..).find(|_| !store.lend(guest, kind, CHUNK)).unwrap()
}

#[test]
fn what_is_lent_is_not_there_for_pages() {
    for compression in COMPRESSIONS {
        let store = Store::new(&config(CAPACITY, compression)).unwrap();
        let guest = store.guest(0);
        pools(&store, &guest);
        let before = store.credits_of(&guest).persistent;
        for _ in 0..5 {
            assert!(store.lend(&guest, PERSISTENT, CHUNK));
        }
        assert_eq!(store.report().lent_bytes, 5 * CHUNK);
        let after = store.credits_of(&guest).persistent;
        // With what is needed to find them.
        let less = before - after;
        assert!((5 * 504..=5 * 512).contains(&less), "{less}");
        let stored = (0..).find(|n| !put(&store, &guest, 0, *n)).unwrap();
        assert!(stored >= u64::from(after) && stored < u64::from(before));
        let report = store.report();
        assert!(
            report.resident_bytes + report.lent_bytes <= CAPACITY,
            "{report:?}"
        );
        assert!(!store.lend(&guest, PERSISTENT, CHUNK));
        store.end_loan(&guest, PERSISTENT, 5 * CHUNK);
        assert_eq!(store.report().lent_bytes, 0);
        assert!(put(&store, &guest, 0, stored + 1));
    }
}

#[test]
fn ephemeral_pages_go_for_persistent_loans_and_for_no_others() {
    let store = Store::new(&Config::new(CAPACITY)).unwrap();
    let guest = store.guest(0);
    pools(&store, &guest);
    for n in 0..8192 {
        assert!(put(&store, &guest, 1, n));
    }
    let full = store.report().ephemeral_pages;
    assert!(!store.lend(&guest, EPHEMERAL, CHUNK));
    assert_eq!(store.report().ephemeral_pages, full);
    assert!(store.lend(&guest, PERSISTENT, CHUNK));
    let report = store.report();
    assert!(report.ephemeral_pages <= full - 500, "{report:?}");
    assert!(
        report.resident_bytes + report.lent_bytes <= CAPACITY,
        "{report:?}"
    );
    // Ephemeral pages are taken as ever, and one another's place.
    assert!(put(&store, &guest, 1, 8192));
    let lent = 1 + lend_all(&store, &guest, PERSISTENT);
    assert!((14..=15).contains(&lent), "{lent}");
}

#[test]
fn nobody_is_lent_what_another_was_promised() {
    let store = Store::new(&Config::shared(CAPACITY, 2)).unwrap();
    let [hog, victim] = [0, 1].map(|number| store.guest(number));
    pools(&store, &victim);
    // Half of the capacity is promised, a quarter to each.
    let lent = lend_all(&store, &hog, PERSISTENT);
    assert!((10..=11).contains(&lent), "{lent}");
    assert!(!store.is_promised_more(&hog) && store.is_promised_more(&victim));
    let promised = CAPACITY / 4;
    let own = lend_all(&store, &victim, PERSISTENT);
    assert!((own + 1) * CHUNK >= promised, "{own}");
    // What it was lent counts as what it was promised.
    store.end_loan(&victim, PERSISTENT, own * CHUNK);
    let stored = (0..).find(|n| !put(&store, &victim, 0, *n)).unwrap();
    assert!(stored * 4160 + CHUNK >= promised, "{stored}");
    assert!(!store.lend(&hog, PERSISTENT, CHUNK));
}

#[test]
fn ephemeral_loans_leave_some_room_and_are_wanted_back_for_more() {
    let store = Store::new(&Config::new(CAPACITY)).unwrap();
    let guest = store.guest(0);
    pools(&store, &guest);
    let lent = lend_all(&store, &guest, EPHEMERAL);
    assert!(lent >= 13, "{lent}");
    assert_eq!(store.wanted_back(), 0);
    let stored = (0..).find(|n| !put(&store, &guest, 0, *n)).unwrap();
    assert!(stored >= CAPACITY / 32 / 4096, "{stored}");
    let wanted = store.wanted_back();
    assert!(wanted > 0 && wanted <= CAPACITY / 32, "{wanted}");
    store.end_loan(&guest, EPHEMERAL, CHUNK);
    assert_eq!(store.wanted_back(), 0);
    assert!(put(&store, &guest, 0, stored + 1));
}

#[test]
fn who_goes_is_lent_nothing_any_more() {
    let store = Store::new(&Config::shared(CAPACITY, 1)).unwrap();
    let guest = store.guest(0);
    pools(&store, &guest);
    let all = lend_all(&store, &guest, PERSISTENT);
    let (mut walk, _) = vhost_device_tmem::store::Walk::remove_guest(&store, &guest);
    walk.finish();
    assert_eq!(store.report().lent_bytes, 0);
    // What is returned late is nothing.
    store.end_loan(&guest, PERSISTENT, CHUNK);
    let next = store.guest(0);
    store.end_loan(&next, EPHEMERAL, CHUNK);
    assert_eq!(store.report().lent_bytes, 0);
    assert_eq!(lend_all(&store, &next, PERSISTENT), all);
    // The next process knows it without being asked whether there is room.
    store.lend_again(&next, EPHEMERAL, CHUNK);
    assert_eq!(store.report().lent_bytes, (all + 1) * CHUNK);
}

#[derive(Clone, Debug)]
enum Op {
    Put { guest: usize, pool: u32, count: u64 },
    Lend { guest: usize, persistent: bool },
    Return { guest: usize, persistent: bool },
    Tidy,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => (0..2usize, 0..2u32, 1..400u64)
            .prop_map(|(guest, pool, count)| Op::Put { guest, pool, count }),
        3 => (0..2usize, any::<bool>())
            .prop_map(|(guest, persistent)| Op::Lend { guest, persistent }),
        2 => (0..2usize, any::<bool>())
            .prop_map(|(guest, persistent)| Op::Return { guest, persistent }),
        1 => Just(Op::Tidy),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn all_together_is_never_more_than_the_capacity(
        ops in prop::collection::vec(op(), 1..60),
        compression in prop::sample::select(&COMPRESSIONS[..]),
    ) {
        let capacity = 12 << 20;
        let store = Store::new(&Config {
            guests: 2,
            guaranteed: capacity / 4,
            ..config(capacity, compression)
        });
        let store = store.unwrap();
        let guests = [0, 1].map(|number| store.guest(number));
        guests.iter().for_each(|guest| pools(&store, guest));
        let mut lent = [[0u64; 2]; 2];
        let mut next = 0;
        let kind = |persistent| if persistent { PERSISTENT } else { EPHEMERAL };
        for op in ops {
            match op {
                Op::Put { guest, pool, count } => {
                    for n in next..next + count {
                        put(&store, &guests[guest], pool, n);
                    }
                    next += count;
                }
                Op::Lend { guest, persistent } => {
                    let done = store.lend(&guests[guest], kind(persistent), CHUNK);
                    lent[guest][usize::from(persistent)] += u64::from(done);
                }
                Op::Return { guest, persistent } => {
                    let had = &mut lent[guest][usize::from(persistent)];
                    if *had > 0 {
                        *had -= 1;
                        store.end_loan(&guests[guest], kind(persistent), CHUNK);
                    }
                }
                Op::Tidy => while store.tidy_step(1000) == Progress::More {},
            }
            let report = store.report();
            let sum: u64 = lent.iter().flatten().sum();
            prop_assert_eq!(report.lent_bytes, sum * CHUNK);
            prop_assert!(report.used_bytes + report.lent_bytes <= capacity);
            prop_assert!(report.resident_bytes + report.lent_bytes <= capacity, "{report:?}");
        }
    }
}
