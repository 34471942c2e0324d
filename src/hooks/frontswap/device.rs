// SPDX-License-Identifier: GPL-2.0

//! The other front-end: block devices to swap to, `/dev/tmswapN`, each stacked on another one.
//!
//! It needs no hook, but what any block device has: bios, and the kernel's word that a slot of a swap
//! area is free. Each page has the same place on the device as on the one below. There is what the host
//! refuses, what was drained, and all that is not swapped: the header of the area, and the image
//! of a machine that hibernates, from where it can be read without the module.
//!
//! A write that is no swapping makes the host's page old, so that is forgotten first. What is read is
//! the host's if that has it; where it has a part, the bio is cut, so that each piece is all here or
//! all there.
//!
//! The device does not say of itself that it is synchronous. Then the kernel would hand it one folio
//! after the other, and wait for each: a round trip to the host where now there is one for 32 folios.
//! With a window nobody would wait, but the 32 folios' way to the index is had once, too.

mod control;
mod request;

use kernel::{
    prelude::*,
    sync::atomic::{
        Acquire,
        Atomic,
        Relaxed,
        Release, //
    },
};

use crate::{
    bindings::{
        self,
        bio::{
            Bio,
            Kind, //
        },
        block::BlockDevice,
        disk::{
            Driver,
            Lower, //
        },
        reserve::Reserve,
    },
    client::Pool,
};

use super::{
    super::{
        left_behind,
        Context,
        Entered, //
    },
    areas::{
        self,
        Span, //
    },
    builder::{
        may_put,
        Builder, //
    },
    read::{
        read_here,
        read_whole,
        Patience, //
    },
    request::{
        Request,
        Way,
        MAX_PLACES, //
    },
};

use self::request::Transfer;

pub(crate) use self::{
    control::Devices,
    request::Submitted, //
};

pub(super) use self::control::{
    at,
    is_ours, //
};

/// How many devices there can be.
pub(super) const MAX_DEVICES: usize = 16;

/// How many requests of a device there can certainly be at once: as many as the client has.
const RESERVE: u32 = 64;

/// A device.
pub(crate) struct Device {
    /// Its number among areas.
    area: u32,
    lower: Lower,
    reserve: Reserve<Transfer>,
    /// How many requests there are.
    busy: Atomic<u32>,
}

impl Device {
    fn new(area: u32, lower: Lower) -> Result<Self> {
        Ok(Self {
            area,
            lower,
            reserve: Reserve::new(RESERVE)?,
            busy: Atomic::new(0),
        })
    }

    /// Returns the device below.
    pub(super) fn below(&self) -> BlockDevice<'_> {
        self.lower.device()
    }

    /// Returns which pages a bio is about, if they are whole ones.
    fn span(&self, bio: &Bio) -> Option<Span> {
        let (first, count) = bio.range()?;

        Some(Span {
            area: self.area,
            first,
            count,
        })
    }

    /// Waits until there are no requests, of which there are no new ones. Sleeps.
    fn settle(&self) {
        while self.busy.load(Acquire) > 0 {
            // SAFETY: Whoever calls may sleep, as this function says, and holds no spin lock.
            unsafe { bindings::msleep(1) };
        }
    }

    fn begin(&self) {
        self.busy.add(1, Relaxed);
    }

    fn end(&self) {
        self.busy.fetch_sub(1, Release);
    }

    /// Changes what is on the device below, and nowhere else from now on. Sleeps.
    fn change(&self, context: &Entered, bio: Bio) {
        let Some(span) = self.span(&bio) else {
            return bio.end(Err(EINVAL));
        };

        span.forget(context);
        // In this order: see there.
        context.drain.wait_while(|flight| span.is_in(flight));
        bio.forward(self.below());
    }

    /// Writes swapped pages. Sleeps.
    fn write(&self, context: &Entered, bio: Bio) {
        let Some(bio) = bio.fit() else {
            return;
        };
        let pages = bio.range().map_or(0, |(_, count)| count);
        let putting = may_put(context);

        match &putting {
            Ok(_) => match Submitted::new(self, bio, Way::Out, false) {
                Ok(request) => Builder::new(context, request, None).run(),
                Err(bio) => {
                    let counters = context.client.counters(Pool::Frontswap);

                    // CAST: It is the length of a bio.
                    counters.no_memory.add(pages as usize);
                    self.change(context, bio);
                }
            },
            Err(reason) => {
                reason.count(context, pages);
                self.change(context, bio);
            }
        }
    }

    /// Reads pages, from wherever they are. Sleeps.
    fn read(&self, context: &Entered, bio: Bio) {
        let Some(mut bio) = bio.fit() else {
            return;
        };

        loop {
            let Some(span) = self.span(&bio) else {
                return bio.end(Err(EINVAL));
            };
            let taken = Submitted::new(self, bio, Way::In, false);

            // What is in the window is there without a look at what the host has.
            if let Ok(request) = taken {
                if read_here(context, request) {
                    return request.complete();
                }
            }
            let (first, end) = same(context, span);

            if let Some(end) = end {
                let whole = taken.map_or_else(|bio| bio, Submitted::into_bio);

                match whole.cut(end) {
                    Some(piece) => bio = piece,
                    None => return,
                }
                continue;
            }
            let request = match taken {
                Ok(request) => request,
                Err(bio) if !first => return self.miss(context, bio),
                // What only the host has waits for it, so it may wait for memory, too.
                Err(bio) => match Submitted::new(self, bio, Way::In, true) {
                    Ok(request) => request,
                    Err(bio) => return bio.end(Err(EINVAL)),
                },
            };

            return read_whole(context, request, first, Patience::None);
        }
    }

    /// Reads pages of which the host has none. Sleeps.
    fn miss(&self, context: &Entered, bio: Bio) {
        let pages = bio.range().map_or(0, |(_, count)| count);
        let counters = context.client.counters(Pool::Frontswap);

        // CAST: It is the length of a bio.
        counters.misses.add(pages as usize);
        bio.forward(self.below());
    }
}

/// Returns whether the host has the first page, and the first other one of which the opposite is true.
fn same(context: &Entered, span: Span) -> (bool, Option<u64>) {
    let present = span.present(context);

    // As good as always.
    if present == 0 || present == span.count {
        return (present > 0, None);
    }
    let has = |n| span.page(n).present(context) > 0;
    let first = has(0);

    (first, (1..span.count).find(|&n| has(n) != first))
}

impl Driver for Device {
    fn submit(&self, bio: Bio) {
        let context = Context::enter();
        let Some(context) = context.as_ref() else {
            return bio.forward(self.below());
        };

        match bio.kind() {
            Kind::Swap => self.write(context, bio),
            Kind::Change => self.change(context, bio),
            Kind::Read if context.client.pages(Pool::Frontswap).load(Relaxed) > 0 => {
                self.read(context, bio);
            }
            Kind::Read => self.miss(context, bio),
            Kind::Other => bio.forward(self.below()),
        }
    }

    fn slot_free(&self, page: u64) {
        let Some(context) = Context::get() else {
            return;
        };

        if context.client.pages(Pool::Frontswap).load(Relaxed) > 0 {
            let (tag, index) = areas::key(self.area, page);

            context.client.flush_page(Pool::Frontswap, tag, index);
            left_behind::unpin(&context);
        }
    }
}
