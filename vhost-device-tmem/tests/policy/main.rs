// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the policy promises, whatever guests do and say.

mod invariants;
mod model;

use proptest::prelude::*;
use vhost_device_tmem::policy::{Bounds, EphemeralFigures, AGES};

use model::{terms, Inmate, Reader, World, MIB};

const CAPACITY: u64 = 1024 * MIB;

/// The most that moves at a step whatever guests say.
const GRAIN: u64 = 2 * MIB;

fn readers() -> impl Strategy<Value = Vec<Reader>> {
    let reader = (100.0..5000.0, 8.0..600.0).prop_map(|(rate, set)| Reader::new(rate, set));
    prop::collection::vec(reader, 2..12)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn steady_guests_come_to_rest_where_more_is_got_than_by_equal_shares(readers in readers()) {
        let mut world = World::of(CAPACITY, &readers);
        let equal = world.hits();
        world.steps(600);
        prop_assert!(world.hits() >= 0.99 * equal, "{} {equal}", world.hits());

        let before: Vec<_> = (0..readers.len()).map(|n| world.share(n)).collect();
        let mut turns = vec![0; readers.len()];
        let mut ways = vec![None; readers.len()];
        let mut moved = 0;
        for _ in 0..200 {
            let shares: Vec<_> = (0..readers.len()).map(|n| world.share(n)).collect();
            world.step();
            moved += world.plan.moved;
            for n in 0..readers.len() {
                let way = world.share(n).cmp(&shares[n]);
                if way.is_ne() && ways[n].replace(way).is_some_and(|last| last != way) {
                    turns[n] += 1;
                }
            }
        }
        prop_assert!(moved <= CAPACITY / 20, "{moved} {before:?}");
        prop_assert!(turns.iter().all(|turns| *turns <= 4), "{turns:?}");
        for (n, before) in before.iter().enumerate() {
            prop_assert!(world.share(n).abs_diff(*before) <= CAPACITY / 50);
        }
    }

    #[test]
    fn more_weight_is_no_less_memory(
        readers in readers(),
        lower in 1..1000u32,
        more in 1..1000u32,
        steps in 0..40usize,
    ) {
        let mut weights: Vec<_> = (0..readers.len()).map(|n| terms(n as u32, 100)).collect();
        weights[0].weight = lower;
        let mut light = World::of(CAPACITY, &readers);
        light.policy.set_terms(&weights, CAPACITY).unwrap();
        light.steps(steps);
        let mut heavy = World::of(CAPACITY, &readers);
        (heavy.policy, heavy.plan) = (light.policy.clone(), light.plan.clone());
        weights[0].weight += more;
        heavy.policy.set_terms(&weights, CAPACITY).unwrap();
        light.step();
        heavy.step();
        // Memory moves by grains. In the long run what nobody gains by lies where it came to rest, so
        // that only what is got of it counts.
        prop_assert!(heavy.share(0) + GRAIN >= light.share(0), "{} {}", heavy.share(0), light.share(0));
        light.steps(400);
        heavy.steps(400);
        let hits = |world: &World| readers[0].hits(world.share(0) as f64);
        prop_assert!(hits(&heavy) >= 0.99 * hits(&light), "{} {}", heavy.share(0), light.share(0));
    }

    #[test]
    fn a_lie_is_bounded(
        readers in readers(),
        hits in any::<u64>(),
        missed in any::<u64>(),
        reach in any::<u64>(),
    ) {
        let guests = readers.len() as u64 + 1;
        let lie = EphemeralFigures { used: CAPACITY, hits_by_age: [hits; AGES], missed, reach };
        let all: Vec<_> = std::iter::once(Reader::IDLE).chain(readers).collect();
        let mut world = World::of(CAPACITY, &all);
        world.inmates[0].lie = Some(lie);
        for _ in 0..600 {
            world.step();
            let all: u64 = world.plan.shares.iter().map(|share| share.ephemeral).sum();
            // A share is a whole number of bytes.
            let part = all / guests - 16;
            prop_assert!(world.share(0) <= 4 * part + CAPACITY / 100);
            // All others have their hits to show, and keep the quarter that is theirs.
            for n in 1..guests as usize {
                prop_assert!(world.share(n) >= part / 16);
            }
        }
    }

    #[test]
    fn less_capacity_is_taken_from_who_does_not_use_it(
        readers in readers(),
        steps in 20..200usize,
        percent in 1..100u64,
    ) {
        let guests = readers.len() as u64 + 1;
        let all: Vec<_> = std::iter::once(Reader::IDLE).chain(readers).collect();
        let mut world = World::of(CAPACITY, &all);
        world.steps(steps);
        let mut whole = World::of(CAPACITY, &all);
        (whole.policy, whole.plan) = (world.policy.clone(), world.plan.clone());
        whole.step();
        // Within what the idle one has, and may be taken from it, nobody else loses by it anything
        // that it uses. The idle one's quota is its own as well.
        let idle = world.share(0).saturating_sub(CAPACITY / guests / 4);
        let now = CAPACITY - idle / 2 * percent / 100;
        world.capacity = now;
        world.step();
        for (n, reader) in all.iter().enumerate().skip(1) {
            let hits = |world: &World, grains| reader.hits((world.share(n) + grains * GRAIN) as f64);
            let (now, otherwise) = (hits(&world, guests), hits(&whole, 0));
            prop_assert!(now >= 0.99 * otherwise, "{n}: {now} {otherwise}");
        }
        let sum: u64 = (0..all.len()).map(|n| world.share(n)).sum();
        prop_assert!(sum <= now);
    }

    #[test]
    fn guests_come_and_go(readers in readers()) {
        let mut world = World::of(CAPACITY, &readers);
        world.inmates[0].is_there = false;
        world.steps(300);
        prop_assert_eq!(world.share(0), 0);
        let before = world.hits();
        world.inmates[0].is_there = true;
        world.steps(60);
        let part = CAPACITY / readers.len() as u64;
        prop_assert!(world.share(0) >= part / 16, "{}", world.share(0));
        world.steps(540);
        prop_assert!(world.hits() >= 0.9 * before, "{before} {}", world.hits());
        world.inmates[0].is_there = false;
        world.step();
        let sum: u64 = (0..readers.len()).map(|n| world.share(n)).sum();
        prop_assert_eq!(world.share(0), 0);
        let quotas: u64 = world.plan.shares.iter().map(|share| share.quota).sum();
        prop_assert!(sum + quotas + readers.len() as u64 >= CAPACITY);
    }

    #[test]
    fn guests_drain_until_all_minima_are_there(
        wants in prop::collection::vec(0..700u64, 2..8),
        percent in 10..100u64,
    ) {
        let guests = wants.len() as u64;
        let least = CAPACITY / 10 / guests;
        let all: Vec<_> = (0..wants.len())
            .map(|n| {
                let mut terms = terms(n as u32, 100);
                let min = Bounds { min: least / 2, cap: u64::MAX };
                (terms.persistent, terms.ephemeral) = (min, min);
                terms
            })
            .collect();
        let inmates = wants.iter().map(|wanted| Inmate {
            wanted: wanted * MIB,
            ..Inmate::new(Reader::IDLE)
        });
        let mut world = World::new(CAPACITY, &all, inmates.collect());
        world.steps(100);
        world.capacity = CAPACITY * percent / 100;
        let drained = |world: &World| world.plan.shares.iter().all(|share| share.drain == 0);
        world.step();
        for _ in 0..600 {
            if drained(&world) {
                break;
            }
            world.step();
        }
        prop_assert!(drained(&world), "{:?}", world.plan.shares);
        world.step();
        for share in &world.plan.shares {
            prop_assert!(share.owed == 0 && share.quota >= least / 2 && share.ephemeral >= least / 2);
        }
    }
}

#[test]
fn memory_goes_to_who_uses_it_and_comes_back() {
    let busy = Reader::new(2000.0, 400.0);
    let mut world = World::of(CAPACITY, &[busy, Reader::IDLE, Reader::IDLE, Reader::IDLE]);
    world.steps(400);
    assert!(world.share(0) > CAPACITY * 7 / 10, "{}", world.share(0));
    world.inmates[1].reader = busy;
    world.steps(400);
    let (first, second) = (world.share(0), world.share(1));
    assert!(first.abs_diff(second) < CAPACITY / 8, "{first} {second}");
}

#[test]
fn weights_count() {
    let all: Vec<_> = (0..4).map(|n| terms(n, 100 << n)).collect();
    let inmates = vec![Inmate::new(Reader::new(2000.0, 400.0)); 4];
    let mut world = World::new(CAPACITY, &all, inmates);
    world.steps(600);
    for n in 1..4 {
        assert!(world.share(n) > world.share(n - 1) + CAPACITY / 20);
    }
}
