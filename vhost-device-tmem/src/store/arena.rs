// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The memory of the page frames.

use std::io;

use super::{frames::CHUNK_FRAMES, id::FrameId, mapping::Mapping, PAGE_SIZE};

/// One page, as the store keeps it.
pub type PageBytes = [u8; PAGE_SIZE];

/// The memory of all page frames, shared by all threads without a lock. Who may touch a frame
/// follows from the state of its entry, see [`super::index::PageState`].
///
/// # Invariants
///
/// The mapping has room for every frame that the allocator hands out.
#[derive(Debug)]
pub(super) struct Arena {
    map: Mapping,
    frames: usize,
}

impl Arena {
    /// Reserves address space for `frames` frames.
    ///
    /// # Errors
    ///
    /// The operating system's, where it has no address space left.
    pub(super) fn new(frames: usize) -> io::Result<Self> {
        Ok(Self {
            map: Mapping::new(frames * PAGE_SIZE)?,
            frames,
        })
    }

    fn frame(&self, frame: FrameId) -> *mut PageBytes {
        assert!(frame.index() < self.frames);
        // SAFETY: The offset is within the mapping.
        let addr = unsafe { self.map.addr().as_ptr().add(frame.index() * PAGE_SIZE) };
        addr.cast()
    }

    /// Returns a frame to write to.
    ///
    /// # Safety
    ///
    /// The caller allocated the frame and has made no key lead to it yet.
    #[allow(clippy::mut_from_ref)]
    pub(super) unsafe fn fill(&self, frame: FrameId) -> &mut PageBytes {
        // SAFETY: In bounds, and nobody else touches the frame until a key leads there.
        unsafe { &mut *self.frame(frame) }
    }

    /// Returns a frame to read from.
    ///
    /// # Safety
    ///
    /// The caller has pinned the frame, and a key led there when it did.
    pub(super) unsafe fn read(&self, frame: FrameId) -> &PageBytes {
        // SAFETY: In bounds, and a pinned frame is neither freed nor written.
        unsafe { &*self.frame(frame) }
    }

    /// Gives a chunk's memory back to the operating system.
    ///
    /// # Safety
    ///
    /// No frame of the chunk is in use, and none will be until this returns.
    pub(super) unsafe fn release_chunk(&self, chunk: usize) {
        let first = chunk * CHUNK_FRAMES;
        let count = CHUNK_FRAMES.min(self.frames - first);
        // SAFETY: Nobody uses a frame of the chunk.
        note(unsafe { self.map.release(first * PAGE_SIZE, count * PAGE_SIZE) });
    }

    /// Gives a frame's memory back to the operating system.
    ///
    /// # Safety
    ///
    /// The frame is not in use, and will not be until this returns.
    pub(super) unsafe fn release(&self, frame: FrameId) {
        // SAFETY: Nobody uses the frame.
        note(unsafe { self.map.release(frame.index() * PAGE_SIZE, PAGE_SIZE) });
    }
}

fn note(released: io::Result<()>) {
    if let Err(error) = released {
        // The frames can be used again all the same.
        tracing::warn!("cannot give memory of free page frames back: {error}");
    }
}
