// SPDX-License-Identifier: GPL-2.0

//! Who looks for an answer, and for how long.

use proptest::prelude::*;
use virtio_tmem_logic::patience::{
    Patience,
    TRIAL, //
};

const LIMIT: u32 = 200_000;

/// Waits for answers that take so long; returns how long all that was looked for, and how many were
/// found.
fn wait(patience: &mut Patience, times: impl IntoIterator<Item = u32>) -> (u64, usize) {
    let mut looked = 0;
    let mut found = 0;
    for time in times {
        let (window, then) = patience.look(LIMIT);
        *patience = match window {
            None => then,
            Some(window) if time <= window => {
                looked += u64::from(time);
                found += 1;
                then.answered(time, LIMIT)
            }
            Some(window) => {
                looked += u64::from(window);
                then.gave_up(LIMIT)
            }
        };
    }
    (looked, found)
}

#[test]
fn answers_that_come_soon_are_looked_for() {
    let mut patience = Patience::new(LIMIT);
    let (_, found) = wait(&mut patience, [10_000; 100]);
    assert_eq!(found, 100);
}

#[test]
fn the_window_follows_the_answers() {
    let mut patience = Patience::new(LIMIT);
    wait(&mut patience, [10_000; 100]);
    let (window, _) = patience.look(LIMIT);
    assert!((20_000..80_000).contains(&window.unwrap()), "{window:?}");
    // What is far later than usual is not waited for until it comes...
    let (looked, found) = wait(&mut patience, [10_000_000]);
    assert!(looked < 80_000 && found == 0);
    // ...and does not keep anybody from looking for the next.
    assert_eq!(wait(&mut patience, [10_000; 10]).1, 10);
}

#[test]
fn answers_that_come_late_are_not_looked_for() {
    let mut patience = Patience::new(LIMIT);
    wait(&mut patience, [1_000_000; 10]);
    let trials = 100;
    let (looked, found) = wait(&mut patience, vec![1_000_000; usize::from(TRIAL) * trials]);
    assert_eq!(found, 0);
    assert_eq!(looked, trials as u64 * u64::from(LIMIT));
}

#[test]
fn answers_that_come_soon_again_are_looked_for_again() {
    let mut patience = Patience::new(LIMIT);
    wait(&mut patience, [1_000_000; 100]);
    wait(&mut patience, [10_000; TRIAL as usize]);
    assert_eq!(wait(&mut patience, [10_000; 100]).1, 100);
}

#[test]
fn answers_that_take_longer_than_they_did_are_looked_for() {
    let mut patience = Patience::new(LIMIT);
    wait(&mut patience, [1_000; 100]);
    let (_, found) = wait(&mut patience, [LIMIT / 2; 100]);
    assert!(found > 80, "{found}");
}

proptest! {
    #[test]
    fn nobody_looks_for_longer_than_the_limit(
        times in proptest::collection::vec(0..4 * LIMIT, 0..500),
    ) {
        let mut patience = Patience::new(LIMIT);
        for time in times {
            prop_assert_eq!(Patience::from_word(patience.to_word()), patience);
            let (window, _) = patience.look(LIMIT);
            prop_assert!(window.is_none_or(|window| (1..=LIMIT).contains(&window)));
            wait(&mut patience, [time]);
        }
    }
}
