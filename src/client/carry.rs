// SPDX-License-Identifier: GPL-2.0

//! Requests on their way to the device and back, whatever they ask.
//!
//! What an operation does with its pages is in its own file: [`put`](super::put),
//! [`get`](super::get) and [`flush`](super::flush).

use kernel::{
    new_spinlock_irq,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        SpinLockIrq, //
    },
};

use virtio_tmem_abi::Status;

use crate::{
    bindings::trace,
    virtio::queue::{
        Notify,
        Poller,
        Rejected, //
    },
};

use super::{
    flight::Arrival,
    logic::{
        standing::Access,
        wire::{
            decode,
            Answer,
            Operation,
            Outcomes, //
        },
    },
    request::{
        Blank,
        Origin,
        Request, //
    },
    Client,
    Pool, //
};

/// A request that is being built.
///
/// It has to be submitted or [cancelled](Client::cancel).
#[must_use = "the pages in it are waiting for an outcome"]
pub(crate) struct Batch<O: Origin> {
    pub(super) blank: Blank<O>,
    pub(super) queue: Option<usize>,
    flags: u16,
}

impl<O: Origin> Batch<O> {
    /// Returns how many pages are in it.
    pub(crate) fn len(&self) -> usize {
        self.blank.record.len()
    }

    /// Changes what is to be told with the outcome of the last page.
    pub(crate) fn set_last(&mut self, mine: O::Page) {
        if let Some(last) = self.blank.record.last_mut() {
            last.mine = mine;
        }
    }
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

/// Why the device could not be given a request.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Obstacle {
    /// The virtqueue is full: others have to come back first.
    Full,
    /// Anything else, which others coming back need not change.
    Other,
}

/// Requests for what only the device has that it could not be given yet.
#[pin_data]
pub(super) struct Parked<O: Origin> {
    #[pin]
    requests: SpinLockIrq<KVec<(usize, Blank<O>)>>,
    count: Atomic<usize>,
}

impl<O: Origin> Parked<O> {
    /// Makes room for `total` requests. May sleep.
    pub(super) fn new(total: usize) -> impl PinInit<Self, Error> {
        pin_init::pin_init_scope(move || {
            let requests = KVec::with_capacity(total, GFP_KERNEL)?;

            Ok(try_pin_init!(Self {
                requests <- new_spinlock_irq!(requests, "Parked::requests"),
                count: Atomic::new(0),
            }))
        })
    }

    /// Returns whether there are any. Any context.
    #[inline]
    pub(super) fn any(&self) -> bool {
        self.count() > 0
    }

    /// Returns how many there are. Any context.
    #[inline]
    pub(super) fn count(&self) -> usize {
        self.count.load(Relaxed)
    }

    fn push(&self, queue: usize, blank: Blank<O>) {
        let mut requests = self.requests.lock();

        // The vector has room for all requests that there are.
        let _ = requests.push_within_capacity((queue, blank));
        self.count.store(requests.len(), Relaxed);
    }

    fn pop(&self) -> Option<(usize, Blank<O>)> {
        let mut requests = self.requests.lock();
        let parked = requests.pop();

        self.count.store(requests.len(), Relaxed);
        parked
    }
}

impl<O: Origin> Client<O> {
    /// Begins to ask about pages of a pool.
    pub(super) fn begin(
        &self,
        mut blank: Blank<O>,
        operation: Operation,
        pool: Pool,
        flags: u16,
    ) -> Batch<O> {
        blank.begin(operation, pool);
        Batch {
            blank,
            queue: None,
            flags,
        }
    }

    /// Returns how many more pages fit into a batch, if they are of the same object.
    pub(crate) fn room(&self, batch: &Batch<O>) -> usize {
        self.max_pages.load(Relaxed).saturating_sub(batch.len())
    }

    /// Returns whether so many requests certainly fit into a virtqueue now. Any context.
    pub(super) fn has_room(&self, queue: usize, count: u64) -> bool {
        // CAST: To as many bits.
        let total = self.ring_requests.load(Relaxed) as u64;

        // Where fewer fit at all, as many as do.
        self.queues.outstanding(queue).saturating_add(count) <= total.max(count)
    }

