// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How guests share memory: what each may have, and who gives first. It decides, and does nothing:
//! it has no clock, no thread and no memory of guests, and the same figures lead to the same shares.
//! `tmem-sim` runs it with made-up guests.
//!
//! ```text
//! terms ── what the operator says: weight, minima, caps
//! figures ── what the daemon counts ─┐
//! capacity ── what there is now      │
//!    │                               │
//!    ├─ persistent ── quotas         │
//!    │                               │
//!    └─ the rest is ephemeral        │
//!         estimate ── what a little more or less is worth
//!         fair ── parts by weight
//!         order ── who gives where there is less for all
//!         market, pace ── what moves where there is as much as before
//!                     │
//!                     plan: quotas, shares, and the order of giving back
//! ```
//!
//! `fair`, `market` and `pace` know nothing of tmem, and serve [`balance`](crate::balance) as well.
//!
//! # Rules
//!
//! - **Never too much.** Quotas, or what persistent pages still take where that is more, and
//!   ephemeral shares are together no more than the capacity, as far as persistent pages fit it at
//!   all. Caps hold always, and minima as long as their sum fits. A sum that never does is an error
//!   of [`Policy::set_terms`].
//! - **Persistent memory is credit.** A quota follows what is used, with some room. Up to its
//!   weighted part a guest has a right to it, before any ephemeral memory that is not guaranteed.
//!   Quotas beyond the part go down, step by step, where others need theirs, and below what is used
//!   if need be: the guest then drains, and the plan says how much. Nobody gets memory that has not
//!   been drained yet, and what a guest lacks for that of its minimum is said as well.
//! - **Ephemeral memory goes where it is worth most.** What a little more would gain and a little
//!   less would cost is estimated from hits by age and from misses, in hits per second and page,
//!   times the weight. Memory moves while a gain is surely above a loss, in bounded steps: a
//!   thirty-second of it at a step, and of one guest what its pace allows.
//! - **Idle memory is taxed.** What does not pay has no price. A guest that uses its share is left
//!   a quarter of its weighted part whatever others claim; of one that does not, three quarters of
//!   that go as well (the tax of ESX). What is left is there to show what it needs when it wakes up.
//! - **Puts count for nothing**, only gets that hit, or that a larger share would have had hit.
//! - **Nobody gains by lying without bound.** Hits that would take more memory than the guest has
//!   are scaled down to what it has. And figures, true or not, move a share no lower than the quarter
//!   of others' parts, and no higher than four times the guest's own: beyond that it gets what is
//!   idle, and loses it to whoever can use it.
//! - **Where the host is short**, ephemeral memory goes by [`Rank`]: what is above a share, what does
//!   not pay, what pays by slices from everybody, and what is guaranteed at the very end; in each of
//!   these first what is worth least. Persistent quotas follow. What was taken comes back within a
//!   minute or so and not at once.
//!
//! # Where the figures come from
//!
//! The daemon asks once a second, and passes differences of counters. (A counter that is below the
//! one before has begun anew: it is the difference to 0.)
//!
//! | figure | taken from |
//! |---|---|
//! | [`Figures::elapsed`] | the monotonic clock, since the last step |
//! | [`Figures::capacity`] | `--capacity`, less what the store needs besides pages (`Store::shareable`), and less while PSI or the control group say so |
//! | [`Figures::guests`] | guests that are connected, or still hold something (`Accounts`), and pools that guests share, each of which counts as one that has no persistent memory |
//! | [`PersistentFigures::used`] | `Holding::persistent` of the guest's account: pages of the store with what finds them, and chunks that are lent |
//! | [`PersistentFigures::refused`] | `PoolCounters::refused_over_quota` of persistent pools, and chunks asked for in vain (`Lender::refused`), times the pages of a chunk |
//! | [`EphemeralFigures::used`] | `Holding::ephemeral` |
//! | [`EphemeralFigures::hits_by_age`] | `WindowReport::hits_by_age`, which is the guest's word; and `PoolCounters::gets_hit` of ephemeral pools, at the age at which pages of the guest are evicted, or the last one where none are |
//! | [`EphemeralFigures::missed`] | gets of ephemeral pools that missed a page which was evicted not long ago: the store has to remember the last ones, as many as a quarter of what the guest has; and `WindowReport::near_misses`, which are the same of a window, by the guest's word |
//! | [`EphemeralFigures::reach`] | the bytes of the pages that are remembered so, by the store and by the guest |
//!
//! All that a guest asks for in vain would be easier to count, and will not do: `tmem-sim --told all`
//! shows that memory then never comes to rest, and is worth little more than equal parts. A miss counts
//! only where so much more memory would have helped. And what was evicted is no reach by itself: it
//! grows as a guest is made to give, whose memory then looks cheap.
//!
//! A driver replaces pages in its window by itself, and alone knows which of them it misses. Where it
//! does not say so, it bids by its oldest hits alone. One that says too much bids at most what a guest
//! does that reads all that it misses again in each second.
//!
//! # What the plan is for
//!
//! [`Share::quota`] is the guest's limit in the store's accounts, from which its credits follow, once
//! it has something to drain: chunks are recalled then, and puts refused. Until then it need not wait
//! for the next step, and may have what is promised to nobody who lacks it.
//! [`Share::ephemeral`] is what eviction compares holdings with, and what chunks are lent up to.
//! [`Plan::give_back`] says whose chunks and pages go when the host is short before the next step.

