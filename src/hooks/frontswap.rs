// SPDX-License-Identifier: GPL-2.0

//! Swapped pages: put when they are written to a swap area, got when they are read from it.
//!
//! What is hooked is how a swap area on a block device, or a swap file that is mapped to one,
//! submits a request for up to 32 folios. They are under writeback when they are written, and
//! locked when they are read, until somebody completes the request: here that is whoever hears the
//! host's last answer about it. Nothing is copied in the guest and nobody waits.
//!
//! With a window what is in it is read before a request is made: see [`inline`].
//!
//! If the host takes all folios of a request they are nowhere else, unless whatever is put is
//! written through to the swap area. If it refuses some, the whole request goes to the swap area as
//! if nothing had happened, and the host forgets the rest. A page stays in the host until its slot
//! in the swap area is freed or written again, or until it is [drained](drain) to its slot.

mod drain;
mod inline;
mod read;
mod request;

use core::ptr::{
    self,
    NonNull, //
};

use kernel::{
    page::PAGE_SIZE,
    prelude::*,
    sync::atomic::{
        Acquire,
        Atomic,
        Full,
        Relaxed, //
    },
};

use crate::{
    bindings::{
        self,
        swap::{
            Area,
            Held, //
        },
    },
    client::{
        Batch,
        Pool,
        Stop, //
    },
    params,
};

use self::{
    read::{
        read,
        Patience, //
    },
    request::{
        submit,
        Position, //
    },
};

pub(crate) use self::drain::Drain;
pub(super) use self::{
    drain::Drainer,
    request::{
        Queue, //
        Request,
    },
};

use super::{
    folio::Folio,
    ftrace::{
        Code,
        Redirect,
        Watch, //
    },
    left_behind,
    points,
    Client,
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
const MAX_AREAS: usize = bindings::MAX_SWAPFILES as usize;

const READ: c_int = 0;
const WRITE: c_int = 1;

/// What has to be remembered of a swap area that pages were put from.
///
/// # Invariants
///
/// `info` is null or was an area of the kernel's once, with this number.
struct AreaOf {
    info: Atomic<*mut bindings::swap_info_struct>,
    /// The last object in use, plus one.
    objects: Atomic<u64>,
}

static AREAS: [AreaOf; MAX_AREAS] = [const { AreaOf::new() }; MAX_AREAS];

impl AreaOf {
    const fn new() -> Self {
        Self {
            info: Atomic::new(ptr::null_mut()),
            objects: Atomic::new(0),
        }
    }

    /// Returns what is remembered of the area of a slot with this number.
    fn get(area: u32) -> Option<&'static Self> {
        // CAST: To more bits.
        AREAS.get(area as usize)
    }

    /// Remembers how far the objects of an area go, of which one will have pages.
    fn note(area: Area, tag: u64) {
        // CAST: It was made of a number of 32 bits.
        let Some(this) = Self::get((tag >> AREA_SHIFT) as u32) else {
            return;
        };
        let end = (tag & OBJECT_MASK) + 1;
        let mut old = this.objects.load(Relaxed);

        // INVARIANT: It is an area whose pages have tags with this number.
        this.info.store(area.as_ptr(), Relaxed);
        while old < end {
            // What was stored before can be seen by whoever sees this.
            match this.objects.cmpxchg(old, end, Full) {
                Ok(_) => return,
                Err(now) => old = now,
            }
        }
    }

    /// Returns the last object in use, plus one.
    fn objects(&self) -> u64 {
        self.objects.load(Acquire)
    }

    /// Keeps the area from being swapped off, unless it is on its way.
    fn hold(&self) -> Option<Held> {
        let info = NonNull::new(self.info.load(Relaxed))?;

        // SAFETY: By the type invariants it was an area of the kernel's once.
        unsafe { Held::new(info) }
    }
}

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
    /// Where there was a window when the hooks were installed.
    _inline: Option<Redirect>,
    _read: Redirect,
    _write: Redirect,
}

