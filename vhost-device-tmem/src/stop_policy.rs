// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Whether to stop when asked to, though guests would lose pages by it.
//!
//! A persistent page is one that only the daemon has. Who loses such pages gets I/O errors, and a
//! guest most often does not survive that. So whoever stops the daemon while it holds some is told
//! so, and has to ask twice.

use std::time::{Duration, Instant};

/// How long after the first time the second one counts.
pub const WINDOW: Duration = Duration::from_secs(10);

/// How somebody asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// By a signal, or `tmemctl stop`.
    Plainly,
    /// By `tmemctl stop --force`: it is known what is lost.
    ByForce,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// To stop; so many pages are lost.
    Stop {
        /// Persistent pages that guests had put.
        loses: u64,
    },
    /// To go on, and to say what would be lost: so many pages.
    Refuse {
        /// Persistent pages that guests have put.
        would_lose: u64,
    },
}

/// Decides about each request to stop.
#[derive(Clone, Debug, Default)]
pub struct StopPolicy {
    /// Stops at the first time.
    loses_pages: bool,
    refused: Option<Instant>,
}

impl StopPolicy {
    /// A policy, to which the loss of pages matters or (`--stop-loses-pages`) does not.
    pub fn new(loses_pages: bool) -> Self {
        Self {
            loses_pages,
            refused: None,
        }
    }

    /// Decides at `now`, while `persistent` pages are held.
    pub fn decide(&mut self, now: Instant, asked: Asked, persistent: u64) -> Decision {
        let again = self
            .refused
            .is_some_and(|before| now.saturating_duration_since(before) <= WINDOW);
        if persistent == 0 || self.loses_pages || asked == Asked::ByForce || again {
            return Decision::Stop { loses: persistent };
        }
        self.refused = Some(now);
        Decision::Refuse {
            would_lose: persistent,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STOP: Decision = Decision::Stop { loses: 7 };
    const REFUSE: Decision = Decision::Refuse { would_lose: 7 };

    #[test]
    fn who_loses_pages_is_asked_twice() {
        let start = Instant::now();
        let mut policy = StopPolicy::new(false);
        assert_eq!(policy.decide(start, Asked::Plainly, 7), REFUSE);
        assert_eq!(policy.decide(start + WINDOW, Asked::Plainly, 7), STOP);
        // The second time came too late, and is the first one of two.
        let mut policy = StopPolicy::new(false);
        let late = start + WINDOW + Duration::from_nanos(1);
        assert_eq!(policy.decide(start, Asked::Plainly, 7), REFUSE);
        assert_eq!(policy.decide(late, Asked::Plainly, 7), REFUSE);
        assert_eq!(policy.decide(late, Asked::Plainly, 7), STOP);
    }

    #[test]
    fn who_loses_nothing_or_knows_is_not_asked() {
        let now = Instant::now();
        let nothing = Decision::Stop { loses: 0 };
        let mut policy = StopPolicy::new(false);
        assert_eq!(policy.decide(now, Asked::Plainly, 0), nothing);
        assert_eq!(policy.decide(now, Asked::ByForce, 7), STOP);
        let mut policy = StopPolicy::new(true);
        assert_eq!(policy.decide(now, Asked::Plainly, 7), STOP);
    }
}
