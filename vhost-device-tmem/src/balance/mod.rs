// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How large guests' own memory is to be, which balloons make smaller and larger. It decides, and does
//! nothing: it has no clock and no connection, and the same figures lead to the same targets.
//!
//! ```text
//! terms ── what the operator says: minima, maxima
//! figures ── what guests, QEMU and the daemon say ── what of it can be believed ─┐
//!                                                                               need
//!                                                                                │
//!             policy::{fair, market, pace} ── what moves ── Plan: a target for each guest
//! ```
//!
//! tmem and balloons complement each other. A page that a guest has no room for goes to the host, and
//! comes back by a copy: that works at once, and needs nobody to know how much memory the guest should
//! have. But what comes back again and again would better have stayed. So memory goes to guests whose
//! pages come back, from those whose pages do not.
//!
//! # Rules
//!
//! - **Never too much, never too little.** Targets are together no more than the total, and each is
//!   between the guest's minimum and maximum. Nobody gets memory that has not been given up yet
//!   ([`Plan::affordable`]). Where a guest that cannot be reached has too much, others go down to their
//!   minima and no further.
//! - **Need is what comes back**, in pages a second and times the weight: from a disk, and to a quarter
//!   from tmem, since that is so much cheaper; and what tmem refused, since it is on its way to the disk.
//!   No page counts twice. Of a guest that has free memory nothing counts: it reads for the first time.
//! - **Who gives.** First memory that nobody has. Then guests whose pages stay away: what is available
//!   in them, half of it at most at a step. Then, if it is surely worth it, guests that need less than
//!   others do; and beyond what is available in them only those that can swap.
//! - **Nobody starves.** Of a guest that needs its memory nothing is taken below a quarter of its part by
//!   weight, whatever others need; and where it needs much, it gets up to that.
//! - **It comes to rest.** Memory moves in bounded steps, no more than an eighth of a guest's part, and
//!   a sixty-fourth at least; where a gain is well above a loss; and a guest that has just turned needs
//!   better reasons. A gain counts only while it lasts, a loss for some time after; and a guest gives
//!   nothing that would bring it to where it was worse off lately, unless others are so now.
//! - **What makes no sense counts for nothing**, and is said ([`Doubt`]). A guest of which nothing is
//!   known stays as it is.

mod figures;
mod need;
mod terms;

use std::{cmp::Ordering, time::Duration};

use serde::Serialize;

use self::{figures::Figures, need::Need};
pub use self::{
    figures::{Doubt, GuestStats, Observation, Rates, TmemCounters},
    terms::{Terms, TermsError, UNIT},
};
use crate::policy::{
    fair::{divide, Claim},
    market::{trade, Trader},
    pace::Pace,
};

/// How much better a gain has to be than a loss, beyond what the market asks for.
const SURE: f64 = 1.25;

/// The part of its part by weight that a guest which needs memory has a right to, and how many times
/// its part it gets for its needs.
const SPAN: u64 = 4;

/// The part of what guests have on average that a guest gives or gets at a step: at most, at least.
const STRIDE: u64 = 8;
const GRAIN: u64 = 64;

/// Steps for which a balloon is waited for that is on its way.
const PATIENCE: u32 = 6;

/// Why a guest is to have what it is to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// Nothing moves.
    Rests,
    /// It has less than its minimum.
    BelowMin,
    /// It has more than its maximum.
    AboveMax,
    /// All together have more than there is.
    AboveTotal,
    /// Its pages come back.
    Needs,
    /// Others' pages come back more.
    Gives,
    /// Its balloon is on its way.
    Moving,
    /// Its balloon did not get where it was told to go.
    Stuck,
    /// What comes back to it is not known yet, or not any more.
    Learning,
    /// It could not be looked at.
    Unknown,
}

impl Reason {
    /// Returns it in words.
    pub fn words(self) -> &'static str {
        match self {
            Self::Rests => "rests",
            Self::BelowMin => "is below its minimum",
            Self::AboveMax => "is above its maximum",
            Self::AboveTotal => "all are above the total",
            Self::Needs => "needs more",
            Self::Gives => "others need it more",
            Self::Moving => "is on its way",
            Self::Stuck => "did not get there",
            Self::Learning => "too little is known",
            Self::Unknown => "cannot be looked at",
        }
    }
}

