// SPDX-License-Identifier: GPL-2.0

//! Finding functions and tracepoints of the running kernel by name.

use core::ptr;

use kernel::{
    error::to_result,
    prelude::*, //
};

use crate::bindings;

/// The names that a compiler gives to a function of which it has made a copy that a hook of the
/// function itself would miss.
const CLONES: [&[u8]; 3] = [b".part.0\0", b".isra.0\0", b".constprop.0\0"];

/// The longest name, with the end of a clone's.
const NAME_LEN: usize = 64;

/// Returns the address of a function.
///
/// Fails if there is none of the name, more than one, or a clone of it. May sleep.
pub(super) fn resolve(name: &CStr) -> Result<usize> {
    for clone in CLONES {
        let mut buffer = [0u8; NAME_LEN];
        let name = name.to_bytes();

        buffer
            .get_mut(..name.len())
            .ok_or(EINVAL)?
            .copy_from_slice(name);
        buffer
            .get_mut(name.len()..name.len() + clone.len())
            .ok_or(EINVAL)?
            .copy_from_slice(clone);
        if lookup(buffer.as_ptr().cast()).is_ok() {
            return Err(EMLINK);
        }
    }
    lookup(name.as_char_ptr())
}

/// Looks a name up by way of a probe that is never hit: the kernel exports nothing else.
fn lookup(name: *const c_char) -> Result<usize> {
    let mut probe = KBox::new(bindings::kprobe::default(), GFP_KERNEL)?;
    probe.symbol_name = name;

    // SAFETY: The probe is zeroed but for the name, which is a string, and is not moved while it
    // is registered.
    to_result(unsafe { bindings::register_kprobe(&mut *probe) })?;
    let addr = probe.addr.addr();
    // SAFETY: It was registered.
    unsafe { bindings::unregister_kprobe(&mut *probe) };

    Ok(addr)
}

/// Returns the tracepoint with this name.
pub(super) fn tracepoint(name: &CStr) -> Result<*mut bindings::tracepoint> {
    struct Search<'a> {
        name: &'a CStr,
        found: *mut bindings::tracepoint,
    }

    /// # Safety
    ///
    /// `data` must be a [`Search`].
    unsafe extern "C" fn look(tp: *mut bindings::tracepoint, data: *mut c_void) {
        // SAFETY: `data` is the search below.
        let search = unsafe { &mut *data.cast::<Search<'_>>() };
        // SAFETY: The kernel's tracepoints are valid, and their names are strings.
        let name = unsafe { CStr::from_char_ptr((*tp).name) };

        if name.to_bytes() == search.name.to_bytes() {
            search.found = tp;
        }
    }

    let mut search = Search {
        name,
        found: ptr::null_mut(),
    };
    // SAFETY: `look` takes the search for what it is, and is not called after this returns.
    unsafe { bindings::for_each_kernel_tracepoint(Some(look), (&raw mut search).cast()) };
    if search.found.is_null() {
        return Err(ENOENT);
    }
    Ok(search.found)
}
