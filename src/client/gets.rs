// SPDX-License-Identifier: GPL-2.0

//! Gets, and how their answers are waited for.

use kernel::{
    cpu::CpuId,
    sync::atomic::{
        Atomic,
        Relaxed, //
    },
    time::Delta, //
};
use virtio_tmem_abi::{
    request_flags,
    Opcode, //
};

use crate::virtio::queue::Poller;

use super::{
    batch::Batch,
    logic::patience::Patience,
    request::Origin,
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

/// Gets that are made together.
///
/// When it is dropped, whoever has made them looks for the answers for a while, before interrupts
/// have to tell of them. Nobody may sleep before that, other than in here: until then there are no
/// interrupts because of them.
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
}

impl<O: Origin> Gets<'_, O> {
    /// Begins a batch of gets. Clean pages are taken, swapped pages stay where they are.
    ///
    /// Waits for a request where there is none, and sleeps for it. [`None`] if the device does not
    /// give pages any more.
    pub(crate) fn begin(&mut self, pool: Pool) -> Option<Batch<O>> {
        let client = self.client;
        let flags = match pool {
            Pool::Frontswap => 0,
            Pool::Cleancache if !client.running() => return None,
            Pool::Cleancache => request_flags::TAKE,
        };
        let request = match client.requests.try_take(0) {
            Some(request) => request,
            None => {
                self.stop_polling();
                client.requests.take()?
            }
        };
        let mut batch = client.begin(request, Opcode::Get, pool, flags)?;

        batch.queue = Some(self.queue);
        Some(batch)
    }

    /// Gives a batch to the device; `origin` is told what becomes of it.
    ///
    /// Waits for room in the virtqueue, and sleeps for it. If the device does not take it, `origin`
    /// is told at once.
    pub(crate) fn submit(&mut self, mut batch: Batch<O>, origin: O) {
        batch.request.origin = Some(origin);
        let poller = self.poller.as_ref().map(|(poller, _)| poller);
        if let Err(waiting) = self.client.try_send(batch, poller) {
            self.stop_polling();
            self.client.send_waiting(waiting);
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
