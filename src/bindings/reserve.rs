// SPDX-License-Identifier: GPL-2.0

//! Memory for those whom reclaim waits for: a fixed number of places that are there when no other
//! memory is.

use core::{
    marker::PhantomData,
    ptr::NonNull, //
};

use kernel::prelude::*;

use super::raw;

/// Memory for values of one type, some of it set aside.
///
/// # Invariants
///
/// `pool` is a pool of memory that is large enough for a `T`, and aligned as the kernel aligns all.
pub(crate) struct Reserve<T> {
    pool: NonNull<raw::mempool>,
    _values: PhantomData<T>,
}

// SAFETY: Pools may be used from any thread.
unsafe impl<T> Send for Reserve<T> {}
// SAFETY: Pools may be used by several threads at once: they have locks for that.
unsafe impl<T> Sync for Reserve<T> {}

impl<T> Reserve<T> {
    const ALIGNED: () = assert!(align_of::<T>() <= align_of::<u64>());

    /// Sets memory aside for `count` values. Sleeps.
    pub(crate) fn new(count: u32) -> Result<Self> {
        let () = Self::ALIGNED;
        // SAFETY: There are no requirements.
        let pool = unsafe { raw::tmem_mempool_new(count, size_of::<T>()) };

        // INVARIANT: It was just made, for this size.
        Ok(Self {
            pool: NonNull::new(pool).ok_or(ENOMEM)?,
            _values: PhantomData,
        })
    }

    /// Returns memory with nothing in it, which is to be [given back](Self::give).
    ///
    /// Where there is none, waits for what others give back, if it is to `wait`. Sleeps then; any context
    /// otherwise.
    pub(crate) fn take(&self, wait: bool) -> Option<NonNull<T>> {
        // SAFETY: By the type invariants it is a pool.
        NonNull::new(unsafe { raw::tmem_mempool_alloc(self.pool.as_ptr(), wait) }.cast())
    }

    /// Gives memory back. Any context.
    ///
    /// # Safety
    ///
    /// It must be what [`Self::take`] of this instance returned, and nobody may use it any more. What
    /// is in it is not dropped.
    pub(crate) unsafe fn give(&self, memory: NonNull<T>) {
        // SAFETY: By the safety requirements and the type invariants.
        unsafe { raw::mempool_free(memory.as_ptr().cast(), self.pool.as_ptr()) };
    }
}

impl<T> Drop for Reserve<T> {
    fn drop(&mut self) {
        // SAFETY: By the type invariants it is a pool, and nobody uses it any more.
        unsafe { raw::mempool_destroy(self.pool.as_ptr()) };
    }
}
