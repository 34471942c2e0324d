// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A guest's memory, mapped from descriptors that are not to be trusted.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::MetadataExt,
    },
};

use serde::{Deserialize, Serialize};
use vm_memory::{
    FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
    GuestRegionMmap, MmapRegion,
};

use super::fault::Watch;

/// The most pieces that a guest's memory may have. Each has a descriptor that has to be kept.
pub const MAX_REGIONS: usize = 32;

/// A piece of a guest's memory, as a front-end tells of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryRegion {
    /// Where the guest has it.
    pub guest_addr: u64,
    /// Its length in bytes.
    pub size: u64,
    /// Where the front-end has it, by which it names the addresses of virtqueues.
    pub user_addr: u64,
    /// Where it begins in the file that the descriptor is of.
    pub offset: u64,
}

/// Why a guest's memory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// More than [`MAX_REGIONS`], or more than the process can watch.
    #[error(
        "it has {0} pieces, more than can be kept ({MAX_REGIONS}); plug in fewer, larger DIMMs"
    )]
    TooMany(usize),
    /// A piece without a descriptor, or a descriptor without a piece.
    #[error(
        "{regions} pieces came with {fds} descriptors: some of the memory is not shared; give \
         each memory backend share=on"
    )]
    NotShared {
        /// How many pieces.
        regions: usize,
        /// How many descriptors.
        fds: usize,
    },
    /// A piece whose end is beyond all addresses, or of no length.
    #[error("the piece at {0:#x} has impossible bounds")]
    Bounds(u64),
    /// A descriptor of something that is no memory.
    #[error("the piece at {0:#x} is neither a file nor a memfd")]
    NotAFile(u64),
    /// A piece that goes on where its file ends.
    #[error(
        "the piece at {addr:#x} ends at byte {end} of a file that has only {len}; the file is \
         too short for the memory"
    )]
    PastEnd {
        /// Where the guest has it.
        addr: u64,
        /// Where it would end in the file.
        end: u64,
        /// The length of the file.
        len: u64,
    },
    /// A descriptor that may not be written to, or that cannot be mapped for another reason.
    #[error("the piece at {addr:#x} cannot be mapped: {error}")]
    Map {
        /// Where the guest has it.
        addr: u64,
        /// What the operating system said.
        #[source]
        error: io::Error,
    },
    /// Pieces in one place.
    #[error("two pieces are in one place")]
    Overlap,
}

/// A guest's memory, mapped.
///
/// # Invariants
///
/// `watch` is of exactly the mappings in `mem`, and is dropped first.
#[derive(Debug, Default)]
pub(super) struct GuestMap {
    watch: Watch,
    mem: GuestMemoryMmap,
    regions: Vec<MemoryRegion>,
}

impl GuestMap {
    /// Maps the pieces, each from the descriptor at the same place.
    ///
    /// # Errors
    ///
    /// [`MemoryError`], and nothing stays mapped.
    pub(super) fn new(
        mut regions: Vec<MemoryRegion>,
        fds: Vec<OwnedFd>,
    ) -> Result<Self, MemoryError> {
        let files: Vec<_> = fds.into_iter().map(File::from).collect();
        check(&regions, &files)?;
        let mut mapped = Vec::new();
        for (region, file) in regions.iter().zip(files) {
            mapped.push(map(region, file)?);
        }
        mapped.sort_by_key(GuestMemoryRegion::start_addr);
        let mappings: Vec<_> = mapped
            .iter()
            .map(|region| {
                let mapping = region.get_mmap();
                (mapping.as_ptr() as usize, mapping.size())
            })
            .collect();
        let mem = GuestMemoryMmap::from_regions(mapped);
        let mem = match mem {
            Ok(mem) => mem,
            Err(_) if regions.is_empty() => GuestMemoryMmap::default(),
            Err(_) => return Err(MemoryError::Overlap),
        };
        // SAFETY: They are the mappings of `mem`, which are whole ones, go when it is dropped, and
        // are accessed through it only: by volatile and atomic operations. What is read is checked
        // as what a guest may have written, zeros among it.
        let watch = unsafe { Watch::new(mappings) };
        let watch = watch.map_err(|_| MemoryError::TooMany(regions.len()))?;
        regions.sort_by_key(|region| region.user_addr);
        Ok(Self {
            watch,
            mem,
            regions,
        })
    }

    /// Returns the memory.
    pub(super) fn mem(&self) -> &GuestMemoryMmap {
        &self.mem
    }

    /// Returns what says whether an access failed.
    pub(super) fn watch(&self) -> &Watch {
        &self.watch
    }

