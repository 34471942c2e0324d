// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What holds at every step, of any figures at all.

use std::time::Duration;

use proptest::prelude::*;
use vhost_device_tmem::policy::{
    Bounds, EphemeralFigures, Figures, GuestFigures, PersistentFigures, Plan, Policy, Terms,
    TermsError, AGES,
};

const CAPACITY: u64 = 1 << 30;
const GUESTS: u32 = 6;

/// Numbers as they are, and as they may be.
fn any_number() -> impl Strategy<Value = u64> {
    prop_oneof![Just(0), 0..1000u64, 0..CAPACITY / 2, any::<u64>()]
}

fn bounds() -> impl Strategy<Value = Bounds> {
    let min = prop_oneof![Just(0), 0..CAPACITY / u64::from(3 * GUESTS)];
    (min, prop_oneof![Just(u64::MAX), 0..CAPACITY]).prop_map(|(min, more)| Bounds {
        min,
        cap: min.saturating_add(more),
    })
}

fn all_terms() -> impl Strategy<Value = Vec<Terms>> {
    let of = (1..10_000u32, bounds(), bounds());
    prop::collection::vec(of, GUESTS as usize).prop_map(|all| {
        let all = (0..GUESTS).zip(all);
        all.map(|(guest, (weight, persistent, ephemeral))| Terms {
            guest,
            name: format!("guest{guest}"),
            weight,
            persistent,
            ephemeral,
            tier: Default::default(),
        })
        .collect()
    })
}

/// What is said at one step: the capacity, the time, and guests that are there, some of which there
/// are no terms of.
#[derive(Clone, Debug)]
struct Said {
    capacity: u64,
    elapsed: Duration,
    guests: Vec<GuestFigures>,
}

impl Said {
    fn step(&self, policy: &mut Policy) -> Plan {
        policy.step(&Figures {
            elapsed: self.elapsed,
            capacity: self.capacity,
            guests: &self.guests,
        })
    }
}

fn said() -> impl Strategy<Value = Said> {
    let figures = (
        0..GUESTS + 2,
        (any_number(), any_number()),
        (any_number(), any_number(), any_number()),
        prop::array::uniform16(any_number()),
    );
    let figures = figures.prop_map(|(guest, persistent, ephemeral, hits_by_age)| GuestFigures {
        guest,
        persistent: PersistentFigures {
            used: persistent.0,
            refused: persistent.1,
        },
        ephemeral: EphemeralFigures {
            used: ephemeral.0,
            hits_by_age,
            missed: ephemeral.1,
            reach: ephemeral.2,
        },
    });
    let guests = prop::collection::vec(figures, 0..2 * GUESTS as usize);
    let capacity = prop_oneof![Just(CAPACITY), 0..CAPACITY];
    (capacity, 0..3000u64, guests).prop_map(|(capacity, millis, guests)| Said {
        capacity,
        elapsed: Duration::from_millis(millis),
        guests,
    })
}

/// What a capacity is worth that grows slowly.
fn usable(before: Option<u64>, said: &Said) -> u64 {
    let growth = said.capacity / 64 * said.elapsed.as_millis() as u64 / 1000;
    before.map_or(said.capacity, |before| said.capacity.min(before + growth))
}

/// Looks whether all holds with so much memory.
fn check(terms: &[Terms], said: &Said, capacity: u64, plan: &Plan) -> Result<(), TestCaseError> {
    let of = |guest: u32| {
        let mut of = said.guests.iter().filter(|figures| figures.guest == guest);
        // The last word counts.
        of.next_back().copied().unwrap_or_default()
    };
    let (mut persistent, mut ephemeral, mut minima) = (0u64, 0u64, 0u64);
    let mut drains = false;
    prop_assert_eq!(plan.shares.len(), terms.len());
    for (share, terms) in plan.shares.iter().zip(terms) {
        let used = of(share.guest).persistent.used;
        prop_assert_eq!(share.guest, terms.guest);
        prop_assert!(share.quota <= terms.persistent.cap);
        prop_assert!(share.ephemeral <= terms.ephemeral.cap);
        prop_assert_eq!(share.drain, used.saturating_sub(share.quota));
        prop_assert_eq!(share.owed, terms.persistent.min.saturating_sub(share.quota));
        persistent = persistent.saturating_add(share.quota.max(used));
        ephemeral += share.ephemeral;
        minima += terms.persistent.min + terms.ephemeral.min;
        drains |= share.drain > 0;
    }
    prop_assert!(ephemeral <= capacity.saturating_sub(persistent));
    prop_assert!(drains || persistent <= capacity);
    if minima <= capacity && !drains {
        for (share, terms) in plan.shares.iter().zip(terms) {
            prop_assert_eq!(share.owed, 0);
            prop_assert!(share.ephemeral >= terms.ephemeral.min);
        }
    }
    let most = (capacity.saturating_sub(persistent) / 32).max(2 << 20);
    prop_assert!(plan.moved <= most);

    prop_assert!(plan.give_back.is_sorted_by_key(|tranche| tranche.rank));
    for share in &plan.shares {
        let tranches = plan.give_back.iter();
        let given = tranches.filter(|tranche| tranche.guest == share.guest);
        let given: u64 = given.map(|tranche| tranche.bytes).sum();
        prop_assert_eq!(given, of(share.guest).ephemeral.used);
    }
    Ok(())
}

proptest! {
    #[test]
    fn all_holds_whatever_is_said(
        terms in all_terms(),
        other in all_terms(),
        said in prop::collection::vec(said(), 1..20),
        changed in 0..20usize,
    ) {
        let mut policy = Policy::default();
        policy.set_terms(&terms, CAPACITY).unwrap();
        let mut terms = terms;
        let mut before = None;
        for (n, said) in said.iter().enumerate() {
            if n == changed {
                terms = other.clone();
                policy.set_terms(&terms, CAPACITY).unwrap();
            }
            let mut twin = policy.clone();
            let plan = said.step(&mut policy);
            prop_assert_eq!(&plan, &said.step(&mut twin));
            let capacity = usable(before, said);
            check(&terms, said, capacity, &plan)?;
            before = Some(capacity);
        }
    }

    #[test]
    fn terms_that_cannot_be_kept_change_nothing(terms in all_terms(), said in said()) {
        let mut policy = Policy::default();
        policy.set_terms(&terms, CAPACITY).unwrap();
        let mut greedy = terms.clone();
        greedy[0].ephemeral = Bounds { min: CAPACITY + 1, cap: u64::MAX };
        let mut twin = policy.clone();
        let refused = policy.set_terms(&greedy, CAPACITY);
        let does_not_fit = matches!(refused, Err(TermsError::MinimaDoNotFit { .. }));
        prop_assert!(does_not_fit);
        prop_assert_eq!(said.step(&mut policy), said.step(&mut twin));
    }
}

#[test]
fn there_are_as_many_ages_as_the_window_reports() {
    let report: virtio_tmem_abi::WindowReport = zerocopy::FromZeros::new_zeroed();
    assert_eq!(report.hits_by_age.len(), AGES);
}
