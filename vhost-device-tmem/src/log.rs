// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The log: lines on standard error, for which nobody waits.
//!
//! Threads that serve guests give their lines to a queue; a thread of the log's own writes them.
//! Whoever reads them may stand still: then the queue fills up, further lines are dropped and
//! counted, and the next line that is written is preceded by their number.
//!
//! Where systemd's journal reads them, they are as it wants them.

mod journal;

use std::{
    io::{self, IsTerminal, Write},
    os::fd::AsFd,
    panic,
    sync::{
        atomic::{AtomicBool, Ordering},
        Arc, Mutex, OnceLock, PoisonError,
    },
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags},
    unistd,
};
use tracing::Level;
use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::{
    filter::{LevelFilter, Targets},
    fmt::MakeWriter,
    layer::SubscriberExt,
    reload,
    util::SubscriberInitExt,
    Layer, Registry,
};

use crate::stop::{wait_ready, StopToken};

/// Lines that may wait to be written.
const QUEUED: usize = 4096;

/// Bytes that are written at once: what a pipe that has room takes without waiting.
const AT_ONCE: usize = 4096;

/// How long the last lines may take to be written.
const PATIENCE: Duration = Duration::from_millis(300);

/// What is logged of what, once there is a log.
static TARGETS: OnceLock<reload::Handle<Targets, Registry>> = OnceLock::new();

fn targets(level: LevelFilter) -> Targets {
    // What the framework says of each broken virtqueue, the device says itself, but not as often.
    Targets::new()
        .with_default(level)
        .with_target("virtio_queue", LevelFilter::OFF)
}

/// Logs what is of `level` or worse from now on.
pub fn set_level(level: LevelFilter) {
    if let Some(handle) = TARGETS.get() {
        // It can only fail where the log is gone.
        let _ = handle.reload(targets(level));
    }
}

/// Says why the process ends, which may have no log yet.
pub fn last_words(text: &str) {
    if journal::is_read() {
        eprint!("{}", journal::prefix(Level::ERROR, text));
    } else {
        eprintln!("{text}");
    }
}

/// The log of this process. When it is dropped, what waits is written, if that can be done soon.
#[derive(Debug)]
pub struct Log {
    queue: Arc<OnceLock<NonBlocking>>,
    for_journal: bool,
    background: Option<Background>,
}

#[derive(Debug)]
struct Background {
    guard: WorkerGuard,
    shared: Arc<Shared>,
}

impl Log {
    /// Starts to log what is of `level` or worse. Until [`Self::background`], each line is written
    /// at once by who says it.
    ///
    /// # Panics
    ///
    /// Where the process has a log already.
    pub fn start(level: LevelFilter) -> Self {
        let queue = Arc::new(OnceLock::new());
        let (targets, handle) = reload::Layer::new(targets(level));
        let _ = TARGETS.set(handle);
        let lines = tracing_subscriber::fmt::layer()
            .with_writer(Output(Arc::clone(&queue)))
            .with_ansi(io::stderr().is_terminal());
        let for_journal = journal::is_read();
        let lines = if for_journal {
            lines.event_format(journal::Lines::default()).boxed()
        } else {
            lines.boxed()
        };
        tracing_subscriber::registry()
            .with(targets)
            .with(lines)
            .init();
        // Nor may a thread that panics wait.
        panic::set_hook(Box::new(|panic| tracing::error!("{panic}")));
        Self {
            queue,
            for_journal,
            background: None,
        }
    }

