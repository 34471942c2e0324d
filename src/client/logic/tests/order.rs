// SPDX-License-Identifier: GPL-2.0

//! Whose page is in a slot, and which one goes first.

use std::collections::BTreeMap;

use proptest::prelude::*;
use virtio_tmem_logic::window::{
    chunk_of,
    first_slot,
    Order,
    Page,
    Slots,
    FIRST_CHUNK,
    MAX_CHUNKS,
    SLOTS_PER_CHUNK, //
};

const CHUNKS: u32 = 5;

fn slots() -> Slots {
    Slots::new().ok().unwrap()
}

fn order(ephemeral: bool) -> Order {
    let order = if ephemeral {
        Order::ephemeral(CHUNKS, 4096)
    } else {
        Order::persistent(CHUNKS)
    };
    let mut order = order.unwrap();
    for chunk in FIRST_CHUNK..CHUNKS {
        assert!(order.add(chunk, slots()).is_ok());
    }
    order
}

fn page(index: u64) -> Page {
    Page {
        tag: 7,
        index,
        put_at: index as u32,
        crc: 1,
    }
}

/// Returns the pages of a chunk, looked at three at a time.
fn pages_in(order: &Order, chunk: u32) -> Vec<(u32, Page)> {
    let (mut pages, mut next) = (Vec::new(), Some(0));
    while let Some(from) = next {
        let mut some = [(0, Page::default()); 3];
        let count;
        (count, next) = order.pages_in(chunk, from, &mut some);
        pages.extend_from_slice(&some[..count]);
    }
    pages
}

#[test]
fn a_chunk_is_taken_in_once() {
    let mut order = order(true);
    assert!(order.add(FIRST_CHUNK, slots()).is_err());
    assert!(order.add(CHUNKS, slots()).is_err());
    assert!(order.remove(FIRST_CHUNK).is_some());
    assert!(order.remove(FIRST_CHUNK).is_none());
    // A page in a chunk that is not there is nobody's.
    order.insert(first_slot(FIRST_CHUNK), page(1));
    assert!(order.is_empty());
}

#[test]
fn a_chunk_beyond_the_window_is_none_of_its_chunks() {
    let mut order = order(false);
    let slot = first_slot(FIRST_CHUNK);
    order.insert(slot, page(1));
    // The slots of this one wrap to those of the first.
    let beyond = FIRST_CHUNK + (1 << 23);
    assert_eq!(first_slot(beyond), slot);
    assert_eq!(pages_in(&order, beyond), []);
    assert!(order.remove(beyond).is_none());
    assert_eq!(order.page(slot), Some(page(1)));
    // The last slot there is a number for.
    assert_eq!(pages_in(&order, u32::MAX / SLOTS_PER_CHUNK), []);
    assert!(order.remove(u32::MAX / SLOTS_PER_CHUNK).is_none());
}

#[test]
fn no_window_has_more_chunks_than_links_can_name() {
    let mut order = Order::persistent(MAX_CHUNKS + 1).unwrap();
    assert!(order.add(MAX_CHUNKS, slots()).is_err());
    assert!(order.add(MAX_CHUNKS - 1, slots()).is_ok());
}

#[test]
fn the_oldest_persistent_page_goes_first() {
    let mut order = order(false);
    let first = first_slot(3);
    for n in 0..100 {
        order.insert(first + n, page(n.into()));
    }
    // A page that was put anew is a new one.
    order.insert(first, page(0));
    order.flushed(first + 2);
    let popped: Vec<u64> = std::iter::from_fn(|| order.pop().map(|(_, page)| page.index)).collect();
    let expected: Vec<u64> = [1].into_iter().chain(3..100).chain([0]).collect();
    assert_eq!(popped, expected);
}

