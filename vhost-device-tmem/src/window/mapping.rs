// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A window, as the worker sees it: memory that the guest may change at any time, and that may go
//! away.

use std::{
    fs::File,
    io,
    sync::atomic::{AtomicU32, Ordering},
};

use virtio_tmem_abi::{
    ChunkReport, WindowHeader, WindowReport, CHUNK_REPORTS, CHUNK_SHIFT, GENERATIONS,
};
use vm_memory::{FileOffset, MmapRegion, VolatileMemory};
use zerocopy::{FromZeros, IntoBytes};

use super::choice::Hint;
use crate::{
    device::Watch,
    store::{PageBytes, PAGE_SIZE},
};

/// The whole file of a window, mapped.
///
/// # Invariants
///
/// `watch` is of exactly `region`, and is dropped first.
#[derive(Debug)]
pub(super) struct Mapping {
    watch: Watch,
    region: MmapRegion,
}

impl Mapping {
    /// Maps the first `len` bytes of a file, which has so many.
    ///
    /// # Errors
    ///
    /// The operating system's; and if there are too many mappings that can go away.
    pub(super) fn new(file: File, len: usize) -> io::Result<Self> {
        let (prot, flags) = (
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_NORESERVE,
        );
        let file = Some(FileOffset::new(file, 0));
        let region = MmapRegion::build(file, len, prot, flags).map_err(io::Error::other)?;
        // What guests have in memory is nobody's business. It is advice, so that errors do no harm.
        // SAFETY: The mapping is ours, and the advice does not change what is in it.
        unsafe { libc::madvise(region.as_ptr().cast(), len, libc::MADV_DONTDUMP) };
        // SAFETY: As above. A kernel that has no huge pages refuses, and memory is had without.
        unsafe { libc::madvise(region.as_ptr().cast(), len, libc::MADV_HUGEPAGE) };
        let mapped = (region.as_ptr() as usize, region.size());
        // SAFETY: It is the mapping of `region`, a whole one, which goes when that is dropped, after
        // the watch; and it is accessed by the methods of this type only, which copy from it by
        // volatile operations and write to it by these and atomic ones. Nothing depends on what is
        // read.
        let watch = unsafe { Watch::new([mapped]) };
        let watch = watch.map_err(|_| io::Error::other("too much memory is mapped"))?;
        Ok(Self { watch, region })
    }

    /// Returns whether an access failed. What was read, and written, since is nothing then.
    pub(super) fn has_failed(&self) -> bool {
        self.watch.fault().is_some()
    }

    /// Takes memory for a range of the file, as far as there is some: in huge pages where they can be
    /// had.
    pub(super) fn populate(&self, at: u64, len: u64) {
        let (Ok(at), Ok(len)) = (usize::try_from(at), usize::try_from(len)) else {
            return;
        };
        if let Ok(slice) = self.region.get_slice(at, len) {
            let range = slice.ptr_guard_mut();
            // SAFETY: The range is within the mapping, which lives as long as the slice. What is in
            // it stays as it is, and memory that cannot be had is an error here, and no signal.
            unsafe { libc::madvise(range.as_ptr().cast(), len, libc::MADV_POPULATE_WRITE) };
        }
    }

    /// Writes the header. The file has memory for it.
    pub(super) fn write_header(&self, header: &WindowHeader) {
        let slice = self.region.get_slice(0, size_of::<WindowHeader>());
        if let Ok(slice) = slice {
            slice.copy_from(header.as_bytes());
        }
    }

    /// Makes the generation of a chunk be this one, before whatever is done next. The file has memory
    /// for it.
    pub(super) fn set_generation(&self, number: u32, generation: u32) {
        let at = GENERATIONS as usize + number as usize * size_of::<u32>();
        if let Ok(word) = self.region.get_atomic_ref::<AtomicU32>(at) {
            word.store(generation.to_le(), Ordering::SeqCst);
        }
    }

    /// Copies a slot, which has memory.
    pub(super) fn read_slot(&self, slot: u32, frame: &mut PageBytes) -> bool {
        let at = slot as usize * PAGE_SIZE;
        match self.region.get_slice(at, PAGE_SIZE) {
            Ok(slice) => slice.copy_to(&mut frame[..]) == PAGE_SIZE && !self.has_failed(),
            Err(_) => false,
        }
    }

    /// Returns what the guest tells of a chunk. There is memory for it.
    pub(super) fn hint(&self, number: u32) -> Hint {
        let mut report = ChunkReport::new_zeroed();
        let at = CHUNK_REPORTS as usize + number as usize * size_of::<ChunkReport>();
        self.read_report(at, report.as_mut_bytes());
        Hint {
            hits: report.hits.get(),
            used: report.used.get(),
        }
    }

    /// Returns what the guest tells of the window as a whole. There is memory for it.
    pub(super) fn report(&self) -> WindowReport {
        let mut report = WindowReport::new_zeroed();
        self.read_report(0, report.as_mut_bytes());
        report
    }

    /// Reads from chunk 1.
    fn read_report(&self, at: usize, bytes: &mut [u8]) {
        let slice = self.region.get_slice((1 << CHUNK_SHIFT) + at, bytes.len());
        if let Ok(slice) = slice {
            slice.copy_to(bytes);
        }
    }
}
