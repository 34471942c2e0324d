// SPDX-License-Identifier: GPL-2.0

//! Puts of clean pages, which cannot wait: they are copied, and the thread sends the copies.

use kernel::{
    prelude::*,
    sync::atomic::{
        Atomic,
        Relaxed, //
    },
    time::msecs_to_jiffies, //
};

use crate::bindings::{
    page::PageRef,
    thread, //
};

use super::{
    frame::MAX_PAGES,
    get::crc_of,
    logic::wire::Operation,
    pages::Slot,
    pool::PoolState,
    request::{
        Entry,
        Origin, //
    },
    staging::Staged,
    window::Freed,
    Client,
    Pool, //
};

/// How long to wait for any staging memory to be free, in milliseconds.
const PATIENCE: u32 = 200;

/// For how long not to wait after that was in vain, in milliseconds.
const IMPATIENCE: u32 = 1000;

/// How many requests with staged pages are sent in one go, where pages come fast.
const BURST: usize = 4;

impl<O: Origin> Client<O> {
    /// Puts copies of `count` neighbouring pages, at most [`MAX_PAGES`], into the ephemeral pool.
    ///
    /// Returns how many of the first can be got from now on. Earlier pages in the places of all of
    /// them cannot be got any more, whatever happens. With `checked` what comes back later is
    /// compared with what was put. They are not put if `refuse` says so, which is asked in the same
    /// critical section of the index in which they would be inserted: a flush is either before it,
    /// and what comes before the flush is seen by `refuse`, or after it. Any context; nothing waits,
    /// nothing is allocated.
    pub(crate) fn stage(
        &self,
        tag: u64,
        index: u64,
        count: usize,
        pages: impl Iterator<Item = PageRef>,
        checked: bool,
        refuse: impl FnOnce() -> bool,
    ) -> usize {
        if let Some(window) = self.window_for(Pool::Cleancache) {
            return self.stage_here(window, (tag, index), count, pages, checked, refuse);
        }
        let state = &self.cleancache;
        let last = index.wrapping_add(count as u64).wrapping_sub(1);
        let mut slots = [const { None }; MAX_PAGES];

        let admitted = if self.running() {
            state.admit(count.min(MAX_PAGES))
        } else {
            0
        };
        let taken = self.take_slots(state, admitted, &mut slots);
        let Some(mut shard) = state.shard(tag).filter(|_| taken > 0) else {
            state.admitted(admitted, 0);
            self.flush_range(Pool::Cleancache, tag, index, last);
            return 0;
        };
        for (slot, page) in slots.iter_mut().flatten().zip(pages) {
            slot.copy_in(page);
        }

        let lane = PoolState::shard_of(tag) % self.staging.queues().max(1);
        let (mut staged, mut before) = (0, 0);
        let mut replaced = Freed::new(self.window(), Pool::Cleancache);
        if refuse() {
            state.counters.unsafe_inode.add(taken);
        } else if let Some(mut fifo) = self.staging.fifos.get(lane).map(|fifo| fifo.lock()) {
            let mut copies = slots.iter_mut();

            // CAST: There are at most 32.
            staged = shard.insert_run(tag, index, taken as u64, |n, inserted| {
                replaced.entry(inserted.replaced);
                let Some(slot) = copies.next().and_then(Option::take) else {
                    return super::put::NO_SLOT;
                };
                let number = slot.number();

                fifo.push(Staged {
                    slot,
                    tag,
                    wire: inserted.wire,
                    index: index.wrapping_add(n),
                    version: inserted.version,
                    supersedes: inserted.supersedes,
                    checked,
                });
                number
            }) as usize;
            // Before the lock is let go of: then somebody may take them out.
            before = self.staging.waiting.fetch_add(staged, Relaxed);
            drop(fifo);
            state.counters.no_memory.add(taken - staged);
        }
        if staged < count {
            let first = index.wrapping_add(staged as u64);
            let mut freed = Freed::new(self.window(), Pool::Cleancache);
            // So few pages are gone through at once.
            let _ = shard.erase_range(tag, first, last, |entry| freed.entry(Some(entry)));
        }
        let short = shard.wants().any();
        drop(shard);

        state.admitted(admitted, staged);
        self.staging.pages().give(slots.into_iter().flatten());
        if short {
            self.want_growth();
        }
        if staged < count {
            self.flush_later();
        }
        self.staged(before, staged);
        staged
    }

    /// Returns whether pages are staged: those that are copied to the window are not, and none of
    /// those is other guests', too. Any context.
    pub(crate) fn stages(&self) -> bool {
        !self.puts_here(Pool::Cleancache) || self.shared.any()
    }

