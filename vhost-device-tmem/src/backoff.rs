// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! When to try again what failed.

use std::time::{Duration, Instant};

/// The first pause.
const SHORTEST: Duration = Duration::from_millis(10);

/// The longest pause.
const LONGEST: Duration = Duration::from_secs(1);

/// Pauses between attempts of something that fails for the same reason again and again, such as a
/// connection for which no descriptor is left. Each pause is twice the one before. The log is to
/// hear of the first failure, and of the end.
#[derive(Clone, Debug, Default)]
pub struct Backoff {
    failures: u64,
    until: Option<Instant>,
}

impl Backoff {
    /// Notes a failure, and returns whether it is the first one: one for the log.
    pub fn failed(&mut self, now: Instant) -> bool {
        let doubled = u32::try_from(self.failures).map_or(u32::MAX, |n| 2u32.saturating_pow(n));
        self.until = Some(now + SHORTEST.saturating_mul(doubled).min(LONGEST));
        self.failures += 1;
        self.failures == 1
    }

    /// Notes a success, and returns how many failures there were before it.
    pub fn succeeded(&mut self) -> u64 {
        self.until = None;
        std::mem::take(&mut self.failures)
    }

    /// Returns when to try again, if that is not now.
    pub fn until(&self, now: Instant) -> Option<Instant> {
        self.until.filter(|&until| until > now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_end() {
        let start = Instant::now();
        let mut backoff = Backoff::default();
        assert_eq!(backoff.until(start), None);
        assert!(backoff.failed(start));
        assert_eq!(backoff.until(start), Some(start + SHORTEST));
        assert_eq!(backoff.until(start + SHORTEST), None);
        assert!(!backoff.failed(start));
        assert_eq!(backoff.until(start), Some(start + 2 * SHORTEST));
        for _ in 0..100 {
            assert!(!backoff.failed(start));
        }
        assert_eq!(backoff.until(start), Some(start + LONGEST));
        assert_eq!(backoff.succeeded(), 102);
        assert_eq!((backoff.until(start), backoff.succeeded()), (None, 0));
        assert!(backoff.failed(start));
        assert_eq!(backoff.until(start), Some(start + SHORTEST));
    }
}
