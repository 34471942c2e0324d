// SPDX-License-Identifier: GPL-2.0

//! Whether the device answers.
//!
//! A device that is slow is not gone: what it has is waited for, and nothing new is given to it
//! meanwhile. So the question is not whether to give the device up, but whether to wait for it,
//! and it is asked of each request by itself:
//!
//! - A request that the device was not told of is not waited for.
//! - Time counts only as the guest runs: one that was stopped, or did not get to look, has waited
//!   for no longer than from one look to the next.
//! - A request that comes back says nothing about one that does not.

/// How often to look while requests are in flight, as a part of how long an answer may take.
const LOOKS: u64 = 6;

/// What is to be known of a request in flight, where it is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InFlight {
    /// A number that no other request in the same place has had.
    pub serial: u64,
    /// Whether the device has been told of it.
    pub told: bool,
}

/// What is remembered of the request in one place.
#[derive(Clone, Copy, Default)]
struct Seen {
    serial: u64,
    /// When it was first seen that the device had been told, by the watchdog's own clock.
    since: Option<u64>,
}

/// What to make of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing has changed.
    AsBefore,
    /// The device does not answer any more.
    Silent {
        /// For how long the oldest request has been waited for, in milliseconds.
        waited: u64,
    },
    /// The device answers again.
    Answers {
        /// For how long it did not, in milliseconds.
        after: u64,
    },
    /// It has been waited for as long as anybody wants to wait.
    GiveUp {
        /// For how long the oldest request has been waited for, in milliseconds.
        waited: u64,
    },
}

/// Watches up to `N` requests in flight.
pub struct Watchdog<const N: usize> {
    /// How long an answer may take before the device counts as silent, in milliseconds.
    limit: u64,
    /// How long it may take before it is given up, if at all.
    give_up: Option<u64>,
    seen: [Seen; N],
    /// For how long the guest has run while requests were in flight, as far as it counts.
    clock: u64,
    /// When it was last looked, by the guest's clock, if requests were in flight then.
    last: Option<u64>,
    /// Since when the device has been silent, by the watchdog's clock.
    silent: Option<u64>,
}

impl<const N: usize> Watchdog<N> {
    /// Nothing is in flight, and the device is given so many milliseconds for an answer.
    pub const fn new(limit: u64, give_up: Option<u64>) -> Self {
        Self {
            limit,
            give_up,
            seen: [Seen {
                serial: 0,
                since: None,
            }; N],
            clock: 0,
            last: None,
            silent: None,
        }
    }

    /// Returns in how many milliseconds to look again while requests are in flight.
    pub fn period(&self) -> u64 {
        (self.limit / LOOKS).clamp(1, 1000)
    }

    /// Returns whether the device counts as silent.
    pub fn is_silent(&self) -> bool {
        self.silent.is_some()
    }

    /// Looks at the requests in flight at `now`, in milliseconds of a clock that never goes back.
    ///
    /// `in_flight` is asked about each place, from 0 to `N` - 1. What has come back is to be taken
    /// back before. Returns what to make of it, and whether anything is in flight.
    pub fn look(
        &mut self,
        now: u64,
        mut in_flight: impl FnMut(usize) -> Option<InFlight>,
    ) -> (Verdict, bool) {
        if let Some(last) = self.last {
            let ran = now
                .saturating_sub(last)
                .min(self.period().saturating_mul(2));
            self.clock = self.clock.saturating_add(ran);
        }

        let mut oldest: Option<u64> = None;
        let mut any = false;
        for (place, seen) in self.seen.iter_mut().enumerate() {
            let Some(flight) = in_flight(place) else {
                *seen = Seen::default();
                continue;
            };
            any = true;
            if seen.serial != flight.serial {
                *seen = Seen {
                    serial: flight.serial,
                    since: None,
                };
            }
            if flight.told {
                let since = *seen.since.get_or_insert(self.clock);
                oldest = Some(oldest.map_or(since, |oldest| oldest.min(since)));
            }
        }
        self.last = any.then_some(now);
        (self.judge(oldest), any)
    }

    fn judge(&mut self, oldest: Option<u64>) -> Verdict {
        let waited = oldest.map_or(0, |oldest| self.clock.saturating_sub(oldest));
        let overdue = waited >= self.limit;

        match self.silent {
            Some(_) if overdue && self.give_up.is_some_and(|give_up| waited >= give_up) => {
                Verdict::GiveUp { waited }
            }
            Some(since) if !overdue => {
                self.silent = None;
                Verdict::Answers {
                    after: self.clock.saturating_sub(since),
                }
            }
            None if overdue => {
                self.silent = Some(self.clock.saturating_sub(waited));
                Verdict::Silent { waited }
            }
            _ => Verdict::AsBefore,
        }
    }
}
