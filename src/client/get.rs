// SPDX-License-Identifier: GPL-2.0

//! Gets, and how their answers are waited for.

use kernel::{
    cpu::CpuId,
    prelude::*,
    sync::atomic::{
        Atomic,
        Relaxed, //
    },
    time::Delta, //
};
use virtio_tmem_abi::request_flags;

use crate::{
    bindings::{
        page::PageRef,
        trace, //
    },
    virtio::queue::Poller,
};

use super::{
    carry::{
        Batch,
        Obstacle,
        Stop, //
    },
    logic::{
        index::{
            Entry as Known,
            Found, //
        },
        patience::Patience,
        standing::Access,
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
    Client,
    Pool, //
};

/// For how long whoever makes gets looks for the answers.
///
/// All CPUs share what was learned, without a lock. An update that is lost to another one is an
/// answer that nothing was learned from.
pub(super) struct Polling {
    limit: u32,
    learned: Atomic<u64>,
}

impl Polling {
    /// For no longer than so many microseconds.
    pub(super) fn new(limit_us: u32) -> Self {
        let limit = limit_us.saturating_mul(1000);

        Self {
            limit,
            learned: Atomic::new(Patience::new(limit).to_word()),
        }
    }

    /// Returns for how long to look for an answer, if at all.
    fn window(&self) -> Option<Delta> {
        if self.limit == 0 {
            return None;
        }
        let old = Patience::from_word(self.learned.load(Relaxed));
        let (window, new) = old.look(self.limit);

        self.learn(old, new);
        window.map(|window| Delta::from_nanos(window.into()))
    }

    /// Takes note of how long an answer took, if it came in time.
    fn waited(&self, waited: Option<Delta>) {
        let old = Patience::from_word(self.learned.load(Relaxed));
        let new = match waited {
            // CAST: Clamped.
            Some(waited) => old.answered(
                waited.as_nanos().clamp(0, self.limit.into()) as u32,
                self.limit,
            ),
            None => old.gave_up(self.limit),
        };

        self.learn(old, new);
    }

    fn learn(&self, old: Patience, new: Patience) {
        // What does not change is not written: the word is shared with other CPUs.
        if new != old {
            self.learned.store(new.to_word(), Relaxed);
        }
    }
}

/// Why a batch of gets cannot be begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotNow {
    /// It can be later: the device cannot be asked now, or too much is being asked of it.
    Busy,
    /// The device gives no such pages, or none that are worth waiting for.
    Never,
}

/// Gets that are made together.
///
/// When it is dropped, whoever has made them looks for the answers for a while, before interrupts
/// have to tell of them. Nobody may sleep before that, other than in here: until then there are no
/// interrupts.
pub(crate) struct Gets<'a, O: Origin> {
    client: &'a Client<O>,
    queue: usize,
    poller: Option<(Poller<'a, Client<O>>, Delta)>,
}

impl<O: Origin> Client<O> {
    /// Begins to make gets.
    ///
    /// Process context.
    pub(crate) fn gets(&self) -> Gets<'_, O> {
        // CAST: To more bits.
        let queue = self.lanes.get(CpuId::current().as_u32() as usize);
        let poller = self
            .polling
            .window()
            .and_then(|window| Some((self.queues.poll(queue)?, window)));

        Gets {
            client: self,
            queue,
            poller,
        }
    }

    /// Returns what is to be done about a page of a pool that the device has. Any context.
    pub(crate) fn access(&self, pool: Pool) -> Access {
        let standing = self.standing();

        match pool {
            Pool::Frontswap => standing.persistent(),
            Pool::Cleancache | Pool::Shared(_) => standing.ephemeral(),
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
        let pool = batch.blank.record.pool;
        let state = self.pool(pool);
        let room = count.min(self.room(batch));
        let Some(mut shard) = state.shard(tag).filter(|_| room > 0) else {
            return (0, Stop::Full);
        };
        let mut at = index;
        let mut gone = u64::MAX;
        let blank = &mut batch.blank;
        // What has not been sent yet is copied under the lock of the shard, which is what frees its
        // slot.
        let mut push = |Found { wire, entry }: Found| {
            let Some((page, mine)) = pages.next() else {
                return;
            };

            match entry {
                Known::Pending { slot, .. } => {
                    self.staging.copy_out(slot, page);
                    state.counters.staged_hits.add(1);
                }
                // A clean one between others that the device has: it is this one's to free.
                Known::Window { slot, .. } => {
                    if !self.take_slot(pool, slot, page) {
                        gone = gone.min(at.wrapping_sub(index));
                    }
                }
                Known::Remote { version, crc } => {
                    let entry = Entry {
                        tag,
                        wire,
                        index: at,
                        version,
                        crc,
                        supersedes: None,
                        mine,
                    };
                    // It fits: see above.
                    let _ = blank.push_key(entry).and_then(|()| blank.push_page(page));
                }
                // Clean pages do not move.
                Known::Moving { .. } | Known::Lost | Known::Stale { .. } => (),
            }
            at = at.wrapping_add(1);
        };

        // CAST: There are at most 32.
        let pushed = match pool {
            // What is taken is taken first of all, so that nobody can get it twice.
            Pool::Cleancache => shard.take_run(tag, index, room as u64, push) as usize,
            // Its pages are in no index: see `push_shared_gets()`.
            Pool::Shared(_) => 0,
            Pool::Frontswap => (index..)
                .take(room)
                .map_while(|index| {
                    let found = shard.peek(tag, index)?;
                    matches!(found.entry, Known::Remote { .. }).then(|| push(found))
                })
                .count(),
        };
        // CAST: There are at most 32.
        let next = index.wrapping_add(pushed as u64);
        if gone < pushed as u64 {
            (gone as usize, Stop::Refused)
        } else if pushed > 0 && pool == Pool::Frontswap && shard.has_slot(tag, next) {
            // That needs no request: see `get_here()`.
            (pushed, Stop::Full)
        } else if pushed < room {
            (pushed, Stop::Refused)
        } else if pushed < count {
            (pushed, Stop::Full)
        } else {
            (pushed, Stop::Done)
        }
    }

    /// Checks what came back. [`None`] if the request is asked again, so that it is not over.
    pub(super) fn get_done(&self, blank: Blank<O>, outcomes: &mut Outcomes) -> Option<Blank<O>> {
        let mut blank = blank;

        if let Some((original, so_far)) = blank.record.instead_of.take() {
            self.asked_again(blank, *outcomes, original, so_far);
            return None;
        }
        let pool = blank.record.pool;
        let state = self.pool(pool);

        for (n, entry) in blank.record.entries().iter().enumerate() {
            if entry.crc != 0 && outcomes.is_done(n) {
                let crc = blank.request.frame.page(n).map(|page| crc_of(page.crc()));

                if crc != Some(entry.crc) {
                    state.counters.bad_crc.add(1);
                    outcomes.set_failed(n);
                }
            }
        }
        if pool == Pool::Frontswap && !outcomes.all_done() && !self.is_gone() {
            // The page's own memory may be out of the device's reach.
            self.ask_again(blank, *outcomes);
            return None;
        }
        self.count_gets(&blank, *outcomes);
        Some(blank)
    }

    /// Counts what came, and what did not.
    pub(super) fn count_gets(&self, blank: &Blank<O>, outcomes: Outcomes) {
        let pool = blank.record.pool;
        let state = self.pool(pool);
        let missing = outcomes.count() - outcomes.done();

        state.counters.hits.add(outcomes.done());
        if matches!(pool, Pool::Shared(_)) {
            // Nobody has said that they are there.
            state.counters.misses.add(missing);
            return;
        }
        if missing > 0 {
            for (n, entry) in blank.record.entries().iter().enumerate() {
                if !outcomes.is_done(n) {
                    trace::lost(pool.number(), entry.wire, entry.index, 1);
                }
            }
        }
        state.counters.lost.add(missing);
    }
}

