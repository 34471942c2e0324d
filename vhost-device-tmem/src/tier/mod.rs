// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! More memory than the host has: a tier below the store, for pages that are cold.
//!
//! ```text
//! store ── seal ── Tier ──┬── spill: a file or a block device of this host
//!   └── choice (decides)  └── ...
//! ```
//!
//! The store stays the only one that knows which page is where: the entry of a page that was moved
//! says [`Below`], in eight bytes, where it said a slot before. So a flush, a put over it, the end of
//! a pool and the next process find it as they find any page. A tier keeps records, of which it knows
//! nothing but the entry that each is of, and gives them back by their [`Place`].
//!
//! What leaves the process is compressed and [sealed](seal). A tier that is slow, full or broken costs
//! nothing that the store does not give up by itself: a page is in the store until its record has been
//! written, and synced if it is a persistent one.

mod arrival;
pub mod choice;
pub mod seal;
pub mod spill;

use std::fmt;

use serde::{Deserialize, Serialize};

pub use arrival::{Arrival, Clock, Gate, Wake};

/// Bits of a [`Place`].
pub const PLACE_BITS: u32 = 45;

/// Where a tier keeps a record. What it means is for the tier to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place(u64);

impl Place {
    /// Returns the place of this number, [`None`] if it has more than [`PLACE_BITS`].
    pub fn new(number: u64) -> Option<Self> {
        (number < 1 << PLACE_BITS).then_some(Self(number))
    }

    /// Returns its number.
    pub fn number(self) -> u64 {
        self.0
    }
}

/// What the entry of a page says that is in the tier: where, and by which mark its record is known, so
/// that an older one in its place is told from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Below {
    /// Where it is.
    pub place: Place,
    /// The lowest bits of the number of its record, see [`seal`].
    pub mark: u32,
}

/// Bits of a mark.
const MARK_BITS: u32 = u64::BITS - PLACE_BITS;

impl Below {
    /// Returns what says that the record of this number is at a place.
    pub fn new(place: Place, number: u64) -> Self {
        Self {
            place,
            mark: mark(number),
        }
    }

    /// Returns it in 64 bits.
    pub(crate) fn to_bits(self) -> u64 {
        self.place.0 | (u64::from(self.mark) << PLACE_BITS)
    }

    /// Returns what [`Self::to_bits`] was of.
    pub(crate) fn from_bits(bits: u64) -> Self {
        Self {
            place: Place(bits & ((1 << PLACE_BITS) - 1)),
            mark: (bits >> PLACE_BITS) as u32,
        }
    }
}

/// Returns the mark of a record's number.
pub(crate) fn mark(number: u64) -> u32 {
    // CAST: The lowest bits.
    (number & ((1 << MARK_BITS) - 1)) as u32
}

/// A sealed page that a tier is to keep.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The number of its entry in the store's table.
    pub owner: u32,
    /// What was sealed: [`seal::MAX_SEALED`] bytes at most.
    pub bytes: Vec<u8>,
}

/// Why a tier did not do something.
#[derive(Debug, thiserror::Error)]
pub enum TierError {
    /// It has no room.
    #[error("the tier has no room")]
    Full,
    /// It took longer than it may.
    #[error("the tier took too long")]
    Late,
    /// The operating system, or who keeps the records, refused.
    #[error("the tier cannot be used: {0}")]
    Failed(String),
    /// What is there is not what was written.
    #[error("a record in the tier is damaged")]
    Damaged,
}

/// How a tier is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TierReport {
    /// Which engine it is.
    pub engine: String,
    /// The bytes that it may take.
    pub size_bytes: u64,
    /// The bytes of its records.
    pub used_bytes: u64,
    /// The bytes that can be written before something has to be moved or dropped.
    pub free_bytes: u64,
    /// Records that were written.
    pub written: u64,
    /// Records that were read.
    pub read: u64,
    /// Writes that failed.
    pub write_errors: u64,
    /// Reads that failed.
    pub read_errors: u64,
    /// Reads that are waited for.
    pub waiting: u64,
    /// For how long the oldest write or read has been under way, in milliseconds.
    pub slowest_ms: u64,
}

/// Who keeps records of pages outside of the process.
///
/// # Locking
///
/// [`Self::remove`], [`Self::adopt`] and [`Self::report`] are called with the store's lock held: they
/// wait for no input or output, and call nobody. [`Self::put`], [`Self::sync`], [`Self::is_crowded`]
/// and [`Self::crowded`] are called by one thread, which may wait; [`Self::get`] by threads that must
/// not.
pub trait Tier: Send + Sync + fmt::Debug {
    /// Writes records, and returns where each is. None of them survives a crash of the host, or of the
    /// disk, before [`Self::sync`].
    ///
    /// # Errors
    ///
    /// [`TierError`], and none of them is there.
    fn put(&self, records: &[Record]) -> Result<Vec<Place>, TierError>;

    /// Returns once all that was put is safe, as far as the tier can know.
    ///
    /// # Errors
    ///
    /// [`TierError`], and nobody knows which of what was put since the last is safe.
    fn sync(&self) -> Result<(), TierError>;

    /// Begins to read a record, which [arrives](Arrival::arrive) later. Bytes may follow it that are not
    /// of it.
    fn get(&self, place: Place, arrival: std::sync::Arc<Arrival>);

    /// There is no page any more that is at a place.
    fn remove(&self, place: Place);

    /// A page that the process before has moved is at a place. Returns whether that can be.
    fn adopt(&self, place: Place, owner: u32) -> bool;

    /// Returns whether there are records that would make room if they were put anew.
    fn is_crowded(&self) -> bool;

    /// Returns the places of such records, and their owners. Not all of them need be there any more.
    fn crowded(&self) -> Vec<(Place, u32)>;

    /// Returns how it is.
    fn report(&self) -> TierReport;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_entry_says_comes_back() {
        for (place, number) in [
            (0, 0),
            (1, u64::MAX),
            ((1 << PLACE_BITS) - 1, 0x1_2345_6789),
        ] {
            let below = Below::new(Place::new(place).unwrap(), number);
            assert_eq!(Below::from_bits(below.to_bits()), below);
            assert_eq!(below.place.number(), place);
        }
        assert_eq!(Place::new(1 << PLACE_BITS), None);
        // Neighbours are told from each other.
        assert_ne!(mark(7), mark(8));
    }
}
