// SPDX-License-Identifier: GPL-2.0

//! Swapped pages: put when they are written to a swap area, got when they are read from it.
//!
//! What is hooked is how a swap area on a block device, or a swap file that is mapped to one,
//! submits a request for up to 32 folios. They are under writeback when they are written, and
//! locked when they are read, until somebody completes the request: here that is whoever hears the
//! host's last answer about it. Nothing is copied in the guest and nobody waits.
//!
//! If the host takes all folios of a request they are nowhere else. If it refuses some, the whole
//! request goes to the swap area as if nothing had happened, and the host forgets the rest. A page
//! stays in the host until its slot in the swap area is freed or written again.

mod request;

use core::ptr::NonNull;

use kernel::{
    prelude::*,
    sync::atomic::{
        Atomic,
        Full,
        Relaxed, //
    },
};

use crate::{
    bindings,
    client::{
        Batch,
        Pool,
        Stop, //
    },
    virtio::{
        frame::MAX_PAGES,
        pages::PageRef, //
    },
};

use self::request::{
    submit,
    Request, //
};

pub(super) use self::request::{
    Part,
    ToArea, //
};

use super::{
    folio::Folio,
    ftrace::{
        Code,
        Redirect,
        Watch, //
    },
    Context,
    Entered,
    Gets,
    Origin, //
};

/// Pages of a swap area that are one object to the client, as a power of two.
const OBJECT_SHIFT: u32 = 12;

/// How many swap areas there can be.
const AREAS: usize = bindings::MAX_SWAPFILES as usize;

const READ: c_int = 0;
const WRITE: c_int = 1;

/// The last object in use of each swap area, plus one.
static OBJECTS: [Atomic<u64>; AREAS] = [const { Atomic::new(0) }; AREAS];

/// The kernel's own answer to whether two folios may go into one request, once it is known.
static CAN_MERGE: Atomic<usize> = Atomic::new(0);

type CanMerge =
    unsafe extern "C" fn(*mut bindings::folio, *mut bindings::folio, usize, c_int) -> bool;

/// Returns the tag and index of a page of a swap area.
fn key(area: u32, offset: u64) -> (u64, u64) {
    let object = offset >> OBJECT_SHIFT;

    (
        u64::from(area) << 48 | object,
        offset & ((1 << OBJECT_SHIFT) - 1),
    )
}

/// The hooks of this half.
pub(super) struct Hooks {
    _free: Watch,
    _off: Watch,
    _merge: Redirect,
    _read: Redirect,
    _write: Redirect,
}

impl Hooks {
    /// Hooks swapping; what puts pages comes last. May sleep.
    pub(super) fn install() -> Result<Self> {
        // SAFETY: The functions below have the types of those that they replace.
        unsafe {
            Ok(Self {
                _free: Watch::new(c"zswap_invalidate", slot_free)?,
                _off: Watch::new(c"zswap_swapoff", swap_off)?,
                _merge: Redirect::new(c"swap_bdev_can_merge", can_merge as Code)?,
                _read: Redirect::new(c"swap_bdev_submit_read", submit_read as Code)?,
                _write: Redirect::new(c"swap_bdev_submit_write", submit_write as Code)?,
            })
        }
    }
}

/// Returns how many pages of a folio the host has. Any context.
fn present(context: &Entered, folio: Folio) -> u64 {
    let (area, offset) = folio.swap();
    let pages = folio.pages();
    let mut count = 0;
    let mut n = 0;

    while n < pages {
        let (tag, index) = key(area, offset + n);
        let here = (pages - n).min((1 << OBJECT_SHIFT) - index);

        count += context.client.present(Pool::Frontswap, tag, index, here);
        n += here;
    }
    count
}

/// Returns whether an area is one that there is something to gain for: one in memory, as zram, has
/// its requests completed before this returns, and is fast.
///
/// # Safety
///
/// `ctx` must be what the kernel submits.
unsafe fn worthwhile(ctx: *mut bindings::swap_io_ctx) -> bool {
    // SAFETY: By the safety requirements.
    unsafe {
        if CAN_MERGE.load(Relaxed) == 0 {
            let ops = (*(*ctx).sis).ops.cast::<bindings::swap_ops>();

            if let Some(can_merge) = (*ops).can_merge {
                CAN_MERGE.store(can_merge as usize, Relaxed);
            }
        }
        (*(*ctx).sis).flags & bindings::SWP_SYNCHRONOUS_IO as c_ulong == 0
    }
}

/// Pages of a request that are neighbours in an object.
struct Run {
    tag: u64,
    index: u64,
    pages: [Option<PageRef>; MAX_PAGES],
    /// Which folio of the request each page belongs to.
    places: [u8; MAX_PAGES],
    len: usize,
}

