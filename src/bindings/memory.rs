// SPDX-License-Identifier: GPL-2.0

//! What is to be known of the guest's memory as a whole.

use core::ptr;

use super::raw;

/// Returns how many pages of memory the guest has, as far as a balloon leaves them to it.
///
/// Any context.
pub(crate) fn total_pages() -> u64 {
    // SAFETY: It is a number that the kernel changes at once, and that is always there.
    let pages = unsafe { ptr::read_volatile(&raw const raw::_totalram_pages) };

    u64::try_from(pages.counter).unwrap_or(0)
}

/// Returns whether the host cannot read the guest's memory. Any context.
pub(crate) fn is_encrypted() -> bool {
    // SAFETY: It only reads what was found out when the guest was started.
    unsafe { raw::tmem_memory_encrypted() }
}
