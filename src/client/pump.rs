// SPDX-License-Identifier: GPL-2.0

//! The thread that sends what nobody waits for, and watches over the device.
//!
//! It never waits for the device and never allocates, so that whatever the device does, it gets to
//! see that requests are not completed in time.

use kernel::{
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Full,
            Relaxed, //
        },
        Arc, //
    },
    time::msecs_to_jiffies,
};
use virtio_tmem_abi::{
    Le64,
    ObjectId,
    Opcode,
    Range, //
};
use zerocopy::IntoBytes;

use crate::bindings::thread::{
    self,
    Bell, //
};

use super::{
    batch::crc_of,
    frame::MAX_PAGES,
    logic::index::Flush,
    request::{
        object_id,
        Origin,
        Page, //
    },
    staging::Staged,
    Client,
    Pool, //
};

/// How long the device may hold what it need not hold any more, in milliseconds.
const FLUSH_DELAY: u32 = 50;

/// How long the device may not be notified of flushes for their sake alone, in milliseconds.
///
/// A notification is an exit. What is put next most often brings one, for free.
const KICK_DELAY: u32 = 1000;

/// Of how many requests with flushes the device may not have been notified.
const KICK_REQUESTS: u32 = 16;

/// With how many credits the host has memory to spare for what it need not keep.
const KICK_CREDITS: i64 = 1024;

/// How often to look after requests, in milliseconds.
const WATCH_PERIOD: u32 = 1000;

/// How many requests with staged pages are sent in one go, where pages come fast.
const BURST: usize = 4;

/// What the thread remembers.
pub(super) struct State {
    /// Whether staged pages have waited for more to come.
    lingered: Atomic<bool>,
    /// When to tell the device of flushes, in jiffies; 0 for never.
    flush_at: Atomic<usize>,
    /// Requests with flushes that the device may not have been notified of.
    silent: Atomic<u32>,
    /// When to notify it at the latest, in jiffies.
    kick_at: Atomic<usize>,
    /// Whether requests are watched.
    watching: Atomic<bool>,
    /// How many requests had come back when there was last something new.
    seen: Atomic<u64>,
    /// When that was, in jiffies.
    since: Atomic<usize>,
}

impl State {
    pub(super) const fn new() -> Self {
        Self {
            lingered: Atomic::new(false),
            flush_at: Atomic::new(0),
            silent: Atomic::new(0),
            kick_at: Atomic::new(0),
            watching: Atomic::new(false),
            seen: Atomic::new(0),
            since: Atomic::new(0),
        }
    }
}

