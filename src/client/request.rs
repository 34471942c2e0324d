// SPDX-License-Identifier: GPL-2.0

//! Requests: the memory of one, and the fixed number of them that there is.

use kernel::{
    new_condvar, new_spinlock_irq,
    prelude::*,
    sync::{
        CondVar,
        SpinLockIrq, //
    },
};
use virtio_tmem_abi::{
    Key,
    Le16,
    Le32,
    Le64,
    ObjectId,
    Opcode,
    PageResult,
    RequestHeader,
    ResponseHeader,
    Status, //
};
use zerocopy::{
    FromBytes,
    IntoBytes, //
};

use super::logic::index::Covers;

use crate::virtio::{
    frame::{
        Direction,
        Frame,
        MAX_PAGES, //
    },
    queue, //
};

const HEADER: usize = size_of::<RequestHeader>();
const KEY: usize = size_of::<Key>();
const RESPONSE: usize = size_of::<ResponseHeader>();

/// What became of one page of a request.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// A put was accepted, or a get returned the page.
    Done,
    /// A put was refused, or a get did not return the page.
    Failed,
}

/// What became of each page of a request, in the order in which they were pushed.
#[derive(Clone, Copy)]
pub(super) struct Outcomes {
    /// A bit for each page that was done.
    done: u32,
    count: usize,
}

const _: () = assert!(MAX_PAGES <= u32::BITS as usize);

impl Outcomes {
    /// Returns the outcomes of `count` pages that all failed.
    pub(super) fn failed(count: usize) -> Self {
        Self { done: 0, count }
    }

    /// Says that page `n` was done.
    pub(super) fn set_done(&mut self, n: usize) {
        self.done |= bit(n);
    }

    /// Says that page `n` failed after all.
    pub(super) fn set_failed(&mut self, n: usize) {
        self.done &= !bit(n);
    }

    /// Returns whether page `n` was done.
    pub(super) fn is_done(self, n: usize) -> bool {
        self.done & bit(n) != 0
    }

    /// Returns how many pages were done.
    pub(super) fn done(self) -> usize {
        self.done.count_ones() as usize
    }

    /// Returns how many pages there are.
    pub(super) fn len(self) -> usize {
        self.count
    }
}

fn bit(n: usize) -> u32 {
    // CAST: There are at most 32 pages.
    1u32.checked_shl(n as u32).unwrap_or(0)
}

/// What became of the pages of a request, for whoever asked.
pub(crate) struct Answers<'a, P> {
    outcomes: Outcomes,
    pages: &'a [Page<P>],
}

impl<'a, P: Copy> Answers<'a, P> {
    /// Returns what whoever asked has said of each page, and what became of it, in the order in
    /// which they were asked for.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (P, Outcome)> + 'a {
        let outcomes = self.outcomes;

        self.pages
            .iter()
            .take(outcomes.count)
            .enumerate()
            .map(move |(n, page)| {
                let outcome = if outcomes.is_done(n) {
                    Outcome::Done
                } else {
                    Outcome::Failed
                };

                (page.mine, outcome)
            })
    }
}

/// Who asked, and is told what became of it.
pub(crate) trait Origin: Send + 'static {
    /// What whoever asks wants to be told again with the outcome of a page.
    type Page: Copy + Default + Send;

    /// Takes the outcome of a request.
    ///
    /// Hard interrupt context, or process context; may not sleep.
    fn done(self, answers: &Answers<'_, Self::Page>);

    /// Takes the device's wish to have so many pages fewer that only it has.
    ///
    /// Hard interrupt context; may not sleep.
    fn shrink(pages: u64);
}

/// What the driver remembers of a page that it asked for.
#[derive(Clone, Copy, Default)]
pub(super) struct Page<P> {
    /// The tag of the object that the page belongs to.
    pub(super) tag: u64,
    /// The CRC of the page, if `checked`.
    pub(super) crc: u32,
    /// Whether the CRC is known.
    pub(super) checked: bool,
    /// What the index needs to know should a put be given up.
    pub(super) covers: Option<Covers>,
    /// What whoever asked wants to be told again.
    pub(super) mine: P,
}

