// SPDX-License-Identifier: GPL-2.0

//! For how long whoever waits for an answer looks for it, before an interrupt has to tell.
//!
//! Looking pays off where answers come soon: it saves the interrupt, and two switches of tasks.
//! Where they do not it is a waste. So what is learned from one answer is used for the next: the
//! window follows how long answers take, up to a limit, and there is none while they take longer
//! than that, but for a trial now and then.

/// How much longer than an answer usually takes it is looked for.
const MARGIN: u32 = 4;

/// How many answers in a row may take longer than the limit before nobody looks any more.
const FAILURES: u16 = 4;

/// One of so many looks all the same then.
pub const TRIAL: u16 = 64;

/// What is known of how long answers take, in nanoseconds. It fits into a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// Zero if it does not pay off to look.
    window: u32,
    /// How many answers in a row took longer than the limit.
    failures: u16,
    /// How many in a row were not looked for.
    skipped: u16,
}

impl Patience {
    /// Nothing is known, but that nobody is to look for longer than `limit`.
    #[inline]
    pub const fn new(limit: u32) -> Self {
        Self {
            window: limit,
            failures: 0,
            skipped: 0,
        }
    }

    /// The word for it.
    #[inline]
    pub fn to_word(self) -> u64 {
        (u64::from(self.window) << 32) | (u64::from(self.failures) << 16) | u64::from(self.skipped)
    }

    /// What a word stands for.
    #[inline]
    pub fn from_word(word: u64) -> Self {
        // CAST: The parts of the word.
        Self {
            window: (word >> 32) as u32,
            failures: (word >> 16) as u16,
            skipped: word as u16,
        }
    }

    /// Returns for how long to look, if at all, and what is known then.
    #[inline]
    pub fn look(self, limit: u32) -> (Option<u32>, Self) {
        if self.window > 0 {
            return (Some(self.window.min(limit)), self);
        }
        let skipped = self.skipped.saturating_add(1);
        if skipped < TRIAL {
            return (None, Self { skipped, ..self });
        }
        (Some(limit), Self { skipped: 0, ..self })
    }

    /// Takes note of an answer that came while it was looked for.
    #[inline]
    pub fn answered(self, waited: u32, limit: u32) -> Self {
        let wanted = waited.max(1).saturating_mul(MARGIN).min(limit);
        let window = match self.window {
            0 => wanted,
            // An eighth of the way: one that came late, or early, says little. Neither is zero, so
            // that this is not either.
            old => (old.saturating_sub(old / 8).saturating_add(wanted / 8)).max(1),
        };
        Self {
            window,
            failures: 0,
            skipped: 0,
        }
    }

    /// Takes note of an answer that had not come when the window was over.
    #[inline]
    pub fn gave_up(self, limit: u32) -> Self {
        if self.window == 0 {
            return self;
        }
        if self.window < limit {
            let window = self.window.saturating_mul(2).min(limit);
            return Self { window, ..self };
        }
        let failures = self.failures.saturating_add(1);
        if failures < FAILURES {
            return Self { failures, ..self };
        }
        Self {
            window: 0,
            failures: 0,
            skipped: 0,
        }
    }
}