    /// Gives a batch up that no page was pushed into.
    pub(crate) fn cancel(&self, batch: Batch<O>) {
        self.requests.give(batch.blank);
    }

    /// Ends the building of a batch. [`None`] if nothing was pushed, so that it is over already.
    pub(super) fn seal(&self, batch: Batch<O>) -> Option<(usize, Blank<O>)> {
        let Batch {
            mut blank,
            queue,
            flags,
        } = batch;
        let Some(queue) = queue.filter(|_| blank.record.len() > 0) else {
            self.fail(blank);
            return None;
        };
        let (operation, count) = (blank.record.operation, blank.record.len());
        let state = self.pool(blank.record.pool);

        blank.seal(flags, self.epoch());
        match operation {
            Operation::Put | Operation::PutSlot => state.counters.puts.add(count),
            Operation::Get => state.counters.gets.add(count),
            _ => state.counters.flushes_sent.add(count),
        }
        if let Some(first) = blank.record.entries().first() {
            let pool = blank.record.pool.number();

            // CAST: There are at most 32.
            match operation {
                Operation::Put => trace::put(pool, first.wire, first.index, count as u32),
                Operation::Get => trace::get(pool, first.wire, first.index, count as u32),
                _ => (),
            }
        }
        trace::request(queue, operation.opcode().to_wire(), count, 0);
        Some((queue, blank))
    }

    /// Gives a request to the device, if it takes any and there is room. `poller` looks for the
    /// answer.
    pub(super) fn offer(
        &self,
        queue: usize,
        blank: Blank<O>,
        poller: Option<&Poller<'_, Self>>,
    ) -> Result<(), (Blank<O>, Obstacle)> {
        let flush = blank.record.operation.is_flush();
        let notify = if flush { Notify::Later } else { Notify::Now };
        let added = self.queues.added(queue);
        let request = self.flights.depart(blank, queue, added);

        let submitted = match poller {
            Some(poller) => poller.submit(request, notify),
            None => self.queues.submit(queue, request, notify),
        };
        let (request, obstacle) = match submitted {
            Ok(()) if flush => {
                self.kick_later(queue);
                return Ok(());
            }
            Ok(()) => {
                self.watch();
                return Ok(());
            }
            Err(Rejected::Full(request)) => (request, Obstacle::Full),
            Err(
                Rejected::NoMemory(request)
                | Rejected::Invalid(request)
                | Rejected::Stopped(request),
            ) => (request, Obstacle::Other),
        };
        match self.flights.arrive(request, 0) {
            Arrival::Answer(blank) => Err((blank, obstacle)),
            Arrival::Later => Ok(()),
        }
    }

    /// Gives a request to the device, and waits for room as long as `wait` says.
    ///
    /// Returns the request if the device does not take it. Sleeps.
    pub(super) fn offer_waiting(
        &self,
        queue: usize,
        mut blank: Blank<O>,
        wait: impl Fn() -> bool,
    ) -> Result<(), Blank<O>> {
        loop {
            let seen = self.requests.returned();

            blank = match self.offer(queue, blank, None) {
                Ok(()) => return Ok(()),
                Err((blank, Obstacle::Full)) if wait() => blank,
                Err((blank, _)) => return Err(blank),
            };
            // What fills it comes back, or there is no reason to wait any more.
            self.requests.wait_after(seen, &wait);
        }
    }

    /// Keeps a request for what only the device has until the device takes it. Any context.
    pub(super) fn park(&self, queue: usize, blank: Blank<O>) {
        self.parked.push(queue, blank);
        // Somebody may wait for all requests that the device has.
        self.requests.wake();
        self.bell.ring();
    }

    /// Gives the device what is parked, as far as it takes it; for the thread itself.
    pub(super) fn offer_parked(&self) {
        loop {
            let access = self.standing().persistent();
            if access == Access::Wait {
                return;
            }
            let Some((queue, blank)) = self.parked.pop() else {
                return;
            };
            if access == Access::Never {
                self.fail(blank);
            } else if let Err((blank, _)) = self.offer(queue, blank, None) {
                self.parked.push(queue, blank);
                return;
            }
        }
    }

