// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! From what the policy decides to what the store is told, and what guests are asked for. This
//! reckons, and asks nobody.

use std::collections::BTreeMap;

use crate::{
    policy::{Plan, Share, Terms},
    store::Part,
};

/// Steps after which a guest that gives nothing is asked again.
const PATIENCE: u32 = 16;

/// Returns the parts of all guests that there are terms of, where they share so many bytes.
///
/// A guest is promised its minimum and its weighted part of half of what is guaranteed to nobody,
/// whether it is there or not, so that it finds something when it comes. What its quota is beyond that
/// it may have, and the policy sees to it that it is there.
pub(super) fn parts(terms: &[Terms], plan: &Plan, shared: u64) -> BTreeMap<u32, Part> {
    let minima = terms.iter().map(|of| of.persistent.min + of.ephemeral.min);
    let minima = minima.fold(0, u64::saturating_add);
    let free = u128::from(shared.saturating_sub(minima) / 2);
    let ephemeral = terms.iter().map(|of| of.ephemeral.min);
    let open = shared.saturating_sub(ephemeral.fold(0, u64::saturating_add));
    // Pools that guests share take nothing of that.
    let takers = terms.iter().filter(|of| of.persistent.cap > 0);
    let weights = takers.map(|of| u128::from(of.weight)).sum::<u128>();
    let parts = terms.iter().filter_map(|of| {
        let share = plan.shares.iter().find(|share| share.guest == of.guest)?;
        let start = free * u128::from(of.weight) / weights.max(1);
        let start = of.persistent.min.saturating_add(start as u64);
        let limit = limit(share, of, open);
        let part = Part {
            promised: start.min(limit),
            limit,
            ephemeral: Some(share.ephemeral),
        };
        Some((of.guest, part))
    });
    parts.collect()
}

/// Returns what a guest gets no more of persistent memory than, where `open` bytes are guaranteed to
/// no ephemeral pages. One that has to drain gets nothing. Others are not kept waiting for the next
/// step: what is promised to nobody who lacks it they may have at once, and are asked for it once
/// somebody needs it.
fn limit(share: &Share, terms: &Terms, open: u64) -> u64 {
    let limit = match share.drain {
        0 => share.quota.max(open),
        _ => share.quota,
    };
    limit.min(terms.persistent.cap)
}

/// What a guest was asked to give back of persistent memory.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Asked {
    /// What it has when it has done so, while that is not so.
    target: Option<u64>,
    /// What it had at the last step.
    used: u64,
    /// Steps since it gave something.
    idle: u32,
}

impl Asked {
    /// Returns how many bytes a guest is to be asked for that has `used` bytes, of which it is to
    /// drain some. What it was asked for already, and gives, it is not asked for again.
    pub(super) fn ask(&mut self, used: u64, drain: u64) -> u64 {
        self.idle = if used < self.used { 0 } else { self.idle + 1 };
        self.used = used;
        if drain == 0 || self.idle > PATIENCE {
            self.target = None;
        }
        if drain == 0 {
            return 0;
        }
        let goal = used - drain.min(used);
        let from = self.target.unwrap_or(used).min(used);
        if goal >= from {
            return 0;
        }
        self.target = Some(goal);
        self.idle = 0;
        from - goal
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Bounds;

    fn terms(guest: u32, weight: u32, min: u64, cap: u64) -> Terms {
        Terms {
            guest,
            name: guest.to_string(),
            weight,
            persistent: Bounds { min, cap },
            ephemeral: Bounds::NONE,
            tier: Default::default(),
        }
    }

    fn share(guest: u32, quota: u64, drain: u64) -> Share {
        Share {
            guest,
            quota,
            drain,
            owed: 0,
            ephemeral: 5,
        }
    }

    #[test]
    fn quotas_are_promises_and_limits() {
        let all = [
            terms(1, 100, 0, u64::MAX),
            terms(4, 9000, 0, 0),
            terms(2, 300, 100, 150),
            Terms {
                ephemeral: Bounds { min: 200, cap: 300 },
                ..terms(3, 400, 0, u64::MAX)
            },
        ];
        let plan = Plan {
            shares: vec![
                share(1, 40, 0),
                share(2, 150, 0),
                share(3, 70, 9),
                share(4, 0, 0),
            ],
            ..Plan::default()
        };
        let parts = parts(&all, &plan, 900);
        let part = |promised, limit| Part {
            promised,
            limit,
            ephemeral: Some(5),
        };
        // Its weighted part of half of what is not guaranteed, and all that is not to ephemeral pages.
        assert_eq!(parts[&1], part(37, 700));
        assert_eq!(parts[&2], part(150, 150));
        // It has to drain first.
        assert_eq!(parts[&3], part(70, 70));
        // It has no persistent pages, and no part of the others' memory for these.
        assert_eq!(parts[&4], part(0, 0));
    }

    #[test]
    fn nobody_is_asked_twice() {
        let mut asked = Asked::default();
        assert_eq!(asked.ask(100, 0), 0);
        assert_eq!(asked.ask(100, 30), 30);
        assert_eq!(asked.ask(100, 30), 0);
        assert_eq!(asked.ask(90, 20), 0);
        // More is to be drained by now.
        assert_eq!(asked.ask(90, 25), 5);
        assert_eq!(asked.ask(65, 0), 0);
        assert_eq!(asked.ask(65, 10), 10);
        // It does not follow.
        let again = (0..100).find(|_| asked.ask(65, 10) > 0);
        assert_eq!(again, Some(PATIENCE as usize));
    }
}
