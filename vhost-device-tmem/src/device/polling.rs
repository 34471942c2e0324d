// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Looking at a virtqueue for a while before going to sleep.

use std::{
    thread,
    time::{Duration, Instant},
};

/// The first time that is worth looking for.
const FIRST: Duration = Duration::from_micros(10);

/// What a look found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    /// There is a request.
    Found,
    /// There is none.
    Nothing,
    /// There is something else to be done than to look.
    Leave,
}

/// How long a worker looks for the next request.
///
/// A driver need not notify a device that looks, which saves the guest an exit; but the processor is
/// kept from others meanwhile. As halt polling of KVM does, it grows where the next request came
/// soon after the worker went to sleep, and ends where it did not: a guest that asks for nothing
/// costs nothing.
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

    /// Learns from how long it took until the worker was woken.
    pub(super) fn woken(&mut self) {
        if let Some(empty) = self.empty.take() {
            self.learn(empty.elapsed());
        }
    }

    fn learn(&mut self, waited: Duration) {
        if waited > self.most {
            self.now = Duration::ZERO;
        } else if waited > self.now {
            self.now = (self.now * 2).max(FIRST).min(self.most);
        }
    }

    /// The virtqueue is empty. Looks at it until that changes or the time is over, and returns what
    /// it saw last; [`None`] if it is not the time to look.
    ///
    /// # Errors
    ///
    /// Those of `look`.
    pub(super) fn wait<E>(
        &mut self,
        mut look: impl FnMut() -> Result<Look, E>,
    ) -> Result<Option<Look>, E> {
        if self.most.is_zero() {
            return Ok(None);
        }
        let start = Instant::now();
        self.empty = Some(start);
        if self.now.is_zero() {
            return Ok(None);
        }
        loop {
            let seen = look()?;
            match seen {
                Look::Found => self.empty = None,
                Look::Nothing if start.elapsed() < self.now => {
                    // Whoever else has something to do goes first: the workers of other guests,
                    // and the guests' own processors.
                    thread::yield_now();
                    continue;
                }
                Look::Nothing | Look::Leave => {}
            }
            return Ok(Some(seen));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    const MOST: Duration = Duration::from_micros(50);

    fn after(waits: &[u64]) -> Duration {
        let mut polling = Polling::new(MOST);
        for wait in waits {
            polling.learn(Duration::from_micros(*wait));
        }
        polling.now
    }

    fn wait(polling: &mut Polling, looks: &[Look]) -> Option<Look> {
        let mut looks = looks.iter();
        let look = || Ok::<_, Infallible>(*looks.next().expect("it looks no further"));
        let Ok(seen) = polling.wait(look);
        seen
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
        let mut polling = Polling::new(MOST);
        assert_eq!(wait(&mut polling, &[]), None);
        polling.learn(FIRST);
        assert_eq!(wait(&mut polling, &[Look::Found]), Some(Look::Found));
        // It did not go to sleep, so there is nothing to learn.
        assert_eq!(polling.empty, None);
        let mut never = Polling::new(Duration::ZERO);
        never.learn(FIRST);
        never.woken();
        assert_eq!(wait(&mut never, &[]), None);
    }

    #[test]
    fn it_looks_until_there_is_something() {
        let mut polling = Polling::new(Duration::from_secs(600));
        polling.now = polling.most;
        for last in [Look::Found, Look::Leave] {
            let looks = [Look::Nothing, Look::Nothing, last];
            assert_eq!(wait(&mut polling, &looks), Some(last));
        }
        assert!(polling.empty.is_some());
        polling.now = Duration::from_nanos(1);
        let seen = polling.wait(|| Ok::<_, Infallible>(Look::Nothing));
        assert_eq!(seen, Ok(Some(Look::Nothing)));
    }
}