/// What a guest is to have.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Proposal {
    /// The bytes that its balloon leaves it now, or left it when that was known last.
    pub actual_bytes: u64,
    /// The bytes that it should leave it.
    pub target_bytes: u64,
    /// The bytes that it has no use for.
    pub spare_bytes: u64,
    /// What came back, if that is known.
    pub rates: Option<Rates>,
    /// Why.
    pub reason: Reason,
}

impl Proposal {
    /// Returns whether the balloon has to be told.
    pub fn is_change(&self) -> bool {
        !matches!(self.reason, Reason::Moving | Reason::Unknown)
            && (self.target_bytes != self.actual_bytes || self.reason == Reason::Stuck)
    }
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Plan {
    /// Of each guest, in the order in which they were named.
    pub proposals: Vec<Proposal>,
    /// What could not be used.
    pub doubts: Vec<Doubt>,
    total: u64,
}

impl Plan {
    /// Returns how far guests that are to get memory can be given it, when balloons leave guests
    /// `actual` bytes: what others have not given up yet nobody gets. Others' elements are what they
    /// have.
    pub fn affordable(&self, actual: &[u64]) -> Vec<u64> {
        let held = |(proposal, actual): (&Proposal, &u64)| match proposal.reason {
            // It may have that already, or have it still.
            Reason::Unknown | Reason::Moving => proposal.target_bytes.max(*actual),
            _ => *actual,
        };
        let held = self.proposals.iter().zip(actual).map(held);
        let mut room = self.total.saturating_sub(held.fold(0, u64::saturating_add));
        let mut afford = |(proposal, actual): (&Proposal, &u64)| {
            let more = proposal.target_bytes.saturating_sub(*actual).min(room) / UNIT * UNIT;
            if !proposal.is_change() || proposal.target_bytes <= proposal.actual_bytes {
                return *actual;
            }
            room -= more;
            actual + more
        };
        let all = self.proposals.iter().zip(actual);
        all.map(&mut afford).collect()
    }
}

/// What a guest's balloon was told, and whether it got there.
#[derive(Clone, Copy, Debug)]
struct Told {
    bytes: u64,
    /// What it was, in bytes, when it moved last, and steps since then.
    was: u64,
    steps: u32,
}

/// A guest, and what is known of it.
#[derive(Clone, Debug)]
struct Member {
    terms: Terms,
    need: Need,
    pace: Pace,
    told: Option<Told>,
    weight: u32,
    /// The bytes that it has, and those that its machine was made with.
    actual: u64,
    ram: Option<u64>,
    /// Its memory in [`UNIT`]s: what it has at first, and what it is to have in the end.
    units: u64,
    reason: Reason,
}

impl Member {
    fn new(terms: Terms) -> Self {
        Self {
            // As long as nobody knows better, it may have all that it may.
            actual: terms.max_units() * UNIT,
            ram: None,
            weight: 1,
            units: terms.max_units(),
            terms,
            need: Need::default(),
            pace: Pace::default(),
            told: None,
            reason: Reason::Unknown,
        }
    }

    /// Returns whether it can be told anything.
    fn can_move(&self) -> bool {
        !matches!(self.reason, Reason::Unknown | Reason::Moving)
    }

    /// Takes note of a look.
    fn observe(&mut self, seen: Option<&Observation>, seconds: f64, mut doubt: impl FnMut(String)) {
        self.need.pass(seconds);
        let figures = seen.and_then(|seen| Figures::of(seen, &mut doubt));
        let Some(figures) = figures else {
            self.reason = Reason::Unknown;
            self.units = self.most().div_ceil(UNIT);
            return;
        };
        (self.actual, self.ram, self.weight) = (figures.actual, figures.ram, figures.weight);
        self.units = figures.actual.div_ceil(UNIT);
        let is_known = self.need.observe(figures, &mut doubt);
        self.reason = if is_known {
            Reason::Rests
        } else {
            Reason::Learning
        };
        let Some(told) = &mut self.told else {
            return;
        };
        if told.bytes.div_ceil(UNIT) == self.units {
            self.told = None;
            return;
        }
        told.steps = if told.bytes.abs_diff(self.actual) < told.bytes.abs_diff(told.was) {
            0
        } else {
            told.steps + 1
        };
        told.was = self.actual;
        if told.steps <= PATIENCE {
            self.reason = Reason::Moving;
            self.units = told.bytes.div_ceil(UNIT);
            return;
        }
        doubt(format!(
            "its balloon was told to leave it {} MiB, and leaves it {} MiB; it is told to stay there. \
             Has the guest a driver, and does nobody else set the balloon?",
            told.bytes / UNIT,
            self.units
        ));
        self.told = None;
        self.reason = Reason::Stuck;
    }

