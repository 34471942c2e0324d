// SPDX-License-Identifier: GPL-2.0

//! Requests about pages, from the first page to the outcome.

use kernel::{
    prelude::*,
    sync::atomic::{
        Acquire,
        Relaxed, //
    },
};
use virtio_tmem_abi::{
    request_flags,
    Opcode, //
};

use crate::{
    bindings::trace,
    virtio::{
        pages::PageRef,
        queue::Rejected, //
    },
};

use super::{
    logic::index::{
        Entry,
        Outcome as Put, //
    },
    request::{
        Origin,
        Outcomes,
        Page,
        Request, //
    },
    state,
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
}

/// What became of a page that was to be in a batch.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Push {
    /// It is in the batch.
    Pushed,
    /// It came from the staging memory, and is there already.
    Copied,
    /// It has to go into another batch.
    Full,
    /// It cannot be put, or is not there to be got.
    Refused,
}

impl<O: Origin> Client<O> {
    /// Begins a batch of puts.
    ///
    /// With `wait`, waits for a request where there is none, and sleeps for it. [`None`] if there
    /// is none, or the device takes no pages any more.
    pub(crate) fn begin_put(&self, pool: Pool, wait: bool) -> Option<Batch<O>> {
        if !self.running() {
            return None;
        }
        self.begin(Opcode::Put, pool, 0, wait)
    }

    /// Begins a batch of gets that leave the pages where they are.
    ///
    /// As [`Self::begin_put`].
    pub(crate) fn begin_get(&self, pool: Pool, wait: bool) -> Option<Batch<O>> {
        self.begin(Opcode::Get, pool, 0, wait)
    }

    /// Begins a batch of gets that take the pages.
    ///
    /// As [`Self::begin_put`].
    pub(crate) fn begin_take(&self, pool: Pool, wait: bool) -> Option<Batch<O>> {
        if !self.running() {
            return None;
        }
        self.begin(Opcode::Get, pool, request_flags::TAKE, wait)
    }

