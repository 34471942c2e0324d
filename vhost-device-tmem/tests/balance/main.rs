// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What balancing promises, whatever guests do and say.

mod invariants;
mod model;

use std::time::Duration;

use proptest::prelude::*;
use serde_json::{json, Value};
use vhost_device_tmem::balance::{Balancer, Observation, Reason};

use model::{terms, Worker, World, MIB};

const TOTAL: u64 = 4096;

#[test]
fn who_works_gets_memory_from_who_idles() {
    let worker = Worker::new(1500, 4000.0);
    let mut world = World::of(2048, &[(worker, 1024), (Worker::IDLE, 1024)]);
    world.steps(40);
    let sizes = world.sizes();
    assert!(sizes[0] >= 1450 && sizes[1] >= 100, "{sizes:?}");
    assert!(world.worst() < 200.0, "{sizes:?}");
    // Then nothing moves any more.
    world.steps(20);
    let rest = world.sizes();
    world.steps(50);
    assert_eq!(world.sizes(), rest);
}

#[test]
fn nobody_is_below_its_minimum_for_others() {
    let greedy = Worker::new(8000, 9000.0);
    let all = vec![terms("web", 64, 4096), terms("db", 700, 4096)];
    let mut world = World::new(2048, all, &[(greedy, 1024), (Worker::IDLE, 1024)]);
    world.steps(100);
    assert_eq!(world.sizes(), [2048 - 700, 700]);
}

#[test]
fn nobody_is_above_its_maximum_though_memory_is_free() {
    let greedy = Worker::new(8000, 9000.0);
    let all = vec![terms("web", 64, 1536), terms("db", 64, 4096)];
    let mut world = World::new(4096, all, &[(greedy, 1024), (Worker::IDLE, 1024)]);
    world.steps(100);
    assert_eq!(world.sizes(), [1536, 1024]);
}

#[test]
fn what_nobody_has_is_given_before_anything_is_taken() {
    let worker = Worker::new(1400, 4000.0);
    let mut world = World::of(4096, &[(worker, 1024), (Worker::IDLE, 1024)]);
    world.steps(60);
    assert_eq!(world.sizes()[1], 1024);
    assert!(world.worst() < 100.0, "{:?}", world.sizes());
}

#[test]
fn guests_that_need_the_same_share_by_weight_and_rest() {
    let needs = |weight| Worker {
        weight,
        ..Worker::new(4000, 4000.0)
    };
    let mut world = World::of(TOTAL, &[(needs(100), 2048), (needs(300), 2048)]);
    world.steps(200);
    let [low, high] = world.sizes()[..] else {
        panic!("there are two");
    };
    assert!(high > low + 500, "{low} {high}");
    // The lighter one starves not.
    assert!(low >= TOTAL / 4 / 4, "{low}");
    let rest = world.sizes();
    world.steps(50);
    let moved: u64 = rest
        .iter()
        .zip(world.sizes())
        .map(|(a, b)| a.abs_diff(b))
        .sum();
    assert!(moved <= TOTAL / 32, "{rest:?} {:?}", world.sizes());
}

#[test]
fn a_guest_that_starves_has_a_right_to_a_part() {
    let (greedy, modest) = (Worker::new(100_000, 1e6), Worker::new(2000, 400.0));
    let mut world = World::of(TOTAL, &[(greedy, 3968), (modest, 128)]);
    world.steps(100);
    assert!(world.sizes()[1] >= 480, "{:?}", world.sizes());
}

#[test]
fn what_comes_from_tmem_counts_for_less() {
    let disk = Worker::new(4000, 1000.0);
    let tmem = Worker {
        from_tmem: 1.0,
        ..disk
    };
    let mut world = World::of(TOTAL, &[(tmem, 2048), (disk, 2048)]);
    world.steps(100);
    let sizes = world.sizes();
    assert!(sizes[1] > sizes[0] + 500, "{sizes:?}");
    // And for something, where nobody else needs it.
    let mut world = World::of(TOTAL, &[(tmem, 2048), (Worker::IDLE, 2048)]);
    world.steps(100);
    assert!(world.sizes()[0] > 3500, "{:?}", world.sizes());
}

