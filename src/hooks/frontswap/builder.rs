// SPDX-License-Identifier: GPL-2.0

//! Asking the host for the pages of a request, or putting them there, whichever way the request came.

use crate::client::{
    Batch,
    Pool,
    Stop, //
};

use super::{
    drain::Putting,
    request::{
        Position,
        Request, //
    },
    Entered,
    Gets,
    Origin, //
};

/// Why the pages of a request are not put.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Reason {
    /// The area is in memory, as zram: its requests are completed before this returns, and it is fast.
    InMemory,
    /// The area is on a device that is to be left alone, or that puts them itself.
    LeftAlone,
    /// A drain is to leave nothing in the host.
    Draining,
    /// The device is not there yet, or not any more.
    NotRunning,
    /// The device has no room.
    NoCredit,
}

impl Reason {
    /// Counts so many pages that are not put.
    pub(super) fn count(self, context: &Entered, pages: u64) {
        let counters = context.client.counters(Pool::Frontswap);
        let counter = match self {
            Self::InMemory => &counters.in_memory,
            Self::LeftAlone => &counters.left_alone,
            Self::Draining => &counters.draining,
            Self::NotRunning => &counters.not_running,
            Self::NoCredit => &counters.no_credit,
        };

        // CAST: It is the length of a request.
        counter.add(pages as usize);
    }
}

/// Returns the right to put pages, or why there is none.
pub(super) fn may_put(context: &Entered) -> Result<Putting<'_>, Reason> {
    let client = &context.client;

    if !client.puts_here(Pool::Frontswap) {
        if !client.running() {
            return Err(Reason::NotRunning);
        }
        if client.credits(Pool::Frontswap) == 0 {
            return Err(Reason::NoCredit);
        }
    }
    context.drain.begin_put().ok_or(Reason::Draining)
}

/// Builds the batches of a request.
pub(super) struct Builder<'a, R: Request> {
    context: &'a Entered,
    request: R,
    /// What the pages are got with; without, they are put.
    gets: Option<Gets<'a>>,
    pub(super) batch: Option<Batch<Origin>>,
    /// Pages that have been dealt with: pushed, or counted as not put.
    counted: u64,
}

impl<'a, R: Request> Builder<'a, R> {
    pub(super) fn new(context: &'a Entered, request: R, gets: Option<Gets<'a>>) -> Self {
        Self {
            context,
            request,
            gets,
            batch: None,
            counted: 0,
        }
    }

    /// Asks for, or puts, all the pages of the request. Sleeps.
    ///
    /// The folio of a page that is not there to be got, or cannot be put, has failed. In the latter
    /// case all will go to the area: no need to ask about the rest.
    pub(super) fn run(mut self) {
        let request = self.request;
        let mut at = Position::START;

        'all: while let Some(run) = request.run(at) {
            let mut done = 0;

            if self.gets.is_none() {
                request.note(run.tag);
            }
            while done < run.len {
                let key = (run.tag, run.index + done);
                // What is in the window, or goes there, needs no request.
                let here = self.here(key, (run.len - done) as usize, &mut at);

                done += here;
                self.counted += here;
                if here > 0 {
                    continue;
                }
                // CAST: A run is not longer than an object.
                let (count, stop) = self.push(key, (run.len - done) as usize, &mut at);

                done += count as u64;
                match stop {
                    Stop::Done => (),
                    Stop::Full if self.batch.as_ref().is_some_and(|batch| batch.len() > 0) => {
                        self.submit();
                    }
                    Stop::Full | Stop::Refused => {
                        request.fail(at.place);
                        if self.gets.is_none() {
                            self.count_rest();
                            break 'all;
                        }
                        if request.next(&mut at).is_none() {
                            break 'all;
                        }
                        done += 1;
                    }
                }
            }
        }
        self.submit();
        // What fails to be read may be read from the disk, and that be waited for; what fails to be
        // put is only handed to it.
        let may_sleep = self.gets.is_none() || R::MAY_WAIT;

        // Before somebody may sleep.
        drop(self.gets.take());
        request.put(self.context, may_sleep);
    }

    /// Gets pages from the window, or puts them there; returns how many of the first, which is also
    /// how far the position has moved on. Any context.
    fn here(&self, key: (u64, u64), count: usize, at: &mut Position) -> u64 {
        let client = &self.context.client;
        let mut ahead = *at;
        let mut looked_at = 0;
        let mut next = || {
            looked_at += 1;
            Some(self.request.next(&mut ahead)?.0)
        };

        let here = if self.gets.is_some() {
            client.get_here(Pool::Frontswap, key, count, |_| next()).got
        } else {
            client.put_here(Pool::Frontswap, key, count, core::iter::from_fn(next))
        };
        if here == looked_at {
            *at = ahead;
        } else {
            // More were looked at than were dealt with.
            for _ in 0..here {
                let _ = self.request.next(at);
            }
        }
        // CAST: To as many bits.
        here as u64
    }

    fn push(&mut self, key: (u64, u64), count: usize, at: &mut Position) -> (usize, Stop) {
        let client = &self.context.client;
        let pages = core::iter::from_fn(|| self.request.next(at));

        if self.batch.is_none() {
            self.batch = match &mut self.gets {
                Some(gets) => gets.begin_waiting(Pool::Frontswap).ok(),
                None => client.begin_put(Pool::Frontswap),
            };
        }
        match (&mut self.batch, &self.gets) {
            (Some(batch), Some(_)) => client.push_gets(batch, key, count, pages),
            (Some(batch), None) => {
                let asked = count.min(client.room(batch));
                let (done, stop) = client.push_puts(batch, key, count, pages);

                // Of those that it was asked for and did not take, the client has counted each.
                self.counted += match stop {
                    Stop::Refused => asked as u64,
                    Stop::Done | Stop::Full => done as u64,
                };
                (done, stop)
            }
            (None, _) => (0, Stop::Refused),
        }
    }

    /// Counts those pages that are not put because another one of the request is not.
    fn count_rest(&self) {
        let counters = self.context.client.counters(Pool::Frontswap);
        let rest = self.request.pages().saturating_sub(self.counted);

        // CAST: There are at most 32 folios.
        if self.batch.is_none() && self.counted == 0 {
            counters.not_running.add(rest as usize);
        } else {
            counters.with_others.add(rest as usize);
        }
    }

    fn submit(&mut self) {
        if let Some(batch) = self.batch.take() {
            if batch.len() == 0 {
                self.context.client.cancel(batch);
                return;
            }
            self.request.get();
            let origin = self.request.origin();
            match &mut self.gets {
                Some(gets) => gets.submit(batch, origin),
                None => self.context.client.submit(batch, origin),
            }
        }
    }
}
