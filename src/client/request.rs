// SPDX-License-Identifier: GPL-2.0

//! Requests: the memory of one, what is remembered of it, and the fixed number that there is.
//!
//! A [`Request`] is what a virtqueue carries: memory that the device reads and writes. What was
//! asked, for whom, and what to do about the answer, is in its [`Record`], which no device ever
//! sees.

use kernel::{
    new_condvar, new_spinlock_irq,
    prelude::*,
    sync::{
        CondVar,
        SpinLockIrq, //
    },
};
use virtio_tmem_abi::Opcode;
use zerocopy::IntoBytes;

use crate::{
    bindings::page::PageRef,
    virtio::queue::{
        Buffers,
        Token, //
    },
};

use super::{
    frame::{
        Direction,
        Frame, //
    },
    logic::{
        index::Supersedes,
        wire::{
            self,
            Operation,
            Outcomes,
            MAX_ENTRIES,
            RESPONSE_BYTES, //
        },
    },
    pool::Pool, //
};

/// What became of one page of a request.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// A put was accepted, or a get returned the page.
    Done,
    /// A put was refused, or a get did not return the page.
    Failed,
}

/// What became of the pages of a request, for whoever asked.
pub(crate) struct Answers<'a, P> {
    outcomes: Outcomes,
    entries: &'a [Entry<P>],
}

impl<'a, P: Copy> Answers<'a, P> {
    /// Returns what whoever asked has said of each page, and what became of it, in the order in
    /// which they were asked for.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (P, Outcome)> + 'a {
        let outcomes = self.outcomes;

        self.entries.iter().enumerate().map(move |(n, entry)| {
            let outcome = if outcomes.is_done(n) {
                Outcome::Done
            } else {
                Outcome::Failed
            };

            (entry.mine, outcome)
        })
    }
}

/// Who asked, and is told what became of it.
pub(crate) trait Origin: Sized + Send + 'static {
    /// What whoever asks wants to be told again with the outcome of a page.
    type Page: Copy + Default + Send;

    /// Takes the outcome of a request.
    ///
    /// Hard interrupt context, or process context; may not sleep.
    fn done(self, answers: &Answers<'_, Self::Page>);

    /// Returns whether whoever asked can do without the answer, should the device fall silent.
    ///
    /// Process context.
    fn can_leave(&self) -> bool;

    /// Lets whoever asked go on without an answer, which may still come.
    ///
    /// Returns what is told of it then; it has to keep the pages of a get until it is. Process
    /// context, where reclaim waits; may sleep, but not allocate other than reclaim may.
    fn leave(self, pages: &mut dyn Iterator<Item = Self::Page>) -> Option<Self>;

    /// Takes the device's wish to have so many pages fewer that only it has.
    ///
    /// Hard interrupt context; may not sleep.
    fn shrink(pages: u64);
}

/// What is remembered of one entry of a request.
#[derive(Clone, Copy, Default)]
pub(super) struct Entry<P> {
    /// The tag of the object that the page belongs to.
    pub(super) tag: u64,
    /// The object's name to the device.
    pub(super) wire: u64,
    /// The page's place in the object.
    pub(super) index: u64,
    /// The page's version; in a pool that is shared, the generation of the file.
    pub(super) version: u32,
    /// The CRC of the page, or 0 for none.
    pub(super) crc: u32,
    /// What the index needs to know should a put be given up.
    pub(super) supersedes: Option<Supersedes>,
    /// What whoever asked wants to be told again.
    pub(super) mine: P,
}

/// What was asked, for whom, and what to do about the answer.
pub(super) struct Record<O: Origin> {
    pub(super) operation: Operation,
    pub(super) pool: Pool,
    /// The version of all pages, of a pool that is shared.
    pub(super) stamp: u64,
    pub(super) epoch: u64,
    pub(super) origin: Option<O>,
    /// A request that this one asks again for, by way of other memory, and what came so far.
    pub(super) instead_of: Option<(Blank<O>, Outcomes)>,
    /// How often it has been asked again.
    pub(super) tries: u32,
    /// Whether the device has read the request, as far as it says.
    pub(super) was_read: bool,
    count: usize,
    entries: [Entry<O::Page>; MAX_ENTRIES],
}

impl<O: Origin> Record<O> {
    fn new() -> Result<KBox<Self>> {
        Ok(KBox::new(
            Self {
                operation: Operation::Put,
                pool: Pool::Cleancache,
                stamp: 0,
                epoch: 0,
                origin: None,
                instead_of: None,
                tries: 0,
                was_read: false,
                count: 0,
                entries: [Entry::default(); MAX_ENTRIES],
            },
            GFP_KERNEL,
        )?)
    }