mod capacity;
mod estimate;
pub(crate) mod fair;
mod figures;
pub(crate) mod market;
mod order;
pub(crate) mod pace;
mod persistent;
mod terms;

use std::collections::BTreeMap;

use self::{
    capacity::Usable,
    estimate::{Estimate, Value},
    fair::{divide, Claim},
    market::{trade, Trader},
    order::{order, Held},
    pace::Pace,
    persistent::{quotas, Need},
};
pub use self::{
    figures::{EphemeralFigures, Figures, GuestFigures, PersistentFigures, AGES},
    order::{Rank, Tranche},
    terms::{Bounds, Minima, MinimaList, Terms, TermsError, MAX_WEIGHT},
};

/// How often its weighted part a guest gets by its figures, and the part of it that the figures of
/// others leave it.
const SPAN: u64 = 4;

/// What goes of that for memory that is idle.
const TAX: f64 = 0.75;

/// The part of all ephemeral memory that moves at a step, at most.
const BUDGET: u64 = 32;

/// The part of what guests have on average by which a guest's share moves at a step for the sake of
/// figures, at most. Weights are no matter: a guest must not get less since others would give slower.
const STRIDE: u64 = 16;

/// The least that moves: a part of what guests have on average, and a chunk of a window at most.
const GRAIN: u64 = 64;
const LEAST_GRAIN: u64 = 64 << 10;
const MOST_GRAIN: u64 = 2 << 20;

/// What a guest may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// The guest's number.
    pub guest: u32,
    /// The bytes that it may have of persistent memory.
    pub quota: u64,
    /// The bytes that it has beyond that, and is to drain.
    pub drain: u64,
    /// The bytes that its quota is below its minimum, since others have not drained yet, or since
    /// there is not so much.
    pub owed: u64,
    /// The bytes that it may have of ephemeral memory.
    pub ephemeral: u64,
}

/// What is to be done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// What guests may have, all that there are terms of, by their numbers.
    pub shares: Vec<Share>,
    /// All ephemeral memory that guests have, in the order in which it is given back.
    pub give_back: Vec<Tranche>,
    /// The bytes that went from one guest's share to another's at this step.
    pub moved: u64,
}

/// A guest, and what the policy knows of it.
#[derive(Clone, Debug)]
struct Member {
    terms: Terms,
    /// Those of this step, if it is there.
    figures: Option<GuestFigures>,
    estimate: Estimate,
    pace: Pace,
    quota: u64,
    share: u64,
}

impl Member {
    fn new(terms: Terms) -> Self {
        Self {
            figures: None,
            estimate: Estimate::default(),
            pace: Pace::default(),
            quota: terms.persistent.min,
            share: terms.ephemeral.min,
            terms,
        }
    }

    /// Returns what is known of it where it is there.
    fn figures(&self) -> GuestFigures {
        self.figures.unwrap_or_default()
    }

