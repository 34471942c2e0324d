// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The memory of the spans.

use std::io;

use super::{
    id::SpanId,
    mapping::Mapping,
    spans::{CHUNK_SPANS, SPAN_SIZE},
    PAGE_SIZE,
};

/// One page, as the store takes and gives it.
pub type PageBytes = [u8; PAGE_SIZE];

/// The memory of all spans, shared by all threads without a lock. Who may touch which bytes
/// follows from the state of the entry that they belong to, see [`super::index::PageState`].
///
/// # Invariants
///
/// The mapping has room for every span that the allocator hands out.
#[derive(Debug)]
pub(super) struct Arena {
    map: Mapping,
    spans: usize,
}

impl Arena {
    /// Reserves address space for `spans` spans.
    ///
    /// # Errors
    ///
    /// The operating system's, where it has no address space left.
    pub(super) fn new(spans: usize) -> io::Result<Self> {
        Ok(Self {
            map: Mapping::new(spans * SPAN_SIZE)?,
            spans,
        })
    }

    /// Returns the address of `len` bytes at an offset.
    ///
    /// # Panics
    ///
    /// If they are not all within the spans.
    pub(super) fn addr(&self, offset: usize, len: usize) -> *mut u8 {
        let end = offset.checked_add(len);
        assert!(end.is_some_and(|end| end <= self.spans * SPAN_SIZE));
        // SAFETY: The offset is within the mapping.
        unsafe { self.map.addr().as_ptr().add(offset) }
    }

    /// Gives a chunk's memory back to the operating system.
    ///
    /// # Safety
    ///
    /// No span of the chunk is in use, and none will be until this returns.
    pub(super) unsafe fn release_chunk(&self, chunk: usize) {
        let first = chunk * CHUNK_SPANS;
        let count = CHUNK_SPANS.min(self.spans - first);
        // SAFETY: Nobody uses a span of the chunk.
        note(unsafe { self.map.release(first * SPAN_SIZE, count * SPAN_SIZE) });
    }

    /// Gives a span's memory back to the operating system.
    ///
    /// # Safety
    ///
    /// The span is not in use, and will not be until this returns.
    pub(super) unsafe fn release(&self, span: SpanId) {
        // SAFETY: Nobody uses the span.
        note(unsafe { self.map.release(span.index() * SPAN_SIZE, SPAN_SIZE) });
    }
}

fn note(released: io::Result<()>) {
    if let Err(error) = released {
        // The spans can be used again all the same.
        tracing::warn!("cannot give memory of free spans back: {error}");
    }
}
