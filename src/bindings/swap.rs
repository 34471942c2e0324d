// SPDX-License-Identifier: GPL-2.0

//! Swap areas: where on which device the pages of one are.

use core::{
    mem::offset_of,
    ops::Deref,
    ptr::NonNull, //
};

use kernel::prelude::*;

use super::{
    block::BlockDevice,
    raw, //
};

/// A swap area that is on.
///
/// # Invariants
///
/// The pointer is a valid area of the kernel's, which is not swapped off completely as long as the
/// instance and its copies are used: its extents and its block device stay.
#[derive(Clone, Copy)]
pub(crate) struct Area(NonNull<raw::swap_info_struct>);

impl Area {
    /// Borrows an area.
    ///
    /// # Safety
    ///
    /// `area` must be an area of the kernel's that stays on until the instance and all of its copies
    /// are used for the last time. Any slot of it that is in use keeps it on.
    pub(crate) unsafe fn new(area: NonNull<raw::swap_info_struct>) -> Self {
        // INVARIANT: By the safety requirements.
        Self(area)
    }

    /// Returns where the area's page `offset` is on the block device, in pages.
    ///
    /// [`None`] if the area has no such page. Any context.
    pub(crate) fn block(self, offset: u64) -> Option<u64> {
        // SAFETY: By the type invariants the area is valid.
        let mut node = unsafe { (*self.0.as_ptr()).swap_extent_root.rb_node };

        while !node.is_null() {
            // SAFETY: The tree consists of extents, has been there since before the area was on, and
            // does not change before it is off: see the type invariants.
            let (extent, left, right) = unsafe {
                let extent = node
                    .byte_sub(offset_of!(raw::swap_extent, rb_node))
                    .cast::<raw::swap_extent>();

                (&*extent, (*node).rb_left, (*node).rb_right)
            };
            let first = extent.start_page as u64;

            if offset < first {
                node = left;
            } else if offset - first >= extent.nr_pages as u64 {
                node = right;
            } else {
                return extent.start_block.checked_add(offset - first);
            }
        }
        None
    }

    /// Returns whether it is in memory: what is written to it is there when the kernel's function
    /// returns. Any context.
    pub(crate) fn is_synchronous(self) -> bool {
        self.flags() & raw::SWP_SYNCHRONOUS_IO as c_ulong != 0
    }

    /// Returns whether it is a block device, and not a file. Any context.
    pub(crate) fn is_block_device(self) -> bool {
        self.flags() & raw::SWP_BLKDEV as c_ulong != 0
    }

    fn flags(self) -> c_ulong {
        // SAFETY: By the type invariants the area is valid. The kernel changes other bits of the word
        // while it is on, each time as a whole.
        unsafe { (&raw const (*self.0.as_ptr()).flags).read_volatile() }
    }

    /// Returns the block device, if the area is on one. Any context.
    pub(crate) fn device(&self) -> Option<BlockDevice<'_>> {
        // SAFETY: By the type invariants the area is valid, and keeps its block device.
        let device = unsafe { (*self.0.as_ptr()).bdev };

        // SAFETY: By the type invariants the area is used for no longer than it is on, and has it open.
        NonNull::new(device).map(|device| unsafe { BlockDevice::new(device) })
    }

    /// Returns the raw area.
    pub(crate) fn as_ptr(self) -> *mut raw::swap_info_struct {
        self.0.as_ptr()
    }
}

/// A swap area that stays on as long as the instance lives: whoever swaps it off waits.
///
/// # Invariants
///
/// A reference to the area's users is held.
pub(crate) struct Held(Area);

impl Held {
    /// Holds an area, unless it is off or about to be. Any context.
    ///
    /// # Safety
    ///
    /// `area` must once have been an area of the kernel's. Those are not freed, but used again for
    /// the next area of the same number.
    pub(crate) unsafe fn new(area: NonNull<raw::swap_info_struct>) -> Option<Self> {
        // SAFETY: By the safety requirements it is valid.
        if !unsafe { raw::tmem_swap_area_get(area.as_ptr()) } {
            return None;
        }
        // INVARIANT: The reference was just taken, and keeps the area on.
        Some(Self(Area(area)))
    }
}

impl Deref for Held {
    type Target = Area;

    fn deref(&self) -> &Area {
        &self.0
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // SAFETY: By the type invariants a reference is held, which nobody else gives back.
        unsafe { raw::tmem_swap_area_put(self.0.as_ptr()) };
    }
}