    /// Returns the bounds of what it gets of a kind: where it is not there, its minimum.
    fn bounds(&self, of: Bounds) -> Bounds {
        let Bounds { min, cap } = of;
        let cap = if self.figures.is_some() { cap } else { min };
        Bounds { min, cap }
    }

    /// Returns the bytes that its persistent pages take, or may take.
    fn persistent(&self) -> u64 {
        self.quota.max(self.figures().persistent.used)
    }

    /// Returns what a little of its share is worth, weighted.
    fn value(&self) -> Value {
        let value = self.estimate.value(self.share);
        let weight = f64::from(self.terms.weight);
        Value {
            gain: value.gain * weight,
            loss: value.loss * weight,
            ..value
        }
    }

    fn held(&self, bytes: u64) -> Held {
        let Value { used, loss, .. } = self.value();
        Held {
            guest: self.terms.guest,
            bytes,
            share: self.share,
            min: self.terms.ephemeral.min,
            used,
            price: loss,
        }
    }

    fn trader(&self, fair: u64, stride: u64) -> Trader {
        let Bounds { min, cap } = self.terms.ephemeral;
        let left = 1.0 - TAX * (1.0 - self.estimate.activity());
        let floor = (fair / SPAN) as f64 * left;
        let Value {
            gain,
            loss,
            is_idle,
            ..
        } = self.value();
        Trader {
            share: self.share,
            floor: (floor as u64).max(min).min(cap),
            ceiling: fair.saturating_mul(SPAN).max(min),
            cap,
            stride,
            gain: gain / self.pace.wariness(),
            loss: loss * self.pace.wariness(),
            is_idle,
            given: 0,
            taken: 0,
        }
    }
}

/// The policy, with what it knows of guests from one step to the next.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    members: BTreeMap<u32, Member>,
    usable: Usable,
}

impl Policy {
    /// Takes over what the operator says of all guests. Those that are known go on with what they
    /// have, within their new bounds; those that are not named any more are forgotten.
    ///
    /// # Errors
    ///
    /// [`TermsError`]; all is as it was then.
    pub fn set_terms(&mut self, terms: &[Terms], capacity: u64) -> Result<(), TermsError> {
        terms::check(terms, capacity)?;
        let mut before = std::mem::take(&mut self.members);
        let members = terms.iter().map(|terms| {
            let member = match before.remove(&terms.guest) {
                Some(member) => Member {
                    terms: terms.clone(),
                    ..member
                },
                None => Member::new(terms.clone()),
            };
            (terms.guest, member)
        });
        self.members = members.collect();
        Ok(())
    }

    /// Decides anew. Guests that there are no terms of are passed over, and should be given nothing.
    pub fn step(&mut self, figures: &Figures<'_>) -> Plan {
        self.observe(figures);
        let capacity = self.usable.follow(figures.capacity, figures.elapsed);
        let grain = capacity / (GRAIN * self.members.len().max(1) as u64);
        let grain = grain.clamp(LEAST_GRAIN, MOST_GRAIN);
        self.set_quotas(capacity, grain);
        let moved = self.set_shares(capacity, grain);
        self.plan(moved)
    }

    /// Takes note of who is there, and of what happened to each.
    fn observe(&mut self, figures: &Figures<'_>) {
        let mut there: BTreeMap<_, _> = figures.guests.iter().map(|of| (of.guest, *of)).collect();
        for (number, member) in &mut self.members {
            match there.remove(number) {
                Some(of) => {
                    member.figures = Some(of);
                    let share = member.share;
                    member
                        .estimate
                        .observe(&of.ephemeral, share, figures.elapsed);
                }
                None => *member = Member::new(member.terms.clone()),
            }
        }
    }

