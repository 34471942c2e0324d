// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Descriptors by which driver and device notify each other. They come from a front-end, and are
//! not to be trusted.

use std::{
    fs, io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
};

use nix::fcntl::{fcntl, FcntlArg, OFlag};

/// Why a descriptor is not taken.
#[derive(Debug, thiserror::Error)]
pub enum EventFdError {
    /// It is something else, reading or writing which may have any effect.
    #[error("it is {0:?} and no eventfd")]
    NoEventFd(String),
    /// The operating system does not say what it is.
    #[error("it cannot be examined: {0}")]
    Examine(#[from] io::Error),
}

/// An eventfd, which by itself never makes a thread wait.
///
/// # Invariants
///
/// The descriptor is one of an eventfd.
#[derive(Debug)]
struct EventFd(OwnedFd);

impl EventFd {
    fn new(fd: OwnedFd) -> Result<Self, EventFdError> {
        check_eventfd(fd.as_fd())?;
        Ok(Self(fd))
    }
}

/// Checks that a descriptor is one of an eventfd.
///
/// # Errors
///
/// [`EventFdError`].
pub(crate) fn check_eventfd(fd: BorrowedFd<'_>) -> Result<(), EventFdError> {
    // There is no other way to ask the kernel.
    let link = fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))?;
    if link.as_os_str() != "anon_inode:[eventfd]" {
        return Err(EventFdError::NoEventFd(link.display().to_string()));
    }
    Ok(())
}

/// Has nobody who reads or writes have to wait. (Whoever has the other end can take that back.)
///
/// # Errors
///
/// The operating system's.
pub(crate) fn never_wait(fd: BorrowedFd<'_>) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

/// What a driver notifies the device by. It is never read: who waits for it waits for the edges,
/// so that it makes no difference if somebody else reads it.
#[derive(Debug)]
pub(super) struct Kick(EventFd);

impl Kick {
    /// Takes a descriptor.
    ///
    /// # Errors
    ///
    /// [`EventFdError`].
    pub(super) fn new(fd: OwnedFd) -> Result<Self, EventFdError> {
        EventFd::new(fd).map(Self)
    }
}

impl AsRawFd for Kick {
    fn as_raw_fd(&self) -> RawFd {
        self.0 .0.as_raw_fd()
    }
}

/// What the device interrupts a driver by.
#[derive(Debug)]
pub(super) struct Call(EventFd);

impl Call {
    /// Takes a descriptor, and sees to it that writing does not wait. (A front-end that takes the
    /// flag away again, and fills the counter, makes a thread wait; that is for whoever watches
    /// over the threads.)
    ///
    /// # Errors
    ///
    /// [`EventFdError`].
    pub(super) fn new(fd: OwnedFd) -> Result<Self, EventFdError> {
        let fd = EventFd::new(fd)?;
        never_wait(fd.0.as_fd())?;
        Ok(Self(fd))
    }

    /// Interrupts the driver. Where the counter is full, it was interrupted and did not look.
    pub(super) fn signal(&self) {
        let one = 1u64;
        // SAFETY: The buffer has that length.
        unsafe {
            libc::write(
                self.0 .0.as_raw_fd(),
                (&raw const one).cast(),
                size_of::<u64>(),
            )
        };
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::FromRawFd;

    use super::*;

    /// An eventfd whose counter is nearly full, and that makes writers wait.
    fn full() -> OwnedFd {
        // SAFETY: The descriptor is new, and the buffer has that length.
        unsafe {
            let fd = libc::eventfd(0, libc::EFD_CLOEXEC);
            assert!(fd >= 0);
            let most = u64::MAX - 1;
            assert_eq!(libc::write(fd, (&raw const most).cast(), 8), 8);
            OwnedFd::from_raw_fd(fd)
        }
    }

    #[test]
    fn an_interrupt_that_nobody_takes_is_not_waited_for() {
        Call::new(full()).unwrap().signal();
    }

    #[test]
    fn other_descriptors_are_refused() {
        let (reader, writer) = nix::unistd::pipe().unwrap();
        let file = tempfile::tempfile().unwrap();
        for fd in [reader, writer, file.into()] {
            let fd: OwnedFd = fd;
            let copy = fd.try_clone().unwrap();
            assert!(matches!(Kick::new(fd), Err(EventFdError::NoEventFd(_))));
            assert!(matches!(Call::new(copy), Err(EventFdError::NoEventFd(_))));
        }
        Kick::new(full()).unwrap();
    }
}
