// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The policy converges to near what could be had, is fair, comes to rest, and nobody gains by
//! flooding or lying.

use tmem_sim::{
    guest::PAGE,
    measure,
    optimum::optimum,
    scenario::{make, Name, EACH},
    sharing::Way,
    world::{Scenario, Seen, World},
};

const GUESTS: usize = 10;
const SECONDS: usize = 600;
const SEED: u64 = 1;

fn scenario(name: Name) -> Scenario {
    make(name, GUESTS, GUESTS as u64 * EACH, SEED)
}

fn run(scenario: &Scenario, way: Way) -> Vec<Seen> {
    let mut world = World::new(scenario, way).unwrap();
    (0..SECONDS).map(|_| world.step()).collect()
}

fn hits(seen: &[Seen]) -> Vec<f64> {
    seen.iter().map(|seen| seen.hits).collect()
}

/// Returns the hits a second of all guests but the first, in the last third.
fn others(seen: &[Seen]) -> f64 {
    let later = &seen[SECONDS * 2 / 3..];
    let hits = later
        .iter()
        .map(|seen| seen.hits_by_guest[1..].iter().sum());
    measure::mean(&hits.collect::<Vec<f64>>())
}

/// Returns a guest's share at the end, of its part.
fn share(scenario: &Scenario, seen: &[Seen], guest: usize) -> f64 {
    let weights: u32 = scenario.guests.iter().map(|guest| guest.weight).sum();
    let part = f64::from(scenario.guests[guest].weight) / f64::from(weights);
    seen[SECONDS - 1].shares[guest] as f64 / (scenario.capacity as f64 * part)
}

#[test]
fn steady_guests_come_near_the_optimum() {
    let scenario = scenario(Name::Steady);
    let seen = run(&scenario, Way::Policy);
    let world = World::new(&scenario, Way::Policy).unwrap();
    let (_, best) = optimum(world.guests(), SECONDS, scenario.capacity / PAGE as u64);
    let converged = measure::converged(&hits(&seen), best, 0.2);
    assert!(
        converged.is_some_and(|second| second <= 300),
        "{converged:?}"
    );
    let equal = measure::mean(&hits(&run(&scenario, Way::Equal))[SECONDS * 2 / 3..]);
    let policy = measure::mean(&hits(&seen)[SECONDS * 2 / 3..]);
    assert!(policy > 1.3 * equal, "{policy} {equal}");
}

#[test]
fn steady_guests_come_to_rest() {
    let scenario = scenario(Name::Steady);
    let seen = run(&scenario, Way::Policy);
    let moved: u64 = seen[SECONDS / 2..].iter().map(|seen| seen.moved).sum();
    let a_minute = moved as f64 / (SECONDS as f64 / 120.0) / scenario.capacity as f64;
    assert!(a_minute < 0.05, "{a_minute}");
    let least = EACH as f64 / 16.0;
    for guest in 0..GUESTS {
        let later = seen[SECONDS / 2..].iter();
        let shares = later.map(|seen| seen.shares[guest] as f64);
        let turns = measure::turns(&shares.collect::<Vec<_>>(), least);
        assert!(turns <= 3, "{guest} {turns}");
    }
}

#[test]
fn guests_that_need_the_same_get_the_same_and_come_to_rest() {
    let scenario = scenario(Name::Alike);
    let seen = run(&scenario, Way::Policy);
    for second in &seen[SECONDS / 2..] {
        let shares = second.shares.iter().map(|share| *share as f64);
        let jain = measure::jain(&shares.collect::<Vec<_>>());
        assert!(jain > 0.95, "{jain}");
    }
    let moved: u64 = seen[SECONDS / 2..].iter().map(|seen| seen.moved).sum();
    let a_minute = moved as f64 / (SECONDS as f64 / 120.0) / scenario.capacity as f64;
    assert!(a_minute < 0.05, "{a_minute}");
}

#[test]
fn a_flooder_gains_nothing_and_costs_nobody() {
    let flood = scenario(Name::Flood);
    let seen = run(&flood, Way::Policy);
    let flooder = share(&flood, &seen, 0);
    // What an idle guest has in the end, or as good as that.
    assert!(flooder < 0.3, "{flooder}");
    let equal = run(&flood, Way::Equal);
    assert!(others(&seen) > others(&equal));
    // One list for all is what it floods.
    let lru = run(&flood, Way::Lru);
    let gained = share(&flood, &lru, 0);
    assert!(gained > 2.0, "{gained}");
}

#[test]
fn a_lie_gets_no_more_than_a_bounded_share() {
    for name in [Name::Liar, Name::Boaster] {
        let lie = scenario(name);
        let seen = run(&lie, Way::Policy);
        // Four times its part, as the policy says, and what nobody else uses.
        let liar = share(&lie, &seen, 0);
        assert!(liar < 5.0, "{name:?} {liar}");
        for guest in 1..GUESTS {
            let left = share(&lie, &seen, guest);
            assert!(left > 0.05, "{name:?} {guest} {left}");
        }
    }
}

#[test]
fn the_same_seed_is_the_same_course() {
    let scenario = scenario(Name::Mixed);
    for way in Way::ALL {
        let mut worlds = [0, 1].map(|_| World::new(&scenario, way).unwrap());
        for _ in 0..60 {
            let [one, other] = worlds.each_mut().map(World::step);
            assert_eq!(one, other);
            let shares: u64 = one.shares.iter().sum();
            assert!(shares <= scenario.capacity);
        }
    }
}
