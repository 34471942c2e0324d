// SPDX-License-Identifier: GPL-2.0

//! Swap requests, from when they are taken from the kernel until they are given back.

use core::{
    mem::offset_of,
    ptr::{
        self,
        NonNull, //
    },
};

use kernel::{
    page::PAGE_SIZE,
    prelude::*,
    sync::atomic::{
        Atomic,
        Full,
        Relaxed, //
    },
};

use crate::{
    bindings::{
        self,
        block,
        page::PageRef,
        swap::Area, //
    },
    client::{
        Answers,
        Outcome,
        Pool, //
    },
    params,
};

use super::{
    super::{
        folio::Folio,
        ftrace,
        Context,
        Entered,
        PageOf, //
    },
    key,
    present,
    read,
    Patience,
    OBJECT_PAGES,
    READ,
    WRITE, //
};

/// A swap request on its way to the host, in the memory of the request that nobody else needs
/// meanwhile.
#[repr(C)]
pub(super) struct Transfer {
    area: Area,
    pub(super) rw: c_int,
    /// Answers that are still to come, plus one while questions are asked.
    left: Atomic<u32>,
    /// A bit for each folio with a page that was refused, or did not come.
    failed: Atomic<u32>,
    /// The next one that is to go to the swap area.
    next: *mut bindings::swap_iocb,
}

const _: () = {
    assert!(size_of::<Transfer>() <= offset_of!(bindings::swap_iocb, bvecs));
};

/// A swap request that belongs to this half.
///
/// A page that is looked for in the index and found there may be drained before the host is asked for
/// it, or before it answers. Then it does not come, the index does not have it any more, and it is
/// in the swap area: see [`Self::finish_read`].
///
/// # Invariants
///
/// The request is valid until [`Self::finish`], has its [`Transfer`], and its folios are under
/// writeback, or locked for reading.
#[derive(Clone, Copy)]
pub(crate) struct Request(NonNull<bindings::swap_iocb>);

// SAFETY: A request may be completed from any thread.
unsafe impl Send for Request {}

/// A page of a swap request: which folio it belongs to, and which page of that it is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Position {
    pub(super) place: usize,
    n: u64,
}

impl Position {
    /// The first page.
    pub(super) const START: Self = Self { place: 0, n: 0 };
}

/// Pages of a swap request that are neighbours in an object.
pub(super) struct Run {
    pub(super) tag: u64,
    pub(super) index: u64,
    pub(super) len: u64,
    /// Where the next one begins.
    pub(super) next: Position,
}

impl Request {
    /// Takes a request over from the kernel.
    ///
    /// # Safety
    ///
    /// `ctx` must be what the kernel submits, and whoever calls must not submit it any more.
    pub(super) unsafe fn take(ctx: *mut bindings::swap_io_ctx, rw: c_int) -> Option<Self> {
        // SAFETY: By the safety requirements it is valid.
        let (sio, area) = unsafe { ((*ctx).sio, (*ctx).sis) };
        // SAFETY: By the safety requirements the request is for this area, and as long as it is not
        // completed some slots of that are in use.
        let area = unsafe { Area::new(NonNull::new(area)?) };
        let transfer = Transfer {
            area,
            rw,
            left: Atomic::new(1),
            failed: Atomic::new(0),
            next: ptr::null_mut(),
        };

        // SAFETY: The request is valid, and until it is submitted nobody uses that memory.
        unsafe { sio.cast::<Transfer>().write(transfer) };
        // INVARIANT: By the safety requirements and the above.
        NonNull::new(sio).map(Self)
    }

    pub(super) fn transfer(&self) -> &Transfer {
        // SAFETY: By the type invariants it is there.
        unsafe { self.0.cast::<Transfer>().as_ref() }
    }

    /// Returns the area that it is for.
    pub(super) fn area(&self) -> Area {
        self.transfer().area
    }

    fn count(&self) -> usize {
        // SAFETY: By the type invariants it is valid.
        let count = unsafe { (*self.0.as_ptr()).nr_bvecs };

        usize::try_from(count).unwrap_or(0)
    }

    /// Returns folio `n`, if there are so many.
    fn folio(&self, n: usize) -> Option<Folio> {
        if n >= self.count() {
            return None;
        }
        // SAFETY: By the type invariants it is valid, and nobody changes it.
        let vector = unsafe { (*self.0.as_ptr()).bvecs.get(n)? };
        // SAFETY: The vector is one of those that the request has, and names a page of a folio.
        let folio = unsafe { bindings::tmem_bvec_folio(vector) };

        // SAFETY: By the type invariants the folio stays until the request is finished.
        Some(unsafe { Folio::new(NonNull::new(folio)?) })
    }