    /// Divides persistent memory.
    fn set_quotas(&mut self, capacity: u64, grain: u64) {
        let sum = |of: fn(&Member) -> u64| {
            let all = self.members.values().map(of);
            all.fold(0, u64::saturating_add)
        };
        let guaranteed = sum(|member| member.terms.persistent.min);
        let reserved = sum(|member| member.terms.ephemeral.min);
        let total = capacity - reserved.min(capacity.saturating_sub(guaranteed));
        let members = self.members.values().map(|member| Need {
            weight: member.terms.weight,
            bounds: member.bounds(member.terms.persistent),
            figures: member.figures().persistent,
            quota: member.quota,
        });
        let quotas = quotas(total, grain, &members.collect::<Vec<_>>());
        for (member, quota) in self.members.values_mut().zip(quotas) {
            member.quota = quota;
        }
    }

    /// Divides what is left. Returns how many bytes moved for the sake of figures.
    fn set_shares(&mut self, capacity: u64, grain: u64) -> u64 {
        let persistent = self.members.values().map(Member::persistent);
        let persistent = persistent.fold(0, u64::saturating_add);
        let total = capacity.saturating_sub(persistent);
        for member in self.members.values_mut() {
            let Bounds { min, cap } = member.terms.ephemeral;
            member.share = member.share.clamp(min, cap);
        }
        self.give_back(total);
        self.hand_out(total);

        let fair = self.divided(total, |member| member.bounds(member.terms.ephemeral));
        let there = self.members.values().filter(|it| it.figures.is_some());
        let stride = (total / there.count().max(1) as u64 / STRIDE).max(grain);
        let members = self.members.values().zip(&fair);
        let mut traders: Vec<_> = members
            .map(|(member, fair)| member.trader(*fair, member.pace.stride(grain, stride)))
            .collect();
        // Who is not there has its minimum, and nothing to do with the others.
        for (trader, member) in traders.iter_mut().zip(self.members.values()) {
            if member.figures.is_none() {
                trader.floor = trader.share;
                trader.ceiling = trader.share;
                trader.gain = 0.0;
            }
        }
        let moved = trade(&mut traders, (total / BUDGET).max(grain), grain);
        for (member, trader) in self.members.values_mut().zip(&traders) {
            member.share = trader.share;
            let way = trader.taken.cmp(&trader.given);
            member.pace.moved(way, grain, stride);
        }
        moved
    }

    /// Divides `total` bytes by weight, within these bounds.
    fn divided(&self, total: u64, bounds: impl Fn(&Member) -> Bounds) -> Vec<u64> {
        let claims = self.members.values().map(|member| {
            let Bounds { min, cap } = bounds(member);
            Claim {
                weight: member.terms.weight,
                min,
                max: cap,
            }
        });
        divide(total, &claims.collect::<Vec<_>>())
    }

    /// Makes shares smaller until all of them are no more than `total`.
    fn give_back(&mut self, total: u64) {
        let shares = self.members.values().map(|member| member.share);
        let sum = shares.fold(0, u64::saturating_add);
        let mut excess = sum.saturating_sub(total);
        if excess == 0 {
            return;
        }
        let held = self
            .members
            .values()
            .map(|member| member.held(member.share));
        for tranche in order(&held.collect::<Vec<_>>()) {
            let bytes = tranche.bytes.min(excess);
            if let Some(member) = self.members.get_mut(&tranche.guest) {
                member.share -= bytes;
            }
            excess -= bytes;
        }
    }

    /// Makes shares larger, those first that are least for the guest's weight, until all of them are
    /// `total`. It costs nobody anything.
    fn hand_out(&mut self, total: u64) {
        let shares = self.divided(total, |member| Bounds {
            min: member.share,
            cap: member.bounds(member.terms.ephemeral).cap.max(member.share),
        });
        for (member, share) in self.members.values_mut().zip(shares) {
            member.share = share;
        }
    }

    fn plan(&self, moved: u64) -> Plan {
        let shares = self.members.values().map(|member| {
            let used = member.figures().persistent.used;
            Share {
                guest: member.terms.guest,
                quota: member.quota,
                drain: used.saturating_sub(member.quota),
                owed: member.terms.persistent.min.saturating_sub(member.quota),
                ephemeral: member.share,
            }
        });
        let there = self.members.values();
        let held = there.map(|member| member.held(member.figures().ephemeral.used));
        Plan {
            shares: shares.collect(),
            give_back: order(&held.collect::<Vec<_>>()),
            moved,
        }
    }
}