    /// Returns why the guest cannot be served any more, if it cannot.
    pub(super) fn failure(&self) -> Option<String> {
        let address = self.watch.fault()?;
        let at = self.mem.iter().find_map(|region| {
            let mapping = region.get_mmap();
            let offset = address.checked_sub(mapping.as_ptr() as usize)?;
            (offset < mapping.size()).then(|| region.start_addr().0 + offset as u64)
        });
        Some(format!(
            "its memory at {:#x} cannot be had: the file shrank, its file system is full, or the \
             page is broken",
            at.unwrap_or(0)
        ))
    }

    /// Returns where the guest has what is at the front-end's address `user`, if `len` bytes are
    /// there in one piece.
    pub(super) fn translate(&self, user: u64, len: u64) -> Option<GuestAddress> {
        self.regions.iter().find_map(|region| {
            let offset = user.checked_sub(region.user_addr)?;
            let fits = offset < region.size && len <= region.size - offset;
            fits.then(|| GuestAddress(region.guest_addr + offset))
        })
    }
}

/// Checks that pieces of memory are few, and that each lies within a file that can be mapped, the one
/// at the same place. (A file can shrink later: whoever uses the memory has to bear that.)
///
/// # Errors
///
/// [`MemoryError`].
pub(crate) fn check(regions: &[MemoryRegion], files: &[File]) -> Result<(), MemoryError> {
    if regions.len() > MAX_REGIONS {
        return Err(MemoryError::TooMany(regions.len()));
    }
    if regions.len() != files.len() {
        let (regions, fds) = (regions.len(), files.len());
        return Err(MemoryError::NotShared { regions, fds });
    }
    let mut pieces = regions.iter().zip(files);
    pieces.try_for_each(|(region, file)| check_one(region, file))
}

fn check_one(region: &MemoryRegion, file: &File) -> Result<(), MemoryError> {
    let addr = region.guest_addr;
    let bounds = MemoryError::Bounds(addr);
    let (Some(_), Some(_), Some(end), Ok(size)) = (
        region.guest_addr.checked_add(region.size),
        region.user_addr.checked_add(region.size),
        region.offset.checked_add(region.size),
        usize::try_from(region.size),
    ) else {
        return Err(bounds);
    };
    if size == 0 || i64::try_from(end).is_err() {
        return Err(bounds);
    }
    let failed = |error| MemoryError::Map { addr, error };
    let metadata = file.metadata().map_err(failed)?;
    let kind = metadata.file_type();
    if !kind.is_file() {
        return Err(MemoryError::NotAFile(addr));
    }
    if size % huge_page(file).map_err(failed)? != 0 {
        return Err(bounds);
    }
    if end > metadata.size() {
        let len = metadata.size();
        return Err(MemoryError::PastEnd { addr, end, len });
    }
    // SAFETY: A plain query.
    let access = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) };
    if access < 0 {
        return Err(failed(io::Error::last_os_error()));
    }
    if access & libc::O_ACCMODE != libc::O_RDWR {
        let message = "its descriptor is not for reading and writing";
        return Err(failed(io::Error::new(
            io::ErrorKind::PermissionDenied,
            message,
        )));
    }
    Ok(())
}

/// Maps a piece that was checked.
fn map(region: &MemoryRegion, file: File) -> Result<GuestRegionMmap, MemoryError> {
    let addr = region.guest_addr;
    let size = usize::try_from(region.size).map_err(|_| MemoryError::Bounds(addr))?;
    let failed = |error| MemoryError::Map { addr, error };
    // The descriptor is closed after this: the mapping is enough.
    let mapping = {
        let file = FileOffset::new(file, region.offset);
        let (prot, flags) = (
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_NORESERVE,
        );
        MmapRegion::build(Some(file), size, prot, flags)
    };
    let mapping = mapping.map_err(|error| match error {
        vm_memory::mmap::MmapRegionError::Mmap(error) => failed(error),
        other => failed(io::Error::other(other)),
    })?;
    // What guests have in memory is nobody's business. It is advice, so that errors do no harm.
    // SAFETY: The mapping is ours, and the advice does not change what is in it.
    unsafe { libc::madvise(mapping.as_ptr().cast(), size, libc::MADV_DONTDUMP) };
    GuestRegionMmap::new(mapping, GuestAddress(addr)).ok_or(MemoryError::Bounds(addr))
}

/// Returns the size of a file's pages if it has huge ones, otherwise 1. A part of a huge page can
/// be mapped, but neither replaced nor unmapped.
fn huge_page(file: &File) -> io::Result<usize> {
    // SAFETY: It is plain data, for which zeros are valid, and the descriptor is open.
    unsafe {
        let mut about: libc::statfs = std::mem::zeroed();
        if libc::fstatfs(file.as_raw_fd(), &raw mut about) != 0 {
            return Err(io::Error::last_os_error());
        }
        let huge = about.f_type == libc::HUGETLBFS_MAGIC;
        Ok(if huge { about.f_bsize as usize } else { 1 })
    }
}