    /// Returns the bytes that it may have by now.
    fn most(&self) -> u64 {
        let told = self.told.map_or(0, |told| told.bytes);
        told.max(self.actual)
    }

    /// Returns what it may have, whatever it needs.
    fn claim(&self, min: u64, max: u64) -> Claim {
        Claim {
            weight: self.weight,
            min,
            max: max.max(min),
        }
    }

    /// Returns the [`UNIT`]s that it never has more of.
    fn max_units(&self) -> u64 {
        let max = self.terms.max_units();
        let max = self.ram.map_or(max, |ram| max.min(ram / UNIT));
        max.max(self.terms.min_units())
    }

    fn trader(&self, fair: u64, grain: u64, most: u64) -> Trader {
        let (min, max) = (self.terms.min_units(), self.max_units());
        let stride = self.pace.stride(grain, most);
        let weight = f64::from(self.weight);
        let (right, gives) = if self.reason != Reason::Rests {
            (min, 0)
        } else if self.need.is_quiet() {
            let right = self.need.does_with().min(fair / SPAN);
            (min.max(right), self.need.gives(stride, most))
        } else {
            (min.max(fair / SPAN), self.need.gives(stride, stride))
        };
        let right = right.min(max);
        let gives = if gives < grain { 0 } else { gives };
        let gain = if self.reason == Reason::Rests {
            self.need.gain() * weight / (SURE * self.pace.wariness())
        } else {
            0.0
        };
        let starves = self.reason == Reason::Rests && self.need.starves();
        let claims = starves && self.units.saturating_add(grain) <= right;
        let floor = if claims {
            right
        } else {
            right.min(self.units).max(self.units.saturating_sub(gives))
        };
        Trader {
            share: self.units,
            floor,
            ceiling: fair.saturating_mul(SPAN),
            cap: max,
            stride,
            gain,
            loss: self.need.loss(self.units.saturating_sub(gives)) * weight * self.pace.wariness(),
            is_idle: self.need.is_idle(),
            given: 0,
            taken: 0,
        }
    }
}

/// Decides, look after look.
#[derive(Clone, Debug)]
pub struct Balancer {
    total: u64,
    members: Vec<Member>,
}

impl Balancer {
    /// For guests that have so many bytes together.
    ///
    /// # Errors
    ///
    /// [`TermsError`].
    pub fn new(total: u64, terms: Vec<Terms>) -> Result<Self, TermsError> {
        terms::check(total, &terms)?;
        Ok(Self {
            total,
            members: terms.into_iter().map(Member::new).collect(),
        })
    }

    /// Looks at guests, in the order in which they were named; [`None`] of those that could not be
    /// looked at. `elapsed` is the time since the look before. What comes back between two looks is
    /// known at the second.
    pub fn step(&mut self, seen: &[Option<Observation>], elapsed: Duration) -> Plan {
        let mut doubts = Vec::new();
        let seen = seen.iter().chain(std::iter::repeat(&None));
        for (member, seen) in self.members.iter_mut().zip(seen) {
            let guest = member.terms.name.clone();
            let doubt = |what| {
                let guest = guest.clone();
                doubts.push(Doubt { guest, what });
            };
            member.observe(seen.as_ref(), elapsed.as_secs_f64(), doubt);
        }
        self.keep_to_bounds();
        self.keep_to_total();
        self.trade();
        let proposals = self.members.iter().map(Self::proposal);
        Plan {
            proposals: proposals.collect(),
            doubts,
            total: self.total,
        }
    }

    /// Takes note of what a guest's balloon was told.
    pub fn told(&mut self, guest: usize, bytes: u64) {
        if let Some(member) = self.members.get_mut(guest) {
            let was = member.actual;
            let steps = 0;
            member.told = Some(Told { bytes, was, steps });
        }
    }

