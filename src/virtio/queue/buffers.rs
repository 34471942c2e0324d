// SPDX-License-Identifier: GPL-2.0

//! What the device is given with a token.

use core::{
    marker::PhantomData,
    ptr, //
};

use kernel::{
    page::PAGE_SIZE,
    prelude::*, //
};

use crate::bindings::{
    self,
    page::{
        OwnedPage,
        PageRef,
        RawPage, //
    },
};

/// The list of a token's memory that the device may read, and then that it may write.
///
/// What is listed is borrowed from the token, or belongs to nobody, for `'a`. The virtqueue takes
/// the box of the token as soon as the list is finished, and does not let go of it before the
/// device does: so what was the token's own stays where it is, and nobody gets at it. Slices have
/// to be linearly mapped, which all that is allocated with `kmalloc()` is.
///
/// What cannot be listed spoils the list, and the token is
/// [rejected](super::Rejected::Invalid).
///
/// # Invariants
///
/// The first `len` entries of `table` are filled in; of those, the first `readable` are for the
/// device to read. `next` is null, or the last entry is of whole pages and `next` is what follows
/// the last of them in the kernel's map of pages.
pub(crate) struct Buffers<'a> {
    table: &'a mut [bindings::scatterlist],
    len: usize,
    readable: usize,
    next: *mut RawPage,
    invalid: bool,
    _token: PhantomData<&'a mut ()>,
}

/// How many entries of the table the device may read and write.
pub(super) struct Chain {
    pub(super) readable: usize,
    pub(super) writable: usize,
}

impl<'a> Buffers<'a> {
    /// Returns an empty list, to be written to `table`.
    #[inline]
    pub(super) fn new(table: &'a mut [bindings::scatterlist]) -> Self {
        // INVARIANT: There are no entries.
        Self {
            table,
            len: 0,
            readable: 0,
            next: ptr::null_mut(),
            invalid: false,
            _token: PhantomData,
        }
    }

    /// Ends the list; [`None`] if it is empty, or something could not be listed.
    #[inline]
    pub(super) fn finish(self) -> Option<Chain> {
        (self.len > 0 && !self.invalid).then_some(Chain {
            readable: self.readable,
            writable: self.len - self.readable,
        })
    }

    /// Has the device read `bytes`. Has to come before all that it may write.
    #[inline]
    pub(crate) fn readable(&mut self, bytes: &'a [u8]) {
        self.bytes(bytes.as_ptr(), bytes.len(), false);
    }

    /// Has the device read a page. Has to come before all that it may write.
    #[inline]
    pub(crate) fn readable_page(&mut self, page: PageRef) {
        self.page(page.as_ptr(), false);
    }

    /// Has the device read a page. Has to come before all that it may write.
    #[inline]
    pub(crate) fn readable_owned(&mut self, page: &'a OwnedPage) {
        self.page(page.as_ptr(), false);
    }

    /// Has the device write to `bytes`.
    #[inline]
    pub(crate) fn writable(&mut self, bytes: &'a mut [u8]) {
        self.bytes(bytes.as_mut_ptr(), bytes.len(), true);
    }

    /// Has the device write to a page.
    #[inline]
    pub(crate) fn writable_page(&mut self, page: PageRef) {
        self.page(page.as_ptr(), true);
    }

    /// Has the device write to a page.
    #[inline]
    pub(crate) fn writable_owned(&mut self, page: &'a OwnedPage) {
        self.page(page.as_ptr(), true);
    }

    #[inline]
    fn bytes(&mut self, first: *const u8, len: usize, writable: bool) {
        // A descriptor of no length is not allowed, and says nothing.
        if len == 0 {
            return;
        }
        let (Some(entry), Ok(len)) = (self.table.get_mut(self.len), c_uint::try_from(len)) else {
            self.invalid = true;
            return;
        };

        // SAFETY: `entry` is a scatterlist's entry, and `first` points to `len` bytes.
        if !unsafe { bindings::tmem_sg_set_buf(entry, first.cast(), len) } {
            self.invalid = true;
            return;
        }
        self.next = ptr::null_mut();
        self.filled(writable);
    }

    #[inline]
    fn page(&mut self, page: *mut RawPage, writable: bool) {
        // A page that follows the last one in memory needs no descriptor of its own.
        let last = if page == self.next && writable == (self.len > self.readable) {
            self.len.checked_sub(1)
        } else {
            None
        };
        self.next = page.wrapping_add(1);
        if let Some(last) = last.and_then(|n| self.table.get_mut(n)) {
            if let Some(length) = last.length.checked_add(PAGE_SIZE as c_uint) {
                last.length = length;
                return;
            }
        }
        let Some(entry) = self.table.get_mut(self.len) else {
            self.invalid = true;
            return;
        };

        // SAFETY: `entry` is a scatterlist's entry, and `page` is that of a valid reference.
        unsafe { bindings::tmem_sg_set_page(entry, page, PAGE_SIZE as c_uint, 0) };
        self.filled(writable);
    }

    /// Takes note of one more entry.
    #[inline]
    fn filled(&mut self, writable: bool) {
        if !writable {
            self.invalid |= self.readable < self.len;
            self.readable += 1;
        }
        // INVARIANT: The entry was within the table, and has been filled in.
        self.len += 1;
    }
}
