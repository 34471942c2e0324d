// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the daemon knows of its guests when the policy is asked.

use std::time::Duration;

/// Times since a page was put that hits are told apart by.
pub const AGES: usize = 16;

/// The size of a page in bytes. All counters are of pages.
pub(super) const PAGE: u64 = 4096;

/// What is known of all guests.
#[derive(Clone, Debug)]
pub struct Figures<'f> {
    /// The time since the step before.
    pub elapsed: Duration,
    /// The bytes that all guests together may have now. Less than before where the host is short.
    pub capacity: u64,
    /// The guests that are there, once each and in any order. Others keep their minima.
    pub guests: &'f [GuestFigures],
}

/// What is known of a guest. Counters are of what happened since the step before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GuestFigures {
    /// The guest's number.
    pub guest: u32,
    /// Of its persistent pages.
    pub persistent: PersistentFigures,
    /// Of its ephemeral pages.
    pub ephemeral: EphemeralFigures,
}

/// What is known of persistent pages. The host counts all of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PersistentFigures {
    /// The bytes that they take.
    pub used: u64,
    /// Pages that were refused for want of quota.
    pub refused: u64,
}

/// What is known of ephemeral pages. Puts are not among it: they prove nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EphemeralFigures {
    /// The bytes that they take.
    pub used: u64,
    /// Hits of pages that were put less than 2ⁿ seconds before, and not less than half of that; the
    /// last element has all that are older.
    pub hits_by_age: [u64; AGES],
    /// Pages that were asked for in vain, and that a share larger by `reach` would still have had.
    pub missed: u64,
    /// The bytes of that, as far as they are known; 0 where they are not, which stands for as much
    /// as the guest has.
    pub reach: u64,
}
