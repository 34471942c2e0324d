// SPDX-License-Identifier: GPL-2.0

//! Requests about pages, from the first page to the outcome.

use kernel::{
    prelude::*,
    sync::atomic::Relaxed,
    time::{
        delay::fsleep,
        Delta, //
    },
};
use virtio_tmem_abi::Opcode;

use crate::{
    bindings::{
        page::PageRef,
        trace, //
    },
    virtio::queue::{
        Notify,
        Poller,
        Rejected, //
    },
};

use super::{
    logic::index::{
        Completed,
        Entry,
        Found,
        Outcome as Put, //
    },
    request::{
        Origin,
        Outcomes,
        Page,
        Request, //
    },
    Client,
    Pool,
    RESERVE, //
};

/// The slot of a page that is not in the staging memory.
const NO_SLOT: u32 = u32::MAX;

/// A request that is being built.
///
/// It has to be [submitted](Client::submit) or [cancelled](Client::cancel).
#[must_use = "the pages in it are waiting for an outcome"]
pub(crate) struct Batch<O: Origin> {
    pub(super) request: KBox<Request<O>>,
    pub(super) queue: Option<usize>,
    pool: Pool,
}

impl<O: Origin> Batch<O> {
    /// Returns how many pages are in it.
    pub(crate) fn len(&self) -> usize {
        self.request.count
    }

    /// Changes what is to be told with the outcome of the last page.
    pub(crate) fn set_last(&mut self, mine: O::Page) {
        let last = self.request.count.wrapping_sub(1);

        if let Some(page) = self.request.pages.get_mut(last) {
            page.mine = mine;
        }
    }
}

/// A request that the device could not be given yet.
pub(super) struct Waiting<O: Origin> {
    queue: usize,
    request: KBox<Request<O>>,
    /// Whether the virtqueue has to get emptier first.
    full: bool,
}

/// Why no more pages went into a batch.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stop {
    /// All that there were did.
    Done,
    /// The next one has to go into another batch.
    Full,
    /// The next one cannot be put, or is not there to be got.
    Refused,
}

impl<O: Origin> Client<O> {
    /// Begins a batch of puts of pages that stay where they are until the outcome is known.
    ///
    /// Waits for a request where there is none, and sleeps for it. [`None`] if the device does not
    /// take pages any more.
    pub(crate) fn begin_put(&self, pool: Pool) -> Option<Batch<O>> {
        if !self.running() {
            return None;
        }
        self.begin(self.requests.take()?, Opcode::Put, pool, 0)
    }

    /// Begins a batch, unless so few requests would be left that somebody may have to wait.
    pub(super) fn begin_spare(&self, opcode: Opcode, pool: Pool) -> Option<Batch<O>> {
        self.begin(self.requests.try_take(RESERVE)?, opcode, pool, 0)
    }

    pub(super) fn begin(
        &self,
        mut request: KBox<Request<O>>,
        opcode: Opcode,
        pool: Pool,
        flags: u16,
    ) -> Option<Batch<O>> {
        if request
            .begin(opcode, pool.number(), self.epoch.load(Relaxed), flags)
            .is_err()
        {
            self.requests.give(request);
            return None;
        }
        Some(Batch {
            request,
            queue: None,
            pool,
        })
    }

    /// Returns how many more pages fit into a batch, if they are of the same object.
    pub(crate) fn room(&self, batch: &Batch<O>) -> usize {
        self.max_pages.saturating_sub(batch.len())
    }

    /// Puts the `count` pages at `index..` into a batch of puts, and returns how many went in.
    ///
    /// They have to stay as they are, but for what does not matter, until the outcome is known. An
    /// earlier page in the place of one that went in, or of the one that was refused, cannot be got
    /// any more, whatever happens. `pages` has to have so many, and no more are taken than go in.
    /// Does not sleep.
    pub(crate) fn push_puts(
        &self,
        batch: &mut Batch<O>,
        (tag, index): (u64, u64),
        count: usize,
        mut pages: impl Iterator<Item = (PageRef, O::Page)>,
    ) -> (usize, Stop) {
        let half = self.half(batch.pool);
        let queue = self.put_queue(tag);
        let room = count.min(self.room(batch));

        if room == 0 || batch.queue.is_some_and(|q| q != queue) {
            return (0, Stop::Full);
        }
        let Some(mut shard) = half.shard(tag) else {
            return (0, Stop::Refused);
        };
        let admitted = half.admit(room);
        let request = &mut batch.request;
        // CAST: There are at most 32.
        let pushed = shard.insert_run(tag, index, admitted as u64, |n, inserted| {
            let Some((page, mine)) = pages.next() else {
                return NO_SLOT;
            };
            let entry = Page {
                tag,
                crc: 0,
                checked: false,
                covers: Some(inserted.covers),
                mine,
            };

            // It fits: see above.
            let _ = request
                .push_key(
                    inserted.wire,
                    index.wrapping_add(n),
                    inserted.version,
                    entry,
                )
                .and_then(|()| request.frame.push_page(page));
            NO_SLOT
        }) as usize;
        half.counters.no_memory.add(admitted - pushed);
        let refused = pushed < room;
        if refused {
            shard.erase(tag, index.wrapping_add(pushed as u64));
        }
        let short = shard.wants().any();
        drop(shard);

        half.admitted(admitted, pushed);
        if pushed > 0 {
            batch.queue = Some(queue);
        }
        if short {
            self.want_growth();
        }
        if refused {
            self.flush_later();
            (pushed, Stop::Refused)
        } else if pushed < count {
            (pushed, Stop::Full)
        } else {
            (pushed, Stop::Done)
        }
    }

