// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Quotas of persistent memory: what guests may have, not what they have.
//!
//! A quota follows what a guest uses, with some room to go on. Up to its weighted part a guest has a
//! right to it, and beyond that to what the others leave. A quota below what is used is a credit that
//! is gone: the guest drains when it can, and until it has, the memory counts as its own. Nobody is
//! told that it may have what somebody else still has.

use super::{
    fair::{divide, Claim},
    figures::{PersistentFigures, PAGE},
    terms::Bounds,
};

/// The room beyond what is used, as a part of that, besides a few grains.
const ROOM: u64 = 8;

/// Grains of room.
const GRAINS: u64 = 2;

/// The part of a quota, or of what is used, by which a quota falls at a step, at most.
const FALL: u64 = 16;

/// What a guest needs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Need {
    pub(super) weight: u32,
    pub(super) bounds: Bounds,
    pub(super) figures: PersistentFigures,
    /// The quota that it has.
    pub(super) quota: u64,
}

impl Need {
    fn used(&self) -> u64 {
        self.figures.used
    }

    fn claim(&self, min: u64, max: u64) -> Claim {
        let max = max.max(min);
        let weight = self.weight;
        Claim { weight, min, max }
    }

    /// Returns the quota that would do, where `fair` is the guest's part.
    fn wanted(&self, fair: u64, grain: u64) -> u64 {
        let refused = self.figures.refused.saturating_mul(PAGE);
        let room = self.used() / ROOM + GRAINS * grain + refused.min(fair / ROOM);
        let falls_to = self.quota - (self.quota / FALL).max(grain).min(self.quota);
        let wanted = self.used().saturating_add(room).max(falls_to);
        wanted.clamp(self.bounds.min, self.bounds.cap)
    }

    /// Returns the least that a quota above the guest's right falls to at a step.
    fn falls_to(&self, grain: u64) -> u64 {
        let step = (self.used() / FALL).max(GRAINS * grain);
        self.used().saturating_sub(step).min(self.quota)
    }
}

/// Divides `total` bytes into quotas, in the order of the needs.
pub(super) fn quotas(total: u64, grain: u64, needs: &[Need]) -> Vec<u64> {
    let claims = needs
        .iter()
        .map(|need| need.claim(need.bounds.min, need.bounds.cap));
    let fair = divide(total, &claims.collect::<Vec<_>>());
    let wanted = needs.iter().zip(&fair);
    let wanted = wanted.map(|(need, fair)| need.wanted(*fair, grain));
    let wanted: Vec<_> = wanted.collect();

    let within: Vec<_> = wanted.iter().zip(&fair).map(|(w, f)| *w.min(f)).collect();
    let left = total.saturating_sub(within.iter().sum());
    let beyond = needs.iter().zip(wanted.iter().zip(&within));
    let beyond = beyond.map(|(need, (wanted, within))| need.claim(0, wanted - within));
    let beyond = divide(left, &beyond.collect::<Vec<_>>());

    let quotas = needs.iter().zip(within.iter().zip(&beyond));
    let quotas: Vec<_> = quotas
        .map(|(need, (within, beyond))| {
            let quota = (within + beyond).max(need.falls_to(grain));
            quota.min(need.bounds.cap)
        })
        .collect();
    there(total, needs, quotas)
}

/// Returns quotas of which none takes what another guest still has: minima come first, then the rest
/// by weight.
fn there(total: u64, needs: &[Need], mut quotas: Vec<u64>) -> Vec<u64> {
    let used = needs.iter().map(Need::used);
    let mut free = total.saturating_sub(used.fold(0, u64::saturating_add));
    let grants = |quotas: &[u64], most: fn(&Need) -> u64| {
        let wanted = needs.iter().zip(quotas);
        wanted
            .map(|(need, quota)| need.claim(0, quota.min(&most(need)).saturating_sub(need.used())))
            .collect::<Vec<_>>()
    };
    let first = divide(free, &grants(&quotas, |need| need.bounds.min));
    free -= first.iter().sum::<u64>();
    let all = grants(&quotas, |_| u64::MAX);
    let rest = all.iter().zip(&first).map(|(all, first)| Claim {
        max: all.max - first,
        ..*all
    });
    let rest = divide(free, &rest.collect::<Vec<_>>());
    for ((need, quota), (first, rest)) in needs.iter().zip(&mut quotas).zip(first.iter().zip(&rest))
    {
        if *quota > need.used() {
            *quota = need.used() + first + rest;
        }
    }
    quotas
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn need(used: u64, quota: u64, min: u64) -> Need {
        Need {
            weight: 100,
            bounds: Bounds { min, cap: u64::MAX },
            figures: PersistentFigures { used, refused: 0 },
            quota,
        }
    }

    #[test]
    fn a_quota_follows_what_is_used() {
        let of = |need| quotas(1024 * MIB, MIB, &[need])[0];
        assert_eq!(of(need(80 * MIB, 80 * MIB, 0)), 92 * MIB);
        assert_eq!(of(need(0, 0, 50 * MIB)), 50 * MIB);
        // It falls by little.
        assert_eq!(of(need(0, 160 * MIB, 0)), 150 * MIB);
        // Whoever was refused gets more, and no more than an eighth of its part.
        let mut refused = need(80 * MIB, 80 * MIB, 0);
        refused.figures.refused = 10 * 256;
        assert_eq!(of(refused), 102 * MIB);
        refused.figures.refused = u64::MAX;
        assert_eq!(of(refused), (92 + 128) * MIB);
    }

    #[test]
    fn who_has_more_than_its_part_drains_for_who_has_less() {
        let rich = need(900 * MIB, 900 * MIB, 0);
        let poor = need(100 * MIB, 100 * MIB, 0);
        let of = quotas(1000 * MIB, MIB, &[rich, poor]);
        assert!(of[0] < rich.figures.used && of[0] >= 843 * MIB, "{of:?}");
        // It has not drained yet.
        assert_eq!(of[1], 100 * MIB);
        let drained = need(of[0], of[0], 0);
        let of = quotas(1000 * MIB, MIB, &[drained, poor]);
        assert!(of[1] > 108 * MIB, "{of:?}");
        assert!(of[0].max(drained.figures.used) + of[1] <= 1000 * MIB);
    }

    #[test]
    fn a_minimum_comes_before_the_rest() {
        let greedy = need(700 * MIB, 700 * MIB, 0);
        let guaranteed = need(0, 0, 300 * MIB);
        let of = quotas(1000 * MIB, MIB, &[greedy, guaranteed]);
        assert_eq!(of[1], 300 * MIB);
        // As far as it is there.
        let greedy = need(800 * MIB, 800 * MIB, 0);
        let of = quotas(1000 * MIB, MIB, &[greedy, guaranteed]);
        assert!(of[0] < 800 * MIB);
        assert_eq!(of[1], 200 * MIB);
    }
}
