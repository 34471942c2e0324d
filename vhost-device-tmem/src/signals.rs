// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What is asked of the daemon by signals.
//!
//! The signals are blocked in all threads and read from a descriptor, so that they can be waited
//! for together with other things, and no code runs in a handler. `SIGPIPE` is ignored, which is
//! what the language's runtime does.

use std::{
    fmt, io,
    os::fd::{AsFd, BorrowedFd},
};

use nix::{
    poll::{PollFd, PollFlags},
    sys::{
        signal::{SigSet, Signal as Number},
        signalfd::{SfdFlags, SignalFd},
    },
};

use crate::stop::{wait_ready, StopToken};

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// `SIGTERM`: to stop.
    Terminate,
    /// `SIGINT`: to stop, from a terminal.
    Interrupt,
    /// `SIGHUP`: to read the configuration again.
    Reload,
    /// `SIGUSR1`: to say in the log what there is.
    Statistics,
    /// `SIGUSR2`: to go on with a new binary.
    Upgrade,
}

impl Signal {
    const ALL: [(Number, Self); 5] = [
        (Number::SIGTERM, Self::Terminate),
        (Number::SIGINT, Self::Interrupt),
        (Number::SIGHUP, Self::Reload),
        (Number::SIGUSR1, Self::Statistics),
        (Number::SIGUSR2, Self::Upgrade),
    ];

    fn from_number(number: u32) -> Option<Self> {
        let mut all = Self::ALL.into_iter();
        all.find_map(|(known, signal)| (known as u32 == number).then_some(signal))
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Self::ALL.iter().find(|(_, signal)| signal == self);
        f.write_str(name.map_or("no signal", |(number, _)| number.as_str()))
    }
}

/// The signals of [`Signal`], which come to nobody else. Its descriptor is readable when there is
/// one.
#[derive(Debug)]
pub struct Signals(SignalFd);

impl Signals {
    /// Blocks the signals in this thread and those that it starts. To be called before there are
    /// others.
    ///
    /// # Errors
    ///
    /// The operating system's, where it has no descriptor left.
    pub fn block() -> io::Result<Self> {
        let set: SigSet = Signal::ALL.into_iter().map(|(number, _)| number).collect();
        set.thread_block()?;
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        Ok(Self(SignalFd::with_flags(&set, flags)?))
    }

    /// Returns the next signal that has come, if there is one.
    ///
    /// # Errors
    ///
    /// The operating system's.
    pub fn next(&self) -> io::Result<Option<Signal>> {
        let info = self.0.read_signal()?;
        Ok(info.and_then(|info| Signal::from_number(info.ssi_signo)))
    }

    /// Waits for the next signal; nothing if `stop` was asked meanwhile.
    ///
    /// # Errors
    ///
    /// The operating system's.
    pub fn wait(&self, stop: &StopToken) -> io::Result<Option<Signal>> {
        while !stop.is_asked() {
            if let Some(signal) = self.next()? {
                return Ok(Some(signal));
            }
            let mut fds = [self.as_fd(), stop.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
            wait_ready(&mut fds, None)?;
        }
        Ok(None)
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