    pub(super) fn begin(
        &self,
        opcode: Opcode,
        pool: Pool,
        flags: u16,
        wait: bool,
    ) -> Option<Batch<O>> {
        let mut request = if wait {
            self.requests.take()?
        } else {
            self.requests.try_take(RESERVE)?
        };

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

    /// Returns whether a page of the object with this tag may go into the batch too.
    fn fits(&self, batch: &Batch<O>, tag: u64) -> bool {
        batch.request.count < self.max_pages && batch.queue.is_none_or(|q| q == self.queue_of(tag))
    }

    /// Returns how many more pages fit into a batch, if they are of the same object.
    pub(crate) fn room(&self, batch: &Batch<O>) -> usize {
        self.max_pages.saturating_sub(batch.len())
    }

    /// Puts a page into a batch of puts.
    ///
    /// The page has to stay as it is, but for what does not matter, until the outcome is known.
    /// An earlier page at this place cannot be got any more, whatever happens. Does not sleep.
    pub(crate) fn push_put(
        &self,
        batch: &mut Batch<O>,
        tag: u64,
        index: u64,
        page: PageRef,
    ) -> Push {
        let half = self.half(batch.pool);
        let Some(mut shard) = half.shard(tag) else {
            return Push::Refused;
        };

        if !self.fits(batch, tag) {
            return Push::Full;
        }
        if !half.admit() {
            shard.erase(tag, index);
            drop(shard);
            self.flush_later();
            return Push::Refused;
        }

        let inserted = shard.insert_pending(tag, index, NO_SLOT);
        let short = shard.wants().any();
        if inserted.is_err() {
            shard.erase(tag, index);
        }
        drop(shard);
        half.admitted(inserted.is_ok());
        if short {
            self.want_growth();
        }

        let Ok(inserted) = inserted else {
            half.counters.no_memory.add(1);
            self.flush_later();
            return Push::Refused;
        };
        let entry = Page {
            tag,
            covers: Some(inserted.covers),
            ..Page::default()
        };

        if batch
            .request
            .push_key(inserted.wire, index, inserted.version, entry)
            .and_then(|()| batch.request.frame.push_page(page))
            .is_err()
        {
            // It fits: that was looked at above.
            return Push::Refused;
        }
        batch.queue = Some(self.queue_of(tag));
        Push::Pushed
    }

    /// Puts a page into a batch of gets, to be written to `page`.
    ///
    /// Does not sleep.
    pub(crate) fn push_get(
        &self,
        batch: &mut Batch<O>,
        tag: u64,
        index: u64,
        page: PageRef,
    ) -> Push {
        let Some(mut shard) = self.half(batch.pool).shard(tag) else {
            return Push::Refused;
        };
        let Some(found) = shard.peek(tag, index) else {
            return Push::Refused;
        };
        let take = batch.pool == Pool::Cleancache;

        match found.entry {
            Entry::Pending { slot, .. } => {
                if slot == NO_SLOT {
                    return Push::Refused;
                }
                // Under the lock of the shard, which is what frees the slot.
                self.staging.pages.copy_out(slot, page);
                self.half(batch.pool).counters.staged_hits.add(1);
                if take {
                    shard.take(tag, index);
                }
                Push::Copied
            }
            Entry::Remote { version, crc } => {
                if !self.fits(batch, tag) {
                    return Push::Full;
                }
                if take {
                    // First of all, so that nobody can get it twice.
                    shard.take(tag, index);
                }
                drop(shard);

                let entry = Page {
                    tag,
                    crc,
                    checked: crc != 0,
                    covers: None,
                };
                if batch
                    .request
                    .push_key(found.wire, index, version, entry)
                    .and_then(|()| batch.request.frame.push_page(page))
                    .is_err()
                {
                    return Push::Refused;
                }
                batch.queue = Some(self.queue_of(tag));
                Push::Pushed
            }
            Entry::Stale { .. } => Push::Refused,
        }
    }

    /// Gives a batch to the device; `origin` is told what becomes of it.
    ///
    /// If the device does not take it, `origin` is told at once. With `wait`, waits for room in the
    /// virtqueue, and sleeps for it.
    pub(crate) fn submit(&self, mut batch: Batch<O>, origin: O, wait: bool) {
        batch.request.origin = Some(origin);
        self.send(batch, wait);
    }

    /// Gives a batch to the device, where nobody asks what becomes of it.
    pub(super) fn send(&self, mut batch: Batch<O>, wait: bool) {
        let Some(queue) = batch.queue else {
            self.fail(batch.request);
            return;
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

        let mut request = batch.request;
        loop {
            let seen = self.requests.returned();

            request = match self.queues.submit(queue, request) {
                Ok(()) => {
                    self.queues.kick(queue);
                    self.watch();
                    return;
                }
                Err(Rejected::Full(request)) if wait && self.state.load(Acquire) != state::GONE => {
                    // What fills it comes back, or the device is given up.
                    self.requests.wait_after(seen);
                    request
                }
                Err(Rejected::Full(request) | Rejected::Stopped(request)) => {
                    self.fail(request);
                    return;
                }
            };
        }
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
        if let Some(origin) = request.origin.take() {
            origin.done(&outcomes);
        }
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
    pub(super) fn put_done(&self, request: &mut Request<O>, outcomes: &Outcomes) {
        let pool = Self::pool_of(request);
        let half = self.half(pool);

        for (n, page) in request.pages.iter().enumerate().take(request.count) {
            let Some((wire, index, version)) = request.key(n) else {
                continue;
            };
            let put = if outcomes.is_done(n) {
                Put::Stored { crc: page.crc }
            } else {
                trace::refused(pool.number(), wire, index, 1);
                Put::Refused
            };
            if let Some(mut shard) = half.shard(page.tag) {
                shard.complete(page.tag, wire, index, version, put);
            }
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
