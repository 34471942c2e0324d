// SPDX-License-Identifier: GPL-2.0

//! Hooks that outlive their device, for pages that are lost: whoever wants one has to get an error.
//!
//! They are what the module is needed for from there on, so it cannot be unloaded.

use core::ptr;

use kernel::{
    prelude::*,
    sync::atomic::{
        Acquire,
        Atomic,
        Full,
        Relaxed,
        Release, //
    },
};

use crate::{
    bindings,
    client::Pool, //
};

use super::{
    context::{
        self,
        Context, //
    },
    frontswap, //
};

/// The hooks of frontswap of a device that is gone, but not all of whose swap pages are; or null.
static HOOKS: Atomic<*mut frontswap::Hooks> = Atomic::new(ptr::null_mut());

/// Whether the module is kept from being unloaded for their sake.
static PINNED: Atomic<bool> = Atomic::new(false);

/// Leaves the hooks of frontswap and the context where they are.
///
/// If the module is being unloaded already, waits until they are not needed any more. May sleep.
pub(super) fn keep(hooks: KBox<frontswap::Hooks>) {
    HOOKS.store(KBox::into_raw(hooks), Release);

    // SAFETY: The module is there: its code is running.
    if unsafe { bindings::try_module_get(crate::this_module().as_ptr()) } {
        PINNED.store(true, Relaxed);
        if let Some(context) = Context::get() {
            // The last page may have gone before.
            unpin(&context);
        }
        return;
    }
    pr_warn!("waiting for the lost swap pages to be freed before the module goes: swapoff, or end who has them\n");
    while !clear() {
        // SAFETY: Whoever calls may sleep, as this function says.
        unsafe { bindings::msleep(100) };
    }
}

/// Lets the module be unloaded once nothing is left of what kept it.
///
/// For hooks, which whoever unloads the module waits for. Any context.
pub(super) fn unpin(context: &Context) {
    if PINNED.load(Relaxed)
        && context.client.pages(Pool::Frontswap).load(Relaxed) == 0
        && PINNED.xchg(false, Full)
    {
        // SAFETY: `keep()` took the reference, and it is given back once.
        unsafe { bindings::module_put(crate::this_module().as_ptr()) };
    }
}

/// Removes what a device left behind; returns false if it is still needed. May sleep.
///
/// For who has the [`Seat`](super::Seat), or when there can be no device any more.
pub(super) fn clear() -> bool {
    if HOOKS.load(Acquire).is_null() {
        return true;
    }
    let pages = |context: &Context| context.client.pages(Pool::Frontswap).load(Relaxed);
    if Context::get().is_some_and(|context| pages(&context) > 0) {
        return false;
    }

    let hooks = HOOKS.xchg(ptr::null_mut(), Full);
    if !hooks.is_null() {
        // SAFETY: `keep()` made it from a box, and nobody else has taken it since.
        drop(unsafe { KBox::from_raw(hooks) });
    }
    context::teardown();
    true
}

/// Removes, when the module goes, what a device has left behind.
///
/// The module cannot go before the last swap page has.
pub(crate) struct Teardown;

impl Drop for Teardown {
    fn drop(&mut self) {
        clear();
    }
}
