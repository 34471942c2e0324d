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
        Push, //
    },
    virtio::frame::MAX_PAGES,
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

    if context.client.pages(Pool::Frontswap).load(Relaxed) == 0 {
        return 0;
    }
    (0..folio.pages())
        .map(|n| {
            let (tag, index) = key(area, offset + n);

            context.client.present(Pool::Frontswap, tag, index, 1)
        })
        .sum()
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

/// Builds the batches of a request.
struct Builder<'a> {
    context: &'a Entered,
    request: Request,
    batch: Option<(Batch<Origin>, Part)>,
}

impl<'a> Builder<'a> {
    fn new(context: &'a Entered, request: Request) -> Self {
        Self {
            context,
            request,
            batch: None,
        }
    }

    /// Asks for page `n` of a folio, or puts it. Sleeps.
    fn push(&mut self, place: usize, folio: Folio, n: u64) -> Push {
        let client = &self.context.client;
        let write = self.request.transfer().rw == WRITE;
        let (area, offset) = folio.swap();
        let (tag, index) = key(area, offset + n);
        let Ok(page) = folio.page(n) else {
            return Push::Refused;
        };

        loop {
            if self.batch.is_none() {
                let batch = if write {
                    client.begin_put(Pool::Frontswap, true)
                } else {
                    client.begin_get(Pool::Frontswap, true)
                };
                let part = Part {
                    request: self.request,
                    folios: [0; MAX_PAGES],
                };
                self.batch = batch.map(|batch| (batch, part));
            }
            let Some((batch, part)) = &mut self.batch else {
                return Push::Refused;
            };

            let at = batch.len();
            let push = if write {
                client.push_put(batch, tag, index, page)
            } else {
                client.push_get(batch, tag, index, page)
            };
            match push {
                Push::Full if at > 0 => self.submit(),
                Push::Pushed => {
                    if let Some(place_of) = part.folios.get_mut(at) {
                        // CAST: There are at most 32 folios.
                        *place_of = place as u8;
                    }
                    return push;
                }
                push => return push,
            }
        }
    }

    fn submit(&mut self) {
        if let Some((batch, part)) = self.batch.take() {
            if batch.len() == 0 {
                self.context.client.cancel(batch);
                return;
            }
            self.request.get();
            self.context.client.submit(batch, Origin::Swap(part), true);
        }
    }

    fn finish(mut self) {
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

    let mut builder = Builder::new(context, request);
    for (place, folio) in request.folios().enumerate() {
        note_area(folio);
        let refused = (0..folio.pages()).any(|n| builder.push(place, folio, n) != Push::Pushed);

        if refused {
            // All will go to the area: no need to ask about the rest.
            request.fail(place);
            break;
        }
    }
    builder.finish();
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
    let mut builder = Builder::new(context, request);
    for (place, folio) in request.folios().enumerate() {
        for n in 0..folio.pages() {
            if builder.push(place, folio, n) != Push::Pushed {
                request.fail(place);
            }
        }
    }
    builder.finish();
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
