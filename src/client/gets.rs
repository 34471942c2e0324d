// SPDX-License-Identifier: GPL-2.0

//! Gets, and how their answers are waited for.

use kernel::cpu::CpuId;
use virtio_tmem_abi::{
    request_flags,
    Opcode, //
};

use crate::virtio::queue::Poller;

use super::{
    batch::Batch,
    request::Origin,
    Client,
    Pool, //
};

/// Gets that are made together.
///
/// When it is dropped, whoever has made them looks for the answers for a while, before interrupts
/// have to tell of them. Nobody may sleep before that, other than in here: until then there are no
/// interrupts.
pub(crate) struct Gets<'a, O: Origin> {
    client: &'a Client<O>,
    queue: usize,
    poller: Option<Poller<'a, Client<O>>>,
}

impl<O: Origin> Client<O> {
    /// Begins to make gets.
    ///
    /// Process context.
    pub(crate) fn gets(&self) -> Gets<'_, O> {
        // CAST: To more bits.
        let queue = self.lanes.get(CpuId::current().as_u32() as usize);
        let poller = if self.poll.is_zero() {
            None
        } else {
            self.queues.poll(queue)
        };

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
        if let Err((queue, request)) = self.client.try_send(batch) {
            self.stop_polling();
            self.client.send_waiting(queue, request);
        }
    }

    /// Has interrupts tell of the answers from now on, before somebody sleeps.
    fn stop_polling(&mut self) {
        self.poller = None;
    }
}

impl<O: Origin> Drop for Gets<'_, O> {
    fn drop(&mut self) {
        if let Some(poller) = &self.poller {
            poller.spin(self.client.poll);
        }
    }
}
