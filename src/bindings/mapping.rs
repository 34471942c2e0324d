// SPDX-License-Identifier: GPL-2.0

//! Memory outside of the guest's own that is mapped to be copied to and from.
//!
//! Nothing here makes a Rust reference to what is mapped: whoever else can reach that memory reads
//! and writes it at any time. A copy that is made meanwhile is torn, and nothing worse.

use core::{
    ffi::c_void,
    ptr::NonNull, //
};

use kernel::{
    error::to_result,
    page::PAGE_SIZE,
    prelude::*, //
};

use super::{
    page::PageRef,
    raw, //
};

/// Reads physical memory without claiming it, which would disturb whoever uses it. May sleep.
///
/// [`Mapping`] is for what is more than a look.
pub(crate) fn peek(start: u64, to: &mut [u8]) -> Result {
    // SAFETY: It only reads, into as many bytes as there are in `to`.
    to_result(unsafe { raw::tmem_window_peek(start, to.as_mut_ptr().cast(), to.len()) })
}

/// A range of physical memory, mapped write-back if it [can be](Self::is_write_back).
///
/// # Invariants
///
/// The `len` bytes from `addr` on are mapped by `tmem_window_map()`, from a range that was claimed
/// for them and that starts and ends with a page, for as long as the instance exists.
pub(crate) struct Mapping {
    addr: NonNull<c_void>,
    start: u64,
    len: usize,
    write_back: bool,
}

// SAFETY: A mapping of the kernel's belongs to no thread, and may be unmapped by any that may sleep.
unsafe impl Send for Mapping {}
// SAFETY: All that can be done through a shared reference are copies of raw memory, which may be
// made by any number of threads at once.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Claims a range of physical memory and maps it. May sleep.
    ///
    /// `start` and `len` are multiples of a page. Fails with [`EBUSY`] if any of the range is
    /// claimed already, as the guest's memory is and what other drivers use.
    pub(crate) fn new(start: u64, len: usize) -> Result<Self> {
        if len == 0 || len % PAGE_SIZE != 0 || start % PAGE_SIZE as u64 != 0 {
            return Err(EINVAL);
        }

        let mut err = 0;
        // SAFETY: It claims the range before it maps it, so that it is nobody else's.
        let addr = unsafe { raw::tmem_window_map(start, len, &mut err) };

        let addr = NonNull::new(addr).ok_or_else(|| Error::from_errno(err))?;
        // SAFETY: The range has just been mapped, and nobody else knows of the mapping.
        let write_back = unsafe { raw::tmem_window_make_write_back(addr.as_ptr(), len) };

        // INVARIANT: It was mapped as a whole, and is unmapped only by `drop()`.
        Ok(Self {
            addr,
            start,
            len,
            write_back,
        })
    }

    /// Returns how long it is, in bytes. Any context.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Returns whether all of it is write-back: otherwise copies are very slow. Any context.
    pub(crate) fn is_write_back(&self) -> bool {
        self.write_back
    }

    /// Returns where `len` bytes from `offset` on are, if they are within the mapping.
    #[inline]
    fn at(&self, offset: usize, len: usize) -> Option<*mut c_void> {
        if offset > self.len || len > self.len - offset {
            return None;
        }
        // SAFETY: It is within what is mapped, by the type invariants, or at its end.
        Some(unsafe { self.addr.as_ptr().byte_add(offset) })
    }

    /// Returns where the page is that begins at `offset`, if it is one of the mapping's.
    #[inline]
    fn page_at(&self, offset: usize) -> Option<*mut c_void> {
        if offset % PAGE_SIZE != 0 {
            return None;
        }
        self.at(offset, PAGE_SIZE)
    }

    /// Copies a page to `offset`; returns whether there is one. Any context.
    #[inline]
    pub(crate) fn copy_in(&self, offset: usize, from: PageRef) -> bool {
        let Some(to) = self.page_at(offset) else {
            return false;
        };

        // SAFETY: `to` is a page of the mapping, and by its type invariants the other is valid.
        unsafe { raw::tmem_copy_from_page(to, from.as_ptr()) };
        true
    }

    /// Copies the page at `offset` out; returns whether there is one. Any context.
    #[inline]
    pub(crate) fn copy_out(&self, offset: usize, to: PageRef) -> bool {
        let Some(from) = self.page_at(offset) else {
            return false;
        };

        // SAFETY: `from` is a page of the mapping, and by its type invariants the other is valid.
        unsafe { raw::tmem_copy_to_page(to.as_ptr(), from) };
        true
    }

    /// Reads a little-endian number, after all that was read before and before all that is read or
    /// written after.
    ///
    /// So whoever copies a page out and then reads its chunk's generation sees that change if the
    /// host had begun to change the page. `offset` is a multiple of four. Any context.
    #[inline]
    pub(crate) fn load32(&self, offset: usize) -> Option<u32> {
        if offset % size_of::<u32>() != 0 {
            return None;
        }
        let addr = self.at(offset, size_of::<u32>())?;

        // SAFETY: It is within the mapping, which is aligned to pages.
        Some(unsafe { raw::tmem_load_le32(addr) })
    }

    /// Copies bytes from `offset` on out; returns whether all are there. Any context.
    pub(crate) fn read(&self, offset: usize, to: &mut [u8]) -> bool {
        let Some(from) = self.at(offset, to.len()) else {
            return false;
        };

        // SAFETY: `from` is within the mapping, which `to`, being Rust's, is not.
        unsafe { raw::tmem_copy(to.as_mut_ptr().cast(), from, to.len()) };
        true
    }

    /// Copies bytes to `offset` and what follows; returns whether there is room. Any context.
    pub(crate) fn write(&self, offset: usize, from: &[u8]) -> bool {
        let Some(to) = self.at(offset, from.len()) else {
            return false;
        };

        // SAFETY: `to` is within the mapping, which `from`, being Rust's, is not.
        unsafe { raw::tmem_copy(to, from.as_ptr().cast(), from.len()) };
        true
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: By the type invariants it is mapped, and nobody uses it any more.
        unsafe { raw::tmem_window_unmap(self.addr.as_ptr(), self.start, self.len) };
    }
}