    /// Takes a request about pages back, which the device has used.
    pub(super) fn complete(&self, queue: usize, request: KBox<Request<O>>, written: usize) {
        if let Arrival::Answer(blank) = self.flights.arrive(request, written) {
            self.answered(queue, blank, written);
        }
        if self.staging.any() || self.parked.any() {
            self.bell.ring();
        }
    }

    /// Takes a request about pages back, of which nobody knows whether the device has carried it
    /// out: it is asked again if only the device has what it asks for.
    pub(super) fn unanswered(&self, queue: usize, request: KBox<Request<O>>) {
        let Arrival::Answer(blank) = self.flights.arrive(request, 0) else {
            return;
        };
        let record = &blank.record;
        let again = record.operation == Operation::Get && record.pool == Pool::Frontswap;

        if again && self.standing().persistent() != Access::Never {
            self.parked.push(queue, blank);
        } else {
            self.settle(blank, None);
        }
    }

    /// Reads the answer to a request, and does what there is to be done about it.
    pub(super) fn answered(&self, queue: usize, mut blank: Blank<O>, written: usize) {
        let (operation, count) = (blank.record.operation, blank.record.len());
        let asked = blank.record.epoch;
        let frame = &blank.request.frame;
        let answer = decode(operation, count, frame.answer(), written, frame.room());
        let code = match &answer {
            Ok(Answer::Done { .. }) => 1,
            Ok(Answer::Declined { status, .. }) => status.to_wire(),
            _ => 0,
        };

        blank.record.was_read = !matches!(answer, Ok(Answer::Unanswered));
        trace::response(queue, operation.opcode().to_wire(), count, code);
        match answer {
            // What the device did in another epoch is about other pages.
            Ok(Answer::Done { outcomes, state }) => {
                let usable = state.epoch == asked;

                self.settle(blank, usable.then_some(outcomes));
                self.heed(&state, Some(asked));
            }
            Ok(Answer::Declined { status, state }) => {
                self.heed(&state, Some(asked));
                match (blank.record.pool, status) {
                    // The operator has taken the driver off, which it finds out when it asks again.
                    (Pool::Shared(place), Status::NoPool) => self.shared.is_out(place),
                    _ => self.note_declined(operation, status),
                }
                self.settle(blank, None);
            }
            Ok(Answer::Unanswered) => self.settle(blank, None),
            Err(lie) => {
                self.accuse(&lie);
                self.settle(blank, None);
            }
        }
    }

    /// Ends a request: tells the index and whoever asked what the device did, if it did anything.
    fn settle(&self, mut blank: Blank<O>, outcomes: Option<Outcomes>) {
        let mut outcomes = outcomes.unwrap_or(Outcomes::failed(blank.record.len()));

        match blank.record.operation {
            Operation::PutSlot => self.slots_sent(&blank, outcomes),
            Operation::Put => self.put_done(&mut blank, outcomes),
            Operation::Get => match self.get_done(blank, &mut outcomes) {
                Some(done) => blank = done,
                // It is asked again.
                None => return,
            },
            _ => (),
        }
        self.finish(blank, outcomes);
    }

    /// Ends a request that the device never saw, and will not see.
    pub(super) fn fail(&self, blank: Blank<O>) {
        let outcomes = Outcomes::failed(blank.record.len());

        match blank.record.operation {
            Operation::PutSlot => self.slots_sent(&blank, outcomes),
            Operation::Put => self.put_failed(&blank),
            Operation::Get => return self.settle(blank, None),
            _ => (),
        }
        self.finish(blank, outcomes);
    }

    /// Tells whoever asked, and gives the request back.
    pub(super) fn finish(&self, mut blank: Blank<O>, outcomes: Outcomes) {
        blank.record.tell(outcomes);
        self.requests.give(blank);
    }
}
