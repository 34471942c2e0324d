// SPDX-License-Identifier: GPL-2.0

//! When chunks are asked for, and given back.

use proptest::prelude::*;
use virtio_tmem_logic::window::{
    Kind,
    Level,
    Step,
    Supply,
    Way,
    MOST_AT_ONCE,
    SLOTS_PER_CHUNK, //
};

const BATCH: u32 = 32;

fn level(chunks: u32, free: u32) -> Level {
    Level {
        chunks,
        leaving: 0,
        free,
    }
}

#[test]
fn chunks_are_asked_for_ahead_of_need_and_once() {
    let mut supply = Supply::new(Kind::Ephemeral, BATCH);
    let Step::Ask(count) = supply.next(level(0, 0), 0) else {
        panic!("nothing is asked for");
    };
    assert!(count > 0);
    // It is on its way.
    assert_eq!(supply.next(level(0, 0), 1), Step::Rest);
    supply.answered(count, count, 2);
    let free = count * SLOTS_PER_CHUNK;
    assert_eq!(supply.next(level(count, free), 2), Step::Rest);
    // There is still some when the next ones are asked for.
    let left = (0..free)
        .rev()
        .find(|&left| supply.next(level(count, left), 3) != Step::Rest);
    assert!(left.is_some_and(|left| left > 0));
}

#[test]
fn who_gets_less_asks_again_later_and_later() {
    let mut supply = Supply::new(Kind::Ephemeral, BATCH);
    let (mut now, mut last) = (u32::MAX - 5000, 0);
    for _ in 0..8 {
        let begin = now;
        while supply.next(level(0, 0), now) == Step::Rest {
            now = now.wrapping_add(100);
        }
        let waited = now.wrapping_sub(begin);
        assert!(waited >= last && waited <= 64_100, "{waited} after {last}");
        last = waited;
        supply.answered(1, 0, now);
    }
    assert!(last > 10_000);
    // Unless the device says that there is more.
    assert_eq!(supply.next(level(0, 0), now), Step::Rest);
    supply.there_is_more();
    assert!(matches!(supply.next(level(0, 0), now), Step::Ask(_)));
}

#[test]
fn room_is_made_where_there_are_no_chunks() {
    for (kind, expected) in [(Kind::Persistent, true), (Kind::Ephemeral, false)] {
        let mut supply = Supply::new(kind, BATCH);
        assert!(matches!(supply.next(level(4, 10), 0), Step::Ask(_)));
        // Not while an answer may come.
        assert_eq!(supply.next(level(4, 10), 0), Step::Rest);
        supply.answered(1, 0, 0);
        match supply.next(level(4, 10), 0) {
            Step::MakeRoom(pages) => assert!(expected && pages > 0 && pages % BATCH == 0),
            step => assert!(!expected && step == Step::Rest),
        }
    }
}

#[test]
fn what_the_device_can_take_is_not_given_back() {
    let all = level(100, 100 * SLOTS_PER_CHUNK);
    let next = |kind| {
        let mut supply = Supply::new(kind, BATCH);
        assert_eq!(supply.next(all, 0), Step::Rest);
        supply.next(all, 60_000)
    };
    assert!(matches!(next(Kind::Persistent), Step::GiveBack(1..)));
    assert_eq!(next(Kind::Ephemeral), Step::Rest);
}

#[test]
fn what_was_needed_a_moment_ago_is_not_given_back() {
    let mut supply = Supply::new(Kind::Persistent, BATCH);
    let (all, none) = (level(100, 100 * SLOTS_PER_CHUNK), level(100, 6000));
    for now in (0..100_000).step_by(1000) {
        // Time and again it is.
        let level = if now % 20_000 == 0 { none } else { all };
        assert_eq!(supply.next(level, now), Step::Rest, "at {now}");
    }
    let since = 81_000;
    let given_back = (100_000..)
        .step_by(1000)
        .find(|&now| supply.next(all, now) != Step::Rest);
    assert_eq!(given_back, Some(since + 30_000));
}

#[test]
fn who_uses_chunks_up_soon_gets_more_at_once() {
    let mut supply = Supply::new(Kind::Ephemeral, BATCH);
    let mut asked = Vec::new();
    let mut now = 100_000;
    let mut chunks = 0;
    for _ in 0..8 {
        let Step::Ask(count) = supply.next(level(chunks, 0), now) else {
            panic!("nothing is asked for");
        };
        asked.push(count);
        chunks += count;
        supply.answered(count, count, now);
        now += 100;
    }
    assert!(asked.is_sorted());
    assert_eq!((asked[0], asked[7]), (2, MOST_AT_ONCE));
    // And less again when it is calm.
    for _ in 0..10 {
        now += 10_000;
        assert_eq!(
            supply.next(level(200, 200 * SLOTS_PER_CHUNK), now),
            Step::Rest
        );
    }
    assert_eq!(supply.next(level(0, 0), now), Step::Ask(2));
}

#[test]
fn pages_leave_by_the_way_that_costs_least() {
    let supply = Supply::new(Kind::Persistent, BATCH);
    let plenty = level(10, 5 * SLOTS_PER_CHUNK);
    assert_eq!(supply.way(plenty, 100, 0), Way::Slots);
    assert_eq!(supply.way(level(10, 20), 10, 5), Way::Store);
    assert_eq!(supply.way(level(10, 20), 10, 0), Way::Home);
    // Those who put need some.
    assert_eq!(supply.way(level(10, SLOTS_PER_CHUNK), 1, 1), Way::Store);
}

proptest! {
    /// What has been asked for is not given back, and what was given back is not asked for, unless
    /// more or fewer pages are put meanwhile.
    #[test]
    fn nothing_goes_back_and_forth(chunks in 0..3000u32, used in 0..3000u32, persistent: bool) {
        let kind = if persistent { Kind::Persistent } else { Kind::Ephemeral };
        let used = used.min(chunks) * SLOTS_PER_CHUNK;
        let mut chunks = chunks;
        let mut supply = Supply::new(kind, BATCH);
        let (mut asked, mut gave_back) = (false, false);
        for round in 0u32.. {
            // At most the whole of it, by as much as is done at once.
            prop_assert!(round < 10_000 / MOST_AT_ONCE + 44, "there is no end to it");
            match supply.next(level(chunks, chunks * SLOTS_PER_CHUNK - used), round * 1000) {
                // What is idle is given back in the end.
                Step::Rest if round < 40 => (),
                Step::Rest => break,
                Step::Ask(count) => {
                    asked = true;
                    prop_assert!((1..=MOST_AT_ONCE).contains(&count));
                    supply.answered(count, count, round * 1000);
                    chunks += count;
                }
                Step::GiveBack(count) => {
                    gave_back = true;
                    prop_assert!((1..=MOST_AT_ONCE).contains(&count));
                    chunks -= count;
                }
                Step::MakeRoom(_) => prop_assert!(false, "the device has given all"),
            }
        }
        prop_assert!(!(asked && gave_back));
        // There is something free, and not everything.
        prop_assert!(chunks * SLOTS_PER_CHUNK > used);
    }
}
