// SPDX-License-Identifier: GPL-2.0

//! Memory that is given back when the kernel is short of it.
//!
//! C header: [`include/linux/shrinker.h`](srctree/include/linux/shrinker.h)

use core::ptr::NonNull;

use kernel::{
    prelude::*,
    sync::Arc, //
};

use super::raw;

/// What has memory to give back.
pub(crate) trait Shrink: Send + Sync + 'static {
    /// Returns how many objects could be freed now. Process context; may not sleep.
    fn count(&self) -> usize;

    /// Frees up to `count` objects, and returns how many. Process context, where reclaim waits; may
    /// not sleep.
    fn shrink(&self, count: usize) -> usize;
}

/// A registered shrinker; it is unregistered when it is dropped.
///
/// # Invariants
///
/// `shrinker` is registered, and its private data is `data`.
pub(crate) struct Shrinker<T: Shrink> {
    shrinker: NonNull<raw::shrinker>,
    _data: Arc<T>,
}

// SAFETY: A shrinker may be unregistered by any thread that may sleep.
unsafe impl<T: Shrink> Send for Shrinker<T> {}
// SAFETY: Nothing can be done with a shared reference.
unsafe impl<T: Shrink> Sync for Shrinker<T> {}

impl<T: Shrink> Shrinker<T> {
    /// Has the kernel ask `data` for memory.
    ///
    /// May sleep.
    pub(crate) fn new(name: &CStr, data: Arc<T>) -> Result<Self> {
        // SAFETY: `name` is a string, of which a copy is made. The functions are called with a
        // shrinker whose private data is `data`, which outlives it.
        let shrinker = unsafe {
            raw::tmem_shrinker_register(
                name.as_char_ptr(),
                Some(Self::count),
                Some(Self::scan),
                Arc::as_ptr(&data).cast_mut().cast(),
            )
        };

        // INVARIANT: It was just registered.
        Ok(Self {
            shrinker: NonNull::new(shrinker).ok_or(ENOMEM)?,
            _data: data,
        })
    }

    extern "C" fn count(
        shrinker: *mut raw::shrinker,
        _control: *mut raw::shrink_control,
    ) -> c_ulong {
        // SAFETY: The kernel calls with the registered shrinker, whose private data is a `T` that
        // stays until it is unregistered.
        let data = unsafe { &*(*shrinker).private_data.cast::<T>() };

        data.count()
    }

    extern "C" fn scan(shrinker: *mut raw::shrinker, control: *mut raw::shrink_control) -> c_ulong {
        // SAFETY: As for the one, the kernel calls with the registered shrinker, whose private data
        // is a `T`; and the control is valid during the call.
        let (data, count) = unsafe {
            (
                &*(*shrinker).private_data.cast::<T>(),
                (*control).nr_to_scan,
            )
        };

        match data.shrink(count) {
            // There is nothing to be had: not to be asked again at once.
            0 => c_ulong::MAX,
            freed => freed,
        }
    }
}

impl<T: Shrink> Drop for Shrinker<T> {
    fn drop(&mut self) {
        // SAFETY: By the type invariants it is registered, and nobody else unregisters it. The
        // functions are not called after this returns.
        unsafe { raw::shrinker_free(self.shrinker.as_ptr()) };
    }
}