    /// Leaves the writing to a thread from now on. To be called once the process may have threads.
    ///
    /// # Errors
    ///
    /// The operating system's, where it has no descriptor left.
    ///
    /// # Panics
    ///
    /// Where it has no thread left.
    pub fn background(&mut self) -> io::Result<()> {
        if self.background.is_some() {
            return Ok(());
        }
        let shared = Arc::new(Shared {
            close: StopToken::new()?,
            deadline: Mutex::default(),
            writing: AtomicBool::new(false),
            for_journal: self.for_journal,
            dropped: OnceLock::new(),
        });
        let writer = Patient {
            shared: Arc::clone(&shared),
            told: 0,
        };
        let (queue, guard) = NonBlockingBuilder::default()
            .lossy(true)
            .buffered_lines_limit(QUEUED)
            .thread_name("log")
            .finish(writer);
        let _ = shared.dropped.set(queue.error_counter());
        let _ = self.queue.set(queue);
        self.background = Some(Background { guard, shared });
        Ok(())
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        let Some(Background { guard, shared }) = self.background.take() else {
            return;
        };
        let deadline = Instant::now() + PATIENCE;
        *shared.deadline() = Some(deadline);
        shared.close.ask();
        // The thread writes what it can until then, and drops the rest. Should it hang in a write
        // for which there was room a moment before, nobody waits for it.
        while shared.writing.load(Ordering::SeqCst) {
            if Instant::now() > deadline {
                std::mem::forget(guard);
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        drop(guard);
    }
}

/// Where lines go: to the queue, once there is one.
struct Output(Arc<OnceLock<NonBlocking>>);

enum Line {
    Direct(io::Stderr),
    Queued(NonBlocking),
}

impl<'a> MakeWriter<'a> for Output {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        match self.0.get() {
            Some(queue) => Line::Queued(queue.clone()),
            None => Line::Direct(io::stderr()),
        }
    }
}

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Direct(stderr) => stderr.write(bytes),
            Self::Queued(queue) => queue.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What the log's thread and who ends it have in common.
#[derive(Debug)]
struct Shared {
    /// Asked when the process is about to end.
    close: StopToken,
    /// Until when lines may be written then.
    deadline: Mutex<Option<Instant>>,
    /// The thread is in a write.
    writing: AtomicBool,
    /// Who reads is the journal.
    for_journal: bool,
    /// Counts lines that the queue had no room for.
    dropped: OnceLock<ErrorCounter>,
}

impl Shared {
    fn deadline(&self) -> std::sync::MutexGuard<'_, Option<Instant>> {
        self.deadline.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes to standard error when there is room, and gives up when the process is to end.
struct Patient {
    shared: Arc<Shared>,
    /// Dropped lines that the log tells of.
    told: usize,
}

impl Patient {
    /// Returns whether all was written.
    fn put(&self, bytes: &[u8]) -> bool {
        let mut left = bytes;
        while !left.is_empty() && self.room() {
            self.shared.writing.store(true, Ordering::SeqCst);
            let written = unistd::write(io::stderr(), &left[..left.len().min(AT_ONCE)]);
            self.shared.writing.store(false, Ordering::SeqCst);
            match written {
                Ok(count) => left = &left[count..],
                Err(Errno::EINTR | Errno::EAGAIN) => {}
                // Nobody is there to read it any more.
                Err(_) => break,
            }
        }
        left.is_empty()
    }

    /// Waits until something can be written; false if it is too late for that.
    fn room(&self) -> bool {
        let stderr = io::stderr();
        loop {
            let deadline = *self.shared.deadline();
            let mut fds = [
                PollFd::new(stderr.as_fd(), PollFlags::POLLOUT),
                PollFd::new(self.shared.close.as_fd(), PollFlags::POLLIN),
            ];
            // With a deadline, it was asked.
            let watched = if deadline.is_some() { 1 } else { 2 };
            match wait_ready(&mut fds[..watched], deadline) {
                Ok(0) | Err(_) => return false,
                Ok(_) if fds[0].any().unwrap_or(true) => return true,
                Ok(_) => {}
            }
        }
    }
}

impl Write for Patient {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let dropped = self.shared.dropped.get();
        let dropped = dropped.map_or(0, ErrorCounter::dropped_lines);
        if dropped > self.told {
            let lost = dropped - self.told;
            let mut lost =
                format!("{lost} lines of the log were dropped: nobody read them in time\n");
            if self.shared.for_journal {
                lost = journal::prefix(Level::WARN, &lost);
            }
            if self.put(lost.as_bytes()) {
                self.told = dropped;
            }
        }
        self.put(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
