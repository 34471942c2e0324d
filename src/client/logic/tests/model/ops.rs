// SPDX-License-Identifier: GPL-2.0

//! What may happen.

use proptest::prelude::*;

#[derive(Clone, Debug)]
pub(crate) enum Op {
    Insert(u64, u64),
    InsertRun(u64, u64, u64),
    /// So many puts are submitted, or all abandoned.
    Worker(u8, bool),
    /// So many requests of chosen queues are executed; which of them are refused.
    Host(u8, u8, u8),
    Complete(u8, u8),
    Harvest(usize),
    Grow,
    Erase(u64, u64),
    Take(u64, u64),
    TakeRun(u64, u64, u64),
    Peek(u64, u64),
    Contains(u64, u64, u64),
    EraseRange(u64, u64, u64),
    EraseAll(u64),
    Drop(u64),
    SetFlags(u64, u8),
    Forget,
    PutSlot(u64, u64, u64),
    /// Take the page, or leave it where it is.
    BeginCopy(u64, u64, bool),
    Copy(u8),
    /// To the store, or to somewhere else.
    BeginMove(u8, bool),
    EndMove(u8, u8),
    Promote(u64, u64),
    TakeBack(u8),
    Sweep,
    SlotsOf(u64, u64, u64),
    TakeSlots(u64, u64, u64),
    LoseSlot(u8),
    /// Up to so many.
    AwayFrom(u64, u64, usize),
}

fn tags() -> impl Strategy<Value = u64> {
    // Those of an address space with a stride come together in some of the buckets.
    prop_oneof![4 => 0..3u64, 1 => (0..200u64).prop_map(|i| (i << 10) | (0xffff_8880 << 32))]
}

fn indices() -> impl Strategy<Value = u64> {
    prop_oneof![
        6 => 0..3u64,
        3 => 60..68u64,
        2 => 0..300u64,
        2 => (1..11u32, 0..3u64).prop_map(|(level, i)| (1 << (6 * level)) - 1 + i),
        1 => (0..4u64).prop_map(|i| u64::MAX - i),
        1 => any::<u64>(),
    ]
}

/// Most runs are short, and few reach beyond the next leaf.
fn counts() -> impl Strategy<Value = u64> {
    prop_oneof![6 => 1..8u64, 2 => 0..200u64, 1 => any::<u64>()]
}

fn op() -> impl Strategy<Value = Op> {
    let few = || 1..7u8;
    prop_oneof![
        12 => (tags(), indices()).prop_map(|(tag, i)| Op::Insert(tag, i)),
        2 => (tags(), indices(), 1..100u64).prop_map(|(tag, i, n)| Op::InsertRun(tag, i, n)),
        8 => (few(), prop::bool::weighted(0.8)).prop_map(|(n, send)| Op::Worker(n, send)),
        8 => (any::<u8>(), few(), prop_oneof![3 => Just(0u8), 1 => any::<u8>()])
            .prop_map(|(pick, n, refuse)| Op::Host(pick, n, refuse)),
        8 => (any::<u8>(), few()).prop_map(|(pick, n)| Op::Complete(pick, n)),
        3 => (0..12usize).prop_map(Op::Harvest),
        3 => Just(Op::Grow),
        8 => (tags(), indices()).prop_map(|(tag, i)| Op::Erase(tag, i)),
        5 => (tags(), indices()).prop_map(|(tag, i)| Op::Take(tag, i)),
        2 => (tags(), indices(), counts()).prop_map(|(tag, i, n)| Op::TakeRun(tag, i, n)),
        2 => (tags(), indices()).prop_map(|(tag, i)| Op::Peek(tag, i)),
        2 => (tags(), indices(), prop_oneof![0..200u64, any::<u64>()])
            .prop_map(|(tag, i, n)| Op::Contains(tag, i, n)),
        3 => (tags(), indices(), prop_oneof![indices(), Just(u64::MAX)])
            .prop_map(|(tag, first, last)| Op::EraseRange(tag, first, last)),
        1 => tags().prop_map(Op::EraseAll),
        1 => tags().prop_map(Op::Drop),
        2 => (tags(), 0..3u8).prop_map(|(tag, flags)| Op::SetFlags(tag, flags)),
        1 => prop::bool::weighted(0.1).prop_map(|b| if b { Op::Forget } else { Op::Grow }),
    ]
}

