// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a guest's ephemeral memory is worth to it, by what it got and what it missed.
//!
//! A hit of a page that was put *a* seconds before means that one page of memory paid for *a*
//! seconds. Hits per second times their ages (Little's law) are therefore the pages that paid: the
//! part of a share that is in *use*. A flood of puts adds nothing to it, and nobody can claim more
//! of it than the memory that it has: hits beyond that are scaled down, whatever a guest says.
//!
//! Values are in hits per second and page. All rates are averages over some seconds, and those that
//! are compared are apart by what chance makes of such an average: a guest is thought to gain what it
//! surely does, and to lose what it possibly would.

use std::time::Duration;

use super::figures::{EphemeralFigures, AGES, PAGE};

/// The seconds that rates are averages over.
const PERIOD: f64 = 16.0;

/// The seconds after which a guest that does nothing is as good as idle.
const IDLE_PERIOD: f64 = 64.0;

/// The times what pays that a guest may have and lose something: pages do not come in the order in
/// which they will be wanted, and what is asked for next is among those that did not pay yet.
const SLACK: f64 = 2.0;

/// The part of all hits that the oldest ones are at least.
const OLDEST: f64 = 0.125;

/// The part of what it gets that a guest may miss and be content. What is missed so rarely is not
/// worth moving memory for, to and fro as chance will have it.
const CONTENT: f64 = 1.0 / 1024.0;

/// The least that `reach` is taken for, in pages, and as a part of the share: so few misses in so
/// little memory say nothing.
const LEAST_REACH: (f64, f64) = (256.0, 0.125);

/// What a page was aged, in seconds, that was hit in a time of [`EphemeralFigures::hits_by_age`].
fn age(n: usize) -> f64 {
    match n {
        0 => 0.5,
        _ => 0.75 * f64::from(1u32 << n),
    }
}

/// What a little memory is worth, more of it or less.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Value {
    /// What it surely gains by more.
    pub(super) gain: f64,
    /// What it possibly loses by less; never below `gain`.
    pub(super) loss: f64,
    /// The bytes that are in use, with some slack.
    pub(super) used: u64,
    /// It got nothing, and missed nothing.
    pub(super) is_idle: bool,
}

/// What is known of a guest's use of its share.
#[derive(Clone, Copy, Debug)]
pub(super) struct Estimate {
    /// Pages a second, by age.
    hits: [f64; AGES],
    /// Pages a second.
    missed: f64,
    /// Pages.
    reach: f64,
    /// The part of the share in use, as an average over a longer time.
    activity: f64,
}

impl Default for Estimate {
    /// One who just came is taken for active, so that it gets the chance to show what it needs.
    fn default() -> Self {
        Self {
            hits: [0.0; AGES],
            missed: 0.0,
            reach: 0.0,
            activity: 1.0,
        }
    }
}

impl Estimate {
    /// Takes note of what happened while the guest had this share.
    pub(super) fn observe(&mut self, figures: &EphemeralFigures, share: u64, elapsed: Duration) {
        let seconds = elapsed.as_secs_f64();
        if seconds <= 0.0 {
            return;
        }
        let pages = share.max(figures.used) as f64 / PAGE as f64;
        let ages = figures.hits_by_age.iter().enumerate();
        let paid: f64 = ages.map(|(n, hits)| *hits as f64 * age(n)).sum::<f64>() / seconds;
        let scale = if paid > pages { pages / paid } else { 1.0 };

        let reach = match figures.reach {
            0 => share.max(figures.used),
            reach => reach,
        };
        let reach = reach as f64 / PAGE as f64;
        let reach = reach.max(LEAST_REACH.0).max(pages * LEAST_REACH.1);
        // A page is missed once, and has to come back before it is again.
        let missed = (figures.missed as f64 / seconds).min(reach);

        let part = seconds / (seconds + PERIOD);
        let follow = |average: &mut f64, now: f64| *average += part * (now - *average);
        for (average, hits) in self.hits.iter_mut().zip(figures.hits_by_age) {
            follow(average, hits as f64 / seconds * scale);
        }
        follow(&mut self.missed, missed);
        self.reach = reach;
        let active = match share {
            0 => 1.0,
            _ => (SLACK * self.paid() * PAGE as f64 / share as f64).min(1.0),
        };
        self.activity += seconds / (seconds + IDLE_PERIOD) * (active - self.activity);
    }

    /// Returns the pages that paid.
    fn paid(&self) -> f64 {
        let paid = self.hits.iter().enumerate().map(|(n, hits)| hits * age(n));
        paid.sum()
    }

    /// Returns the rate of the oldest hits: those that go first where the share becomes smaller, and
    /// that more of would come where it grows.
    fn oldest(&self, hits: f64) -> f64 {
        let mut sum = 0.0;
        for rate in self.hits.iter().rev() {
            sum += rate;
            if sum >= hits * OLDEST {
                break;
            }
        }
        sum
    }

