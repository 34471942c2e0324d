// SPDX-License-Identifier: GPL-2.0

//! The transparent front-end: what is swapped to any area, by hooks.
//!
//! What is hooked is how a swap area on a block device, or a swap file that is mapped to one,
//! submits a request for up to 32 folios. They are under writeback when they are written, and
//! locked when they are read, until somebody completes the request: here that is whoever hears the
//! host's last answer about it. Nothing is copied in the guest and nobody waits.
//!
//! With a window what is in it is read before a request is made: see [`inline`](super::inline).

use core::ptr::NonNull;

use kernel::{
    page::PAGE_SIZE,
    prelude::*,
    sync::atomic::Relaxed, //
};

use crate::{
    bindings::{
        self,
        block::BlockDevice,
        swap::Area, //
    },
    client::Pool,
    params,
};

use super::{
    super::{
        ftrace::{
            Code,
            Redirect,
            Watch, //
        },
        left_behind,
        points,
        Client,
        Context, //
    },
    areas,
    builder::{
        may_put,
        Builder,
        Reason, //
    },
    device,
    inline,
    iocb::{
        submit,
        Iocb, //
    },
    read::{
        read,
        Patience, //
    },
    request::{
        Request,
        Way, //
    }, //
};

/// The hooks.
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

/// Returns why no page of an area is put or got, if that is so.
fn excluded(area: Area) -> Option<Reason> {
    if area.is_synchronous() {
        Some(Reason::InMemory)
    } else if area.device().is_some_and(is_left_alone) {
        Some(Reason::LeftAlone)
    } else {
        None
    }
}

/// Returns whether pages of areas on a device are not for the hooks: it has a front-end of its own, or
/// is to have none.
fn is_left_alone(device: BlockDevice<'_>) -> bool {
    device::is_ours(device) || !params::device_mapper() && device.is_device_mapper()
}

/// # Safety
///
/// To be called by the kernel, in the place of the function that it replaces.
unsafe extern "C" fn submit_write(ctx: *mut bindings::swap_io_ctx) {
    let context = Context::enter();
    let Some(context) = context.as_ref() else {
        // SAFETY: `ctx` is what the kernel submits: it calls with nothing else.
        unsafe { submit(ctx, Way::Out) };
        return;
    };

    // SAFETY: The kernel calls with a request, and with the area that it is for, which stays on as
    // long as the request has its slots.
    let (area, pages) = unsafe { (area_of(ctx), pages_of(ctx)) };
    if let Some(reason) = area.and_then(excluded) {
        reason.count(context, pages);
        // SAFETY: `ctx` is what the kernel submits, and nothing of it was changed.
        unsafe { submit(ctx, Way::Out) };
        return;
    }

    // SAFETY: `ctx` is what the kernel submits. From here on only the request that is made of it is
    // used.
    let Some(request) = (unsafe { Iocb::take(ctx, Way::Out) }) else {
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
        unsafe { submit(ctx, Way::In) };
        return;
    };

    // SAFETY: `ctx` is what the kernel submits. From here on only the request that is made of it is
    // used.
    let Some(request) = (unsafe { Iocb::take(ctx, Way::In) }) else {
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
        let (tag, index) = areas::key(area, offset);

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
    areas::forget(&context.client, area as u32);
    left_behind::unpin(&context);
}
