// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Memory that will be looked at soon.

/// Bytes that the processor fetches at once.
pub(crate) const LINE: usize = 64;

/// Has the processor fetch the line of memory at an address, which need not be valid.
pub(crate) fn prefetch<T>(at: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: All x86-64 processors have the instruction, which only gives advice.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// As [`prefetch`], for memory that will be written.
pub(crate) fn prefetch_to_write<T>(at: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: Processors that do not have the instruction take it for one without effect; others
    // take it for advice.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_ET0 }>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}
