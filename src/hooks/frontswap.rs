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
};

use self::request::{
    submit,
    Position, //
};

pub(super) use self::request::{
    Request,
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

const OBJECT_PAGES: u64 = 1 << OBJECT_SHIFT;

/// Where the number of the area begins in the tag of an object; below it is the object's own.
const AREA_SHIFT: u32 = 48;

const OBJECT_MASK: u64 = (1 << AREA_SHIFT) - 1;

/// How many swap areas there can be.
const AREAS: usize = bindings::MAX_SWAPFILES as usize;

const READ: c_int = 0;
const WRITE: c_int = 1;

/// The last object in use of each swap area, plus one.
static OBJECTS: [Atomic<u64>; AREAS] = [const { Atomic::new(0) }; AREAS];

/// Returns the tag and index of a page of a swap area.
fn key(area: u32, offset: u64) -> (u64, u64) {
    let object = offset >> OBJECT_SHIFT;

    (
        u64::from(area) << AREA_SHIFT | object,
        offset & (OBJECT_PAGES - 1),
    )
}

/// The hooks of this half.
pub(super) struct Hooks {
    _free: Watch,
    _off: Watch,
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
        let here = (pages - n).min(OBJECT_PAGES - index);

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
    unsafe { (*(*ctx).sis).flags & bindings::SWP_SYNCHRONOUS_IO as c_ulong == 0 }
}

/// Builds the batches of a request.
struct Builder<'a> {
    context: &'a Entered,
    request: Request,
    /// What the pages are got with; without, they are put.
    gets: Option<Gets<'a>>,
    batch: Option<Batch<Origin>>,
}

impl<'a> Builder<'a> {
    fn new(context: &'a Entered, request: Request, gets: Option<Gets<'a>>) -> Self {
        Self {
            context,
            request,
            gets,
            batch: None,
        }
    }

    /// Asks for, or puts, all the pages of the request. Sleeps.
    ///
    /// The folio of a page that is not there to be got, or cannot be put, has failed. In the latter
    /// case all will go to the area: no need to ask about the rest.
    fn run(mut self) {
        let request = self.request;
        let mut at = Position::START;

        'all: while let Some(run) = request.run(at) {
            let mut done = 0;

            if self.gets.is_none() {
                note_object(run.tag);
            }
            while done < run.len {
                let key = (run.tag, run.index + done);
                // CAST: A run is not longer than an object.
                let (count, stop) = self.push(key, (run.len - done) as usize, &mut at);

                done += count as u64;
                match stop {
                    Stop::Done => (),
                    Stop::Full if self.batch.as_ref().is_some_and(|batch| batch.len() > 0) => {
                        self.submit();
                    }
                    Stop::Full | Stop::Refused => {
                        request.fail(at.place);
                        if self.gets.is_none() || request.next(&mut at).is_none() {
                            break 'all;
                        }
                        done += 1;
                    }
                }
            }
        }
        self.submit();
        request.put(self.context, true);
    }

    fn push(&mut self, key: (u64, u64), count: usize, at: &mut Position) -> (usize, Stop) {
        let client = &self.context.client;
        let pages = core::iter::from_fn(|| self.request.next(at));

        if self.batch.is_none() {
            self.batch = match &mut self.gets {
                Some(gets) => gets.begin_waiting(Pool::Frontswap).ok(),
                None => client.begin_put(Pool::Frontswap),
            };
        }
        match (&mut self.batch, &self.gets) {
            (Some(batch), Some(_)) => client.push_gets(batch, key, count, pages),
            (Some(batch), None) => client.push_puts(batch, key, count, pages),
            (None, _) => (0, Stop::Refused),
        }
    }

    fn submit(&mut self) {
        if let Some(batch) = self.batch.take() {
            if batch.len() == 0 {
                self.context.client.cancel(batch);
                return;
            }
            self.request.get();
            let origin = Origin::Swap(self.request);
            match &mut self.gets {
                Some(gets) => gets.submit(batch, origin),
                None => self.context.client.submit(batch, origin),
            }
        }
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

/// Remembers how far the objects of an area go, of which one will have pages.
fn note_object(tag: u64) {
    let (area, end) = (tag >> AREA_SHIFT, (tag & OBJECT_MASK) + 1);
    // CAST: It was made of a number of 32 bits.
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

    // SAFETY: As above, and it is not submitted otherwise.
    let Some(request) = (unsafe { Request::take(ctx, READ) }) else {
        return;
    };
    read(context, request);
}

/// Reads a request from the host, or from the swap area.
///
/// The kernel merges what is next to each other in the area, so that some of it may be in the one
/// and some in the other: then it is taken apart. Sleeps.
fn read(context: &Entered, request: Request) {
    loop {
        let (here, end) = same(context, request);
        // There is always memory for a part: it is waited for.
        let Some(part) = end.and_then(|end| request.part(end)) else {
            return read_whole(context, request, here);
        };

        read_whole(context, part, here);
    }
}

/// Returns whether the host has the first folio, and the first other one of which the opposite is
/// true.
fn same(context: &Entered, request: Request) -> (bool, Option<usize>) {
    if let Some(run) = request.only_run() {
        let pool = Pool::Frontswap;
        let present = context.client.present(pool, run.tag, run.index, run.len);

        if present == 0 || present == run.len {
            return (present > 0, None);
        }
    }
    // Where the host has a page of a folio, what it has not is nowhere.
    let mut here = request
        .folios()
        .map(|folio| present(context, folio) > 0)
        .enumerate();
    let first = here.next().is_some_and(|(_, here)| here);

    (
        first,
        here.find_map(|(place, here)| (here != first).then_some(place)),
    )
}

fn read_whole(context: &Entered, request: Request, here: bool) {
    let client = &context.client;

    if here {
        return Builder::new(context, request, Some(client.gets())).run();
    }
    // CAST: There are at most 32 folios.
    let pages = request.pages() as usize;
    client.counters(Pool::Frontswap).misses.add(pages);
    request.read_from_area();
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
