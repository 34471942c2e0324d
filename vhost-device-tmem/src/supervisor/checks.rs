// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Looking at what a front-end hands over, before anybody uses it.

use std::{fs::File, io, os::fd::AsFd};

use crate::{
    device::{check_eventfd, never_wait, EventFdError},
    link::{MemoryRegion, MAX_DESCRIPTORS},
};

/// The most pieces that a guest's memory may have.
pub(super) const MAX_REGIONS: usize = 32;
const _: () = assert!(MAX_REGIONS <= MAX_DESCRIPTORS);

/// What is wrong with it, and what to do.
#[derive(Debug, thiserror::Error)]
pub(super) enum CheckError {
    /// Some memory has no descriptor.
    #[error(
        "{regions} pieces of memory came with {files} descriptors: it is not shared; give each \
         memory backend of QEMU share=on"
    )]
    NotShared {
        /// The pieces.
        regions: usize,
        /// The descriptors.
        files: usize,
    },
    /// Too many pieces.
    #[error("its memory has {0} pieces, and {MAX_REGIONS} are the most; use fewer, larger DIMMs")]
    TooMany(usize),
    /// A piece of memory that no process can have.
    #[error("the piece of memory at {0:#x} is empty, or ends beyond all addresses")]
    Bounds(u64),
    /// A piece of memory that is in no file.
    #[error(
        "the descriptor of the piece of memory at {0:#x} is of no file; it is not to be trusted"
    )]
    NoFile(u64),
    /// A piece of memory that its file does not have.
    #[error(
        "the piece of memory at {addr:#x} ends at byte {end} of a file that has only {len}; the \
         file is too short for the memory"
    )]
    PastEnd {
        /// Where the guest has it.
        addr: u64,
        /// Where it ends.
        end: u64,
        /// The length of the file.
        len: u64,
    },
    /// A descriptor that is for something else.
    #[error("the {what} descriptor of virtqueue {ring} is {found}, and has to be an eventfd")]
    NoEvent {
        /// What it should be for.
        what: &'static str,
        /// The virtqueue.
        ring: u32,
        /// What it is.
        found: String,
    },
    /// The operating system refused.
    #[error("cannot examine a descriptor: {0}")]
    Io(#[from] io::Error),
}

/// Checks that pieces of memory lie within their files. (A file can shrink later: whoever uses the
/// memory has to bear that.)
///
/// # Errors
///
/// [`CheckError`].
pub(super) fn memory(regions: &[MemoryRegion], files: &[File]) -> Result<(), CheckError> {
    if regions.len() > MAX_REGIONS {
        return Err(CheckError::TooMany(regions.len()));
    }
    if regions.len() != files.len() {
        return Err(CheckError::NotShared {
            regions: regions.len(),
            files: files.len(),
        });
    }
    for (region, file) in regions.iter().zip(files) {
        let addr = region.guest_addr;
        let end = region.offset.checked_add(region.size);
        let ends = [region.guest_addr, region.user_addr].map(|addr| addr.checked_add(region.size));
        let Some(end) = end.filter(|_| region.size > 0 && !ends.contains(&None)) else {
            return Err(CheckError::Bounds(addr));
        };
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(CheckError::NoFile(addr));
        }
        let len = metadata.len();
        if end > len {
            return Err(CheckError::PastEnd { addr, end, len });
        }
    }
    Ok(())
}

/// Checks that a descriptor is an eventfd, and makes it one that nobody has to wait for.
///
/// # Errors
///
/// [`CheckError`].
pub(super) fn event(what: &'static str, ring: u32, file: &File) -> Result<(), CheckError> {
    check_eventfd(file.as_fd()).map_err(|error| match error {
        EventFdError::NoEventFd(found) => CheckError::NoEvent { what, ring, found },
        EventFdError::Examine(error) => error.into(),
    })?;
    Ok(never_wait(file.as_fd())?)
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use nix::{
        fcntl::{fcntl, FcntlArg, OFlag},
        sys::eventfd::{EfdFlags, EventFd},
    };

    use super::*;

    fn region(size: u64, offset: u64) -> MemoryRegion {
        MemoryRegion {
            guest_addr: 0x1000,
            size,
            user_addr: 0x7000_0000,
            offset,
        }
    }

    fn file(len: u64) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(len).unwrap();
        file
    }

    #[test]
    fn memory_lies_within_its_file() {
        memory(&[region(0x2000, 0x1000)], &[file(0x3000)]).unwrap();
        let past = memory(&[region(0x2000, 0x1001)], &[file(0x3000)]);
        let message = past.unwrap_err().to_string();
        assert!(
            message.contains("byte 12289 of a file that has only 12288"),
            "{message}"
        );
        for wrong in [region(0, 0), region(0x2000, u64::MAX), region(u64::MAX, 0)] {
            let checked = memory(&[wrong], &[file(0x3000)]);
            assert!(matches!(checked, Err(CheckError::Bounds(0x1000))));
        }
        let (pipe, _) = nix::unistd::pipe().unwrap();
        let checked = memory(&[region(1, 0)], &[pipe.into()]);
        assert!(matches!(checked, Err(CheckError::NoFile(_))));
        let message = memory(&[region(1, 0)], &[]).unwrap_err().to_string();
        assert!(message.contains("share=on"), "{message}");
        let many = vec![region(1, 0); MAX_REGIONS + 1];
        let files: Vec<_> = many.iter().map(|_| file(1)).collect();
        assert!(matches!(
            memory(&many, &files),
            Err(CheckError::TooMany(33))
        ));
        memory(&many[1..], &files[1..]).unwrap();
    }

    #[test]
    fn only_eventfds_that_never_block_are_taken() {
        let blocking = EventFd::from_flags(EfdFlags::empty()).unwrap();
        let file = File::from(OwnedFd::from(blocking));
        event("kick", 2, &file).unwrap();
        let flags = fcntl(&file, FcntlArg::F_GETFL).unwrap();
        assert!(OFlag::from_bits_retain(flags).contains(OFlag::O_NONBLOCK));
        let (pipe, _) = nix::unistd::pipe().unwrap();
        let message = event("call", 2, &pipe.into()).unwrap_err().to_string();
        assert!(
            message.starts_with("the call descriptor of virtqueue 2 is pipe:"),
            "{message}"
        );
    }
}