    /// Puts the `count` pages at `index..` into a batch of gets, to be written to `pages`.
    ///
    /// Returns how many were dealt with: those that had not been sent yet are there already, and
    /// are not in the batch. `pages` has to have so many, and no more are taken than are dealt with.
    /// Does not sleep.
    pub(crate) fn push_gets(
        &self,
        batch: &mut Batch<O>,
        (tag, index): (u64, u64),
        count: usize,
        mut pages: impl Iterator<Item = (PageRef, O::Page)>,
    ) -> (usize, Stop) {
        let half = self.half(batch.pool);
        let room = count.min(self.room(batch));
        let Some(mut shard) = half.shard(tag).filter(|_| room > 0) else {
            return (0, Stop::Full);
        };
        let mut at = index;
        // What has not been sent yet is copied under the lock of the shard, which is what frees its
        // slot.
        let mut push = |Found { wire, entry }: Found| {
            let Some((page, mine)) = pages.next() else {
                return;
            };

            match entry {
                Entry::Pending { slot, .. } => {
                    self.staging.pages.copy_out(slot, page);
                    half.counters.staged_hits.add(1);
                }
                Entry::Remote { version, crc } => {
                    let entry = Page {
                        tag,
                        crc,
                        checked: crc != 0,
                        covers: None,
                        mine,
                    };
                    // It fits: see above.
                    let _ = batch
                        .request
                        .push_key(wire, at, version, entry)
                        .and_then(|()| batch.request.frame.push_page(page));
                }
                Entry::Stale { .. } => (),
            }
            at = at.wrapping_add(1);
        };

        // CAST: There are at most 32.
        let pushed = match half.pool {
            // What is taken is taken first of all, so that nobody can get it twice.
            Pool::Cleancache => shard.take_run(tag, index, room as u64, push) as usize,
            Pool::Frontswap => (index..)
                .take(room)
                .map_while(|index| {
                    let found = shard.peek(tag, index)?;
                    matches!(found.entry, Entry::Remote { .. }).then(|| push(found))
                })
                .count(),
        };
        if pushed < room {
            (pushed, Stop::Refused)
        } else if pushed < count {
            (pushed, Stop::Full)
        } else {
            (pushed, Stop::Done)
        }
    }

    /// Gives a batch of puts to the device; `origin` is told what becomes of it.
    ///
    /// Waits for room in the virtqueue, and sleeps for it. If the device does not take it, `origin`
    /// is told at once.
    pub(crate) fn submit(&self, mut batch: Batch<O>, origin: O) {
        batch.request.origin = Some(origin);
        if let Err(waiting) = self.try_send(batch, None) {
            self.send_waiting(waiting);
        }
    }

    /// Gives a batch to the device if there is room, where nobody asks what becomes of it.
    pub(super) fn send(&self, batch: Batch<O>) {
        if let Err(waiting) = self.try_send(batch, None) {
            self.fail(waiting.request);
        }
    }

    /// Gives a batch to the device, unless there is no room. `poller` looks for the answer.
    ///
    /// If the device does not take any, the request has failed.
    pub(super) fn try_send(
        &self,
        mut batch: Batch<O>,
        poller: Option<&Poller<'_, Self>>,
    ) -> Result<(), Waiting<O>> {
        let Some(queue) = batch.queue else {
            self.fail(batch.request);
            return Ok(());
        };
        let half = self.half(batch.pool);
        let opcode = batch.request.opcode;
        let count = batch.request.count;

        batch.request.seal();
        match opcode {
            Opcode::Put => half.counters.puts.add(count),
            Opcode::Get => half.counters.gets.add(count),
            _ => half.counters.flushes_sent.add(count),
        }
        if let Some((wire, index, _)) = batch.request.key(0) {
            match opcode {
                Opcode::Put => trace::put(batch.pool.number(), wire, index, count as u32),
                Opcode::Get => trace::get(batch.pool.number(), wire, index, count as u32),
                _ => (),
            }
        }
        trace::request(queue, opcode.to_wire(), count, 0);
        self.offer(queue, batch.request, poller)
    }

    /// Waits for room in the virtqueue for a request that has been refused for want of it. Sleeps.
    pub(super) fn send_waiting(&self, mut waiting: Waiting<O>) {
        loop {
            let seen = self.requests.returned();

            waiting = match self.offer(waiting.queue, waiting.request, None) {
                Ok(()) => return,
                Err(waiting) if self.is_gone() => return self.fail(waiting.request),
                Err(waiting) => waiting,
            };
            if waiting.full {
                // What fills it comes back, or the device is given up.
                self.requests.wait_after(seen);
            } else {
                // There is no telling when there is memory again.
                fsleep(Delta::from_millis(1));
            }
        }
    }