    fn proposal(member: &Member) -> Proposal {
        let Member { actual, reason, .. } = *member;
        Proposal {
            actual_bytes: actual,
            target_bytes: match reason {
                Reason::Rests | Reason::Learning => actual,
                Reason::Unknown => member.most(),
                _ => member.units * UNIT,
            },
            spare_bytes: member.need.spare(),
            rates: member.need.rates(),
            reason,
        }
    }

    /// Has those who can be told anything keep to their minima and maxima.
    fn keep_to_bounds(&mut self) {
        for member in &mut self.members {
            let bounded = member
                .units
                .clamp(member.terms.min_units(), member.max_units());
            // Within the last MiB it may be below all the same.
            let is_below = member.actual < member.terms.min;
            if !member.can_move() || (bounded == member.units && !is_below) {
                continue;
            }
            member.reason = if is_below {
                Reason::BelowMin
            } else {
                Reason::AboveMax
            };
            member.units = bounded;
        }
    }

    /// Returns the [`UNIT`]s that are for those who can be told anything.
    fn room(&self) -> u64 {
        let fixed = self.members.iter().filter(|member| !member.can_move());
        let fixed: u64 = fixed.map(|member| member.units).sum();
        (self.total / UNIT).saturating_sub(fixed)
    }

    /// Has all together keep to the total: first by what they have no use for, then by weight.
    fn keep_to_total(&mut self) {
        let room = self.room();
        let mut movable: Vec<_> = self.members.iter_mut().filter(|it| it.can_move()).collect();
        let sum: u64 = movable.iter().map(|member| member.units).sum();
        if sum <= room {
            return;
        }
        let min = |member: &Member| member.terms.min_units();
        let low = |member: &Member| {
            let spare = member.need.spare() / UNIT;
            member.units.saturating_sub(spare).max(min(member))
        };
        let minima: u64 = movable.iter().map(|member| min(member)).sum();
        let lows: u64 = movable.iter().map(|member| low(member)).sum();
        let claims = movable.iter().map(|member| {
            if lows <= room {
                member.claim(low(member), member.units)
            } else {
                member.claim(min(member), low(member))
            }
        });
        let parts = divide(room.max(minima), &claims.collect::<Vec<_>>());
        for (member, part) in movable.iter_mut().zip(parts) {
            if part < member.units {
                member.reason = Reason::AboveTotal;
                member.units = part;
            }
        }
    }

    /// Moves memory to where it is needed.
    fn trade(&mut self) {
        let room = self.room();
        let mut movable: Vec<_> = self.members.iter_mut().filter(|it| it.can_move()).collect();
        let count = movable.len() as u64;
        if count == 0 {
            return;
        }
        let claims = movable
            .iter()
            .map(|member| member.claim(member.terms.min_units(), member.max_units()));
        let fair = divide(room, &claims.collect::<Vec<_>>());
        let grain = (room / count / GRAIN).max(1);
        let most = (room / count / STRIDE).max(grain);
        let sum: u64 = movable.iter().map(|member| member.units).sum();
        // What nobody has comes first.
        let nobody = Trader {
            share: room.saturating_sub(sum),
            floor: 0,
            ceiling: u64::MAX,
            cap: u64::MAX,
            stride: u64::MAX,
            gain: 0.0,
            loss: 0.0,
            is_idle: true,
            given: 0,
            taken: 0,
        };
        let traders = movable.iter().zip(&fair);
        let traders = traders.map(|(member, fair)| member.trader(*fair, grain, most));
        let mut traders: Vec<_> = [nobody].into_iter().chain(traders).collect();
        trade(&mut traders, (room / STRIDE).max(grain), grain);
        for (member, trader) in movable.iter_mut().zip(&traders[1..]) {
            let way = trader.share.cmp(&member.units);
            member.pace.moved(way, grain, most);
            if way == Ordering::Equal {
                continue;
            }
            member.units = trader.share;
            if member.reason == Reason::Rests {
                member.reason = match way {
                    Ordering::Greater => Reason::Needs,
                    _ => Reason::Gives,
                };
            }
        }
    }
}
