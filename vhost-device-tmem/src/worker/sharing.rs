// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Having the policy decide, and carrying out what it says.
//!
//! ```text
//! store, sessions ── figures ── policy ── parts ──┬── store: promises, limits, shares
//!  (what is counted)           (decides)          └── sessions: what is to be drained
//! ```

use std::{
    collections::BTreeMap,
    sync::{
        atomic::{AtomicU64, Ordering},
        Arc, Mutex, MutexGuard, PoisonError,
    },
    time::{Duration, Instant},
};

use super::{
    figures::{Counts, Past},
    parts::{parts, Asked},
};
use crate::{
    control::{KindState, PartState},
    device::{GuestId, Slot},
    policy::{Bounds, Figures, GuestFigures, Plan, Policy, Terms},
    store::{Dropped, Holding, SharedReport, Store},
};

#[derive(Debug)]
struct State {
    policy: Policy,
    terms: Vec<Terms>,
    /// When the policy was asked last.
    last: Instant,
    past: BTreeMap<u32, Past>,
    asked: BTreeMap<u32, Asked>,
    /// What it said.
    plan: Plan,
}

impl State {
    /// Returns what happened since the last step of somebody of whom so much is counted, if it is there,
    /// or still holds something.
    fn follow(
        &mut self,
        number: u32,
        holding: Holding,
        counts: Option<Counts>,
        elapsed: Duration,
    ) -> Option<GuestFigures> {
        if counts.is_none() && holding.total() == 0 {
            self.past.remove(&number);
            return None;
        }
        let past = self.past.entry(number).or_default();
        Some(past.follow(number, holding, counts.unwrap_or_default(), elapsed))
    }
}

/// Shares memory among guests, and pools that they share, each of which counts as one.
#[derive(Debug)]
pub(super) struct Sharing {
    store: Arc<Store>,
    state: Mutex<State>,
    /// Bytes of the capacity that no guest gets, for the host's sake.
    withheld: AtomicU64,
}

impl Sharing {
    /// Shares the store's capacity by these terms.
    pub(super) fn new(store: Arc<Store>, terms: Vec<Terms>) -> Self {
        let this = Self {
            store,
            state: Mutex::new(State {
                policy: Policy::default(),
                terms: Vec::new(),
                last: Instant::now(),
                past: BTreeMap::new(),
                asked: BTreeMap::new(),
                plan: Plan::default(),
            }),
            withheld: AtomicU64::new(0),
        };
        this.set_terms(terms);
        this
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Operators say something else of guests.
    pub(super) fn set_terms(&self, terms: Vec<Terms>) {
        let mut state = self.state();
        let capacity = self.store.report().capacity_bytes;
        // The supervisor looked at them with the same rules.
        match state.policy.set_terms(&terms, capacity) {
            Ok(()) => {
                // Numbers are not used twice: what is known of who is gone is of no use.
                let stays = |guest: &u32| terms.iter().any(|of| of.guest == *guest);
                state.past.retain(|guest, _| stays(guest));
                state.asked.retain(|guest, _| stays(guest));
                let uses = terms.iter().map(|of| (of.guest, of.tier));
                self.store.set_tier_uses(uses.collect());
                state.terms = terms;
            }
            Err(error) => tracing::error!("guests keep the parts that they have: {error}"),
        }
    }

    /// So many bytes of the capacity are withheld from guests, from the next step on.
    pub(super) fn set_withheld(&self, bytes: u64) {
        self.withheld.store(bytes, Ordering::Relaxed);
    }

    /// Decides anew, and carries it out, for guests with these numbers.
    pub(super) fn step(&self, slots: &[(GuestId, Arc<Slot>)]) {
        let withheld = self.withheld.load(Ordering::Relaxed);
        let mut state = self.state();
        let now = Instant::now();
        let elapsed = now.saturating_duration_since(state.last);
        state.last = now;
        let shared = self.store.shareable();
        let holdings = self.store.holdings();
        let near = self.store.near_misses();
        let mut guests = Vec::new();
        for (GuestId(guest), slot) in slots {
            let slot = slot.state();
            let session = slot.connected_session();
            let holding = holdings.get(guest).copied().unwrap_or_default();
            let counts = session.map(|session| {
                let (pools, dropped) = (session.pools(), session.dropped());
                let near = near.get(guest).copied().unwrap_or_default();
                Counts::of(&pools, &dropped, near, session.window())
            });
            guests.extend(state.follow(*guest, holding, counts, elapsed));
        }
        for SharedReport { terms, pool, .. } in self.store.shared_pools() {
            let number = terms.number;
            let holding = holdings.get(&number).copied().unwrap_or_default();
            let near = near.get(&number).copied().unwrap_or_default();
            let counts = pool.map(|pool| Counts::of(&[pool], &Dropped::default(), near, None));
            guests.extend(state.follow(number, holding, counts, elapsed));
        }
        let plan = state.policy.step(&Figures {
            elapsed,
            capacity: shared.saturating_sub(withheld),
            guests: &guests,
        });
        self.store.set_parts(parts(&state.terms, &plan, shared));
        // Who is above its new share gives.
        self.store.withhold(withheld);
        for share in &plan.shares {
            let used = guests.iter().find(|of| of.guest == share.guest);
            let used = used.map_or(0, |of| of.persistent.used);
            let asked = state.asked.entry(share.guest).or_default();
            let bytes = asked.ask(used, share.drain);
            let slot = slots.iter().find(|(guest, _)| guest.0 == share.guest);
            if let Some((_, slot)) = slot.filter(|_| bytes > 0) {
                let slot = slot.state();
                if let Some(session) = slot.connected_session() {
                    session.drain(bytes);
                }
            }
        }
        state.plan = plan;
    }

    /// Returns what guests have and may have, as the policy said last, by their numbers.
    pub(super) fn parts(&self) -> BTreeMap<u32, PartState> {
        let holdings = self.store.holdings();
        let state = self.state();
        let terms = state.terms.iter().filter_map(|terms| {
            let mut shares = state.plan.shares.iter();
            let share = shares.find(|share| share.guest == terms.guest)?;
            let held = holdings.get(&terms.guest).copied().unwrap_or_default();
            let kind = |used_bytes, share_bytes, Bounds { min, cap }| KindState {
                used_bytes,
                share_bytes,
                min_bytes: min,
                max_bytes: (cap < Bounds::NONE.cap).then_some(cap),
            };
            let part = PartState {
                weight: terms.weight,
                persistent: kind(held.persistent, share.quota, terms.persistent),
                ephemeral: kind(held.ephemeral, share.ephemeral, terms.ephemeral),
                drain_bytes: share.drain,
            };
            Some((terms.guest, part))
        });
        terms.collect()
    }
}
