// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Balloons and tmem together: memory goes where it is used, and comes to rest there.

use tmem_sim::{
    measure,
    scenario::{make, Name, EACH},
    sharing::Way,
    world::{Scenario, Seen, World},
};

const GUESTS: usize = 10;
const SECONDS: usize = 1200;
const EVERY: usize = 10;

fn scenario() -> Scenario {
    make(Name::Balloon, GUESTS, GUESTS as u64 * EACH, 1)
}

fn run(with_balloons: bool, way: Way) -> Vec<Seen> {
    let mut world = World::new(&scenario(), way).unwrap();
    if with_balloons {
        world = world.with_balloons(EVERY).unwrap();
    }
    (0..SECONDS).map(|_| world.step()).collect()
}

/// Returns the pages a second that came from disks in the last third.
fn from_disk(seen: &[Seen]) -> f64 {
    let later = &seen[SECONDS * 2 / 3..];
    let read = later.iter().map(|seen| seen.reads - seen.hits);
    measure::mean(&read.collect::<Vec<_>>())
}

#[test]
fn both_together_are_better_than_either() {
    let neither = from_disk(&run(false, Way::Equal));
    let tmem = from_disk(&run(false, Way::Policy));
    let balloons = from_disk(&run(true, Way::Equal));
    let both = from_disk(&run(true, Way::Policy));
    assert!(tmem < 0.9 * neither, "{tmem} {neither}");
    assert!(balloons < 0.9 * neither, "{balloons} {neither}");
    assert!(both < 0.9 * tmem.min(balloons), "{both} {tmem} {balloons}");
}

#[test]
fn memory_goes_to_guests_that_work_within_bounds_and_comes_to_rest() {
    let seen = run(true, Way::Policy);
    let own = &seen[0].own;
    let total: u64 = own.iter().sum();
    for now in &seen {
        assert!(now.own.iter().sum::<u64>() <= total);
        let held = now.own.iter().zip(own);
        assert!(
            held.clone().all(|(now, of)| *now >= of / 4),
            "{:?}",
            now.own
        );
    }
    let last = &seen[SECONDS - 1].own;
    for guest in 0..GUESTS {
        if guest % 2 == 0 {
            assert!(last[guest] > own[guest] * 5 / 4, "{last:?}");
        } else {
            assert!(last[guest] < own[guest] * 3 / 4, "{last:?}");
        }
        let later = seen[SECONDS / 2..].iter();
        let sizes = later.map(|seen| seen.own[guest] as f64);
        let turns = measure::turns(&sizes.collect::<Vec<_>>(), own[guest] as f64 / 16.0);
        assert!(turns <= 3, "{guest} {turns}");
    }
    // Most of what is to move has moved after some minutes.
    let read = seen.iter().map(|seen| -(seen.reads - seen.hits));
    let converged = measure::converged(&read.collect::<Vec<_>>(), -from_disk(&seen), -0.1);
    assert!(
        converged.is_some_and(|second| second <= SECONDS / 2),
        "{converged:?}"
    );
}
