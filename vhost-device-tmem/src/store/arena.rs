// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The memory of the spans.

use std::{
    fs::File,
    io,
    sync::{
        atomic::{AtomicBool, Ordering},
        Arc,
    },
};

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::{
    id::SpanId,
    mapping::Mapping,
    memory::taken,
    spans::{CHUNK_SPANS, SPAN_SIZE},
    PAGE_SIZE,
};

/// The size of a chunk in bytes.
const CHUNK_SIZE: usize = CHUNK_SPANS * SPAN_SIZE;

/// One page, as the store takes and gives it.
pub type PageBytes = [u8; PAGE_SIZE];

/// Whether pages are kept in huge pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HugePages {
    /// They are, if the operating system has such.
    #[default]
    On,
    /// They are not.
    Off,
}

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
    /// Whole chunks are huge pages.
    huge: bool,
    /// Memory will be wanted soon.
    wanted: AtomicBool,
}

impl Arena {
    /// Maps the `spans` spans that a file in memory has, in huge pages with `huge`, which it can have
    /// then, and out of the host's swap with `lock`.
    ///
    /// # Errors
    ///
    /// The operating system's, where it has no address space left.
    pub(super) fn new(file: &Arc<File>, spans: usize, huge: bool, lock: bool) -> io::Result<Self> {
        let len = spans * SPAN_SIZE;
        let map = Mapping::shared(file, 0, len.max(PAGE_SIZE), CHUNK_SIZE)?;
        if lock {
            map.lock()?;
        }
        let whole = len / CHUNK_SIZE * CHUNK_SIZE;
        // Where there are huge pages that nobody asked for, more would take memory than is
        // accounted for. A kernel that knows of none refuses.
        let _ = map.advise_huge_pages(0, len, false);
        let huge = huge && map.advise_huge_pages(0, whole, true).is_ok();
        Ok(Self {
            map,
            spans,
            huge,
            wanted: AtomicBool::new(false),
        })
    }

    /// Says that another chunk will be wanted soon, or that who prepares it has heard.
    pub(super) fn want(&self, another: bool) {
        self.wanted.store(another, Ordering::Relaxed);
    }

    /// Returns whether another chunk will be wanted soon.
    pub(super) fn is_wanted(&self) -> bool {
        self.wanted.load(Ordering::Relaxed)
    }

    /// Returns whether a whole chunk takes memory as soon as a part of it is touched.
    pub(super) fn huge(&self) -> bool {
        self.huge
    }

    /// Has the spans of a chunk take memory one by one, until it is released.
    pub(super) fn split_chunk(&self, chunk: usize) {
        let advised = self
            .map
            .advise_huge_pages(chunk * CHUNK_SIZE, CHUNK_SIZE, false);
        if let Err(error) = advised {
            tracing::warn!("more memory may be taken than is said: {error}");
        }
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

    /// Takes a chunk's memory before it is touched. Where there is none, whoever touches it finds out.
    pub(super) fn populate_chunk(&self, chunk: usize) {
        self.map.populate(chunk * CHUNK_SIZE, CHUNK_SIZE);
    }

    /// Gives a chunk's memory back to the operating system.
    ///
    /// # Safety
    ///
    /// No span of the chunk is in use, and none will be until this returns.
    pub(super) unsafe fn release_chunk(&self, chunk: usize) {
        let first = chunk * CHUNK_SIZE;
        let len = CHUNK_SIZE.min(self.spans * SPAN_SIZE - first);
        // SAFETY: Nobody uses a span of the chunk.
        note(unsafe { self.map.release(first, len) });
        if self.huge && len == CHUNK_SIZE {
            // It may have been split; if not, this does nothing.
            let _ = self.map.advise_huge_pages(first, len, true);
        }
    }

    /// Gives the memory of `count` spans back to the operating system, from `span` on.
    ///
    /// # Safety
    ///
    /// None of the spans is in use, nor will be until this returns.
    pub(super) unsafe fn release(&self, span: SpanId, count: usize) {
        // SAFETY: Nobody uses the spans.
        note(unsafe {
            self.map
                .release(span.index() * SPAN_SIZE, count * SPAN_SIZE)
        });
    }
}

/// Returns whether the whole chunks of a file in memory that has `spans` spans, none of which was
/// ever touched, can be huge pages. What the kernel promises differs between its versions: one is
/// tried.
///
/// # Errors
///
/// The operating system's, where it has no address space left.
pub(super) fn has_huge_pages(file: &Arc<File>, spans: usize) -> io::Result<bool> {
    if spans < CHUNK_SPANS {
        return Ok(true);
    }
    let chunk = Mapping::shared(file, 0, CHUNK_SIZE, CHUNK_SIZE)?;
    if chunk.advise_huge_pages(0, CHUNK_SIZE, true).is_err() {
        return Ok(false);
    }
    let before = taken(file);
    // SAFETY: In bounds, and nobody else has the file yet.
    unsafe { chunk.addr().as_ptr().write_volatile(0) };
    let took = taken(file) - before;
    // SAFETY: No reference into it was ever made.
    unsafe { chunk.release(0, CHUNK_SIZE)? };
    Ok(took == CHUNK_SIZE as u64)
}

fn note(released: io::Result<()>) {
    if let Err(error) = released {
        // The spans can be used again all the same.
        tracing::warn!("cannot give memory of free spans back: {error}");
    }
}