#[test]
fn what_came_back_outlasts_what_did_not() {
    let mut order = order(true);
    let first = first_slot(2);
    for n in 0..64 {
        order.insert(first + n, page(n.into()));
        assert_eq!(order.got(first + n), Some(page(n.into())));
        assert_eq!(order.got(first + n), None);
    }
    for n in 0..64 {
        order.insert(first + n, page(n.into()));
    }
    // Twice as many, and later, that nobody has asked for.
    for n in 64..192 {
        order.insert(first + n, page(n.into()));
    }
    let mut gone = 0;
    for _ in 0..96 {
        gone += u32::from(order.pop().unwrap().1.index < 64);
    }
    assert_eq!(gone, 0);
}

#[test]
fn the_share_follows_the_hits() {
    // Pages that came back, and whose like nobody asks for any more, make room for new ones that
    // somebody asks for.
    let mut order = order(true);
    let (old, new) = (first_slot(2), first_slot(3));
    for n in 0..512 {
        order.insert(old + n, page(n.into()));
        order.got(old + n);
        order.insert(old + n, page(n.into()));
    }
    for n in 0..512 {
        order.insert(new + n, page(1000 + u64::from(n)));
        // Each hit is that of a page that has just come.
        order.got(new + n);
    }
    for n in 0..256 {
        order.insert(new + n, page(5000 + u64::from(n)));
    }
    let (_, page) = order.pop().unwrap();
    assert!(page.index < 512, "{page:?}");
}

#[derive(Clone, Copy, Debug)]
enum Op {
    Insert(u32, u64),
    Got(u32),
    Flushed(u32),
    Pop,
    Remove(u32),
    Add(u32),
}

fn op() -> impl Strategy<Value = Op> {
    let slot = || (0..CHUNKS + 1, 0..4u32).prop_map(|(chunk, n)| first_slot(chunk) + n * 170);
    prop_oneof![
        8 => (slot(), 0..20u64).prop_map(|(slot, index)| Op::Insert(slot, index)),
        3 => slot().prop_map(Op::Got),
        3 => slot().prop_map(Op::Flushed),
        3 => Just(Op::Pop),
        1 => (0..CHUNKS + 1).prop_map(Op::Remove),
        1 => (0..CHUNKS + 1).prop_map(Op::Add),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: if cfg!(miri) { 4 } else { 300 },
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// A page is there from when it is put until it is got, is flushed, goes, or its chunk does.
    #[test]
    fn pages_are_where_they_were_put(ops in prop::collection::vec(op(), 0..200), ephemeral: bool) {
        let mut order = order(ephemeral);
        let mut there: Vec<u32> = (FIRST_CHUNK..CHUNKS).collect();
        let mut pages = BTreeMap::new();
        for op in ops {
            match op {
                Op::Insert(slot, index) => {
                    order.insert(slot, page(index));
                    if there.contains(&chunk_of(slot)) {
                        pages.insert(slot, page(index));
                    }
                }
                Op::Got(slot) => prop_assert_eq!(order.got(slot), pages.remove(&slot)),
                Op::Flushed(slot) => {
                    order.flushed(slot);
                    pages.remove(&slot);
                }
                Op::Pop => match order.pop() {
                    Some((slot, page)) => prop_assert_eq!(pages.remove(&slot), Some(page)),
                    None => prop_assert!(pages.is_empty()),
                },
                Op::Remove(chunk) => {
                    prop_assert_eq!(order.remove(chunk).is_some(), there.contains(&chunk));
                    there.retain(|other| *other != chunk);
                    pages.retain(|slot, _| chunk_of(*slot) != chunk);
                }
                Op::Add(chunk) => {
                    let added = chunk < CHUNKS && !there.contains(&chunk);
                    prop_assert_eq!(order.add(chunk, slots()).is_ok(), added);
                    if added {
                        there.push(chunk);
                    }
                }
            }
            prop_assert_eq!(order.len() as usize, pages.len());
        }
        let mut seen = BTreeMap::new();
        for chunk in 0..CHUNKS {
            seen.extend(pages_in(&order, chunk));
        }
        prop_assert_eq!(&seen, &pages);
        // All of them go, each once.
        while let Some((slot, page)) = order.pop() {
            prop_assert_eq!(pages.remove(&slot), Some(page));
        }
        prop_assert!(pages.is_empty());
    }
}