impl<O: Origin> thread::Work for Client<O> {
    fn work(this: &Arc<Self>) -> Option<usize> {
        if this.is_gone() {
            return None;
        }
        if this.growing.load(Relaxed) {
            let _ = this.growth.enqueue(this.clone());
        }

        [
            this.pump_staged(),
            this.pump_flushes(),
            this.pump_kicks(),
            this.watch_requests(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    fn bell(&self) -> &Bell {
        &self.bell
    }
}

impl<O: Origin> Client<O> {
    /// Has flushes told to the device soon. Any context.
    pub(super) fn flush_later(&self) {
        if self.pump.flush_at.load(Relaxed) == 0 {
            let at = thread::jiffies().wrapping_add(msecs_to_jiffies(FLUSH_DELAY));

            self.pump.flush_at.store(at.max(1), Relaxed);
            self.bell.ring();
        }
    }

    /// Has the device notified, some time, of a request with flushes. For the thread itself.
    pub(super) fn kick_later(&self, queue: usize) {
        let silent = self.pump.silent.fetch_add(1, Relaxed);

        if silent == 0 {
            let delay = msecs_to_jiffies(KICK_DELAY).min(self.timeout / 4);

            self.pump
                .kick_at
                .store(thread::jiffies().wrapping_add(delay), Relaxed);
        }
        if self.queues.outstanding(queue) > u64::from(silent) + 1 {
            // The interrupt for a put may wait for this request too.
            self.queues.kick(queue);
        }
    }

    /// Has requests watched. Any context.
    pub(super) fn watch(&self) {
        if !self.pump.watching.load(Relaxed) {
            self.bell.ring();
        }
    }

    /// Has staged pages sent, now that so many more wait than did before. Any context.
    pub(super) fn staged(&self, before: usize, more: usize) {
        let bursts = |pages: usize| pages.checked_div(self.burst());

        // The first ones, or enough for one more burst.
        if more > 0 && (before == 0 || bursts(before) != bursts(before.wrapping_add(more))) {
            self.bell.ring();
        }
    }

    /// Returns for how many staged pages to wake the thread: waking it costs as much as sending
    /// some pages.
    fn burst(&self) -> usize {
        let most = self.staging.pages.total() / 4;

        (BURST * self.max_pages).min(most).max(1)
    }

    /// Sends staged pages; returns in how many jiffies to look again.
    fn pump_staged(&self) -> Option<usize> {
        let waiting = self.staging.waiting();

        if waiting == 0 {
            self.pump.lingered.store(false, Relaxed);
            return None;
        }
        if waiting < self.burst() && !self.pump.lingered.xchg(true, Relaxed) {
            return Some(1);
        }
        self.pump.lingered.store(false, Relaxed);

        for n in 0..self.staging.queues() {
            while self.staging.any() && self.send_staged(n) {}
        }
        // Of the rest, the next pages that come, or a request that comes back, ring the bell; if
        // neither does, nobody waits for it.
        (self.staging.waiting() > 0).then_some(1)
    }

    /// Sends one request with staged pages for virtqueue `n`, if there are any.
    fn send_staged(&self, n: usize) -> bool {
        let Some(mut batch) = self.begin_spare(Opcode::Put, Pool::Cleancache) else {
            return false;
        };

        let mut staged = [const { None }; MAX_PAGES];
        if let Some(room) = staged.get_mut(..self.max_pages) {
            self.staging.pop(n, room);
        }
        let any = staged.iter().any(Option::is_some);
        self.drop_outdated(&mut staged);

        for staged in staged.into_iter().flatten() {
            let page = Page {
                tag: staged.tag,
                crc: if staged.checked {
                    crc_of(self.staging.pages.crc(&staged.slot))
                } else {
                    0
                },
                checked: staged.checked,
                covers: Some(staged.covers),
                mine: O::Page::default(),
            };
            // It fits: there is room for as many pages as are taken.
            let _ = batch
                .request
                .push_key(staged.wire, staged.index, staged.version, page);
            let _ = batch.request.frame.attach(&self.staging.pages, staged.slot);
            batch.queue = Some(self.lanes.put(n));
        }
        if batch.len() == 0 {
            self.cancel(batch);
            return any;
        }
        self.send(batch);
        true
    }

    /// Gives up the pages that have changed, or were taken back, while they waited.
    fn drop_outdated(&self, staged: &mut [Option<Staged>]) {
        let mut dropped = 0;
        let mut n = 0;

        while let Some(Some(first)) = staged.get(n) {
            let (tag, wire, index, version) = (first.tag, first.wire, first.index, first.version);
            let Some(mut shard) = self.cleancache.shard(tag) else {
                break;
            };
            let run = staged.iter().skip(n).flatten();
            let versions = (index..)
                .zip(run)
                .take_while(|(i, page)| (page.tag, page.wire, page.index) == (tag, wire, *i))
                .map(|(_, page)| page.version);
            // CAST: There are at most 32.
            let current = shard.current_run(tag, wire, index, versions) as usize;

            n += current.max(1);
            if current > 0 || shard.is_current(tag, wire, index, version) {
                continue;
            }
            let outdated = staged.get_mut(n - 1).and_then(Option::take);
            if let Some(page) = outdated {
                shard.abandon(tag, wire, index, version, page.covers);
                drop(shard);
                // The slot is free once the index does not name it any more.
                self.staging.pages.give([page.slot]);
                dropped += 1;
            }
        }
        self.cleancache.credits.settle(dropped);
    }

    /// Tells the device of flushes; returns in how many jiffies to look again.
    fn pump_flushes(&self) -> Option<usize> {
        let at = self.pump.flush_at.load(Relaxed);
        if at == 0 {
            return None;
        }
        let left = at.wrapping_sub(thread::jiffies()) as isize;
        if left > 0 {
            return Some(left as usize);
        }

        self.pump.flush_at.store(0, Relaxed);
        for pool in [Pool::Frontswap, Pool::Cleancache] {
            for n in 0..self.half(pool).shard_count() {
                loop {
                    match self.send_flushes(pool, n) {
                        Some(true) => (),
                        Some(false) => break,
                        None => {
                            // There is no request now: later.
                            self.flush_later();
                            return Some(1);
                        }
                    }
                }
            }
        }
        None
    }

    /// Notifies the device of flushes if it is time; returns in how many jiffies to look again.
    fn pump_kicks(&self) -> Option<usize> {
        let silent = self.pump.silent.load(Relaxed);
        if silent == 0 {
            return None;
        }
        let left = self
            .pump
            .kick_at
            .load(Relaxed)
            .wrapping_sub(thread::jiffies()) as isize;
        let spare = self.frontswap.credits.available() >= KICK_CREDITS;

        if left > 0 && spare && silent < KICK_REQUESTS {
            return Some(left as usize);
        }
        self.pump.silent.store(0, Relaxed);
        for queue in self.lanes.all_puts() {
            self.queues.kick(queue);
        }
        self.watch();
        None
    }

    /// Tells the device of some flushes of a shard.
    ///
    /// Returns whether there may be more, or [`None`] if there are not enough requests.
    fn send_flushes(&self, pool: Pool, n: usize) -> Option<bool> {
        if !self.half(pool).nth_shard(n)?.has_work() {
            return Some(false);
        }

        let opcodes = [Opcode::FlushPage, Opcode::FlushRange, Opcode::FlushObject];
        let mut batches = opcodes.map(|opcode| self.begin_spare(opcode, pool));

        if batches.iter().any(Option::is_none) {
            for batch in batches.into_iter().flatten() {
                self.cancel(batch);
            }
            return None;
        }

        let mut flushes = [None; MAX_PAGES];
        let mut count = 0;
        let more = self
            .half(pool)
            .nth_shard(n)?
            .harvest(self.max_flushes, |flush| {
                if let Some(place) = flushes.get_mut(count) {
                    *place = Some(flush);
                    count += 1;
                }
            });

        for flush in flushes.into_iter().flatten() {
            let (opcode, wire) = match flush {
                Flush::Page { wire, .. } => (Opcode::FlushPage, wire),
                Flush::Any { wire, .. } => (Opcode::FlushRange, wire),
                Flush::Object { wire } => (Opcode::FlushObject, wire),
            };
            let Some(batch) = opcodes
                .iter()
                .position(|&o| o == opcode)
                .and_then(|i| batches.get_mut(i)?.as_mut())
            else {
                continue;
            };
            let request = &mut batch.request;

            // It fits: no more are harvested than go into one request.
            let _ = match flush {
                Flush::Page { index, version, .. } => {
                    request.push_key(wire, index, version, Page::default())
                }
                Flush::Any { index, .. } => {
                    let range = Range {
                        object: object_id(wire),
                        first: Le64::new(index),
                        last: Le64::new(index),
                    };
                    request.push_entry(range.as_bytes(), Page::default())
                }
                Flush::Object { .. } => {
                    let object: ObjectId = object_id(wire);
                    request.push_entry(object.as_bytes(), Page::default())
                }
            };
            batch.queue = Some(self.lanes.put(n));
        }

        for batch in batches.into_iter().flatten() {
            if batch.len() == 0 {
                self.cancel(batch);
            } else {
                self.send(batch);
            }
        }
        Some(more)
    }

    /// Gives the device up if it does not complete requests in time.
    fn watch_requests(&self) -> Option<usize> {
        let pump = &self.pump;

        // Before looking, so that who submits after that rings the bell.
        let watched = pump.watching.xchg(false, Full);
        if !self.requests.any_out() {
            return None;
        }
        pump.watching.store(true, Relaxed);

        let now = thread::jiffies();
        let seen = self.requests.returned();
        if !watched || pump.seen.load(Relaxed) != seen {
            pump.seen.store(seen, Relaxed);
            pump.since.store(now, Relaxed);
        } else if now.wrapping_sub(pump.since.load(Relaxed)) > self.timeout {
            self.report_silence();
            return None;
        }
        Some(msecs_to_jiffies(WATCH_PERIOD))
    }

    fn report_silence(&self) {
        if self.give_up() {
            pr_err!(
                "the host does not answer any more: {} swap pages that it had are lost, and \
                 reading one is an I/O error; nothing else is affected\n",
                self.pages(Pool::Frontswap).load(Relaxed)
            );
        }
    }
}
