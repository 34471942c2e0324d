// SPDX-License-Identifier: GPL-2.0

//! Reading and writing pages of block devices, past everything but the block layer.

use core::{
    marker::PhantomData,
    ptr::NonNull, //
};

use kernel::{
    error::to_result,
    prelude::*, //
};

use super::{
    page::PageRef,
    raw, //
};

/// A block device that somebody else keeps open.
///
/// # Invariants
///
/// The pointer is a valid block device for `'a`.
#[derive(Clone, Copy)]
pub(crate) struct BlockDevice<'a>(NonNull<raw::block_device>, PhantomData<&'a ()>);

impl BlockDevice<'_> {
    /// Borrows a block device.
    ///
    /// # Safety
    ///
    /// It must be one, and open, for as long as the instance and its copies are used.
    pub(super) unsafe fn new(device: NonNull<raw::block_device>) -> Self {
        // INVARIANT: By the safety requirements.
        Self(device, PhantomData)
    }

    /// Returns the raw block device.
    pub(super) fn as_ptr(self) -> *mut raw::block_device {
        self.0.as_ptr()
    }

    /// Returns whether it is one of device-mapper's. Any context.
    pub(crate) fn is_device_mapper(self) -> bool {
        // SAFETY: By the type invariants it is valid.
        unsafe { raw::tmem_bdev_is_dm(self.as_ptr()) }
    }

    /// Returns the number of the driver that it belongs to. Any context.
    pub(crate) fn major(self) -> u32 {
        // SAFETY: By the type invariants it is valid.
        unsafe { raw::tmem_bdev_major(self.as_ptr()) }
    }
}

/// The memory for requests of up to `N` pages, one after the other.
pub(crate) struct Transfer<const N: usize> {
    vectors: [raw::bio_vec; N],
    len: usize,
}

impl<const N: usize> Transfer<N> {
    /// Returns memory for requests.
    pub(crate) fn new() -> Self {
        Self {
            vectors: [raw::bio_vec::default(); N],
            len: 0,
        }
    }

    fn take(&mut self, pages: impl Iterator<Item = PageRef>) -> Result {
        self.len = 0;
        for page in pages {
            let vector = self.vectors.get_mut(self.len).ok_or(EOVERFLOW)?;

            *vector = raw::bio_vec {
                bv_page: page.as_ptr(),
                bv_len: kernel::page::PAGE_SIZE as c_uint,
                bv_offset: 0,
            };
            self.len += 1;
        }
        Ok(())
    }

    /// Writes pages to a block device, beginning with page `block` of it.
    ///
    /// Fails if there are more than `N`, or with the device's error; then any of them may have been
    /// written. Sleeps for as long as the device needs, and needs no memory but what the block layer
    /// has set aside.
    pub(crate) fn write(
        &mut self,
        device: BlockDevice<'_>,
        block: u64,
        pages: impl Iterator<Item = PageRef>,
    ) -> Result {
        self.run(device, block, pages, true)
    }

    /// Reads pages from a block device, beginning with page `block` of it.
    ///
    /// As [`Self::write()`] otherwise. It is up to the caller that nobody else uses the pages.
    pub(crate) fn read(
        &mut self,
        device: BlockDevice<'_>,
        block: u64,
        pages: impl Iterator<Item = PageRef>,
    ) -> Result {
        self.run(device, block, pages, false)
    }

    fn run(
        &mut self,
        device: BlockDevice<'_>,
        block: u64,
        pages: impl Iterator<Item = PageRef>,
        write: bool,
    ) -> Result {
        self.take(pages)?;
        if self.len == 0 {
            return Ok(());
        }
        // SAFETY: The block device is there by the invariants of `BlockDevice`; the pages are valid by
        // those of `PageRef`, and all is over when the function returns.
        to_result(unsafe {
            raw::tmem_bdev_transfer(
                device.as_ptr(),
                block,
                self.vectors.as_mut_ptr(),
                self.len as c_uint,
                write,
            )
        })
    }
}

// SAFETY: What the vectors point to is used only while a request runs, in which it is borrowed.
unsafe impl<const N: usize> Send for Transfer<N> {}
