// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Answers that front-ends wait for: if a worker does not give one, the next worker has to.

use std::{
    sync::PoisonError,
    time::{Duration, Instant},
};

use super::{Hub, Inner};
use crate::link::{GuestId, LinkError, ToWorker};

/// How long a worker may take for an answer before it is replaced by another one.
const PATIENCE: Duration = Duration::from_secs(2);

/// How long workers together may take: after that the front-end is told something, since a virtual
/// machine stands still while it waits.
const LAST: Duration = Duration::from_secs(8);

impl Hub {
    /// Stops a virtqueue, and returns once nobody is at it any more.
    pub(in crate::supervisor) fn stop_ring(&self, guest: GuestId, ring: u16) {
        let stopped = self.insist(
            |inner| inner.state(guest).is_none_or(|state| !state.runs(ring)),
            |inner| inner.tell(&ToWorker::StopRing { guest, ring }, &[]),
        );
        if !stopped {
            tracing::error!("virtqueue {ring} of guest {guest} was not stopped: no worker answers");
            // The front-end has to hear something. Its next start begins where the ring is.
            if let Some(connection) = self.inner().connection(guest) {
                connection.state.stopped(ring, 0);
            }
        }
    }

    /// Returns once the worker has carried out everything that it was told so far.
    pub(in crate::supervisor) fn settle(&self) {
        let token = {
            let mut inner = self.inner();
            inner.asked += 1;
            inner.asked
        };
        let settled = self.insist(
            |inner| inner.answered >= token,
            |inner| inner.tell(&ToWorker::Ping { token }, &[]),
        );
        if !settled {
            tracing::error!("a front-end goes on though no worker answers");
        }
    }

    /// Asks each worker once, until it is done. Replaces a worker that takes too long. False if none
    /// did it.
    fn insist(
        &self,
        done: impl Fn(&mut Inner) -> bool,
        ask: impl Fn(&mut Inner) -> Result<(), LinkError>,
    ) -> bool {
        let last = Instant::now() + LAST;
        let mut until = Instant::now() + PATIENCE;
        let mut asked = None;
        let mut inner = self.inner();
        loop {
            if done(&mut inner) {
                return true;
            }
            let now = Instant::now();
            if now >= last {
                return false;
            }
            let number = inner.worker.as_ref().map(|worker| worker.number);
            if number.is_some() && number != asked {
                asked = number;
                until = now + PATIENCE;
                let sent = ask(&mut inner);
                self.check(&mut inner, sent);
            } else if number.is_some() && now >= until {
                self.give_up(&mut inner, "does not answer");
            }
            let left = last.min(until.max(now + PATIENCE / 4)) - now;
            let changed = self.changed.wait_timeout(inner, left);
            inner = changed.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}