/// What a response says about the device as a whole.
#[derive(Clone, Copy)]
pub(super) struct News {
    pub(super) persistent_credits: u32,
    pub(super) ephemeral_credits: u32,
    pub(super) epoch: u64,
}

impl From<&ResponseHeader> for News {
    fn from(header: &ResponseHeader) -> Self {
        Self {
            persistent_credits: header.persistent_credits.get(),
            ephemeral_credits: header.ephemeral_credits.get(),
            epoch: header.epoch.get(),
        }
    }
}

/// One request, from when it is built until its outcome is known.
pub(crate) struct Request<O: Origin> {
    pub(super) frame: Frame,
    pub(super) opcode: Opcode,
    pub(super) pool: u32,
    pub(super) pages: [Page<O::Page>; MAX_PAGES],
    pub(super) count: usize,
    pub(super) origin: Option<O>,
}

impl<O: Origin> queue::Token for Request<O> {
    fn frame(&mut self) -> &mut Frame {
        &mut self.frame
    }
}

impl<O: Origin> Request<O> {
    /// Allocates a request.
    ///
    /// May sleep.
    pub(super) fn new() -> Result<KBox<Self>> {
        KBox::init(
            init!(Self {
                frame <- Frame::init(),
                opcode: Opcode::Put,
                pool: 0,
                pages: [Page::default(); MAX_PAGES],
                count: 0,
                origin: None,
            }? Error),
            GFP_KERNEL,
        )
    }

    /// Begins a request about pages of `pool`.
    pub(super) fn begin(&mut self, opcode: Opcode, pool: u32, epoch: u64, flags: u16) -> Result {
        let direction = match opcode {
            Opcode::Get => Direction::In,
            _ => Direction::Out,
        };

        self.opcode = opcode;
        self.pool = pool;
        self.count = 0;
        self.origin = None;
        self.frame.reset(RESPONSE, direction);
        self.frame.push_out(
            RequestHeader {
                opcode: Le16::new(opcode.to_wire()),
                flags: Le16::new(flags),
                pool: Le32::new(pool),
                count: Le32::new(0),
                reserved: Le32::new(0),
                epoch: Le64::new(epoch),
                reserved1: Le64::new(0),
            }
            .as_bytes(),
        )
    }

    /// Appends an entry to the table.
    pub(super) fn push_entry(&mut self, entry: &[u8], page: Page<O::Page>) -> Result {
        let place = self.pages.get_mut(self.count).ok_or(EOVERFLOW)?;

        self.frame.push_out(entry)?;
        *place = page;
        self.count += 1;
        self.frame.set_answer_len(RESPONSE + self.count);
        Ok(())
    }

    /// Appends a key to the table.
    pub(super) fn push_key(
        &mut self,
        wire: u64,
        index: u64,
        version: u32,
        page: Page<O::Page>,
    ) -> Result {
        let key = Key {
            object: object_id(wire),
            index: Le64::new(index),
            version: Le64::new(u64::from(version)),
        };
        self.push_entry(key.as_bytes(), page)
    }

    /// Writes the number of entries into the header; nothing is pushed after that.
    pub(super) fn seal(&mut self) {
        let count = self.count as u32;

        if let Ok((header, _)) = RequestHeader::mut_from_prefix(self.frame.out_mut()) {
            header.count = Le32::new(count);
        }
    }

    /// Tells whoever asked.
    pub(super) fn tell(&mut self, outcomes: Outcomes) {
        if let Some(origin) = self.origin.take() {
            origin.done(&Answers {
                outcomes,
                pages: &self.pages,
            });
        }
    }

    /// Returns whether it only tells the device what it need not keep.
    pub(super) fn is_flush(&self) -> bool {
        matches!(
            self.opcode,
            Opcode::FlushPage | Opcode::FlushRange | Opcode::FlushObject
        )
    }

    /// Reads the status and the news of an answer that has no results.
    pub(super) fn status(&self, written: usize) -> Option<(Status, News)> {
        let (header, _) = ResponseHeader::ref_from_prefix(self.frame.answer(written)).ok()?;

        Some((Status::from_wire(header.status.get())?, News::from(header)))
    }

