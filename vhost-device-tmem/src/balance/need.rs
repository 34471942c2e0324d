// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a guest needs, as far as figures say.

use super::{
    figures::{Figures, Rates},
    terms::UNIT,
};

/// How much a page that comes back from tmem costs, of what one costs that comes from a disk.
const FROM_TMEM: f64 = 0.25;

/// Seconds over which rates are averages.
const MEMORY: f64 = 20.0;

/// Pages a second that are as good as none: programs that start read that much.
const QUIET: f64 = 20.0;

/// Pages a second from which on a guest starves. Less is no reason to take from those who need more.
const STARVES: f64 = 200.0;

/// The part of a guest's memory that is kept available to it, and its bounds.
const RESERVE: u64 = 16;
const LEAST_RESERVE: u64 = 24 << 20;
const MOST_RESERVE: u64 = 1 << 30;

/// Seconds for which it is remembered what a guest needed when it had less: while it needs memory, and
/// while it does not.
const REMEMBERED: f64 = 600.0;
const REMEMBERED_QUIET: f64 = 180.0;

/// Looks for which a guest gives nothing in which a process was killed for want of memory.
const GRACE: u32 = 12;

/// What a guest needed when it had so much memory.
#[derive(Clone, Copy, Debug, Default)]
struct Worst {
    units: u64,
    needed: f64,
}

/// What a guest needs.
#[derive(Clone, Debug, Default)]
pub(super) struct Need {
    last: Option<Figures>,
    rates: Option<Rates>,
    /// Pages a second, by what they cost: at the last look, and on average.
    now: f64,
    mean: f64,
    /// When it was worst, which fades.
    worst: Worst,
    /// Looks that are left of [`GRACE`].
    grace: u32,
    /// Seconds since the guest told what is known last.
    since: f64,
}

impl Need {
    /// Takes note of time that goes by.
    pub(super) fn pass(&mut self, seconds: f64) {
        self.since += seconds;
    }

    /// Takes note of a look. Returns whether anything is known of the time since the one before.
    pub(super) fn observe(&mut self, figures: Figures, mut doubt: impl FnMut(String)) -> bool {
        self.grace = self.grace.saturating_sub(1);
        let Some(before) = self.last else {
            self.since = 0.0;
            self.last = Some(figures);
            return false;
        };
        if figures.updated == before.updated {
            let what = if figures.updated == 0 {
                "its balloon tells no figures, as where virtio_balloon is not loaded in it"
            } else {
                "its balloon has told no figures since the last look"
            };
            doubt(format!("{what}; the guest is left as it is"));
            return false;
        }
        let seconds = std::mem::take(&mut self.since);
        self.last = Some(figures);
        if before.updated == 0 {
            return false;
        }
        if figures.killed > before.killed && before.killed.is_some() {
            self.grace = GRACE;
            doubt("a process was killed for want of memory; the guest gives nothing".to_owned());
        }
        let rates = Rates::between(&before, &figures, seconds, doubt);
        let is_first = self.rates.is_none();
        self.rates = rates;
        let Some(rates) = rates else {
            return false;
        };
        self.now = rates.from_disk + rates.refused + rates.from_tmem * FROM_TMEM;
        let old = if is_first {
            0.0
        } else {
            (-seconds / MEMORY).exp()
        };
        self.mean = self.mean * old + self.now * (1.0 - old);
        let fades = if self.is_quiet() {
            REMEMBERED_QUIET
        } else {
            REMEMBERED
        };
        self.worst.needed *= (-seconds / fades).exp();
        if self.now >= self.worst.needed {
            self.worst = Worst {
                units: figures.actual.div_ceil(UNIT),
                needed: self.now,
            };
        }
        true
    }

    /// Returns what came back between the last two looks.
    pub(super) fn rates(&self) -> Option<Rates> {
        self.rates
    }

    /// Returns what more memory would gain, in pages a second: nothing where there is free memory,
    /// since what is read then is read for the first time. A need that is over is none.
    pub(super) fn gain(&self) -> f64 {
        let has_free = self.last.is_some_and(|of| {
            let free = of.free.unwrap_or(0);
            free > 2 * reserve(of.actual)
        });
        let gain = self.now.min(self.mean);
        if has_free || gain < QUIET {
            0.0
        } else {
            gain
        }
    }

    /// Returns whether so much comes back that it has a claim on what it has a right to.
    pub(super) fn starves(&self) -> bool {
        self.gain() >= STARVES
    }

    /// Returns the [`UNIT`]s with which it has not needed more lately, as far as it was seen with less.
    pub(super) fn does_with(&self) -> u64 {
        if self.worst.needed < QUIET {
            0
        } else {
            self.worst.units + 1
        }
    }

    /// Returns whether as good as nothing comes back. Who needed memory lately keeps it for a while.
    pub(super) fn is_quiet(&self) -> bool {
        self.now.max(self.mean) < QUIET
    }

    /// Returns whether it has memory that it does not use.
    pub(super) fn is_idle(&self) -> bool {
        self.is_quiet() && self.spare() > 0
    }

    /// Returns what it would cost, in pages a second, to have no more than so many [`UNIT`]s. It is least
    /// where most is spare, and not less than it was the last time.
    pub(super) fn loss(&self, units: u64) -> f64 {
        let loss = if self.is_idle() {
            1.0 / (1 + self.spare() / UNIT) as f64
        } else {
            self.now.max(self.mean).max(QUIET / 2.0)
        };
        if units <= self.worst.units {
            loss.max(self.worst.needed)
        } else {
            loss
        }
    }

    /// Returns the bytes that the guest has no use for.
    pub(super) fn spare(&self) -> u64 {
        self.last.map_or(0, |of| {
            let available = of.available.unwrap_or(0);
            available.saturating_sub(reserve(of.actual))
        })
    }

    /// Returns how much it gives at a step, in [`UNIT`]s and `most` at most: of what is spare no more
    /// than half, since whether it is shows only afterwards; and beyond that, a stride, only where it
    /// has somewhere to swap to.
    pub(super) fn gives(&self, stride: u64, most: u64) -> u64 {
        if self.grace > 0 {
            return 0;
        }
        let spare = self.spare() / UNIT / 2;
        let swaps = self.last.is_some_and(|of| of.swaps());
        if swaps { spare.max(stride) } else { spare }.min(most)
    }
}

/// Returns the bytes that are to be available to a guest of this size.
fn reserve(actual: u64) -> u64 {
    (actual / RESERVE).clamp(LEAST_RESERVE, MOST_RESERVE)
}