    fn offer(
        &self,
        queue: usize,
        request: KBox<Request<O>>,
        poller: Option<&Poller<'_, Self>>,
    ) -> Result<(), Waiting<O>> {
        let flush = request.is_flush();

        let notify = if flush { Notify::Later } else { Notify::Now };
        let submitted = match poller {
            Some(poller) => poller.submit(request, notify),
            None => self.queues.submit(queue, request, notify),
        };

        match submitted {
            Ok(()) if flush => self.kick_later(queue),
            Ok(()) => self.watch(),
            Err(Rejected::Full(request)) => {
                return Err(Waiting {
                    queue,
                    request,
                    full: true,
                })
            }
            Err(Rejected::NoMemory(request)) => {
                return Err(Waiting {
                    queue,
                    request,
                    full: false,
                })
            }
            Err(Rejected::Invalid(request) | Rejected::Stopped(request)) => self.fail(request),
        }
        Ok(())
    }

    /// Gives a batch up that no page was pushed into.
    pub(crate) fn cancel(&self, batch: Batch<O>) {
        self.fail(batch.request);
    }

    /// Ends a request that the device never saw.
    pub(super) fn fail(&self, mut request: KBox<Request<O>>) {
        let mut outcomes = Outcomes::failed(request.count);

        match request.opcode {
            Opcode::Put => {
                let pool = Self::pool_of(&request);
                let half = self.half(pool);

                for (n, page) in request.pages.iter().enumerate().take(request.count) {
                    let Some((wire, index, version)) = request.key(n) else {
                        continue;
                    };
                    if let (Some(mut shard), Some(covers)) = (half.shard(page.tag), page.covers) {
                        shard.abandon(page.tag, wire, index, version, covers);
                    }
                }
                half.credits.settle(request.count);
                half.counters.refused.add(request.count);
                self.flush_later();
            }
            Opcode::Get => self.get_done(&mut request, &mut outcomes),
            _ => (),
        }
        request.tell(outcomes);
        self.requests.give(request);
    }

    fn pool_of(request: &Request<O>) -> Pool {
        if request.pool == Pool::Frontswap.number() {
            Pool::Frontswap
        } else {
            Pool::Cleancache
        }
    }

    /// Tells the index what became of puts.
    pub(super) fn put_done(&self, request: &mut Request<O>, outcomes: Outcomes) {
        let pool = Self::pool_of(request);
        let half = self.half(pool);
        let mut n = 0;
        let mut outdated = false;

        // Most pages are their neighbours' object's, and next to them there: all of those are done
        // at once.
        while let (Some(first), Some((wire, index, version))) = (
            request.pages.get(n).filter(|_| n < request.count),
            request.key(n),
        ) {
            let tag = first.tag;
            let Some(mut shard) = half.shard(tag) else {
                break;
            };
            let run = (n..request.count).map_while(|m| {
                let (w, i, version) = request.key(m)?;
                let page = request.pages.get(m)?;
                let next = (page.tag, w, i) == (tag, wire, index.wrapping_add((m - n) as u64));

                (next && outcomes.is_done(m)).then_some((version, page.crc))
            });
            // CAST: There are at most 32.
            let done = shard.complete_run(tag, wire, index, run) as usize;

            n += done;
            if done == 0 {
                let put = if outcomes.is_done(n) {
                    Put::Stored { crc: first.crc }
                } else {
                    trace::refused(pool.number(), wire, index, 1);
                    Put::Refused
                };

                outdated |= shard.complete(tag, wire, index, version, put) == Completed::Gone;
                n += 1;
            }
        }
        if outdated {
            self.flush_later();
        }
        // The slots are free once the index does not name them any more.
        request.frame.detach();
        half.credits.settle(request.count);
        half.counters.stored.add(outcomes.done());
        half.counters.refused.add(outcomes.len() - outcomes.done());
    }

    /// Checks what came back.
    pub(super) fn get_done(&self, request: &mut Request<O>, outcomes: &mut Outcomes) {
        let pool = Self::pool_of(request);
        let half = self.half(pool);

        for (n, page) in request.pages.iter().enumerate().take(request.count) {
            if outcomes.is_done(n) && page.checked {
                let crc = request.frame.page(n).map(|p| crc_of(p.crc()));

                if crc != Some(page.crc) {
                    half.counters.bad_crc.add(1);
                    outcomes.set_failed(n);
                }
            }
            if !outcomes.is_done(n) {
                if let Some((wire, index, _)) = request.key(n) {
                    trace::lost(pool.number(), wire, index, 1);
                }
            }
        }
        half.counters.hits.add(outcomes.done());
        half.counters.lost.add(outcomes.len() - outcomes.done());
    }
}

/// Returns what the index remembers of a CRC: 0 is for none.
pub(super) fn crc_of(crc: u32) -> u32 {
    crc.max(1)
}