    /// Returns how many entries there are.
    pub(super) fn len(&self) -> usize {
        self.count
    }

    /// Returns the entries, in the order in which they were pushed.
    pub(super) fn entries(&self) -> &[Entry<O::Page>] {
        self.entries.get(..self.count).unwrap_or(&[])
    }

    /// Returns the entry that was pushed last.
    pub(super) fn last_mut(&mut self) -> Option<&mut Entry<O::Page>> {
        self.entries.get_mut(self.count.checked_sub(1)?)
    }

    /// Lets whoever asked go on without an answer.
    pub(super) fn leave(&mut self) {
        if let Some(origin) = self.origin.take() {
            let mut pages = self.entries().iter().map(|entry| entry.mine);

            self.origin = origin.leave(&mut pages);
        }
    }

    /// Tells whoever asked.
    pub(super) fn tell(&mut self, outcomes: Outcomes) {
        if let Some(origin) = self.origin.take() {
            origin.done(&Answers {
                outcomes,
                entries: self.entries(),
            });
        }
    }
}

/// What a virtqueue carries.
pub(crate) struct Request<O: Origin> {
    pub(super) frame: Frame,
    /// What is remembered of it, unless somebody else has that; see
    /// [`Flights`](super::flight::Flights).
    pub(super) record: Option<KBox<Record<O>>>,
    /// Its place among those in flight, for one of a [`RequestPool`].
    pub(super) place: usize,
}

impl<O: Origin> Token for Request<O> {
    fn buffers<'a>(&'a mut self, list: &mut Buffers<'a>) {
        self.frame.buffers(list);
    }
}

impl<O: Origin> Request<O> {
    /// Allocates a request about no pages: for the control virtqueue, or for an event.
    ///
    /// May sleep.
    pub(super) fn new(place: usize) -> Result<KBox<Self>> {
        KBox::init(
            init!(Self {
                frame <- Frame::init(),
                record: None,
                place,
            }? Error),
            GFP_KERNEL,
        )
    }
}

/// A request in which nothing is asked yet, or not any more, with its record.
pub(super) struct Blank<O: Origin> {
    pub(super) request: KBox<Request<O>>,
    pub(super) record: KBox<Record<O>>,
}

impl<O: Origin> Blank<O> {
    /// Allocates a request, for a place among those in flight. May sleep.
    pub(super) fn new(place: usize) -> Result<Self> {
        Ok(Self {
            request: Request::new(place)?,
            record: Record::new()?,
        })
    }

    /// Begins to ask about pages of a pool.
    pub(super) fn begin(&mut self, operation: Operation, pool: Pool) {
        let direction = match operation {
            Operation::Get => Direction::In,
            _ => Direction::Out,
        };

        self.record.operation = operation;
        self.record.pool = pool;
        self.record.origin = None;
        self.record.tries = 0;
        self.record.was_read = false;
        self.record.count = 0;
        self.request.frame.reset(RESPONSE_BYTES, direction);
        self.request.frame.reserve_header();
    }

    /// Appends a page to a table of keys.
    pub(super) fn push_key(&mut self, entry: Entry<O::Page>) -> Result {
        let key = match self.record.pool {
            Pool::Shared(_) => {
                wire::shared_key(entry.wire, entry.version, entry.index, self.record.stamp)
            }
            _ => wire::key(entry.wire, entry.index, entry.version),
        };

        self.push(key.as_bytes(), entry)
    }

    /// Appends an entry to the table.
    pub(super) fn push(&mut self, bytes: &[u8], entry: Entry<O::Page>) -> Result {
        let record = &mut *self.record;
        let place = record.entries.get_mut(record.count).ok_or(EOVERFLOW)?;

        self.request.frame.push_out(bytes)?;
        *place = entry;
        record.count += 1;
        self.request
            .frame
            .set_answer_len(RESPONSE_BYTES + record.count);
        Ok(())
    }

    /// Appends a page to be sent or to be filled.
    pub(super) fn push_page(&mut self, page: PageRef) -> Result {
        self.request.frame.push_page(page)
    }

    /// Writes the header; nothing is pushed after that.
    pub(super) fn seal(&mut self, flags: u16, epoch: u64) {
        let record = &mut self.record;
        let opcode: Opcode = record.operation.opcode();
        let header = wire::header(opcode, flags, record.pool.number(), record.count, epoch);

        record.epoch = epoch;
        self.request.frame.write_header(header.as_bytes());
    }
}