#[test]
fn nothing_is_taken_that_is_not_available_where_there_is_no_swap() {
    let greedy = Worker::new(8000, 9000.0);
    let unswapped = Worker {
        set: 900.0,
        swaps: false,
        ..Worker::IDLE
    };
    let mut world = World::of(2048, &[(greedy, 1024), (unswapped, 1024)]);
    world.steps(100);
    assert!(
        (900..1024).contains(&world.sizes()[1]),
        "{:?}",
        world.sizes()
    );
}

#[test]
fn guests_that_have_too_much_together_give_what_is_spare_first() {
    let used = Worker {
        set: 1400.0,
        ..Worker::IDLE
    };
    let mut world = World::of(2048, &[(used, 1500), (Worker::IDLE, 1500)]);
    world.steps(20);
    let sizes = world.sizes();
    assert!(sizes.iter().sum::<u64>() <= 2048, "{sizes:?}");
    assert!(sizes[0] >= 1400, "{sizes:?}");
}

#[test]
fn nobody_gets_what_is_not_given_up_yet() {
    let worker = Worker::new(3000, 4000.0);
    let mut world = World::of(2048, &[(worker, 1024), (Worker::IDLE, 1024)]);
    world.inmates[1].speed = 10;
    for _ in 0..100 {
        world.step();
        let sizes = world.sizes();
        assert!(sizes.iter().sum::<u64>() <= 2048, "{sizes:?}");
    }
    assert!(world.sizes()[0] > 1200, "{:?}", world.sizes());
}

#[test]
fn a_balloon_that_does_not_move_is_told_to_stay() {
    let worker = Worker::new(3000, 4000.0);
    let mut world = World::of(2048, &[(worker, 1024), (Worker::IDLE, 1024)]);
    world.inmates[1].speed = 0;
    let mut stuck = 0;
    for _ in 0..30 {
        world.step();
        if world.reasons()[1] == Reason::Stuck {
            stuck += 1;
            let said = world.doubts();
            assert!(
                said[0].starts_with("guest \"guest1\": its balloon was told"),
                "{said:?}"
            );
        }
    }
    assert!(stuck >= 2, "{stuck}");
    assert_eq!(world.sizes(), [1024, 1024]);
}

#[test]
fn a_guest_that_cannot_be_looked_at_stays_and_keeps_what_it_has() {
    let worker = Worker::new(3000, 4000.0);
    let mut world = World::of(2048, &[(worker, 1024), (Worker::IDLE, 1024)]);
    world.inmates[1].is_there = false;
    world.steps(30);
    assert_eq!(world.sizes(), [1024, 1024]);
    assert_eq!(world.reasons()[1], Reason::Unknown);
    world.inmates[1].is_there = true;
    world.steps(30);
    assert!(world.sizes()[0] > 1500, "{:?}", world.sizes());
}

#[test]
fn needs_that_change_are_followed() {
    let (busy, idle) = (Worker::new(1600, 4000.0), Worker::new(1600, 0.0));
    let mut world = World::of(2048, &[(busy, 1024), (idle, 1024)]);
    world.steps(60);
    assert!(world.sizes()[0] > 1500, "{:?}", world.sizes());
    world.inmates[0].worker = idle;
    world.inmates[1].worker = busy;
    world.steps(60);
    assert!(world.sizes()[1] > 1500, "{:?}", world.sizes());
}

/// Looks at a guest that faults a lot and one that does not, of 1 GiB each and 2 GiB together; `stats`
/// says what else each tells at a look. Returns the reasons at the last of ten looks.
fn looked(stats: impl Fn(u64) -> [Value; 2]) -> [Reason; 2] {
    let all = vec![terms("web", 64, 4096), terms("db", 64, 4096)];
    let mut balancer = Balancer::new(2048 * MIB, all).unwrap();
    let mut reasons = [Reason::Unknown; 2];
    for look in 1..=10 {
        let seen = stats(look).into_iter().enumerate().map(|(n, mut stats)| {
            stats["stat-major-faults"] = json!(if n == 0 { look * 10_000 } else { 0 });
            let stats = json!({"stats": stats, "last-update": look});
            Some(Observation {
                actual: 1024 * MIB,
                ram: None,
                stats: serde_json::from_value(stats).unwrap(),
                tmem: None,
                weight: 100,
            })
        });
        let plan = balancer.step(&seen.collect::<Vec<_>>(), Duration::from_secs(5));
        reasons = [0, 1].map(|n| plan.proposals[n].reason);
    }
    reasons
}