impl Run {
    const EMPTY: Self = Self {
        tag: 0,
        index: 0,
        pages: [None; MAX_PAGES],
        places: [0; MAX_PAGES],
        len: 0,
    };

    /// Adds a page, or returns false if it is not a neighbour, or there is no room.
    fn add(&mut self, (tag, index): (u64, u64), page: PageRef, place: usize) -> bool {
        let at = self.len;

        if at == 0 {
            (self.tag, self.index) = (tag, index);
        } else if (self.tag, self.index.wrapping_add(at as u64)) != (tag, index) {
            return false;
        }
        let (Some(page_of), Some(place_of)) = (self.pages.get_mut(at), self.places.get_mut(at))
        else {
            return false;
        };

        *page_of = Some(page);
        // CAST: There are at most 32 folios.
        *place_of = place as u8;
        self.len += 1;
        true
    }
}

/// Builds the batches of a request.
struct Builder<'a> {
    context: &'a Entered,
    request: Request,
    /// What the pages are got with; without, they are put.
    gets: Option<Gets<'a>>,
    run: Run,
    batch: Option<(Batch<Origin>, Part)>,
}

impl<'a> Builder<'a> {
    fn new(context: &'a Entered, request: Request, gets: Option<Gets<'a>>) -> Self {
        Self {
            context,
            request,
            gets,
            run: Run::EMPTY,
            batch: None,
        }
    }

    /// Asks for the pages of a folio, or puts them; returns false once one cannot be put. Sleeps.
    fn push(&mut self, place: usize, folio: Folio) -> bool {
        let (area, offset) = folio.swap();

        for n in 0..folio.pages() {
            let key = key(area, offset + n);
            let Ok(page) = folio.page(n) else {
                self.request.fail(place);
                return false;
            };

            if !self.run.add(key, page, place) {
                if !self.push_run() {
                    return false;
                }
                self.run.add(key, page, place);
            }
        }
        true
    }

    /// Moves the run into batches; returns false once a page cannot be put.
    ///
    /// The folio of a page that cannot be put, or is not there to be got, has failed.
    fn push_run(&mut self) -> bool {
        let client = &self.context.client;
        let mut from = 0;

        while from < self.run.len {
            if self.batch.is_none() {
                self.batch = self.begin();
            }
            let mut stop = Stop::Refused;
            let mut full = false;
            if let Some((batch, part)) = &mut self.batch {
                let (tag, index) = (self.run.tag, self.run.index.wrapping_add(from as u64));
                let pages = self.run.pages.get(from..self.run.len).unwrap_or_default();
                let places = part.folios.iter_mut().skip(batch.len());
                let count;

                (count, stop) = match self.gets {
                    Some(_) => client.push_gets(batch, tag, index, pages),
                    None => client.push_puts(batch, tag, index, pages),
                };
                for (to, &place) in places.zip(self.run.places.iter().skip(from)).take(count) {
                    *to = place;
                }
                from += count;
                full = batch.len() > 0;
            }
            match stop {
                Stop::Done => (),
                Stop::Full if full => self.submit(),
                Stop::Full | Stop::Refused => {
                    if let Some(&place) = self.run.places.get(from) {
                        self.request.fail(place.into());
                    }
                    if self.gets.is_none() {
                        return false;
                    }
                    from += 1;
                }
            }
        }
        self.run.len = 0;
        true
    }

    fn begin(&mut self) -> Option<(Batch<Origin>, Part)> {
        let batch = match &mut self.gets {
            Some(gets) => gets.begin(Pool::Frontswap)?,
            None => self.context.client.begin_put(Pool::Frontswap)?,
        };
        let part = Part {
            request: self.request,
            folios: [0; MAX_PAGES],
        };

        Some((batch, part))
    }

    fn submit(&mut self) {
        if let Some((batch, part)) = self.batch.take() {
            if batch.len() == 0 {
                self.context.client.cancel(batch);
                return;
            }
            self.request.get();
            let origin = Origin::Swap(part);
            match &mut self.gets {
                Some(gets) => gets.submit(batch, origin),
                None => self.context.client.submit(batch, origin),
            }
        }
    }

    /// Asks for, or puts, all the pages of the request.
    fn run(mut self) {
        let request = self.request;
        let write = self.gets.is_none();

        // Where one cannot be put all will go to the area: no need to ask about the rest.
        let _ = request.folios().enumerate().all(|(place, folio)| {
            if write {
                note_area(folio);
            }
            self.push(place, folio)
        }) && self.push_run();
        self.submit();
        self.request.put(self.context, true);
    }
}