/// The requests that are not in use.
struct Free<O: Origin> {
    blanks: KVec<Blank<O>>,
    /// How many requests have come back so far.
    returned: u64,
    /// How many wait for one.
    waiters: u32,
}

/// A fixed number of requests.
///
/// Reclaim waits for one to come back where it has to, as it does for a disk's, but for no longer
/// than the device answers.
#[pin_data]
pub(super) struct RequestPool<O: Origin> {
    #[pin]
    free: SpinLockIrq<Free<O>>,
    #[pin]
    came_back: CondVar,
    total: usize,
}

impl<O: Origin> RequestPool<O> {
    /// Allocates a pool of `total` requests.
    ///
    /// May sleep.
    pub(super) fn new(total: usize) -> impl PinInit<Self, Error> {
        pin_init::pin_init_scope(move || {
            let mut blanks = KVec::with_capacity(total, GFP_KERNEL)?;
            for place in 0..total {
                blanks.push(Blank::new(place)?, GFP_KERNEL)?;
            }

            let free = Free {
                blanks,
                returned: 0,
                waiters: 0,
            };
            Ok(try_pin_init!(Self {
                free <- new_spinlock_irq!(free, "RequestPool::free"),
                came_back <- new_condvar!("RequestPool::came_back"),
                total,
            }))
        })
    }

    /// Takes a request, unless fewer than `reserve` would be left.
    ///
    /// Any context.
    pub(super) fn try_take(&self, reserve: usize) -> Option<Blank<O>> {
        let mut free = self.free.lock();

        if free.blanks.len() <= reserve {
            return None;
        }
        free.blanks.pop()
    }

    /// Takes a request as [`Self::try_take`] does, and waits for one as long as `wait` says.
    ///
    /// `wait` is asked whenever a request comes back, and on [`Self::wake`]; it is called with
    /// interrupts off and a lock held. Sleeps.
    pub(super) fn take(&self, reserve: usize, wait: impl Fn() -> bool) -> Option<Blank<O>> {
        let mut free = self.free.lock();

        while wait() {
            if free.blanks.len() > reserve {
                return free.blanks.pop();
            }
            free.waiters += 1;
            self.came_back.wait(&mut free);
            free.waiters -= 1;
        }
        None
    }

    /// Waits until a request comes back after `seen` have, as long as `wait` says.
    ///
    /// For `wait` see [`Self::take`]. Sleeps.
    pub(super) fn wait_after(&self, seen: u64, wait: impl Fn() -> bool) {
        let mut free = self.free.lock();

        free.waiters += 1;
        while free.returned == seen && free.blanks.len() < self.total && wait() {
            self.came_back.wait(&mut free);
        }
        free.waiters -= 1;
    }

    /// Waits until all requests are there but those that are `elsewhere`, as long as `wait` says;
    /// returns whether they are.
    ///
    /// `elsewhere` is asked as `wait` is; for that see [`Self::take`]. Sleeps.
    pub(super) fn wait_all(&self, elsewhere: impl Fn() -> usize, wait: impl Fn() -> bool) -> bool {
        let mut free = self.free.lock();
        let all = |free: &Free<O>| free.blanks.len() + elsewhere() >= self.total;

        free.waiters += 1;
        while !all(&free) && wait() {
            self.came_back.wait(&mut free);
        }
        free.waiters -= 1;
        all(&free)
    }

    /// Has whoever waits ask again whether to. Any context.
    pub(super) fn wake(&self) {
        // Whoever has asked before sleeps when the lock is free, so that this is not missed.
        drop(self.free.lock());
        self.came_back.notify_all();
    }

    /// Sleeps as long as `wait` says. For `wait` see [`Self::take`].
    pub(super) fn wait_while(&self, wait: impl Fn() -> bool) {
        let mut free = self.free.lock();

        free.waiters += 1;
        while wait() {
            self.came_back.wait(&mut free);
        }
        free.waiters -= 1;
    }

    /// Returns how many requests have come back so far.
    pub(super) fn returned(&self) -> u64 {
        self.free.lock().returned
    }

    /// Gives a request back.
    ///
    /// Any context.
    pub(super) fn give(&self, mut blank: Blank<O>) {
        blank.request.frame.detach();
        let mut free = self.free.lock();

        // The vector has room for all requests that there are.
        let _ = free.blanks.push_within_capacity(blank);
        free.returned = free.returned.wrapping_add(1);
        let wanted = free.waiters > 0;
        drop(free);
        if wanted {
            self.came_back.notify_all();
        }
    }
}