/// What a guest tells of so many MiB of free and available memory.
fn has(free: u64) -> Value {
    json!({"stat-free-memory": free * MIB, "stat-available-memory": free * MIB})
}

#[test]
fn whoever_has_free_memory_reads_for_the_first_time() {
    assert_eq!(
        looked(|_| [has(10), has(900)]),
        [Reason::Needs, Reason::Gives]
    );
    assert_eq!(looked(|_| [has(300), has(900)]), [Reason::Rests; 2]);
}

#[test]
fn whoever_had_a_process_killed_gives_nothing_for_a_while() {
    let killed = |look: u64, at: u64| {
        let mut stats = has(900);
        stats["stat-oom-kills"] = json!(u64::from(look >= at));
        stats
    };
    assert_eq!(
        looked(|look| [has(10), killed(look, 5)]),
        [Reason::Rests; 2]
    );
    // What was before the first look is no news.
    let before = looked(|look| [has(10), killed(look, 1)]);
    assert_eq!(before, [Reason::Needs, Reason::Gives]);
}

#[test]
fn a_guest_that_tells_nothing_new_stays() {
    let all = vec![terms("web", 64, 4096)];
    let mut balancer = Balancer::new(4096 * MIB, all).unwrap();
    let seen = |at: u64| Observation {
        actual: 1024 * MIB,
        ram: None,
        stats: serde_json::from_value(json!({"stats": has(0), "last-update": at})).unwrap(),
        tmem: None,
        weight: 100,
    };
    for (at, words) in [(0, "tells no figures"), (7, "has told no figures since")] {
        let second = Duration::from_secs(1);
        balancer.step(&[Some(seen(at))], second);
        let plan = balancer.step(&[Some(seen(at))], second);
        assert_eq!(plan.proposals[0].reason, Reason::Learning);
        assert!(
            plan.doubts[0].to_string().contains(words),
            "{:?}",
            plan.doubts
        );
    }
}

fn workers() -> impl Strategy<Value = Vec<(Worker, u64)>> {
    let worker = (
        50..3000u64,
        prop_oneof![Just(0.0), 10.0..20_000.0],
        any::<bool>(),
    );
    let worker = worker.prop_map(|(set, rate, swaps)| Worker {
        swaps,
        ..Worker::new(set, rate)
    });
    prop::collection::vec((worker, 64..1024u64), 2..8)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn steady_guests_come_to_rest(workers in workers()) {
        let mut world = World::of(TOTAL, &workers);
        world.steps(5);
        let before = world.worst();
        world.steps(195);
        // Nobody is made to need much more than whoever needed most.
        prop_assert!(world.worst() <= before * 2.0 + 100.0, "{} {before}", world.worst());
        let each = TOTAL / workers.len() as u64;
        // Whoever is at the edge of what it needs is tried again now and then, by little.
        let mut least = world.sizes();
        let mut most = world.sizes();
        for _ in 0..100 {
            let sizes = world.sizes();
            world.step();
            for (n, (before, after)) in sizes.iter().zip(world.sizes()).enumerate() {
                prop_assert!(before.abs_diff(after) <= each / 8 + 1, "{n}");
                least[n] = least[n].min(after);
                most[n] = most[n].max(after);
            }
        }
        let trembles = least.iter().zip(&most).map(|(least, most)| most - least);
        prop_assert!(trembles.clone().all(|mib| mib <= each / 8), "{least:?} {most:?}");
    }

    #[test]
    fn what_is_real_is_never_more_than_the_total(workers in workers(), speed in 0..300u64) {
        let mut world = World::of(TOTAL, &workers);
        for inmate in &mut world.inmates {
            inmate.speed = speed;
        }
        let first: u64 = world.sizes().iter().sum();
        for _ in 0..60 {
            world.step();
            let sizes = world.sizes();
            prop_assert!(sizes.iter().sum::<u64>() <= first.max(TOTAL), "{sizes:?}");
            prop_assert!(sizes.iter().all(|mib| *mib >= 64), "{sizes:?}");
        }
    }
}
