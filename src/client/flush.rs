// SPDX-License-Identifier: GPL-2.0

//! Flushes: pages that cannot be got any more, at once, and the device told of it, some time.

use kernel::{
    sync::atomic::Relaxed,
    time::msecs_to_jiffies, //
};
use zerocopy::IntoBytes;

use crate::bindings::{
    thread,
    trace, //
};

use super::{
    frame::MAX_PAGES,
    logic::{
        index::{
            Entry as Known,
            Flush, //
        },
        wire::{
            self,
            Operation, //
        },
    },
    request::{
        Entry,
        Origin, //
    },
    window::Freed,
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

impl<O: Origin> Client<O> {
    /// Forgets a page, so that it cannot be got any more.
    ///
    /// Any context.
    pub(crate) fn flush_page(&self, pool: Pool, tag: u64, index: u64) {
        let state = self.pool(pool);
        let erased = state.shard(tag).and_then(|mut s| s.erase(tag, index));

        if let Some(entry) = erased {
            self.free_slot(pool, entry);
            state.counters.flushes.add(1);
            trace::flush(pool.number(), tag, index, 1);
            self.flush_later();
        }
    }

    /// Frees the slot of an entry that has left the index, if it has one. Any context.
    fn free_slot(&self, pool: Pool, entry: Known) {
        if let (Some(slot), Some(window)) = (entry.slot(), self.window()) {
            window.free(pool.kind(), &[slot]);
        }
    }

    /// Forgets the pages at `first..=last`, so that they cannot be got any more.
    ///
    /// Any context.
    pub(crate) fn flush_range(&self, pool: Pool, tag: u64, first: u64, last: u64) {
        let state = self.pool(pool);
        let mut count = 0;
        let mut next = Some(first);

        while let Some(from) = next {
            let Some(mut shard) = state.shard(tag) else {
                break;
            };
            let mut freed = Freed::new(self.window(), pool);
            let erased = shard.erase_range(tag, from, last, |entry| freed.entry(Some(entry)));

            drop(shard);
            drop(freed);
            count += erased.count;
            next = erased.next;
        }
        if count > 0 {
            state.counters.flushes.add(count as usize);
            trace::flush(
                pool.number(),
                tag,
                first,
                count.min(u64::from(u32::MAX)) as u32,
            );
            self.flush_later();
        }
    }

    /// Forgets an object, its pages and its marks; its tag may be used again.
    ///
    /// Any context.
    pub(crate) fn flush_object(&self, pool: Pool, tag: u64) {
        let state = self.pool(pool);

        if let Some(mut shard) = state.shard(tag) {
            let before = shard.stats().live;
            shard.drop_object(tag);
            state
                .counters
                .flushes
                .add(before.saturating_sub(shard.stats().live) as usize);
        }
        self.flush_later();
    }

    /// Forgets all pages of a pool, and does not tell the device. Process context.
    pub(crate) fn forget(&self, pool: Pool) {
        if pool == Pool::Cleancache {
            // All of a shard's at once would take long where there are many, with interrupts off.
            self.forget_here();
        }
        for mut shard in self.pool(pool).shards() {
            let mut freed = Freed::new(self.window(), pool);

            shard.forget_all_slots(|slot| freed.slot(slot));
        }
    }

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
        let unkicked = self.pump.unkicked.fetch_add(1, Relaxed);

        if unkicked == 0 {
            self.pump.kick_at.store(
                thread::jiffies().wrapping_add(msecs_to_jiffies(KICK_DELAY)),
                Relaxed,
            );
        }
        if self.queues.outstanding(queue) > u64::from(unkicked) + 1 {
            // The interrupt for a put may wait for this request too.
            self.queues.kick(queue);
        }
    }

    /// Tells the device of flushes; returns in how many jiffies to look again. For the thread
    /// itself.
    pub(super) fn pump_flushes(&self) -> Option<usize> {
        let at = self.pump.flush_at.load(Relaxed);
        if at == 0 || !self.standing().answers() {
            return None;
        }
        let left = at.wrapping_sub(thread::jiffies()) as isize;
        if left > 0 {
            return Some(left as usize);
        }

        self.pump.flush_at.store(0, Relaxed);
        for pool in [Pool::Frontswap, Pool::Cleancache] {
            for n in 0..self.pool(pool).shard_count() {
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
    /// For the thread itself.
    pub(super) fn pump_kicks(&self) -> Option<usize> {
        let unkicked = self.pump.unkicked.load(Relaxed);
        if unkicked == 0 {
            return None;
        }
        let left = self
            .pump
            .kick_at
            .load(Relaxed)
            .wrapping_sub(thread::jiffies()) as isize;
        let spare = self.frontswap.credits.available() >= KICK_CREDITS;

        if left > 0 && spare && unkicked < KICK_REQUESTS {
            return Some(left as usize);
        }
        self.pump.unkicked.store(0, Relaxed);
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
        if !self.pool(pool).nth_shard(n)?.has_work() {
            return Some(false);
        }
        // One for each operation.
        if !self.has_room(self.lanes.put(n), 3) {
            self.queues.kick(self.lanes.put(n));
            return None;
        }

        let operations = [
            Operation::FlushPage,
            Operation::FlushRange,
            Operation::FlushObject,
        ];
        let mut batches = operations.map(|operation| self.begin_spare(operation, pool));

        if batches.iter().any(Option::is_none) {
            for batch in batches.into_iter().flatten() {
                self.cancel(batch);
            }
            return None;
        }

        let mut flushes = [None; MAX_PAGES];
        let mut count = 0;
        let mut freed = Freed::new(self.window(), pool);
        let more = self.pool(pool).nth_shard(n)?.harvest_slots(
            self.max_flushes.load(Relaxed),
            |flush| {
                if let Some(place) = flushes.get_mut(count) {
                    *place = Some(flush);
                    count += 1;
                }
            },
            |slot| freed.slot(slot),
        );
        drop(freed);

        for flush in flushes.into_iter().flatten() {
            let operation = match flush {
                Flush::Page { .. } => Operation::FlushPage,
                Flush::Any { .. } => Operation::FlushRange,
                Flush::Object { .. } => Operation::FlushObject,
            };
            let Some(batch) = operations
                .iter()
                .position(|&o| o == operation)
                .and_then(|i| batches.get_mut(i)?.as_mut())
            else {
                continue;
            };
            let blank = &mut batch.blank;

            // It fits: no more are harvested than go into one request.
            let _ = match flush {
                Flush::Page {
                    wire,
                    index,
                    version,
                } => blank.push(wire::key(wire, index, version).as_bytes(), Entry::default()),
                Flush::Any { wire, index } => {
                    blank.push(wire::one(wire, index).as_bytes(), Entry::default())
                }
                Flush::Object { wire } => {
                    blank.push(wire::object(wire).as_bytes(), Entry::default())
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
}