    /// Takes memory for pages to be staged in, unless there is a window to copy them to.
    ///
    /// Should that have no memory for them, the first page that needs some has it taken. May sleep,
    /// and enters reclaim.
    pub(crate) fn begin_staging(&self) -> Result {
        match self.window() {
            Some(window) if window.is_open() => Ok(()),
            _ => self.staging.grow(),
        }
    }

    /// Returns whether there is memory for so many pages, if they are staged at all. Any context.
    pub(crate) fn can_stage(&self, count: usize) -> bool {
        !self.stages() || self.staging.pages().free() >= count
    }

    /// Waits until so many pages can be staged, or it has taken too long.
    ///
    /// Whoever evicts pages faster than the device takes them is held up a little, rather than
    /// have them go to waste. Where that does not help, nobody is held up for a while. Sleeps.
    pub(crate) fn await_staging(&self, count: usize) {
        let impatient = &self.staging.impatient_until;
        let now = thread::jiffies();

        if !self.running() || self.cleancache.credits.available() <= 0 {
            return;
        }
        if (impatient.load(Relaxed).wrapping_sub(now) as isize) > 0 {
            return;
        }
        self.cleancache.counters.held_up.add(count);
        if !self.staging.pages().wait(count, msecs_to_jiffies(PATIENCE)) {
            let until = now.wrapping_add(msecs_to_jiffies(IMPATIENCE));

            impatient.store(until, Relaxed);
        }
    }

    /// Takes up to `count` slots for pages of a pool, into the first of `slots`; returns how many.
    ///
    /// Any context.
    pub(super) fn take_slots(
        &self,
        state: &PoolState,
        count: usize,
        slots: &mut [Option<Slot>],
    ) -> usize {
        let taken = self.staging.pages().take(count, slots);

        if taken < count {
            state.counters.no_staging.add(count - taken);
            if self.staging.may_grow() {
                self.want_growth();
            }
        }
        taken
    }

    /// Returns whether so many pages are to wait for more to come, which they do once. For the thread
    /// itself.
    pub(super) fn lingers(&self, waiting: usize, lingered: &Atomic<bool>) -> bool {
        let lingers = waiting < self.burst() && !lingered.xchg(true, Relaxed);

        if !lingers {
            lingered.store(false, Relaxed);
        }
        lingers
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
    pub(super) fn burst(&self) -> usize {
        let most = self.staging.pages().held() / 4;

        (BURST * self.max_pages.load(Relaxed)).min(most).max(1)
    }

    /// Sends staged pages; returns in how many jiffies to look again. For the thread itself.
    pub(super) fn pump_staged(&self) -> Option<usize> {
        let waiting = self.staging.waiting();

        if waiting == 0 || !self.running() {
            self.pump.lingered.store(false, Relaxed);
            return None;
        }
        if self.lingers(waiting, &self.pump.lingered) {
            return Some(1);
        }

        for n in 0..self.staging.queues() {
            while self.staging.any() && self.send_staged(n) {}
        }
        // Of the rest, the next pages that come, or a request that comes back, ring the bell; if
        // neither does, nobody waits for it.
        (self.staging.waiting() > 0).then_some(1)
    }

    /// Sends one request with staged pages for virtqueue `n`, if there are any.
    fn send_staged(&self, n: usize) -> bool {
        if !self.has_room(self.lanes.put(n), 1) {
            return false;
        }
        let Some(mut batch) = self.begin_spare(Operation::Put, Pool::Cleancache) else {
            return false;
        };

        let mut staged = [const { None }; MAX_PAGES];
        if let Some(room) = staged.get_mut(..self.max_pages.load(Relaxed)) {
            self.staging.pop(n, room);
        }
        let any = staged.iter().any(Option::is_some);
        self.drop_outdated(&mut staged);

        // Where they are: all of them together are two kilobytes.
        for staged in staged.iter_mut().filter_map(Option::take) {
            let entry = Entry {
                tag: staged.tag,
                wire: staged.wire,
                index: staged.index,
                version: staged.version,
                crc: if staged.checked {
                    crc_of(staged.slot.crc())
                } else {
                    0
                },
                supersedes: Some(staged.supersedes),
                mine: O::Page::default(),
            };
            // It fits: there is room for as many pages as are taken.
            let _ = batch.blank.push_key(entry);
            let _ = batch
                .blank
                .request
                .frame
                .attach(self.staging.pages(), staged.slot);
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
                shard.abandon(tag, wire, index, version, page.supersedes);
                drop(shard);
                // The slot is free once the index does not name it any more.
                self.staging.pages().give([page.slot]);
                dropped += 1;
            }
        }
        self.cleancache.credits.settle(dropped);
    }
}