impl<'a, O: Origin> Gets<'a, O> {
    /// Begins a batch of gets. Clean pages are taken, swapped pages stay where they are.
    ///
    /// Does not sleep.
    pub(crate) fn begin(&mut self, pool: Pool) -> Result<Batch<O>, NotNow> {
        self.allowed(pool)?;
        match self.client.requests.try_take(0) {
            Some(blank) => Ok(self.batch(blank, pool)),
            None => Err(NotNow::Busy),
        }
    }

    /// As [`Self::begin`], but waits where it can be later.
    ///
    /// Clean pages are not waited for any longer than the device answers. Sleeps.
    pub(crate) fn begin_waiting(&mut self, pool: Pool) -> Result<Batch<O>, NotNow> {
        let client = self.client;

        loop {
            match self.begin(pool) {
                Err(NotNow::Busy) => (),
                result => return result,
            }
            self.stop_polling();
            // Until there is a request, or no use in waiting for one.
            let blank = client
                .requests
                .take(0, || client.access(pool) == Access::Ask);
            if let Some(blank) = blank {
                return Ok(self.batch(blank, pool));
            }
            client.await_standing(pool);
        }
    }

    fn allowed(&self, pool: Pool) -> Result<(), NotNow> {
        match self.client.access(pool) {
            Access::Ask => Ok(()),
            Access::Wait => Err(NotNow::Busy),
            Access::Never => Err(NotNow::Never),
        }
    }

    fn batch(&self, blank: Blank<O>, pool: Pool) -> Batch<O> {
        let flags = match pool {
            Pool::Frontswap => 0,
            Pool::Cleancache => request_flags::TAKE,
            // Others may want them, too.
            Pool::Shared(_) => 0,
        };
        let mut batch = self.client.begin(blank, Operation::Get, pool, flags);

        batch.queue = Some(self.queue);
        batch
    }

    /// Gives a batch to the device; `origin` is told what becomes of it.
    ///
    /// Where there is no room for it, what only the device has is asked later; all else waits for
    /// room, as long as the device answers, and sleeps for it.
    pub(crate) fn submit(&mut self, mut batch: Batch<O>, origin: O) {
        let client = self.client;

        batch.blank.record.origin = Some(origin);
        let Some((queue, blank)) = client.seal(batch) else {
            return;
        };
        let poller = self.poller.as_ref().map(|(poller, _)| poller);
        let Err((blank, obstacle)) = client.offer(queue, blank, poller) else {
            return;
        };
        match blank.record.pool {
            Pool::Frontswap if !client.is_gone() => client.park(queue, blank),
            pool if obstacle == Obstacle::Full => {
                self.stop_polling();
                let wait = || client.access(pool) == Access::Ask;

                if let Err(blank) = client.offer_waiting(queue, blank, wait) {
                    client.fail(blank);
                }
            }
            _ => client.fail(blank),
        }
    }

    /// Has interrupts tell of the answers from now on, before somebody sleeps.
    fn stop_polling(&mut self) {
        self.poller = None;
    }
}

impl<O: Origin> Drop for Gets<'_, O> {
    fn drop(&mut self) {
        if let Some((poller, window)) = &self.poller {
            self.client.polling.waited(poller.spin(*window));
        }
    }
}

/// Returns what the index remembers of a CRC: 0 is for none.
pub(super) fn crc_of(crc: u32) -> u32 {
    crc.max(1)
}
