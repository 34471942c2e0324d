// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What holds at every look, of any figures at all.

use std::time::Duration;

use proptest::prelude::*;
use serde_json::{json, Value};
use vhost_device_tmem::balance::{
    Balancer, GuestStats, Observation, Plan, Reason, Terms, TmemCounters, UNIT,
};

const GUESTS: usize = 5;
const TOTAL: u64 = 8 << 30;

fn any_count() -> impl Strategy<Value = u64> {
    prop_oneof![
        Just(0),
        0..100_000u64,
        0..TOTAL,
        any::<u64>(),
        Just(u64::MAX)
    ]
}

/// Numbers as they are, as they may be, and what is none.
fn any_value() -> impl Strategy<Value = Value> {
    prop_oneof![
        4 => any_count().prop_map(|count| json!(count)),
        2 => (0..TOTAL).prop_map(|count| json!(count)),
        1 => Just(json!(-1)),
        1 => any::<i64>().prop_map(|count| json!(count)),
        1 => any::<f64>().prop_map(|count| json!(count)),
        1 => Just(json!("NaN")),
        1 => Just(Value::Null),
    ]
}

fn any_stats() -> impl Strategy<Value = GuestStats> {
    let names = [
        "stat-total-memory",
        "stat-free-memory",
        "stat-available-memory",
        "stat-disk-caches",
        "stat-major-faults",
        "stat-swap-in",
        "stat-swap-out",
        "stat-oom-kills",
    ];
    let stats = prop::collection::btree_map(
        prop::sample::select(names.to_vec()).prop_map(str::to_owned),
        any_value(),
        0..=names.len(),
    );
    (stats, any_value()).prop_map(|(stats, last_update)| GuestStats { stats, last_update })
}

fn seen() -> impl Strategy<Value = Option<Observation>> {
    let actual = prop_oneof![4 => UNIT..TOTAL / 2, 1 => any_count()];
    let tmem = prop::option::of([any_count(), any_count(), any_count(), any_count()]);
    let ram = prop::option::of(TOTAL / 4..TOTAL);
    let seen = (actual, ram, any_stats(), tmem, any::<u32>());
    let seen = seen.prop_map(|(actual, ram, stats, tmem, weight)| Observation {
        actual,
        ram,
        stats,
        tmem: tmem.map(|[hits, missed, refused, swapped]| TmemCounters {
            hits,
            missed,
            refused,
            swapped,
        }),
        weight,
    });
    prop::option::weighted(0.9, seen)
}

fn all_terms() -> impl Strategy<Value = Vec<Terms>> {
    let bounds = (UNIT..TOTAL / 8, 0..TOTAL)
        .prop_filter("whole MiB between them", |(min, more)| {
            min.div_ceil(UNIT) <= (min + more) / UNIT
        });
    prop::collection::vec(bounds, GUESTS).prop_map(|all| {
        let all = all.into_iter().enumerate();
        all.map(|(n, (min, more))| Terms {
            name: format!("guest{n}"),
            min,
            max: min + more,
        })
        .collect()
    })
}

