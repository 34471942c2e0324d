// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How the capacity is divided between pages and what is needed to find them.

use super::{
    frames::FRAME_OVERHEAD,
    index::{Object, Page, BUCKET_OVERHEAD},
    PAGE_SIZE,
};

/// What it takes to find the page in a frame, in bytes, without its object.
const PER_FRAME: usize = FRAME_OVERHEAD + BUCKET_OVERHEAD + size_of::<Page>();

const _: () = assert!(PER_FRAME <= 64 && size_of::<Object>() <= 64);

/// Objects by which their share grows.
const OBJECT_STEP: usize = 1024;

/// The division of the capacity. What every frame needs besides its page is set aside at once, as
/// the memory that it takes never goes back. The share of the objects only grows, and the frames
/// have what it leaves.
///
/// # Invariants
///
/// `max_frames · PER_FRAME + objects · |Object| + frame_limit() · PAGE_SIZE ≤ capacity`.
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
            max_frames: (capacity / (PAGE_SIZE + PER_FRAME)).min(u32::MAX as usize - 1),
            objects: 0,
        }
    }

    /// Returns the most frames there can ever be.
    pub(super) fn max_frames(&self) -> usize {
        self.max_frames
    }

    /// Returns the most frames that may take memory now.
    pub(super) fn frame_limit(&self) -> usize {
        let taken = self.max_frames * PER_FRAME + self.objects * size_of::<Object>();
        (self.capacity.saturating_sub(taken) / PAGE_SIZE).min(self.max_frames)
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

    /// Returns the bytes that pages and objects take.
    pub(super) fn bytes_of(&self, pages: u64, objects: u64) -> u64 {
        pages * (PAGE_SIZE + PER_FRAME) as u64 + objects * size_of::<Object>() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_store_stays_within_its_capacity() {
        for capacity in [5000, 1 << 20, (1 << 30) + 12345] {
            let mut budget = Budget::new(capacity);
            loop {
                let meta = budget.max_frames * PER_FRAME + budget.objects * size_of::<Object>();
                assert!(
                    meta + budget.frame_limit() * PAGE_SIZE <= capacity,
                    "{budget:?}"
                );
                match budget.grow_objects() {
                    Some(grown) => budget = grown,
                    None => break,
                }
            }
            // Each page may have an object of its own.
            assert!(budget.objects() >= budget.frame_limit());
        }
    }

    #[test]
    fn less_than_two_percent_is_lost_to_metadata() {
        let budget = Budget::new(1 << 30);
        assert!(budget.frame_limit() > (1 << 30) / PAGE_SIZE * 98 / 100);
    }
}
