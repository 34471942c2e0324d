// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The one way in which threads are woken and ended.
//!
//! Whoever may have to wait gets a [`StopToken`] and has it among what it waits for. Whoever ends
//! a thread asks, waits for a time, and goes on without it then: nothing that a guest or an
//! operator does may keep the daemon from ending.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    sync::{
        atomic::{AtomicBool, Ordering},
        mpsc::{self, RecvTimeoutError},
        Arc,
    },
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{poll, PollFd, PollFlags, PollTimeout},
};
use vmm_sys_util::eventfd::EventFd;

/// Says to threads that they are to end. All clones are the same token.
///
/// # Invariants
///
/// Once it was asked, the descriptor is readable for ever: nobody reads from it.
#[derive(Clone, Debug)]
pub struct StopToken(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    asked: AtomicBool,
    event: EventFd,
}

impl StopToken {
    /// Makes a token that was not asked yet.
    ///
    /// # Errors
    ///
    /// The operating system's, where it has no file descriptor left.
    pub fn new() -> io::Result<Self> {
        Ok(Self(Arc::new(Shared {
            asked: AtomicBool::new(false),
            event: EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?,
        })))
    }

    /// Asks all who have the token to end, and wakes those who wait. Never blocks.
    pub fn ask(&self) {
        if !self.0.asked.swap(true, Ordering::SeqCst) {
            // It can only fail where the counter is full.
            let _ = self.0.event.write(1);
        }
    }

    /// Returns whether somebody asked.
    pub fn is_asked(&self) -> bool {
        self.0.asked.load(Ordering::SeqCst)
    }

    /// Waits until somebody asks, no longer than `time`; returns whether somebody did.
    pub fn wait(&self, time: Duration) -> bool {
        let until = Instant::now() + time;
        while !self.is_asked() {
            let mut fds = [PollFd::new(self.as_fd(), PollFlags::POLLIN)];
            match wait_ready(&mut fds, Some(until)) {
                Ok(0) | Err(_) => break,
                Ok(_) => {}
            }
        }
        self.is_asked()
    }
}

impl AsFd for StopToken {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: The event is open as long as the token is borrowed.
        unsafe { BorrowedFd::borrow_raw(self.0.event.as_raw_fd()) }
    }
}

/// Waits until one of the descriptors is ready or it is `until`, and returns how many are ready.
///
/// # Errors
///
/// The operating system's; signals are none.
pub fn wait_ready(fds: &mut [PollFd<'_>], until: Option<Instant>) -> io::Result<usize> {
    loop {
        let timeout = match until {
            None => PollTimeout::NONE,
            Some(until) => {
                let left = until.saturating_duration_since(Instant::now());
                // The next millisecond: with the last one nobody would wait for what is left of it.
                let millis = left.as_nanos().div_ceil(1_000_000);
                PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX)
            }
        };
        match poll(fds, timeout) {
            Ok(ready) => return Ok(ready as usize),
            Err(Errno::EINTR) => continue,
            Err(error) => return Err(error.into()),
        }
    }
}

/// A thread did not end in time. It goes on until the process ends.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the thread {0:?} does not end; leaving it behind")]
pub struct Late(pub String);

/// A thread that can be ended.
#[derive(Debug)]
pub struct Running {
    name: String,
    stop: StopToken,
    ended: mpsc::Receiver<()>,
    thread: thread::JoinHandle<()>,
}

impl Running {
    /// Starts a thread that is to end soon after the token it gets was asked.
    ///
    /// # Errors
    ///
    /// The operating system's, where it has no thread or file descriptor left.
    pub fn start(
        name: impl Into<String>,
        run: impl FnOnce(&StopToken) + Send + 'static,
    ) -> io::Result<Self> {
        let (name, stop) = (name.into(), StopToken::new()?);
        let (token, (end, ended)) = (stop.clone(), mpsc::channel::<()>());
        let thread = thread::Builder::new().name(name.clone()).spawn(move || {
            // Dropped however the thread ends, which is what is waited for.
            let _end = end;
            run(&token);
        })?;
        Ok(Self {
            name,
            stop,
            ended,
            thread,
        })
    }

    /// Asks the thread to end, without waiting.
    pub fn ask(&self) {
        self.stop.ask();
    }

    /// Asks the thread to end, and waits for it until `deadline`.
    ///
    /// # Errors
    ///
    /// [`Late`].
    pub fn end(self, deadline: Instant) -> Result<(), Late> {
        self.stop.ask();
        let left = deadline.saturating_duration_since(Instant::now());
        match self.ended.recv_timeout(left) {
            Err(RecvTimeoutError::Timeout) => Err(Late(self.name)),
            // A thread that panicked said so itself.
            Ok(()) | Err(RecvTimeoutError::Disconnected) => {
                let _ = self.thread.join();
                Ok(())
            }
        }
    }
}

/// Does `work`, which ends something, in a thread of its own, and waits for it until `deadline`.
///
/// # Errors
///
/// [`Late`]; also where there is no thread left to do it.
pub fn within(
    deadline: Instant,
    name: &str,
    work: impl FnOnce() + Send + 'static,
) -> Result<(), Late> {
    match Running::start(name, move |_| work()) {
        Ok(running) => running.end(deadline),
        Err(_) => Err(Late(name.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    fn soon() -> Instant {
        Instant::now() + LONG
    }

    #[test]
    fn all_who_wait_are_woken_and_stay_so() {
        let token = StopToken::new().unwrap();
        assert!(!token.wait(Duration::ZERO));
        let waiting = [0; 3].map(|_| {
            let token = token.clone();
            thread::spawn(move || token.wait(LONG))
        });
        token.ask();
        token.ask();
        for thread in waiting {
            assert!(thread.join().unwrap());
        }
        assert!(token.is_asked() && token.wait(LONG));
    }

    #[test]
    fn a_thread_is_asked_and_waited_for() {
        let (send, receive) = mpsc::channel();
        let running = Running::start("test", move |stop| {
            stop.wait(LONG);
            send.send(stop.is_asked()).unwrap();
        });
        assert_eq!(running.unwrap().end(soon()), Ok(()));
        assert_eq!(receive.try_recv(), Ok(true));
        // One that has panicked has ended, too.
        let running = Running::start("test", |_| panic!("on purpose")).unwrap();
        assert_eq!(running.end(soon()), Ok(()));
    }

    #[test]
    fn a_thread_that_hangs_is_left_behind() {
        let (release, hang) = mpsc::channel::<()>();
        let running = Running::start("hangs", move |_| {
            let _ = hang.recv();
        });
        let late = running.unwrap().end(Instant::now());
        assert_eq!(late, Err(Late("hangs".to_owned())));
        drop(release);
        let (release, hang) = mpsc::channel::<()>();
        let late = within(Instant::now(), "also", move || {
            let _ = hang.recv();
        });
        assert_eq!(late, Err(Late("also".to_owned())));
        drop(release);
        assert_eq!(within(soon(), "quick", || ()), Ok(()));
    }
}