/// Looks whether all holds that has to.
fn check(terms: &[Terms], seen: &[Option<Observation>], plan: &Plan) -> Result<(), TestCaseError> {
    prop_assert_eq!(plan.proposals.len(), terms.len());
    let fixed = |of: &Reason| matches!(of, Reason::Unknown | Reason::Moving);
    let (mut sum, mut minima, mut held) = (0u64, 0u64, 0u64);
    for ((of, terms), seen) in plan.proposals.iter().zip(terms).zip(seen) {
        if fixed(&of.reason) {
            prop_assert!(!of.is_change());
            held = held.saturating_add(of.target_bytes.div_ceil(UNIT) * UNIT);
            continue;
        }
        sum += of.target_bytes;
        minima += terms.min.div_ceil(UNIT) * UNIT;
        prop_assert!(of.target_bytes >= terms.min, "{of:?} {terms:?}");
        prop_assert!(of.target_bytes <= terms.max, "{of:?} {terms:?}");
        let seen = seen.as_ref().unwrap();
        prop_assert_eq!(of.actual_bytes, seen.actual);
        prop_assert!(seen
            .ram
            .is_none_or(|ram| of.target_bytes <= ram.max(terms.min)));
    }
    let room = TOTAL.saturating_sub(held);
    prop_assert!(sum <= room.max(minima), "{sum} {room} {minima}");

    // However far balloons have come, what is given makes it no more than the total.
    for part in [0.0, 0.5, 1.0] {
        let actual = plan.proposals.iter().map(|of| {
            let (now, to) = (of.actual_bytes as f64, of.target_bytes as f64);
            let way = if to < now { (to - now) * part } else { 0.0 };
            (now + way) as u64
        });
        let actual: Vec<_> = actual.collect();
        let given = plan.affordable(&actual);
        let held = |actual: &[u64]| {
            let all = plan.proposals.iter().zip(actual);
            let all = all.map(|(of, actual)| match of.reason {
                Reason::Unknown | Reason::Moving => of.target_bytes.max(*actual),
                _ => *actual,
            });
            all.fold(0, u64::saturating_add)
        };
        prop_assert!(held(&given) <= held(&actual).max(TOTAL));
        for ((of, actual), given) in plan.proposals.iter().zip(&actual).zip(&given) {
            prop_assert!(given >= actual && (*given == *actual || *given <= of.target_bytes));
        }
    }
    Ok(())
}

proptest! {
    #[test]
    fn all_holds_whatever_is_said(
        terms in all_terms(),
        looks in prop::collection::vec(
            (prop::collection::vec(seen(), GUESTS), 0..40_000u64, any::<bool>()),
            1..20,
        ),
    ) {
        let mut balancer = Balancer::new(TOTAL, terms.clone()).unwrap();
        for (seen, millis, is_applied) in looks {
            let mut twin = balancer.clone();
            let elapsed = Duration::from_millis(millis);
            let plan = balancer.step(&seen, elapsed);
            prop_assert_eq!(&plan, &twin.step(&seen, elapsed));
            check(&terms, &seen, &plan)?;
            for doubt in &plan.doubts {
                let line = doubt.to_string();
                prop_assert!(line.starts_with("guest \"guest") && !line.contains('\n'));
                prop_assert!(line.len() < 300, "{line}");
            }
            for (n, of) in plan.proposals.iter().enumerate() {
                if is_applied && of.is_change() {
                    balancer.told(n, of.target_bytes);
                }
            }
        }
    }

    #[test]
    fn a_lie_leaves_others_a_quarter_of_their_part(lie in any_stats(), tmem in any_count()) {
        // Two guests that need memory; the first one says what it likes.
        let terms = ["liar", "honest"].map(|name| Terms {
            name: name.to_owned(),
            min: 64 << 20,
            max: TOTAL,
        });
        let mut balancer = Balancer::new(TOTAL, terms.to_vec()).unwrap();
        let mut sizes = [TOTAL / 2; 2];
        for look in 1..60u64 {
            let honest = json!({
                "stats": {
                    "stat-available-memory": 0,
                    "stat-free-memory": 0,
                    "stat-major-faults": look * 5000,
                    "stat-swap-out": look * 5000 * 4096,
                },
                "last-update": look,
            });
            let liar = GuestStats { last_update: json!(look), ..lie.clone() };
            let count = (tmem / 60).saturating_mul(look);
            let told = [liar, serde_json::from_value(honest).unwrap()];
            let seen = sizes.iter().zip(told).map(|(actual, stats)| Some(Observation {
                actual: *actual,
                ram: None,
                stats,
                tmem: Some(TmemCounters { hits: count, ..TmemCounters::default() }),
                weight: 100,
            }));
            let plan = balancer.step(&seen.collect::<Vec<_>>(), Duration::from_secs(5));
            for (size, of) in sizes.iter_mut().zip(&plan.proposals) {
                *size = of.target_bytes;
            }
        }
        prop_assert!(sizes[1] >= TOTAL / 2 / 4 - TOTAL / 64, "{sizes:?}");
    }
}
