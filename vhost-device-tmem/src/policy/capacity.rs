// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The memory that is shared: less of it counts at once, more of it step by step.

use std::time::Duration;

/// The part of the capacity by which what is used of it grows each second. A host that was short may
/// well be short again.
const GROWTH: u64 = 64;

/// What is used of the capacity.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Usable(Option<u64>);

impl Usable {
    /// Follows the capacity, and returns how much of it is used. The first is used at once.
    pub(super) fn follow(&mut self, capacity: u64, elapsed: Duration) -> u64 {
        let grown = self.0.map(|before| {
            let millis = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
            let most = u128::from(capacity / GROWTH) * u128::from(millis) / 1000;
            before.saturating_add(u64::try_from(most).unwrap_or(u64::MAX))
        });
        let usable = grown.map_or(capacity, |grown| grown.min(capacity));
        self.0 = Some(usable);
        usable
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_falls_at_once_and_grows_slowly() {
        let second = Duration::from_secs(1);
        let mut usable = Usable::default();
        assert_eq!(usable.follow(6400, second), 6400);
        assert_eq!(usable.follow(1000, second), 1000);
        assert_eq!(usable.follow(6400, second), 1100);
        assert_eq!(usable.follow(6400, second / 2), 1150);
        assert_eq!(usable.follow(6400, Duration::MAX), 6400);
    }
}