impl Hooks {
    /// Hooks swapping; what puts pages comes last. May sleep.
    pub(super) fn install(client: &Client) -> Result<Self> {
        // SAFETY: The functions below have the types of those that they replace.
        unsafe {
            Ok(Self {
                _free: Watch::new(points::SLOT_FREE, slot_free)?,
                _off: Watch::new(points::SWAP_OFF, swap_off)?,
                _inline: client.has_window().then(inline::hook).flatten(),
                _read: Redirect::new(points::SWAP_READ, submit_read as Code)?,
                _write: Redirect::new(points::SWAP_WRITE, submit_write as Code)?,
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

/// Why the pages of a request are not put.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reason {
    /// The area is in memory, as zram: its requests are completed before this returns, and it is fast.
    InMemory,
    /// The area is on a device that is to be left alone.
    LeftAlone,
    /// A drain is to leave nothing in the host.
    Draining,
    /// The device is not there yet, or not any more.
    NotRunning,
    /// The device has no room.
    NoCredit,
}

impl Reason {
    /// Counts so many pages that are not put.
    fn count(self, context: &Entered, pages: u64) {
        let counters = context.client.counters(Pool::Frontswap);
        let counter = match self {
            Self::InMemory => &counters.in_memory,
            Self::LeftAlone => &counters.left_alone,
            Self::Draining => &counters.draining,
            Self::NotRunning => &counters.not_running,
            Self::NoCredit => &counters.no_credit,
        };

        // CAST: There are at most 32 folios.
        counter.add(pages as usize);
    }
}

/// Returns why no page of an area is put or got, if that is so.
fn excluded(area: Area) -> Option<Reason> {
    if area.is_synchronous() {
        Some(Reason::InMemory)
    } else if !params::device_mapper() && area.is_on_device_mapper() {
        Some(Reason::LeftAlone)
    } else {
        None
    }
}

/// Builds the batches of a request.
struct Builder<'a> {
    context: &'a Entered,
    request: Request,
    /// What the pages are got with; without, they are put.
    gets: Option<Gets<'a>>,
    batch: Option<Batch<Origin>>,
    /// Pages that have been dealt with: pushed, or counted as not put.
    counted: u64,
}

impl<'a> Builder<'a> {
    fn new(context: &'a Entered, request: Request, gets: Option<Gets<'a>>) -> Self {
        Self {
            context,
            request,
            gets,
            batch: None,
            counted: 0,
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
                AreaOf::note(request.area(), run.tag);
            }
            while done < run.len {
                let key = (run.tag, run.index + done);
                // What is in the window, or goes there, needs no request.
                let here = self.here(key, (run.len - done) as usize, &mut at);

                done += here;
                self.counted += here;
                if here > 0 {
                    continue;
                }
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
                        if self.gets.is_none() {
                            self.count_rest();
                            break 'all;
                        }
                        if request.next(&mut at).is_none() {
                            break 'all;
                        }
                        done += 1;
                    }
                }
            }
        }
        self.submit();
        // Before somebody may sleep.
        drop(self.gets.take());
        request.put(self.context, true);
    }

