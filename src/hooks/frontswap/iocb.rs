// SPDX-License-Identifier: GPL-2.0

//! Swap requests as swapping itself makes them, from when they are taken from the kernel until they
//! are given back.

use core::{
    mem::offset_of,
    ptr::NonNull, //
};

use kernel::{
    page::PAGE_SIZE,
    prelude::*,
    sync::atomic::Relaxed, //
};

use crate::{
    bindings::{
        self,
        block,
        page::PageRef,
        swap::Area, //
    },
    client::{
        logic::drain::InFlight,
        Pool, //
    },
};

use super::{
    super::{
        folio::Folio,
        ftrace,
        Context,
        Entered,
        Origin,
        PageOf, //
    },
    areas::{
        self,
        key,
        Span,
        OBJECT_PAGES, //
    },
    request::{
        Position,
        Queues,
        Request,
        Run,
        State,
        Way,
        MAX_PLACES, //
    },
    Asker, //
};

/// What the kernel calls the ways of a request.
const READ: c_int = 0;
const WRITE: c_int = 1;

// A bit for each folio of a request.
const _: () = assert!(bindings::SWAP_CLUSTER_MAX as usize <= MAX_PLACES);

/// What is remembered of a swap request, in the memory of the request that nobody else needs
/// meanwhile.
#[repr(C)]
struct Transfer {
    state: State,
    area: Area,
}

const _: () = {
    assert!(size_of::<Transfer>() <= offset_of!(bindings::swap_iocb, bvecs));
};

/// A swap request that belongs to this half.
///
/// Its places are its folios.
///
/// # Invariants
///
/// The request is valid until it is ended, has its [`Transfer`], and its folios are under
/// writeback, or locked for reading.
#[derive(Clone, Copy)]
pub(crate) struct Iocb(NonNull<bindings::swap_iocb>);

// SAFETY: A request may be completed from any thread.
unsafe impl Send for Iocb {}

impl Iocb {
    /// Takes a request over from the kernel.
    ///
    /// # Safety
    ///
    /// `ctx` must be what the kernel submits, and whoever calls must not submit it any more.
    pub(super) unsafe fn take(ctx: *mut bindings::swap_io_ctx, way: Way) -> Option<Self> {
        // SAFETY: By the safety requirements it is valid.
        let (sio, area) = unsafe { ((*ctx).sio, (*ctx).sis) };
        // SAFETY: By the safety requirements the request is for this area, and as long as it is not
        // completed some slots of that are in use.
        let area = unsafe { Area::new(NonNull::new(area)?) };
        let transfer = Transfer {
            state: State::new(way),
            area,
        };

        // SAFETY: The request is valid, and until it is submitted nobody uses that memory.
        unsafe { sio.cast::<Transfer>().write(transfer) };
        // INVARIANT: By the safety requirements and the above.
        NonNull::new(sio).map(Self)
    }

    fn transfer(&self) -> &Transfer {
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
            Self::take(&mut ctx, self.state().way)
        }
    }

    fn len(&self) -> c_long {
        // SAFETY: By the type invariants it is valid.
        unsafe { (*self.0.as_ptr()).len as c_long }
    }

    /// Has the kernel complete the request. Any context.
    fn complete_with(self, result: c_long) {
        let rw = match self.state().way {
            Way::In => READ,
            Way::Out => WRITE,
        };
        let mut ctx = bindings::swap_io_ctx {
            sio: self.0.as_ptr(),
            sis: self.area().as_ptr(),
        };

        // SAFETY: The request is what the kernel submitted, and is not used after that.
        unsafe { bindings::tmem_swap_complete(&mut ctx, rw, result) };
    }

    /// Reads a folio that the host did not return from the area, if that has it, and returns whether
    /// it was read. Sleeps.
    ///
    /// That is seldom, so one at a time will do, and needs no memory.
    fn reread(&self, context: &Entered, folio: Folio) -> bool {
        let span = span_of(folio);

        // The slot of a folio that is locked is neither freed nor written.
        if !span.is_in_area(context) {
            return false;
        }
        let area = self.area();
        let Some(device) = area.device() else {
            return false;
        };
        let mut transfer = block::Transfer::<1>::new();
        let read = (0..folio.pages()).all(|n| {
            let block = area.block(span.first + n);
            let page = folio.page(n).ok();

            block.zip(page).is_some_and(|(block, page)| {
                transfer.read(device, block, core::iter::once(page)).is_ok()
            })
        });

        if read {
            let counters = context.client.counters(Pool::Frontswap);

            // CAST: A folio has fewer pages.
            counters.from_area.add(folio.pages() as usize);
        }
        read
    }
}

/// Returns where the pages of a folio are in their area.
pub(super) fn span_of(folio: Folio) -> Span {
    let (area, first) = folio.swap();

    Span {
        area,
        first,
        count: folio.pages(),
    }
}

impl Request for Iocb {
    const MAY_WAIT: bool = true;

    fn state(&self) -> &State {
        &self.transfer().state
    }

    fn pages(&self) -> u64 {
        // CAST: It is the length of something.
        self.len() as u64 / PAGE_SIZE as u64
    }

    #[inline]
    fn run(&self, from: Position) -> Option<Run> {
        // Most requests are one run, and this is asked once more after it.
        if from.place >= self.count() {
            return None;
        }
        self.run_from(from)
    }

    fn next(&self, at: &mut Position) -> Option<(PageRef, PageOf)> {
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

    fn note(&self, tag: u64) {
        areas::note(self.area(), tag);
    }

    fn is_in(&self, flight: &InFlight) -> bool {
        self.folios().any(|folio| span_of(folio).is_in(flight))
    }

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

    fn origin(self) -> Origin {
        Origin::Swap(Asker::Iocb(self))
    }

    fn complete(self) {
        self.complete_with(self.len());
    }

    fn submit(self) {
        let mut ctx = bindings::swap_io_ctx {
            sio: self.0.as_ptr(),
            sis: self.area().as_ptr(),
        };
        let way = self.state().way;

        // SAFETY: It is what the kernel wanted to do with the request, which is not used after
        // that; the area has not been swapped off while its pages are under writeback, or locked.
        unsafe { submit(&mut ctx, way) };
    }

    /// A folio that cannot be had is an error for whoever wants it, and for nobody else.
    fn finish_read(self, context: &Entered, failed: u64) {
        // The request is made one of the others.
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
            return self.complete_with(-(EIO.to_errno().unsigned_abs() as c_long));
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
        self.complete_with(len as c_long);
    }

    fn queues(context: &Context) -> &Queues<Self> {
        &context.waiting.iocbs
    }

    fn into_raw(self) -> NonNull<c_void> {
        self.0.cast()
    }

    unsafe fn from_raw(raw: NonNull<c_void>) -> Self {
        // INVARIANT: By the safety requirements it was one.
        Self(raw.cast())
    }
}

/// Calls the kernel's own function to submit a request.
///
/// # Safety
///
/// `ctx` must be what the kernel submits.
pub(super) unsafe fn submit(ctx: *mut bindings::swap_io_ctx, way: Way) {
    // SAFETY: By the safety requirements the area is valid, and has operations.
    unsafe {
        let ops = (*(*ctx).sis).ops.cast::<bindings::swap_ops>();
        let submit = match way {
            Way::In => (*ops).submit_read,
            Way::Out => (*ops).submit_write,
        };

        if let Some(submit) = submit {
            ftrace::original(|| submit(ctx.cast()));
        }
    }
}