    pub(super) fn folios(&self) -> impl Iterator<Item = Folio> + '_ {
        (0..self.count()).filter_map(|n| self.folio(n))
    }

    /// Returns the page at a position, and moves on to the next one.
    pub(super) fn next(&self, at: &mut Position) -> Option<(PageRef, PageOf)> {
        let (page, more) = self.folio(at.place)?.page_and_more(at.n).ok()?;
        // CAST: There are at most 32 folios.
        let place = at.place as u8;

        *at = if more {
            Position { n: at.n + 1, ..*at }
        } else {
            Position {
                place: at.place + 1,
                n: 0,
            }
        };
        Some((page, PageOf::Place(place)))
    }

    /// Returns all pages of the request as one run, if they certainly are one.
    ///
    /// The kernel merges what is next to each other on the disk. Where the area is a block device
    /// its pages are in the same order there; those of a file are as the filesystem has them.
    pub(super) fn only_run(&self) -> Option<Run> {
        if !self.area().is_block_device() {
            return None;
        }

        let (area, offset) = self.folio(0)?.swap();
        let (tag, index) = key(area, offset);
        let len = self.pages();
        let next = Position {
            place: self.count(),
            n: 0,
        };

        (len <= OBJECT_PAGES - index).then_some(Run {
            tag,
            index,
            len,
            next,
        })
    }

    /// Returns the longest run of neighbours from a position on, if there is a page.
    #[inline]
    pub(super) fn run(&self, from: Position) -> Option<Run> {
        // Most requests are one run, and this is asked once more after it.
        if from.place >= self.count() {
            return None;
        }
        self.run_from(from)
    }

    fn run_from(&self, from: Position) -> Option<Run> {
        if from == Position::START {
            if let Some(run) = self.only_run() {
                return Some(run);
            }
        }

        let folio = self.folio(from.place)?;
        let (area, offset) = folio.swap();
        let entry = folio.swap_entry().wrapping_add(from.n);
        let (tag, index) = key(area, offset + from.n);
        let most = OBJECT_PAGES - index;
        let mut len = folio.pages() - from.n;
        let mut place = from.place + 1;

        while len < most {
            let Some(folio) = self.folio(place) else {
                break;
            };
            if folio.swap_entry() != entry.wrapping_add(len) {
                break;
            }
            len += folio.pages();
            place += 1;
        }
        // The last folio may go on in the next object.
        let over = len.saturating_sub(most);
        let last = self.folio(place - 1).filter(|_| over > 0);
        let next = match last {
            None => Position { place, n: 0 },
            Some(folio) => Position {
                place: place - 1,
                n: folio.pages() - over,
            },
        };
        Some(Run {
            tag,
            index,
            len: len.min(most),
            next,
        })
    }

    /// Takes the outcome of a batch. Any context.
    pub(in crate::hooks) fn done(self, answers: &Answers<'_, PageOf>) {
        for (page, outcome) in answers.iter() {
            if let (PageOf::Place(place), Outcome::Failed) = (page, outcome) {
                self.fail(place.into());
            }
        }
        if let Some(context) = Context::get() {
            self.put(&context, false);
            context.drain.nudge();
        }
    }

    /// Takes the folios before `end` out of the request, and makes one of their own of them.
    ///
    /// Sleeps.
    pub(super) fn part(&self, end: usize) -> Option<Self> {
        let sio = self.0.as_ptr();

        // SAFETY: By the type invariants this one is valid, and nobody else changes it; the other
        // one is zeroed memory of the kernel's own kind, and nobody else's yet.
        unsafe {
            let part = NonNull::new(bindings::tmem_alloc_swap_iocb())?;
            let vectors = &mut (*sio).bvecs;
            let taken = vectors.get(..end)?;
            let len: c_int = taken.iter().map(|vector| vector.bv_len as c_int).sum();

            (*part.as_ptr())
                .bvecs
                .get_mut(..end)?
                .copy_from_slice(taken);
            (*part.as_ptr()).nr_bvecs = end as c_int;
            (*part.as_ptr()).len = len;
            vectors.rotate_left(end);
            (*sio).nr_bvecs -= end as c_int;
            (*sio).len -= len;

            let mut ctx = bindings::swap_io_ctx {
                sio: part.as_ptr(),
                sis: self.area().as_ptr(),
            };
            Self::take(&mut ctx, self.transfer().rw)
        }
    }

    /// Has the kernel read the request from the swap area. Sleeps.
    pub(super) fn read_from_area(self) {
        let mut ctx = bindings::swap_io_ctx {
            sio: self.0.as_ptr(),
            sis: self.area().as_ptr(),
        };

        // SAFETY: It is what the kernel wanted to do with the request, which is not used after
        // that.
        unsafe { submit(&mut ctx, READ) };
    }

    pub(super) fn fail(&self, folio: usize) {
        let failed = &self.transfer().failed;
        let bit = 1u32 << (folio & 31);
        let mut old = failed.load(Relaxed);

        while let Err(now) = failed.cmpxchg(old, old | bit, Relaxed) {
            old = now;
        }
    }

    /// Returns whether it is to be written.
    pub(in crate::hooks) fn is_write(&self) -> bool {
        self.transfer().rw == WRITE
    }

    /// Has a batch of the request not be waited for: then all of it goes to the swap area. Sleeps.
    pub(in crate::hooks) fn leave(self) {
        self.fail(0);
        if let Some(context) = Context::get() {
            self.put(&context, true);
        }
    }

    pub(super) fn get(&self) {
        self.transfer().left.add(1, Relaxed);
    }

    /// Gives up a share of the request; whoever gives up the last one finishes it.
    pub(super) fn put(self, context: &Entered, may_sleep: bool) {
        if self.transfer().left.fetch_sub(1, Full) == 1 {
            self.finish(context, may_sleep);
        }
    }

    /// Ends a request for reading whose pages are all there, and that nobody shares. Any context.
    pub(super) fn all_read(self) {
        self.complete(self.len());
    }

    /// Ends the request, or hands it to the swap area.
    fn finish(self, context: &Entered, may_sleep: bool) {
        let transfer = self.transfer();
        let failed = transfer.failed.load(Relaxed);
        let reads = transfer.rw == READ;

        if failed == 0 && (reads || !params::write_through()) {
            self.complete(self.len());
        } else if !may_sleep {
            context.to_area.push(self);
            context.write_later();
        } else if reads {
            self.finish_read(context, failed);
        } else if failed == 0 {
            // The host has it, and so will the area.
            self.submit_write();
        } else {
            self.write_to_area(context);
        }
    }

    /// Returns how many pages its folios have together.
    pub(super) fn pages(&self) -> u64 {
        // CAST: It is the length of something.
        self.len() as u64 / PAGE_SIZE as u64
    }

    fn len(&self) -> c_long {
        // SAFETY: By the type invariants it is valid.
        unsafe { (*self.0.as_ptr()).len as c_long }
    }

    /// Has the kernel complete the request. Any context.
    fn complete(self, result: c_long) {
        let transfer = self.transfer();
        let rw = transfer.rw;
        let mut ctx = bindings::swap_io_ctx {
            sio: self.0.as_ptr(),
            sis: transfer.area.as_ptr(),
        };

        // SAFETY: The request is what the kernel submitted, and is not used after that.
        unsafe { bindings::tmem_swap_complete(&mut ctx, rw, result) };
    }

    /// Completes what was read, reads from the area what did not come but is there, and fails what
    /// is not. Sleeps.
    fn finish_read(self, context: &Entered, failed: u32) {
        // A folio that did not come is an error for whoever wants it, and for nobody else: the
        // request is made one of the others.
        let sio = self.0.as_ptr();
        let count = self.count();
        let mut kept = 0;
        let mut len = 0;
        for n in 0..count {
            if failed & (1 << n) == 0 || self.folio(n).is_some_and(|f| self.reread(context, f)) {
                // SAFETY: By the type invariants it is valid, and `kept <= n < count`.
                unsafe {
                    len += (*sio).bvecs[n].bv_len;
                    (*sio).bvecs.swap(kept, n);
                }
                kept += 1;
            }
        }
        if kept == 0 {
            return self.complete(-(EIO.to_errno().unsigned_abs() as c_long));
        }

        // What was swapped to the end is what failed.
        for n in kept..count {
            if let Some(folio) = self.folio(n) {
                // SAFETY: The folio is locked for reading, and nobody else unlocks it: it is not
                // a part of the request any more.
                unsafe { bindings::folio_unlock(folio.as_ptr()) };
            }
        }
        // SAFETY: By the type invariants it is valid.
        unsafe {
            (*sio).nr_bvecs = kept as c_int;
            (*sio).len = len as c_int;
        }
        self.complete(len as c_long);
    }

    /// Reads a folio that the host did not return from the area, if that has it, and returns whether
    /// it was read. Sleeps.
    ///
    /// That is seldom, so one at a time will do, and needs no memory.
    fn reread(&self, context: &Entered, folio: Folio) -> bool {
        let (_, offset) = folio.swap();

        // What the index had and has not any more was drained: the slot of a folio that is locked is
        // neither freed nor written.
        if !params::write_through() && present(context, folio) > 0 {
            return false;
        }
        let mut transfer = block::Transfer::<1>::new();
        let read = (0..folio.pages()).all(|n| {
            let block = self.area().block(offset + n);
            let page = folio.page(n).ok();

            block.zip(page).is_some_and(|(block, page)| {
                transfer
                    .read(self.area(), block, core::iter::once(page))
                    .is_ok()
            })
        });

        if read {
            let counters = context.client.counters(Pool::Frontswap);

            // CAST: A folio has fewer pages.
            counters.from_area.add(folio.pages() as usize);
        }
        read
    }

    /// Makes sure that nothing that the host has of the request's pages can be got any more.
    fn forget(&self, context: &Entered) {
        let client = &context.client;
        let mut at = Position::START;

        if client.pages(Pool::Frontswap).load(Relaxed) == 0 {
            return;
        }
        while let Some(run) = self.run(at) {
            client.flush_range(Pool::Frontswap, run.tag, run.index, run.index + run.len - 1);
            at = run.next;
        }
    }

    /// Writes the request to the swap area, and forgets what the host has of it. Sleeps.
    pub(super) fn write_to_area(self, context: &Entered) {
        self.forget(context);
        // In this order: see there.
        context.drain.wait_for(&self);
        self.submit_write();
    }

    /// Has the kernel write the request to the swap area. Sleeps.
    fn submit_write(self) {
        let mut ctx = bindings::swap_io_ctx {
            sio: self.0.as_ptr(),
            sis: self.area().as_ptr(),
        };

        // SAFETY: It is what the kernel wanted to do with the request, which is not used after
        // that; the area has not been swapped off while its pages are under writeback.
        unsafe { submit(&mut ctx, WRITE) };
    }
}