    /// Returns the part of its share that the guest uses, from 0 to 1.
    pub(super) fn activity(&self) -> f64 {
        self.activity
    }

    /// Returns what a little of the share is worth.
    pub(super) fn value(&self, share: u64) -> Value {
        let pages = (share as f64 / PAGE as f64).max(1.0);
        let hits: f64 = self.hits.iter().sum();
        let reach = self.reach.max(LEAST_REACH.0).max(pages * LEAST_REACH.1);
        let paid = self.paid();
        // 1 where all of the share pays, 0 where no more does than leaves the slack.
        let tight = (SLACK - pages / paid.max(1.0)).clamp(0.0, 1.0);
        let missed = (surely(self.missed) - hits * CONTENT).max(0.0);
        let gain = (missed / reach).max(surely(self.oldest(hits)) / pages * tight);
        let loss = (possibly(self.missed) / reach).max(possibly(hits) / pages * tight);
        Value {
            gain,
            loss: loss.max(gain),
            used: ((SLACK * paid * PAGE as f64) as u64).min(share),
            is_idle: hits + self.missed < 1.0 / PERIOD,
        }
    }
}

/// Returns what is hardly more than the rate whose average this is.
fn surely(rate: f64) -> f64 {
    (rate - (rate / PERIOD).sqrt()).max(0.0)
}

/// Returns what is hardly less than the rate whose average this is.
fn possibly(rate: f64) -> f64 {
    rate + ((rate + 1.0 / PERIOD) / PERIOD).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn after(figures: EphemeralFigures, share: u64) -> Estimate {
        let mut estimate = Estimate::default();
        for _ in 0..1000 {
            estimate.observe(&figures, share, Duration::from_secs(1));
        }
        estimate
    }

    fn hits(age: usize, count: u64) -> EphemeralFigures {
        let mut figures = EphemeralFigures::default();
        figures.hits_by_age[age] = count;
        figures
    }

    #[test]
    fn pages_that_pay_are_hits_times_their_age() {
        // 100 hits a second, 12 s after the put: 1,200 pages, and as much slack.
        let value = after(hits(4, 100), 64 * MIB).value(64 * MIB);
        assert!(value.used.abs_diff(2400 * PAGE) < PAGE, "{value:?}");
    }

    #[test]
    fn what_does_not_pay_is_worth_nothing() {
        let estimate = after(hits(4, 100), 64 * MIB);
        let (wide, tight) = (estimate.value(64 * MIB), estimate.value(5 * MIB));
        assert_eq!(wide.gain, 0.0);
        assert!(tight.loss > 100.0 * wide.loss, "{wide:?} {tight:?}");
        assert!(!wide.is_idle);
        assert!(after(hits(4, 0), MIB).value(MIB).is_idle);
    }

    #[test]
    fn nobody_claims_more_than_its_memory() {
        let mut absurd = EphemeralFigures {
            hits_by_age: [u64::MAX; AGES],
            missed: u64::MAX,
            reach: u64::MAX,
            used: 0,
        };
        for reach in [0, 1, MIB, u64::MAX] {
            absurd.reach = reach;
            let value = after(absurd, 64 * MIB).value(64 * MIB);
            assert!(value.used <= 64 * MIB, "{value:?}");
            assert!(value.gain <= 1.0 && value.loss <= 2.0, "{value:?}");
        }
    }

    #[test]
    fn misses_are_worth_memory_and_few_say_little() {
        let missed = |missed| EphemeralFigures {
            missed,
            reach: 4 * MIB,
            ..EphemeralFigures::default()
        };
        let value = |count| after(missed(count), 16 * MIB).value(16 * MIB);
        assert!(value(100).gain > 0.08 && value(100).gain < 0.1);
        assert!(value(100).gain > value(50).gain);
        assert_eq!(value(0).gain, 0.0);
        assert!(value(0).loss > 0.0);
    }

    #[test]
    fn who_hardly_misses_anything_is_content() {
        let mut figures = hits(0, 4096);
        figures.missed = 4;
        assert_eq!(after(figures, 64 * MIB).value(64 * MIB).gain, 0.0);
        figures.missed = 16;
        assert!(after(figures, 64 * MIB).value(64 * MIB).gain > 0.0);
    }

    #[test]
    fn activity_fades() {
        let mut estimate = Estimate::default();
        assert_eq!(estimate.activity(), 1.0);
        let mut before = 1.0;
        for _ in 0..200 {
            estimate.observe(&hits(0, 0), MIB, Duration::from_secs(1));
            assert!(estimate.activity() < before);
            before = estimate.activity();
        }
        assert!(before < 0.1);
    }
}
