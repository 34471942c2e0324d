// SPDX-License-Identifier: GPL-2.0

//! Numbers that nobody can guess.

use super::raw;

/// Returns a random number. Any context.
pub(crate) fn random_u32() -> u32 {
    // SAFETY: It may be called in any context, and takes no arguments.
    unsafe { raw::get_random_u32() }
}
