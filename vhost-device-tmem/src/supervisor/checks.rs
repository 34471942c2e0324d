// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Looking at what a front-end hands over, before anybody uses it.

use std::{
    fs::File,
    io,
    os::{fd::AsFd, unix::fs::MetadataExt},
};

use crate::{
    device::{check_eventfd, check_memory, never_wait, EventFdError, MemoryError, MAX_REGIONS},
    link::{MemoryRegion, MAX_DESCRIPTORS},
};

const _: () = assert!(MAX_REGIONS <= MAX_DESCRIPTORS);

/// What is wrong with it, and what to do.
#[derive(Debug, thiserror::Error)]
pub(super) enum CheckError {
    /// Memory that cannot be used.
    #[error("its memory cannot be used: {0}")]
    Memory(#[from] MemoryError),
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

/// Checks pieces of memory, as the worker does before it maps them: the front-end is told at once.
///
/// # Errors
///
/// [`CheckError`].
pub(super) fn memory(regions: &[MemoryRegion], files: &[File]) -> Result<(), CheckError> {
    Ok(check_memory(regions, files)?)
}

/// Takes a guest's window, by what its file is told from others, out of its memory: it is no place
/// for requests, and what there is of it is counted elsewhere. Returns the rest, and whether there
/// was one.
pub(super) fn without_window(
    window: Option<(u64, u64)>,
    regions: Vec<MemoryRegion>,
    files: Vec<File>,
) -> (Vec<MemoryRegion>, Vec<File>, bool) {
    let is_window = |file: &File| {
        let metadata = file.metadata().ok();
        window.is_some() && window == metadata.map(|metadata| (metadata.dev(), metadata.ino()))
    };
    let count = regions.len();
    let pieces = regions.into_iter().zip(files);
    let (regions, files): (Vec<_>, Vec<_>) = pieces.filter(|(_, file)| !is_window(file)).unzip();
    let mapped = regions.len() < count;
    (regions, files, mapped)
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
            assert!(matches!(
                checked,
                Err(CheckError::Memory(MemoryError::Bounds(0x1000)))
            ));
        }
        let (pipe, _) = nix::unistd::pipe().unwrap();
        let checked = memory(&[region(1, 0)], &[pipe.into()]);
        assert!(matches!(
            checked,
            Err(CheckError::Memory(MemoryError::NotAFile(_)))
        ));
        let message = memory(&[region(1, 0)], &[]).unwrap_err().to_string();
        assert!(message.contains("share=on"), "{message}");
        let many = vec![region(1, 0); MAX_REGIONS + 1];
        let files: Vec<_> = many.iter().map(|_| file(1)).collect();
        assert!(matches!(
            memory(&many, &files),
            Err(CheckError::Memory(MemoryError::TooMany(33)))
        ));
        memory(&many[1..], &files[1..]).unwrap();
    }

    #[test]
    fn a_window_is_no_memory_for_requests() {
        let window = file(1 << 20);
        let metadata = window.metadata().unwrap();
        let node = (metadata.dev(), metadata.ino());
        let regions = || vec![region(0x1000, 0), region(1 << 20, 0), region(0x2000, 0)];
        let files = || vec![file(0x1000), window.try_clone().unwrap(), file(0x2000)];
        let (rest, left, mapped) = without_window(Some(node), regions(), files());
        assert!(mapped);
        assert_eq!(rest, [region(0x1000, 0), region(0x2000, 0)]);
        memory(&rest, &left).unwrap();
        let (rest, _, mapped) = without_window(Some((node.0, node.1 + 1)), regions(), files());
        assert_eq!((rest, mapped), (regions(), false));
        let (rest, _, mapped) = without_window(None, regions(), files());
        assert_eq!((rest, mapped), (regions(), false));
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
