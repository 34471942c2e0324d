// SPDX-License-Identifier: GPL-2.0

//! Workqueues of the driver's own.

use core::{
    ops::Deref,
    ptr::NonNull, //
};

use kernel::{
    prelude::*,
    workqueue::Queue, //
};

use super::raw;

/// A workqueue; dropping it waits for all work on it.
///
/// # Invariants
///
/// The pointer is a valid workqueue that belongs to the instance.
pub(crate) struct OwnedQueue(NonNull<raw::workqueue_struct>);

// SAFETY: Workqueues may be used from any thread.
unsafe impl Send for OwnedQueue {}
// SAFETY: All that can be done with a shared reference is to enqueue work and to wait for it, and
// workqueues have locks for that.
unsafe impl Sync for OwnedQueue {}

impl OwnedQueue {
    /// Creates a workqueue; with `reclaim` its work makes progress when memory is short, and may
    /// then not wait for memory itself.
    ///
    /// May sleep.
    pub(crate) fn new(name: &CStr, reclaim: bool) -> Result<Self> {
        // SAFETY: `name` is a string, of which a copy is made.
        let queue = unsafe { raw::tmem_alloc_workqueue(name.as_char_ptr(), reclaim) };

        // INVARIANT: It was just created.
        Ok(Self(NonNull::new(queue).ok_or(ENOMEM)?))
    }
}

impl OwnedQueue {
    /// Waits for all work that was enqueued before.
    ///
    /// Sleeps. Not to be called by work on the queue itself.
    pub(crate) fn flush(&self) {
        // SAFETY: By the type invariants it is valid.
        unsafe { raw::__flush_workqueue(self.0.as_ptr()) };
    }
}

impl Deref for OwnedQueue {
    type Target = Queue;

    fn deref(&self) -> &Queue {
        // SAFETY: By the type invariants it is valid for as long as `self`.
        unsafe { Queue::from_raw(self.0.as_ptr()) }
    }
}

impl Drop for OwnedQueue {
    fn drop(&mut self) {
        // SAFETY: By the type invariants it is valid, and it is not used any more.
        unsafe { raw::destroy_workqueue(self.0.as_ptr()) };
    }
}