pub(crate) fn ops(most: usize) -> impl Strategy<Value = Vec<Op>> {
    prop::collection::vec(op(), 0..most)
}

/// As above, but of two pages, so that much happens to each of them.
pub(crate) fn ops_on_two_pages(most: usize) -> impl Strategy<Value = Vec<Op>> {
    let one = || 1..3u8;
    let page = || prop_oneof![9 => Just((0, 0)), 1 => Just((0, 1))];
    let op = prop_oneof![
        9 => page().prop_map(|(tag, i)| Op::Insert(tag, i)),
        7 => (one(), prop::bool::weighted(0.6)).prop_map(|(n, send)| Op::Worker(n, send)),
        7 => (any::<u8>(), one(), prop_oneof![3 => Just(0u8), 1 => any::<u8>()])
            .prop_map(|(pick, n, refuse)| Op::Host(pick, n, refuse)),
        7 => (any::<u8>(), one()).prop_map(|(pick, n)| Op::Complete(pick, n)),
        3 => (0..3usize).prop_map(Op::Harvest),
        6 => page().prop_map(|(tag, i)| Op::Erase(tag, i)),
        3 => page().prop_map(|(tag, i)| Op::Take(tag, i)),
        1 => page().prop_map(|(tag, i)| Op::EraseRange(tag, i, i)),
        1 => Just(Op::SetFlags(0, 1)),
    ];
    prop::collection::vec(op, 0..most)
}

/// With a window, and few enough keys for much to happen to each.
pub(crate) fn ops_with_window(most: usize) -> impl Strategy<Value = Vec<Op>> {
    let key = || {
        prop_oneof![
            6 => (0..2u64, 0..3u64),
            2 => (0..2u64, 62..66u64),
            1 => (0..1u64, 4094..4098u64),
        ]
    };
    let op = prop_oneof![
        6 => key().prop_map(|(tag, i)| Op::PutSlot(tag, i, 1)),
        2 => (key(), 1..6u64).prop_map(|((tag, i), n)| Op::PutSlot(tag, i, n)),
        3 => (key(), prop::bool::ANY).prop_map(|((tag, i), take)| Op::BeginCopy(tag, i, take)),
        5 => any::<u8>().prop_map(Op::Copy),
        5 => (any::<u8>(), prop::bool::weighted(0.6)).prop_map(|(n, to)| Op::BeginMove(n, to)),
        4 => (any::<u8>(), any::<u8>()).prop_map(|(n, way)| Op::EndMove(n, way)),
        2 => key().prop_map(|(tag, i)| Op::Promote(tag, i)),
        1 => any::<u8>().prop_map(Op::TakeBack),
        2 => Just(Op::Sweep),
        2 => (key(), counts()).prop_map(|((tag, i), n)| Op::SlotsOf(tag, i, n)),
        3 => (key(), counts()).prop_map(|((tag, i), n)| Op::TakeSlots(tag, i, n)),
        2 => (key(), counts()).prop_map(|((tag, i), n)| Op::TakeRun(tag, i, n)),
        1 => any::<u8>().prop_map(Op::LoseSlot),
        2 => (key(), 1..6usize).prop_map(|((tag, i), n)| Op::AwayFrom(tag, i, n)),
        2 => key().prop_map(|(tag, i)| Op::Take(tag, i)),
        1 => key().prop_map(|(tag, i)| Op::Peek(tag, i)),
        5 => key().prop_map(|(tag, i)| Op::Erase(tag, i)),
        20 => op(),
    ];
    prop::collection::vec(op, 0..most)
}
