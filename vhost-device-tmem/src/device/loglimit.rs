// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How much the log says of one guest.
//!
//! The limits belong to the guest's place on the command line, and not to a connection: whoever
//! connects again and again gets no more lines than who stays.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Lines, so many at once, and one more after each of some intervals.
#[derive(Debug)]
struct Bucket {
    burst: u32,
    every: Duration,
    /// When it will be full again; [`None`] if it is.
    full: Option<Instant>,
}

impl Bucket {
    const fn new(burst: u32, every: Duration) -> Self {
        Self {
            burst,
            every,
            full: None,
        }
    }

    /// Takes a line out; false if there is none.
    fn take(&mut self, now: Instant) -> bool {
        let full = self.full.map_or(now, |full| full.max(now)) + self.every;
        let may = full.saturating_duration_since(now) <= self.every * self.burst;
        if may {
            self.full = Some(full);
        }
        may
    }
}

/// What may still be said of a guest.
#[derive(Debug)]
pub(super) struct LogLimit {
    faults: Mutex<Bucket>,
    life: Mutex<Bucket>,
}

impl Default for LogLimit {
    fn default() -> Self {
        Self {
            faults: Mutex::new(Bucket::new(1, Duration::from_secs(10))),
            life: Mutex::new(Bucket::new(20, Duration::from_secs(5))),
        }
    }
}

impl LogLimit {
    /// Returns whether the log may speak of what the guest does wrong.
    pub(super) fn may_tell_fault(&self) -> bool {
        take(&self.faults)
    }

    /// Returns whether the log may speak of what the guest does at all: that it comes and goes.
    pub(super) fn may_tell_life(&self) -> bool {
        take(&self.life)
    }
}

fn take(bucket: &Mutex<Bucket>) -> bool {
    let mut bucket = bucket.lock().unwrap_or_else(PoisonError::into_inner);
    bucket.take(Instant::now())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_lines_come_at_once_and_the_others_one_by_one() {
        let (second, now) = (Duration::from_secs(1), Instant::now());
        let mut bucket = Bucket::new(3, second);
        let taken = |bucket: &mut Bucket, now| (0..10).filter(|_| bucket.take(now)).count();
        assert_eq!(taken(&mut bucket, now), 3);
        assert_eq!(taken(&mut bucket, now + second / 2), 0);
        assert_eq!(taken(&mut bucket, now + second), 1);
        assert_eq!(taken(&mut bucket, now + second * 3), 2);
        assert_eq!(taken(&mut bucket, now + second * 100), 3);
    }
}
