// SPDX-License-Identifier: GPL-2.0

//! Puts of pages that stay where they are until the outcome is known.
//!
//! For clean pages, which cannot wait, see [`staging`](super::staging): their puts end here, too.

use crate::bindings::{
    page::PageRef,
    trace, //
};

use super::{
    carry::{
        Batch,
        Stop, //
    },
    logic::{
        index::{
            Completed,
            Outcome as Put, //
        },
        wire::{
            Operation,
            Outcomes, //
        },
    },
    request::{
        Blank,
        Entry,
        Origin, //
    },
    window::Freed,
    Client,
    Pool,
    GET_RESERVE, //
};

/// The slot of a page that is not in the staging memory.
pub(super) const NO_SLOT: u32 = u32::MAX;

impl<O: Origin> Client<O> {
    /// Begins a batch of puts of pages that stay where they are until the outcome is known.
    ///
    /// Waits for a request where there is none, as long as the device takes pages, and sleeps for
    /// it. [`None`] if it does not take any more.
    pub(crate) fn begin_put(&self, pool: Pool) -> Option<Batch<O>> {
        let blank = self.requests.take(GET_RESERVE, || self.running())?;

        Some(self.begin(blank, Operation::Put, pool, 0))
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
        let state = self.pool(batch.blank.record.pool);
        let queue = self.put_queue(tag);
        let room = count.min(self.room(batch));

        if room == 0 || batch.queue.is_some_and(|q| q != queue) {
            return (0, Stop::Full);
        }
        let Some(mut shard) = state.shard(tag) else {
            return (0, Stop::Refused);
        };
        let admitted = state.admit(room);
        let mut replaced = Freed::new(self.window(), batch.blank.record.pool);
        let blank = &mut batch.blank;
        // CAST: There are at most 32.
        let pushed = shard.insert_run(tag, index, admitted as u64, |n, inserted| {
            replaced.entry(inserted.replaced);
            let Some((page, mine)) = pages.next() else {
                return NO_SLOT;
            };
            let entry = Entry {
                tag,
                wire: inserted.wire,
                index: index.wrapping_add(n),
                version: inserted.version,
                crc: 0,
                supersedes: Some(inserted.supersedes),
                mine,
            };

            // It fits: see above.
            let _ = blank.push_key(entry).and_then(|()| blank.push_page(page));
            NO_SLOT
        }) as usize;
        state.counters.no_memory.add(admitted - pushed);
        let refused = pushed < room;
        if refused {
            replaced.entry(shard.erase(tag, index.wrapping_add(pushed as u64)));
        }
        let short = shard.wants().any();
        drop(shard);
        drop(replaced);

        state.admitted(admitted, pushed);
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

    /// Gives a batch of puts to the device; `origin` is told what becomes of it.
    ///
    /// Waits for room in the virtqueue as long as the device takes pages, and sleeps for it. If the
    /// device does not take the batch, `origin` is told at once.
    pub(crate) fn submit(&self, mut batch: Batch<O>, origin: O) {
        batch.blank.record.origin = Some(origin);
        let Some((queue, blank)) = self.seal(batch) else {
            return;
        };

        if let Err(blank) = self.offer_waiting(queue, blank, || self.running()) {
            self.fail(blank);
        }
    }

    /// Gives a batch to the device if there is room, where nobody asks what becomes of it.
    pub(super) fn send(&self, batch: Batch<O>) {
        let Some((queue, blank)) = self.seal(batch) else {
            return;
        };

        if let Err((blank, _)) = self.offer(queue, blank, None) {
            self.fail(blank);
        }
    }

    /// Tells the index of puts that the device never saw, and will not see.
    pub(super) fn put_failed(&self, blank: &Blank<O>) {
        let record = &blank.record;
        let state = self.pool(record.pool);

        for entry in record.entries() {
            if let (Some(mut shard), Some(supersedes)) = (state.shard(entry.tag), entry.supersedes)
            {
                shard.abandon(
                    entry.tag,
                    entry.wire,
                    entry.index,
                    entry.version,
                    supersedes,
                );
            }
        }
        state.credits.settle(record.len());
        state.counters.refused.add(record.len());
        self.flush_later();
    }

    /// Tells the index what became of puts.
    pub(super) fn put_done(&self, blank: &mut Blank<O>, outcomes: Outcomes) {
        let record = &blank.record;
        let (entries, pool) = (record.entries(), record.pool);
        let state = self.pool(pool);
        let mut n = 0;
        let mut outdated = false;

        // Most pages are their neighbours' object's, and next to them there: all of those are done
        // at once.
        while let Some(first) = entries.get(n) {
            let (tag, wire) = (first.tag, first.wire);
            let Some(mut shard) = state.shard(tag) else {
                break;
            };
            let run = (first.index..)
                .zip(entries.iter().enumerate().skip(n))
                .take_while(|(index, (m, entry))| {
                    (entry.tag, entry.wire, entry.index) == (tag, wire, *index)
                        && outcomes.is_done(*m)
                })
                .map(|(_, (_, entry))| (entry.version, entry.crc));
            // CAST: There are at most 32.
            let done = shard.complete_run(tag, wire, first.index, run) as usize;

            n += done;
            if done == 0 {
                let put = if outcomes.is_done(n) {
                    Put::Stored { crc: first.crc }
                } else {
                    trace::refused(pool.number(), wire, first.index, 1);
                    Put::Refused
                };

                outdated |=
                    shard.complete(tag, wire, first.index, first.version, put) == Completed::Gone;
                n += 1;
            }
        }
        if outdated {
            self.flush_later();
        }
        let count = record.len();
        // The slots are free once the index does not name them any more.
        blank.request.frame.detach();
        state.credits.settle(count);
        state.counters.stored.add(outcomes.done());
        state.counters.refused.add(count - outcomes.done());
    }

    /// Returns the virtqueue for puts and flushes of the object with this tag.
    pub(super) fn put_queue(&self, tag: u64) -> usize {
        self.lanes.put(super::pool::PoolState::shard_of(tag))
    }

    /// Begins a batch, unless so few requests would be left that somebody may have to wait.
    pub(super) fn begin_spare(&self, operation: Operation, pool: Pool) -> Option<Batch<O>> {
        let blank = self.requests.try_take(super::RESERVE)?;

        Some(self.begin(blank, operation, pool, 0))
    }
}
