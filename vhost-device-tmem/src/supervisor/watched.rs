// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Seeing that files of guests come, change and go.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    path::Path,
};

use nix::{
    errno::Errno,
    sys::inotify::{AddWatchFlags, InitFlags, Inotify},
};

/// A directory that is watched. Its descriptor is readable when there is something new.
#[derive(Debug)]
pub(super) struct Watched(Inotify);

impl Watched {
    /// Watches a directory: for files that were written and closed, or came or went.
    ///
    /// # Errors
    ///
    /// The operating system's.
    pub(super) fn new(directory: &Path) -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        let what = AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_MOVE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_ONLYDIR;
        inotify.add_watch(directory, what)?;
        Ok(Self(inotify))
    }

    /// Returns whether something has changed since the last time.
    pub(super) fn has_changed(&self) -> bool {
        let mut changed = false;
        loop {
            match self.0.read_events() {
                Ok(events) => changed |= !events.is_empty(),
                Err(Errno::EINTR) => {}
                Err(_) => return changed,
            }
        }
    }
}

impl AsFd for Watched {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
