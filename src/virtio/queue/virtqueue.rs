// SPDX-License-Identifier: GPL-2.0

//! A virtqueue of the C portion of the kernel.

use core::ptr::NonNull;

use kernel::{
    error::to_result,
    prelude::*, //
};

use crate::bindings;

use super::buffers::Chain;

/// A virtqueue that nobody else uses at the same time.
///
/// # Invariants
///
/// The virtqueue is valid for as long as the instance, or a copy of it, is used; and all uses but
/// those of [`Self::notify`] exclude each other.
#[derive(Clone, Copy)]
pub(super) struct Virtqueue(NonNull<bindings::virtqueue>);

// SAFETY: A virtqueue belongs to no thread.
unsafe impl Send for Virtqueue {}

impl Virtqueue {
    /// Borrows a virtqueue.
    ///
    /// # Safety
    ///
    /// The virtqueue must be valid for as long as the instance, or a copy of it, is used, and all
    /// who use it must exclude each other, but for [`Self::notify`].
    #[inline]
    pub(super) unsafe fn new(vq: NonNull<bindings::virtqueue>) -> Self {
        // INVARIANT: By the safety requirements.
        Self(vq)
    }

    /// Returns how many descriptors there are.
    #[inline]
    pub(super) fn size(self) -> u32 {
        // SAFETY: By the type invariants it is valid.
        unsafe { bindings::virtqueue_get_vring_size(self.0.as_ptr()) }
    }

    /// Returns whether the device has no descriptor at all.
    #[inline]
    pub(super) fn is_empty(self) -> bool {
        // SAFETY: By the type invariants it is valid, and nobody changes it.
        let free = unsafe { (*self.0.as_ptr()).num_free };

        free >= self.size()
    }

    /// Returns where the device counts what it has used, in a split virtqueue; otherwise null.
    #[inline]
    pub(super) fn used_index(self) -> *const u16 {
        // SAFETY: By the type invariants it is valid.
        unsafe { bindings::tmem_virtqueue_used_index(self.0.as_ptr()) }
    }

    /// Gives the device a chain of buffers, and remembers `data` for it.
    ///
    /// # Safety
    ///
    /// `table` must begin with the entries of `chain`, and their memory must be valid, and be used
    /// by nobody in a way that does not expect the device's, until [`Self::used`] or
    /// [`Self::detach`] returns `data`. `data` must not be null.
    #[inline]
    pub(super) unsafe fn add(
        self,
        table: &mut [bindings::scatterlist],
        chain: &Chain,
        data: *mut c_void,
    ) -> Result {
        // SAFETY: By the type invariants it is valid, and nobody else uses it; the rest holds by
        // the safety requirements. No memory is waited for, nor reserves touched.
        to_result(unsafe {
            bindings::tmem_virtqueue_add(
                self.0.as_ptr(),
                table.as_mut_ptr(),
                chain.readable as c_uint,
                chain.writable as c_uint,
                data,
                bindings::GFP_NOWAIT | (1 << bindings::___GFP_NOMEMALLOC_BIT),
            )
        })
    }

    /// Returns the data of a chain that the device has used, and how much it claims to have written.
    #[inline]
    pub(super) fn used(self) -> Option<(NonNull<c_void>, usize)> {
        let mut len: c_uint = 0;
        // SAFETY: By the type invariants it is valid, and nobody else uses it.
        let data = unsafe { bindings::virtqueue_get_buf(self.0.as_ptr(), &mut len) };

        Some((NonNull::new(data)?, len as usize))
    }

    /// Returns the data of a chain that the device has not used.
    ///
    /// # Safety
    ///
    /// The device must have been reset.
    #[inline]
    pub(super) unsafe fn detach(self) -> Option<NonNull<c_void>> {
        // SAFETY: By the type invariants it is valid, and nobody else uses it; by the safety
        // requirements the device does not either.
        NonNull::new(unsafe { bindings::virtqueue_detach_unused_buf(self.0.as_ptr()) })
    }

    /// Returns whether the device wants to be notified of what was added.
    #[inline]
    pub(super) fn kick_prepare(self) -> bool {
        // SAFETY: By the type invariants it is valid, and nobody else uses it.
        unsafe { bindings::virtqueue_kick_prepare(self.0.as_ptr()) }
    }

    /// Notifies the device. Others may use the virtqueue at the same time.
    #[inline]
    pub(super) fn notify(self) {
        // SAFETY: By the type invariants it is valid.
        unsafe { bindings::virtqueue_notify(self.0.as_ptr()) };
    }

    /// Asks the device not to interrupt; it may do so all the same.
    #[inline]
    pub(super) fn disable_callbacks(self) {
        // SAFETY: By the type invariants it is valid, and nobody else uses it.
        unsafe { bindings::virtqueue_disable_cb(self.0.as_ptr()) };
    }

    /// Has the device interrupt; returns false if it has used something already.
    #[inline]
    pub(super) fn enable_callbacks(self) -> bool {
        // SAFETY: By the type invariants it is valid, and nobody else uses it.
        unsafe { bindings::virtqueue_enable_cb(self.0.as_ptr()) }
    }

    /// Has the device interrupt when it has used most of what it has; returns false if it has
    /// used that already.
    #[inline]
    pub(super) fn enable_callbacks_delayed(self) -> bool {
        // SAFETY: By the type invariants it is valid, and nobody else uses it.
        unsafe { bindings::virtqueue_enable_cb_delayed(self.0.as_ptr()) }
    }

    /// Returns whether the device does not work any more.
    #[inline]
    pub(super) fn is_broken(self) -> bool {
        // SAFETY: By the type invariants it is valid.
        unsafe { bindings::virtqueue_is_broken(self.0.as_ptr()) }
    }

    /// Has nothing go in or out any more.
    #[inline]
    pub(super) fn break_it(self) {
        // SAFETY: By the type invariants it is valid.
        unsafe { bindings::__virtqueue_break(self.0.as_ptr()) };
    }
}
