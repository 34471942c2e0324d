// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How long a virtqueue is looked at before its notifications are waited for.

use std::time::{Duration, Instant};

/// The first time that is worth looking for.
const FIRST: Duration = Duration::from_micros(10);

/// How long a virtqueue is looked at for its next request.
///
/// A driver need not notify a device that looks, which saves the guest an exit; but the processor is
/// kept from others meanwhile. As halt polling of KVM does, it grows where the next request came
/// soon after the virtqueue was not looked at any more, and ends where it did not: a guest that
/// asks for nothing costs nothing. It ends as well where a request was found after more than the
/// longest time: then the thread had to wait for the processor, and whoever sleeps has it sooner.
#[derive(Debug)]
pub(super) struct Polling {
    most: Duration,
    now: Duration,
    /// Since when the virtqueue is empty, as far as it was seen.
    empty: Option<Instant>,
}

impl Polling {
    /// Looks for no longer than `most`; never if that is 0.
    pub(super) fn new(most: Duration) -> Self {
        Self {
            most,
            now: Duration::ZERO,
            empty: None,
        }
    }

    /// The virtqueue is empty. Returns whether to look at it for a while.
    pub(super) fn begin(&mut self, now: Instant) -> bool {
        self.empty = Some(now);
        !self.now.is_zero()
    }

    /// Returns whether it was looked at for long enough.
    pub(super) fn is_over(&self, now: Instant) -> bool {
        self.empty
            .is_none_or(|empty| now.saturating_duration_since(empty) >= self.now)
    }

    /// A request was found by looking.
    pub(super) fn found(&mut self, now: Instant) {
        if let Some(empty) = self.empty.take() {
            if now.saturating_duration_since(empty) > self.most {
                self.now = Duration::ZERO;
            }
        }
    }

    /// Learns from how long it took until the driver notified.
    pub(super) fn woken(&mut self, now: Instant) {
        if let Some(empty) = self.empty.take() {
            self.learn(now.saturating_duration_since(empty));
        }
    }

    fn learn(&mut self, waited: Duration) {
        if waited > self.most {
            self.now = Duration::ZERO;
        } else if waited > self.now {
            self.now = (self.now * 2).max(FIRST).min(self.most);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: Duration = Duration::from_micros(50);

    fn after(waits: &[u64]) -> Duration {
        let mut polling = Polling::new(MOST);
        let now = Instant::now();
        for wait in waits {
            polling.begin(now);
            polling.woken(now + Duration::from_micros(*wait));
        }
        polling.now
    }

    #[test]
    fn it_grows_with_requests_that_come_soon() {
        assert_eq!(after(&[]), Duration::ZERO);
        assert_eq!(after(&[40]), FIRST);
        assert_eq!(after(&[40, 40]), FIRST * 2);
        assert_eq!(after(&[40, 40, 40]), FIRST * 4);
        assert_eq!(after(&[40, 45, 45, 45]), MOST);
        // Looking for so long would have been enough.
        assert_eq!(after(&[40, 40, 15]), FIRST * 2);
    }

    #[test]
    fn it_ends_with_one_that_comes_late() {
        assert_eq!(after(&[40, 40, 51]), Duration::ZERO);
        assert_eq!(after(&[40, 40, 51, 10]), FIRST);
    }

    #[test]
    fn it_looks_only_where_that_is_worth_it() {
        let now = Instant::now();
        let mut polling = Polling::new(MOST);
        assert!(!polling.begin(now));
        polling.woken(now + FIRST);
        assert!(polling.begin(now));
        assert!(!polling.is_over(now + FIRST / 2));
        assert!(polling.is_over(now + FIRST));
        let mut never = Polling::new(Duration::ZERO);
        for _ in 0..2 {
            assert!(!never.begin(now));
            never.woken(now);
        }
    }

    #[test]
    fn what_is_found_late_was_not_worth_looking_for() {
        let now = Instant::now();
        let mut polling = Polling::new(MOST);
        polling.begin(now);
        polling.woken(now + FIRST);
        polling.begin(now);
        polling.found(now + MOST);
        assert!(polling.begin(now), "it is worth it");
        polling.found(now + MOST * 2);
        assert!(!polling.begin(now));
    }
}