    /// Gets pages from the window, or puts them there; returns how many of the first, which is also
    /// how far the position has moved on. Any context.
    fn here(&self, key: (u64, u64), count: usize, at: &mut Position) -> u64 {
        let client = &self.context.client;
        let mut ahead = *at;
        let mut looked_at = 0;
        let mut next = || {
            looked_at += 1;
            Some(self.request.next(&mut ahead)?.0)
        };

        let here = if self.gets.is_some() {
            client.get_here(Pool::Frontswap, key, count, |_| next()).got
        } else {
            client.put_here(Pool::Frontswap, key, count, core::iter::from_fn(next))
        };
        if here == looked_at {
            *at = ahead;
        } else {
            // More were looked at than were dealt with.
            for _ in 0..here {
                let _ = self.request.next(at);
            }
        }
        // CAST: To as many bits.
        here as u64
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
            (Some(batch), None) => {
                let asked = count.min(client.room(batch));
                let (done, stop) = client.push_puts(batch, key, count, pages);

                // Of those that it was asked for and did not take, the client has counted each.
                self.counted += match stop {
                    Stop::Refused => asked as u64,
                    Stop::Done | Stop::Full => done as u64,
                };
                (done, stop)
            }
            (None, _) => (0, Stop::Refused),
        }
    }

    /// Counts those pages that are not put because another one of the request is not.
    fn count_rest(&self) {
        let counters = self.context.client.counters(Pool::Frontswap);
        let rest = self.request.pages().saturating_sub(self.counted);

        // CAST: There are at most 32 folios.
        if self.batch.is_none() && self.counted == 0 {
            counters.not_running.add(rest as usize);
        } else {
            counters.with_others.add(rest as usize);
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
    let Some(context) = context.as_ref() else {
        // SAFETY: `ctx` is what the kernel submits: it calls with nothing else.
        unsafe { submit(ctx, WRITE) };
        return;
    };

    // SAFETY: The kernel calls with a request, and with the area that it is for, which stays on as
    // long as the request has its slots.
    let (area, pages) = unsafe { (area_of(ctx), pages_of(ctx)) };
    if let Some(reason) = area.and_then(excluded) {
        reason.count(context, pages);
        // SAFETY: `ctx` is what the kernel submits, and nothing of it was changed.
        unsafe { submit(ctx, WRITE) };
        return;
    }

    // SAFETY: `ctx` is what the kernel submits. From here on only the request that is made of it is
    // used.
    let Some(request) = (unsafe { Request::take(ctx, WRITE) }) else {
        return;
    };
    let putting = may_put(context);
    match &putting {
        Ok(_) => Builder::new(context, request, None).run(),
        Err(reason) => {
            reason.count(context, pages);
            request.write_to_area(context);
        }
    }
}

/// Returns the right to put pages, or why there is none.
fn may_put(context: &Entered) -> Result<drain::Putting<'_>, Reason> {
    let client = &context.client;

    if !client.puts_here(Pool::Frontswap) {
        if !client.running() {
            return Err(Reason::NotRunning);
        }
        if client.credits(Pool::Frontswap) == 0 {
            return Err(Reason::NoCredit);
        }
    }
    context.drain.begin_put().ok_or(Reason::Draining)
}

/// Returns the area that a request is for.
///
/// # Safety
///
/// `ctx` must be what the kernel submits, and the result may only be used until it is completed.
unsafe fn area_of(ctx: *mut bindings::swap_io_ctx) -> Option<Area> {
    // SAFETY: By the safety requirements it is valid, and so is the area until its slots are free.
    unsafe { NonNull::new((*ctx).sis).map(|area| Area::new(area)) }
}

/// Returns how many pages the folios of a request have together.
///
/// # Safety
///
/// `ctx` must be what the kernel submits.
unsafe fn pages_of(ctx: *mut bindings::swap_io_ctx) -> u64 {
    // SAFETY: By the safety requirements it is valid, and has a request.
    let len = unsafe { (*(*ctx).sio).len };

    // CAST: It is the length of something.
    len as u64 / PAGE_SIZE as u64
}

/// # Safety
///
/// To be called by the kernel, in the place of the function that it replaces.
unsafe extern "C" fn submit_read(ctx: *mut bindings::swap_io_ctx) {
    let context = Context::enter();
    // SAFETY: The kernel calls with the area that the request is for, which stays on as long as the
    // request has its slots.
    let area = unsafe { area_of(ctx) };
    // What is never put need not be looked for.
    let Some(context) = context
        .as_ref()
        .filter(|_| area.is_some_and(|area| excluded(area).is_none()))
    else {
        // SAFETY: `ctx` is what the kernel submits: it calls with nothing else.
        unsafe { submit(ctx, READ) };
        return;
    };

    // SAFETY: `ctx` is what the kernel submits. From here on only the request that is made of it is
    // used.
    let Some(request) = (unsafe { Request::take(ctx, READ) }) else {
        return;
    };
    read(context, request, Patience::None);
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
        left_behind::unpin(&context);
    }
}

/// A swap area is off: all of its pages have been read back, or were not wanted.
fn swap_off(area: usize) {
    let Some(context) = Context::get() else {
        return;
    };
    // CAST: The argument is an `int`.
    let area = area as u32;
    let objects = AreaOf::get(area).map_or(0, |area| area.objects.xchg(0, Full));

    for object in 0..objects {
        let (tag, _) = key(area, object << OBJECT_SHIFT);

        context.client.flush_object(Pool::Frontswap, tag);
    }
    left_behind::unpin(&context);
}