/// The requests that need the swap area, and somebody who may sleep.
///
/// # Invariants
///
/// `head` is null or a [`Request`], and so is the `next` of each.
pub(in crate::hooks) struct Queue {
    head: Atomic<*mut bindings::swap_iocb>,
}

impl Queue {
    pub(in crate::hooks) const fn new() -> Self {
        Self {
            head: Atomic::new(ptr::null_mut()),
        }
    }

    /// Adds a request. Any context.
    pub(super) fn push(&self, request: Request) {
        let mut head = self.head.load(Relaxed);

        loop {
            // SAFETY: The request is valid, and nobody else has it.
            unsafe { (*request.0.as_ptr().cast::<Transfer>()).next = head };
            match self.head.cmpxchg(head, request.0.as_ptr(), Full) {
                Ok(_) => return,
                Err(now) => head = now,
            }
        }
    }

    /// Ends all requests. Sleeps.
    pub(in crate::hooks) fn finish(&self, context: &Entered) {
        self.for_each(|request| request.finish(context, true));
    }

    /// Reads all requests from the host, or wherever they are by now. Sleeps.
    pub(in crate::hooks) fn read(&self, context: &Entered) {
        self.for_each(|request| read(context, request, Patience::Endless));
    }

    /// Takes all requests, and calls `f` with each.
    fn for_each(&self, f: impl Fn(Request)) {
        let mut next = self.head.xchg(ptr::null_mut(), Full);

        while let Some(sio) = NonNull::new(next) {
            // INVARIANT: By those of `Self`.
            let request = Request(sio);

            next = request.transfer().next;
            f(request);
        }
    }
}

/// Calls the kernel's own function to submit a request.
///
/// # Safety
///
/// `ctx` must be what the kernel submits.
pub(super) unsafe fn submit(ctx: *mut bindings::swap_io_ctx, rw: c_int) {
    // SAFETY: By the safety requirements the area is valid, and has operations.
    unsafe {
        let ops = (*(*ctx).sis).ops.cast::<bindings::swap_ops>();
        let submit = if rw == WRITE {
            (*ops).submit_write
        } else {
            (*ops).submit_read
        };

        if let Some(submit) = submit {
            ftrace::original(|| submit(ctx.cast()));
        }
    }
}