    /// Returns the wire id, index and version of entry `n`, where the table is one of keys.
    pub(super) fn key(&self, n: usize) -> Option<(u64, u64, u32)> {
        let at = HEADER.checked_add(n.checked_mul(KEY)?)?;
        let (key, _) = Key::ref_from_prefix(self.frame.out().get(at..)?).ok()?;

        Some((
            key.object.0.first()?.get(),
            key.index.get(),
            key.version.get() as u32,
        ))
    }

    /// Reads the answer.
    ///
    /// Whatever the device wrote, or did not write, an outcome is [`Outcome::Done`] only where
    /// the device said so.
    pub(super) fn outcomes(&self, written: usize) -> (Status, Outcomes, Option<News>) {
        let mut outcomes = Outcomes::failed(self.count);
        let answer = self.frame.answer(written);
        let Ok((header, results)) = ResponseHeader::ref_from_prefix(answer) else {
            return (Status::Malformed, outcomes, None);
        };
        let news = News::from(header);

        match Status::from_wire(header.status.get()) {
            Some(Status::Ok) => (),
            Some(status) => return (status, outcomes, Some(news)),
            None => return (Status::Malformed, outcomes, None),
        }
        if header.count.get() as usize != self.count {
            return (Status::Malformed, outcomes, None);
        }

        for (n, &result) in results.iter().enumerate().take(self.count) {
            let done = matches!(
                (self.opcode, PageResult::from_wire(result)),
                (Opcode::Put, Some(PageResult::Stored))
                    | (Opcode::Get, Some(PageResult::Hit))
                    | (_, Some(PageResult::Flushed | PageResult::Absent))
            );
            if done {
                outcomes.set_done(n);
            }
        }
        (Status::Ok, outcomes, Some(news))
    }
}

/// Returns the object that a wire id stands for.
pub(super) fn object_id(wire: u64) -> ObjectId {
    ObjectId([Le64::new(wire), Le64::new(0), Le64::new(0)])
}

/// The requests that are not in use.
struct Free<O: Origin> {
    requests: KVec<KBox<Request<O>>>,
    /// How many requests have come back so far.
    returned: u64,
    /// How many wait for one.
    waiters: u32,
    closed: bool,
}

/// A fixed number of requests.
///
/// Reclaim waits for one to come back where it has to, as it does for a disk's; it is bounded
/// because a device that does not answer is given up, and [`Self::close`]d.
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
            let mut requests = KVec::with_capacity(total, GFP_KERNEL)?;
            for _ in 0..total {
                requests.push(Request::new()?, GFP_KERNEL)?;
            }

            let free = Free {
                requests,
                returned: 0,
                waiters: 0,
                closed: false,
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
    pub(super) fn try_take(&self, reserve: usize) -> Option<KBox<Request<O>>> {
        let mut free = self.free.lock();

        if free.closed || free.requests.len() <= reserve {
            return None;
        }
        free.requests.pop()
    }

    /// Takes a request, and waits for one if there is none.
    ///
    /// [`None`] if the pool is closed. Sleeps.
    pub(super) fn take(&self) -> Option<KBox<Request<O>>> {
        let mut free = self.free.lock();

        loop {
            if free.closed {
                return None;
            }
            if let Some(request) = free.requests.pop() {
                return Some(request);
            }
            free.waiters += 1;
            self.came_back.wait(&mut free);
            free.waiters -= 1;
        }
    }

    /// Waits until a request comes back after `seen` have, or the pool is closed.
    ///
    /// Sleeps.
    pub(super) fn wait_after(&self, seen: u64) {
        let mut free = self.free.lock();

        free.waiters += 1;
        while free.returned == seen && !free.closed && free.requests.len() < self.total {
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
    pub(super) fn give(&self, mut request: KBox<Request<O>>) {
        request.frame.detach();
        let mut free = self.free.lock();

        // The vector has room for all requests that there are.
        let _ = free.requests.push_within_capacity(request);
        free.returned = free.returned.wrapping_add(1);
        let wanted = free.waiters > 0;
        drop(free);
        if wanted {
            self.came_back.notify_all();
        }
    }

    /// Lets nobody take a request any more, and wakes who waits for one.
    pub(super) fn close(&self) {
        self.free.lock().closed = true;
        self.came_back.notify_all();
    }

    /// Returns whether a request is in use.
    pub(super) fn any_out(&self) -> bool {
        self.free.lock().requests.len() < self.total
    }
}
