// SPDX-License-Identifier: GPL-2.0

//! Reading and writing pages of block devices, past everything but the block layer.

use kernel::{
    error::to_result,
    prelude::*, //
};

use super::{
    page::PageRef,
    raw,
    swap::Area, //
};

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

    /// Writes pages to a swap area's block device, beginning with page `block` of that.
    ///
    /// Fails if there are more than `N`, or with the device's error; then any of them may have been
    /// written. Sleeps for as long as the device needs, and needs no memory but what the block layer
    /// has set aside.
    pub(crate) fn write(
        &mut self,
        area: Area,
        block: u64,
        pages: impl Iterator<Item = PageRef>,
    ) -> Result {
        self.run(area, block, pages, true)
    }

    /// Reads pages from a swap area's block device, beginning with page `block` of that.
    ///
    /// As [`Self::write()`] otherwise. It is up to the caller that nobody else uses the pages.
    pub(crate) fn read(
        &mut self,
        area: Area,
        block: u64,
        pages: impl Iterator<Item = PageRef>,
    ) -> Result {
        self.run(area, block, pages, false)
    }

    fn run(
        &mut self,
        area: Area,
        block: u64,
        pages: impl Iterator<Item = PageRef>,
        write: bool,
    ) -> Result {
        self.take(pages)?;
        if self.len == 0 {
            return Ok(());
        }
        // SAFETY: The area's block device is there by the invariants of `Area`; the pages are valid by
        // those of `PageRef`, and all is over when the function returns.
        to_result(unsafe {
            raw::tmem_bdev_transfer(
                area.bdev(),
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
