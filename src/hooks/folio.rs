// SPDX-License-Identifier: GPL-2.0

//! Folios that a hook may use, for as long as it may.

use core::ptr::NonNull;

use kernel::prelude::*;

use crate::bindings::{
    self,
    page::{
        PageRef,
        PageRun, //
    },
};

/// A folio that is locked, under writeback, or frozen.
///
/// # Invariants
///
/// The folio is valid, and does not go away or change its size before the instance is used for the
/// last time.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Folio(NonNull<bindings::folio>);

// SAFETY: A folio belongs to no thread: whoever may end a read of it may do so from anywhere.
unsafe impl Send for Folio {}
// SAFETY: What a shared reference gives access to are words that the kernel reads so, too.
unsafe impl Sync for Folio {}

impl Folio {
    /// Borrows a folio.
    ///
    /// # Safety
    ///
    /// The folio must be valid, and must not go away or change its size before the instance and
    /// all of its copies, and the pages borrowed from it, are used for the last time.
    pub(super) unsafe fn new(folio: NonNull<bindings::folio>) -> Self {
        // INVARIANT: By the safety requirements.
        Self(folio)
    }

    /// Returns the raw folio.
    pub(super) fn as_ptr(self) -> *mut bindings::folio {
        self.0.as_ptr()
    }

    /// Returns the number of pages.
    pub(super) fn pages(self) -> u64 {
        // SAFETY: By the type invariants it is valid.
        unsafe { bindings::tmem_folio_nr_pages(self.as_ptr()) as u64 }
    }

    /// Returns the binary logarithm of the number of pages.
    pub(super) fn order(self) -> u32 {
        // SAFETY: By the type invariants it is valid.
        unsafe { bindings::tmem_folio_order(self.as_ptr()) }
    }

    /// Returns page `n`.
    pub(super) fn page(self, n: u64) -> Result<PageRef> {
        self.page_and_more(n).map(|(page, _)| page)
    }

    /// Returns page `n`, and whether there are more after it.
    #[inline]
    pub(super) fn page_and_more(self, n: u64) -> Result<(PageRef, bool)> {
        let pages = self.pages();

        if n >= pages {
            return Err(EINVAL);
        }
        // SAFETY: By the type invariants it is valid, and has such a page.
        let page = unsafe { bindings::tmem_folio_page(self.as_ptr(), n as c_ulong) };

        // SAFETY: As long as the folio is valid, so is its page.
        let page = unsafe { PageRef::new(NonNull::new(page).ok_or(EINVAL)?) };
        Ok((page, n + 1 < pages))
    }

    /// Returns the `count` pages from page `n` on, as far as there are so many.
    pub(super) fn pages_at(self, n: u64, count: usize) -> impl Iterator<Item = PageRef> {
        // CAST: A folio has fewer pages.
        let count = count.min(self.pages().saturating_sub(n) as usize);
        let run = self.page(n).ok().and_then(|first| {
            // SAFETY: There are so many pages from page `n` of the folio on, and as long as the
            // folio is valid, so are its pages.
            Some(unsafe { PageRun::new(NonNull::new(first.as_ptr())?, count) })
        });

        (0..count).map_while(move |n| run?.get(n))
    }

    /// Returns the index of the first page in the file.
    pub(super) fn index(self) -> u64 {
        // SAFETY: By the type invariants it is valid.
        unsafe { bindings::tmem_folio_index(self.as_ptr()) as u64 }
    }

    /// Returns the swap area and the offset in it of the first page as one number, which is by one
    /// higher for the next page.
    pub(super) fn swap_entry(self) -> u64 {
        // SAFETY: By the type invariants it is valid.
        unsafe { bindings::tmem_folio_swap(self.as_ptr()).val as u64 }
    }

    /// Returns the swap area and the offset in it of the first page.
    pub(super) fn swap(self) -> (u32, u64) {
        // SAFETY: By the type invariants it is valid.
        unsafe {
            let entry = bindings::tmem_folio_swap(self.as_ptr());

            (
                bindings::tmem_swp_type(entry),
                bindings::tmem_swp_offset(entry) as u64,
            )
        }
    }

    /// Returns whether the content is the disk's and can be seen by nobody any more.
    pub(super) fn is_putable(self) -> bool {
        // SAFETY: By the type invariants it is valid.
        unsafe { bindings::tmem_folio_putable(self.as_ptr()) }
    }

    /// Returns whether the kernel has seen it in use for longer than at one time.
    pub(super) fn is_workingset(self) -> bool {
        // SAFETY: By the type invariants it is valid.
        unsafe { bindings::tmem_folio_workingset(self.as_ptr()) }
    }

    /// Returns whether there is no content, and nothing that a filesystem knows about it.
    pub(super) fn is_fillable(self) -> bool {
        // SAFETY: By the type invariants it is valid.
        unsafe { bindings::tmem_folio_fillable(self.as_ptr()) }
    }

    /// Takes a reference, so that the folio stays until [`Self::release`]. Any context.
    pub(super) fn hold(self) {
        // SAFETY: By the type invariants it is valid.
        unsafe { bindings::tmem_folio_get(self.as_ptr()) };
    }

    /// Gives a reference back. Any context.
    ///
    /// # Safety
    ///
    /// [`Self::hold`] must have taken it, and nobody may use the folio because of it any more.
    pub(super) unsafe fn release(self) {
        // SAFETY: By the safety requirements there is a reference to give back.
        unsafe { bindings::tmem_folio_put(self.as_ptr()) };
    }

    /// Takes the folio out of the page cache instead of ending a read, and unlocks it: whoever waits
    /// for it looks for it anew. Sleeps.
    ///
    /// # Safety
    ///
    /// The folio must be locked for a read by whoever calls, and is not used after that but by those
    /// who have a reference.
    pub(super) unsafe fn evict(self) {
        // SAFETY: By the safety requirements the folio is locked, for a read, by whoever calls.
        unsafe { bindings::tmem_folio_evict(self.as_ptr()) };
    }

    /// Ends a read, and unlocks the folio.
    ///
    /// # Safety
    ///
    /// The folio must be locked for a read by whoever calls, and is not used after that.
    pub(super) unsafe fn end_read(self, success: bool) {
        // SAFETY: By the safety requirements the folio is locked, for a read, by whoever calls.
        unsafe { bindings::folio_end_read(self.as_ptr(), success) };
    }
}
