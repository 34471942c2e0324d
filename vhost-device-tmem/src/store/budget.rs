// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How the capacity is divided between pages and what is needed to find them.

use super::{
    frames::FRAME_OVERHEAD,
    index::{Object, Page, BUCKET_OVERHEAD},
    PAGE_SIZE,
};

/// What a frame takes whether it is in use or not, in bytes.
const FIXED: usize = FRAME_OVERHEAD + BUCKET_OVERHEAD;

/// What a page takes, in bytes.
const PER_PAGE: usize = PAGE_SIZE + size_of::<Page>();

/// Objects by which their share grows.
const OBJECT_STEP: usize = 1024;

/// The division of the capacity. Frames have what the objects leave; the share of the objects
/// only grows.
///
/// # Invariants
///
/// `fixed + objects · |Object| + frame_limit() · PER_PAGE ≤ capacity`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Budget {
    capacity: usize,
    max_frames: usize,
    objects: usize,
}

impl Budget {
    /// Divides `capacity` bytes.
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            capacity,
            max_frames: (capacity / (PER_PAGE + FIXED)).min(u32::MAX as usize - 1),
            objects: 0,
        }
    }

    /// Returns the most frames there can ever be.
    pub(super) fn max_frames(&self) -> usize {
        self.max_frames
    }

    /// Returns the most frames that may be in use now.
    pub(super) fn frame_limit(&self) -> usize {
        let taken = self.max_frames * FIXED + self.objects * size_of::<Object>();
        (self.capacity.saturating_sub(taken) / PER_PAGE).min(self.max_frames)
    }

    /// Returns the most objects that may be in use now.
    pub(super) fn objects(&self) -> usize {
        self.objects
    }

    /// Returns the division with room for more objects, [`None`] if there is an object for every
    /// frame.
    pub(super) fn grow_objects(&self) -> Option<Self> {
        let objects = (self.objects + OBJECT_STEP).min(self.max_frames);
        (objects > self.objects).then_some(Self { objects, ..*self })
    }

    /// Returns the frames by which the credits stay below the truth, for what is on its way.
    pub(super) fn reserve_frames(&self) -> usize {
        (self.max_frames / 64).min(64)
    }

    /// Returns the capacity in bytes.
    pub(super) fn capacity(&self) -> usize {
        self.capacity
    }

    /// Returns the bytes that are taken where `frames` are in use.
    pub(super) fn used(&self, frames: usize) -> usize {
        self.max_frames * FIXED + self.objects * size_of::<Object>() + frames * PER_PAGE
    }

    /// Returns the bytes that pages and objects of a pool take.
    pub(super) fn bytes_of(&self, pages: u64, objects: u64) -> u64 {
        pages * (PER_PAGE + FIXED) as u64 + objects * size_of::<Object>() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_metadata_of_a_page_stays_below_64_bytes() {
        assert!(FIXED + size_of::<Page>() <= 64, "{FIXED}");
    }

    #[test]
    fn a_full_store_stays_within_its_capacity() {
        for capacity in [0, 5000, 1 << 20, (1 << 30) + 12345] {
            let mut budget = Budget::new(capacity);
            loop {
                let used = budget.used(budget.frame_limit());
                assert!(used <= capacity || budget.frame_limit() == 0, "{budget:?}");
                match budget.grow_objects() {
                    Some(grown) => budget = grown,
                    None => break,
                }
            }
        }
    }

    #[test]
    fn less_than_two_percent_is_lost_to_metadata() {
        let budget = Budget::new(1 << 30);
        assert!(budget.frame_limit() > (1 << 30) / PAGE_SIZE * 98 / 100);
    }
}
