// SPDX-License-Identifier: GPL-2.0

//! Reading without a request: what the window has is copied before the kernel makes one.
//!
//! The kernel asks zswap for each folio first, and makes no request of those that zswap has filled.
//! That is what is hooked here. zswap itself is still asked first, and what it answers stands. All that
//! neither it nor the window has is left to the request that follows: see [`super::read`].
//!
//! `PATHS.md` says what the kernel expects of this function, and why there is no such hook for writing.

use core::ptr::NonNull;

use kernel::prelude::*;

use crate::{
    bindings,
    client::Pool, //
};

use super::{
    super::{
        folio::Folio,
        ftrace::{
            self,
            Code,
            Redirect, //
        },
        points,
        Context,
        Entered, //
    },
    areas::key, //
};

/// Hooks what this kernel asks, if it does. Sleeps.
///
/// Without, all folios are read by requests.
pub(super) fn hook() -> Option<Redirect> {
    // SAFETY: The replacement is of the function's type, which is called by a static call.
    unsafe {
        Redirect::optional(
            points::FOLIO_READ,
            load as Code,
            bindings::tmem_set_zswap_load,
        )
    }
}

/// A folio is about to be read from its swap area.
///
/// # Safety
///
/// To be called by the kernel, in the place of the function that it replaces.
unsafe extern "C" fn load(folio: *mut bindings::folio) -> c_int {
    let context = Context::enter();

    // SAFETY: It is what the kernel would have called, with the same argument; the address was set
    // before the hook was.
    let result = ftrace::original(|| unsafe { bindings::tmem_call_zswap_load(folio) });
    if result != ENOENT.to_errno() {
        return result;
    }
    let (Some(context), Some(folio)) = (&context, NonNull::new(folio)) else {
        return result;
    };
    // SAFETY: The kernel calls with a folio that it has locked, and zswap has left it so: it stays,
    // and of its size, until it is unlocked below or by the kernel.
    let folio = unsafe { Folio::new(folio) };
    if !get(context, folio) {
        return result;
    }
    // SAFETY: There are no requirements.
    unsafe { bindings::tmem_count_swap_in(1) };
    // SAFETY: The kernel has locked the folio for a read, which is for this function to end if it
    // returns zero; nobody uses the instance after that.
    unsafe { folio.end_read(true) };
    0
}

/// Gets a folio from the window, and returns whether it was there.
fn get(context: &Entered, folio: Folio) -> bool {
    // The kernel reads more at once only from areas that nothing is put from.
    let Ok((page, false)) = folio.page_and_more(0) else {
        return false;
    };
    let (area, offset) = folio.swap();
    let here = context
        .client
        .get_here(Pool::Frontswap, key(area, offset), 1, |_| Some(page));

    here.got == 1
}