/// # Safety
///
/// To be called by the kernel, in the place of the function that it replaces.
unsafe extern "C" fn submit_write(ctx: *mut bindings::swap_io_ctx) {
    let context = Context::enter();

    // SAFETY: The kernel calls with what it submits.
    let worthwhile = unsafe { worthwhile(ctx) };
    let Some(context) = context.as_ref().filter(|_| worthwhile) else {
        // SAFETY: As above.
        unsafe { submit(ctx, WRITE) };
        return;
    };

    // SAFETY: As above, and it is not submitted otherwise.
    let Some(request) = (unsafe { Request::take(ctx, WRITE) }) else {
        return;
    };
    if !context.client.running() || context.client.credits(Pool::Frontswap) == 0 {
        return request.write_to_area(context);
    }

    Builder::new(context, request, None).run();
}

/// Remembers how far the objects of an area go.
fn note_area(folio: Folio) {
    let (area, offset) = folio.swap();
    let end = ((offset + folio.pages() - 1) >> OBJECT_SHIFT) + 1;
    let Some(objects) = OBJECTS.get(area as usize) else {
        return;
    };
    let mut old = objects.load(Relaxed);

    while old < end {
        match objects.cmpxchg(old, end, Relaxed) {
            Ok(_) => return,
            Err(now) => old = now,
        }
    }
}

/// # Safety
///
/// To be called by the kernel, in the place of the function that it replaces.
unsafe extern "C" fn submit_read(ctx: *mut bindings::swap_io_ctx) {
    let context = Context::enter();

    // SAFETY: The kernel calls with what it submits.
    let worthwhile = unsafe { worthwhile(ctx) };
    let Some(context) = context.as_ref().filter(|_| worthwhile) else {
        // SAFETY: As above.
        unsafe { submit(ctx, READ) };
        return;
    };

    // SAFETY: As above; if nothing is in the host it is submitted, and not used otherwise.
    let Some(request) = (unsafe { Request::take(ctx, READ) }) else {
        return;
    };
    let (mut here, mut wanted) = (0, 0);
    for folio in request.folios() {
        here += present(context, folio);
        wanted += folio.pages();
    }
    if here == 0 {
        context
            .client
            .counters(Pool::Frontswap)
            .misses
            .add(wanted as usize);
        // SAFETY: As above.
        unsafe { submit(ctx, READ) };
        return;
    }

    // Where the host has something, what it has not is nowhere: `can_merge()` sees to it that a
    // request is either the host's or the area's.
    Builder::new(context, request, Some(context.client.gets())).run();
}

/// Keeps folios that are in the host and folios that are not in requests of their own.
///
/// # Safety
///
/// To be called by the kernel, in the place of the function that it replaces.
unsafe extern "C" fn can_merge(
    folio: *mut bindings::folio,
    previous: *mut bindings::folio,
    size: usize,
    rw: c_int,
) -> bool {
    let context = Context::enter();
    let original = CAN_MERGE.load(Relaxed);

    if original == 0 {
        // It becomes known with the next request.
        return false;
    }
    if let (READ, Some(context), Some(a), Some(b)) = (
        rw,
        context.as_ref(),
        NonNull::new(folio),
        NonNull::new(previous),
    ) {
        // SAFETY: The kernel calls with folios that are locked for reading.
        let (a, b) = unsafe { (Folio::new(a), Folio::new(b)) };

        if (present(context, a) == 0) != (present(context, b) == 0) {
            return false;
        }
    }
    // SAFETY: It is what the kernel would have called, with the same arguments.
    unsafe {
        let original = core::mem::transmute::<usize, CanMerge>(original);

        original(folio, previous, size, rw)
    }
}

/// A slot of a swap area is free: nobody wants its page any more.
fn slot_free(entry: usize) {
    let Some(context) = Context::get() else {
        return;
    };
    let entry = bindings::swp_entry_t {
        val: entry as c_ulong,
    };
    // SAFETY: There are no requirements.
    let (area, offset) = unsafe {
        (
            bindings::tmem_swp_type(entry),
            bindings::tmem_swp_offset(entry) as u64,
        )
    };

    if context.client.pages(Pool::Frontswap).load(Relaxed) > 0 {
        let (tag, index) = key(area, offset);

        context.client.flush_page(Pool::Frontswap, tag, index);
    }
}

/// A swap area is off: all of its pages have been read back, or were not wanted.
fn swap_off(area: usize) {
    let Some(context) = Context::get() else {
        return;
    };
    // CAST: The argument is an `int`.
    let area = area as u32;
    let objects = OBJECTS
        .get(area as usize)
        .map_or(0, |objects| objects.xchg(0, Full));

    for object in 0..objects {
        let (tag, _) = key(area, object << OBJECT_SHIFT);

        context.client.flush_object(Pool::Frontswap, tag);
    }
}
