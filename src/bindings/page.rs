// SPDX-License-Identifier: GPL-2.0

//! Whole pages, copied and compared as raw memory.
//!
//! Nothing here makes a Rust reference to what is in a page: the kernel, the device and other CPUs
//! may read and write it at any time. A copy that is made meanwhile is torn, and nothing worse.

use core::ptr::NonNull;

use kernel::{
    alloc::flags::{
        GFP_NOWAIT,
        __GFP_NOWARN, //
    },
    page::Page,
    prelude::*, //
};

use super::raw;

pub(crate) use super::raw::page as RawPage;

/// A page that belongs to somebody else.
///
/// # Invariants
///
/// The page is valid for as long as the instance, or a copy of it, is used.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct PageRef(NonNull<raw::page>);

// SAFETY: A page belongs to no thread, and its content is raw memory to all who can reach it.
unsafe impl Send for PageRef {}
// SAFETY: All that can be done through a shared reference are copies, which may be made by any
// number of threads at once.
unsafe impl Sync for PageRef {}

impl PageRef {
    /// Borrows a page.
    ///
    /// # Safety
    ///
    /// The page must be valid for as long as the instance, or a copy of it, is used.
    pub(crate) unsafe fn new(page: NonNull<raw::page>) -> Self {
        // INVARIANT: By the safety requirements.
        Self(page)
    }

    /// Returns the raw page.
    pub(crate) fn as_ptr(self) -> *mut raw::page {
        self.0.as_ptr()
    }

    /// Returns whether the first `len` bytes are the same as another page's. Any context.
    pub(crate) fn begins_like(self, other: Self, len: usize) -> bool {
        let len = len.min(kernel::page::PAGE_SIZE);

        // SAFETY: By the type invariants both pages are valid, and `len` is within them.
        unsafe { raw::tmem_pages_equal(self.as_ptr(), other.as_ptr(), len) }
    }

    /// Returns the CRC-32C of the content. Any context.
    pub(crate) fn crc(self) -> u32 {
        // SAFETY: By the type invariants the page is valid.
        unsafe { raw::tmem_crc_page(self.as_ptr()) }
    }
}

/// Pages of one folio, one after the other.
///
/// # Invariants
///
/// The `count` pages from `first` on follow each other in the kernel's map of pages, and are valid
/// for as long as the instance, or a copy of it or of a page of it, is used.
#[derive(Clone, Copy)]
pub(crate) struct PageRun {
    first: PageRef,
    count: usize,
}

impl PageRun {
    /// Borrows `count` pages.
    ///
    /// # Safety
    ///
    /// The pages must be those of one folio, from `first` on, and valid for as long as the
    /// instance, or a copy of it or of a page of it, is used.
    pub(crate) unsafe fn new(first: NonNull<raw::page>, count: usize) -> Self {
        // INVARIANT: By the safety requirements. Pages of one folio follow each other in the map.
        Self {
            // SAFETY: By the safety requirements it is valid, or, if there are no pages, not used.
            first: unsafe { PageRef::new(first) },
            count,
        }
    }

    /// Returns page `n`, if there is one.
    #[inline]
    pub(crate) fn get(self, n: usize) -> Option<PageRef> {
        if n >= self.count {
            return None;
        }
        // SAFETY: By the type invariants there are `count` pages in the map from `first` on, and `n`
        // is below `count`.
        let page = unsafe { self.first.0.add(n) };

        // SAFETY: By the type invariants the page is valid as long as it is used.
        Some(unsafe { PageRef::new(page) })
    }
}

/// A page of one's own; it is freed when it is dropped.
pub(crate) struct OwnedPage(Page);

impl OwnedPage {
    /// Allocates a page. May sleep.
    pub(crate) fn new() -> Result<Self> {
        Ok(Self(Page::alloc_page(GFP_KERNEL)?))
    }

    /// Allocates a page without waiting for memory to be freed. Any context.
    pub(crate) fn try_new() -> Result<Self> {
        Ok(Self(Page::alloc_page(GFP_NOWAIT | __GFP_NOWARN)?))
    }

    /// Returns the raw page, which is valid for as long as `self`.
    pub(crate) fn as_ptr(&self) -> *mut raw::page {
        self.0.as_ptr()
    }

    /// Copies the content of `from` into the page. Any context.
    pub(crate) fn copy_from(&self, from: PageRef) {
        // SAFETY: `self` owns the one page, and by its type invariants the other is valid.
        unsafe { raw::tmem_copy_page(self.as_ptr(), from.as_ptr()) };
    }

    /// Copies the content of the page into `to`. Any context.
    pub(crate) fn copy_to(&self, to: PageRef) {
        // SAFETY: `self` owns the one page, and by its type invariants the other is valid.
        unsafe { raw::tmem_copy_page(to.as_ptr(), self.as_ptr()) };
    }

    /// Returns the CRC-32C of the content. Any context.
    pub(crate) fn crc(&self) -> u32 {
        // SAFETY: `self` owns the page.
        unsafe { raw::tmem_crc_page(self.as_ptr()) }
    }
}
