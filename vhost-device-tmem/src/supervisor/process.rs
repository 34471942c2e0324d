// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A worker's process.

use std::{
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::process::{CommandExt, ExitStatusExt},
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use nix::poll::{PollFd, PollFlags};

use super::policy::End;
use crate::{
    link::{FromWorker, Link, LinkError, Received, ToWorker, LINK_VERSION},
    stop::wait_ready,
    worker,
};

/// How long a worker may take to say which version of the link it knows.
const HELLO: Duration = Duration::from_secs(10);

/// How long it may take to begin: it looks at what describes each page.
const BEGIN: Duration = Duration::from_secs(120);

/// How long a message to the worker may wait to be taken.
const SEND: Duration = Duration::from_millis(500);

/// Why there is no worker.
#[derive(Debug, thiserror::Error)]
pub(super) enum StartError {
    /// The program could not be run.
    #[error("cannot run {program}: {error}")]
    Run {
        /// The program.
        program: PathBuf,
        /// What the operating system said.
        #[source]
        error: io::Error,
    },
    /// The program is not the daemon, or much older.
    #[error(
        "{program} {how} before it said who it is: it is not vhost-device-tmem, or one that knows \
         of no workers"
    )]
    Foreign {
        /// The program.
        program: PathBuf,
        /// How it ended.
        how: String,
    },
    /// The program is another build of the daemon, and does not fit.
    #[error(
        "{program} is version {theirs} with link version {version}, and this supervisor speaks \
         {LINK_VERSION}: it can only be replaced as a whole, by a restart"
    )]
    Version {
        /// The program.
        program: PathBuf,
        /// Its version.
        theirs: String,
        /// The version of its link.
        version: u32,
    },
    /// It said that it cannot begin.
    #[error("the worker cannot begin: {0}")]
    Failed(String),
    /// It died or fell silent on the way.
    #[error("the worker {0} before it could begin")]
    Died(String),
    /// Something else is to be done first.
    #[error("a signal came before the worker could begin")]
    Interrupted,
    /// The operating system refused something.
    #[error("cannot start a worker: {0}")]
    Io(#[from] io::Error),
}

/// A worker. Dropping it kills the process.
#[derive(Debug)]
pub(super) struct Process {
    child: Child,
    link: Arc<Link>,
    number: u64,
    program: PathBuf,
    /// How it ended, if it has.
    status: Option<ExitStatus>,
}

impl Process {
    /// Runs `program` as worker of this number, and waits until it has said who it is.
    ///
    /// To be called by one thread only, which has to live as long as the worker: it dies with it. It
    /// is not waited for once `other` is readable.
    ///
    /// # Errors
    ///
    /// [`StartError`].
    pub(super) fn spawn(
        program: &Path,
        number: u64,
        other: BorrowedFd<'_>,
    ) -> Result<Self, StartError> {
        let (ours, theirs) = Link::pair()?;
        ours.set_patience(SEND)?;
        let theirs = OwnedFd::from(theirs);
        let (inherited, parent) = (theirs.as_raw_fd(), std::process::id());
        let mut command = Command::new(program);
        command
            .arg(worker::ARGUMENT)
            .arg(inherited.to_string())
            .stdin(Stdio::null());
        // What it says to systemd is not what the service has to say.
        command.env_remove("NOTIFY_SOCKET").env_remove("FDSTORE");
        // SAFETY: The closure makes system calls alone, which are safe between fork and exec. The
        // descriptor is open in the child, too.
        unsafe {
            command.pre_exec(move || {
                let all = libc::syscall(
                    libc::SYS_close_range,
                    3,
                    libc::c_uint::MAX,
                    libc::CLOSE_RANGE_CLOEXEC,
                );
                let own = libc::fcntl(inherited, libc::F_SETFD, 0);
                let dies = libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                if all != 0 || own != 0 || dies != 0 {
                    return Err(io::Error::last_os_error());
                }
                // The supervisor may be gone already.
                if libc::getppid() as u32 != parent {
                    return Err(io::Error::from_raw_os_error(libc::ESRCH));
                }
                Ok(())
            });
        }
        let child = command.spawn().map_err(|error| StartError::Run {
            program: program.to_owned(),
            error,
        })?;
        drop(theirs);
        let mut this = Self {
            child,
            link: Arc::new(ours),
            number,
            program: program.to_owned(),
            status: None,
        };
        this.meet(other)?;
        Ok(this)
    }

    fn meet(&mut self, other: BorrowedFd<'_>) -> Result<(), StartError> {
        let program = self.program.clone();
        match self.wait_start(Instant::now() + HELLO, other)? {
            Ok(FromWorker::Hello { version, .. }) if version == LINK_VERSION => Ok(()),
            Ok(FromWorker::Hello {
                version,
                program: theirs,
            }) => Err(StartError::Version {
                program,
                theirs,
                version,
            }),
            Ok(_) => Err(StartError::Foreign {
                program,
                how: "said something else".to_owned(),
            }),
            Err(how) => Err(StartError::Foreign { program, how }),
        }
    }

    /// Tells the worker what to serve, and waits until it has begun, or `other` is readable.
    /// Returns how many pages were lost that nobody can name.
    ///
    /// # Errors
    ///
    /// [`StartError`].
    pub(super) fn begin(
        &mut self,
        start: &ToWorker,
        descriptors: &[BorrowedFd<'_>],
        other: BorrowedFd<'_>,
    ) -> Result<u64, StartError> {
        let sent = self.link.send(start, descriptors);
        sent.map_err(|error| StartError::Io(io::Error::other(error)))?;
        match self.wait_start(Instant::now() + BEGIN, other)? {
            Ok(FromWorker::Ready { lost }) => Ok(lost),
            Ok(FromWorker::Failed { why }) => Err(StartError::Failed(why)),
            Ok(_) => Err(StartError::Died("said something else".to_owned())),
            Err(how) => Err(StartError::Died(how)),
        }
    }

    /// Waits for a message while nothing else is to be done.
    fn wait_start(
        &mut self,
        until: Instant,
        other: BorrowedFd<'_>,
    ) -> Result<Result<FromWorker, String>, StartError> {
        let mut fds = [self.link.as_fd(), other].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        wait_ready(&mut fds, Some(until))?;
        if fds[1].any() == Some(true) {
            return Err(StartError::Interrupted);
        }
        Ok(self.wait_message(until).map(|received| received.message))
    }

    /// Waits for a message; the error says in words what the worker did instead.
    pub(super) fn wait_message(&mut self, until: Instant) -> Result<Received<FromWorker>, String> {
        let mut fds = [PollFd::new(self.link.as_fd(), PollFlags::POLLIN)];
        match wait_ready(&mut fds, Some(until)) {
            Ok(0) => return Err("did not say anything".to_owned()),
            Ok(_) => {}
            Err(error) => return Err(error.to_string()),
        }
        match self.receive() {
            Ok(message) => Ok(message),
            Err(LinkError::Closed) => Err(self.end().1),
            Err(error) => Err(format!("said what is not understood ({error})")),
        }
    }

    /// Takes the next message, which is waited for.
    ///
    /// # Errors
    ///
    /// [`LinkError`].
    pub(super) fn receive(&self) -> Result<Received<FromWorker>, LinkError> {
        self.link.receive()
    }

    /// Returns its number.
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// Returns the number of its process.
    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Returns what it is spoken to by.
    pub(super) fn link(&self) -> &Arc<Link> {
        &self.link
    }

    /// Kills it, unless it is dead, and returns how it ended, also in words.
    pub(super) fn end(&mut self) -> (End, String) {
        let status = match self.status {
            Some(status) => Ok(status),
            None => self.reap(),
        };
        match status {
            Ok(status) => {
                self.status = Some(status);
                described(status)
            }
            Err(error) => (End::Killed, format!("cannot be waited for ({error})")),
        }
    }

    fn reap(&mut self) -> io::Result<ExitStatus> {
        // Its end of the link closes a moment before it can be waited for.
        let until = Instant::now() + Duration::from_millis(200);
        while Instant::now() < until {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        self.child.kill()?;
        self.child.wait()
    }

    /// Kills it at once.
    pub(super) fn kill(&mut self) {
        if self.status.is_none() {
            let _ = self.child.kill();
            self.status = self.child.wait().ok();
        }
    }

    /// Waits until it has ended, until then.
    pub(super) fn wait_end(&mut self, until: Instant) -> bool {
        while self.status.is_none() && Instant::now() < until {
            match self.child.try_wait() {
                Ok(None) => std::thread::sleep(Duration::from_millis(1)),
                Ok(status) => self.status = status,
                Err(_) => return false,
            }
        }
        self.status.is_some()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Says what an exit status means.
fn described(status: ExitStatus) -> (End, String) {
    match (status.signal(), status.code()) {
        (Some(libc::SIGKILL), _) => (End::Killed, "was killed (SIGKILL)".to_owned()),
        (Some(libc::SIGTERM), _) => (End::Killed, "was terminated (SIGTERM)".to_owned()),
        (Some(libc::SIGSYS), _) => {
            let what = "made a call that its sandbox forbids (SIGSYS)";
            (End::Faulted, what.to_owned())
        }
        (Some(signal), _) => {
            let name = nix::sys::signal::Signal::try_from(signal);
            let name = name.map_or_else(|_| signal.to_string(), |name| name.to_string());
            (End::Faulted, format!("died of {name}"))
        }
        (None, code) => (
            End::Faulted,
            format!("exited with {}", code.unwrap_or_default()),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(program: &str) -> String {
        let (silent, _other) = Link::pair().unwrap();
        let spawned = Process::spawn(Path::new(program), 1, silent.as_fd());
        spawned.unwrap_err().to_string()
    }

    #[test]
    fn other_programs_are_no_workers() {
        let message = refused("/no/such/program");
        assert!(
            message.starts_with("cannot run /no/such/program: "),
            "{message}"
        );
        let message = refused("/bin/true");
        assert!(
            message.contains("/bin/true exited with 0 before it said"),
            "{message}"
        );
        let message = refused("/bin/false");
        assert!(message.contains("exited with 1"), "{message}");
    }

    /// Returns a program that does what a script says with the worker's end of the link as $2.
    fn script(place: &tempfile::TempDir, text: &str) -> PathBuf {
        let path = place.path().join("script");
        std::fs::write(&path, format!("#!/bin/bash\n{text}\n")).unwrap();
        let rights = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        std::fs::set_permissions(&path, rights).unwrap();
        path
    }

    #[test]
    fn another_version_is_told_so() {
        let place = tempfile::tempdir().unwrap();
        let hello = |version| {
            let hello = format!(r#"{{"hello":{{"version":{version},"program":"9.9"}}}}"#);
            script(&place, &format!("printf '{hello}' >&$2; sleep 60"))
        };
        let message = refused(hello(LINK_VERSION + 1).to_str().unwrap());
        let words = format!("version 9.9 with link version {}", LINK_VERSION + 1);
        assert!(
            message.contains(&words) && message.contains("by a restart"),
            "{message}"
        );
        let (silent, _other) = Link::pair().unwrap();
        Process::spawn(&hello(LINK_VERSION), 1, silent.as_fd()).unwrap();
        let message = refused(
            script(&place, "printf nonsense >&$2; sleep 60")
                .to_str()
                .unwrap(),
        );
        assert!(message.contains("said what is not understood"), "{message}");
    }

    #[test]
    fn a_worker_that_says_nothing_keeps_nobody_from_other_things() {
        let place = tempfile::tempdir().unwrap();
        let (other, writer) = Link::pair().unwrap();
        writer.send(&(), &[]).unwrap();
        let started = Process::spawn(&script(&place, "sleep 60"), 1, other.as_fd());
        assert!(matches!(started, Err(StartError::Interrupted)));
    }

    #[test]
    fn exits_are_told_apart() {
        let of = |raw| described(ExitStatus::from_raw(raw));
        assert_eq!(of(libc::SIGKILL).0, End::Killed);
        assert_eq!(
            of(libc::SIGSEGV),
            (End::Faulted, "died of SIGSEGV".to_owned())
        );
        assert_eq!(of(101 << 8), (End::Faulted, "exited with 101".to_owned()));
        assert!(of(libc::SIGSYS).1.contains("sandbox"));
    }
}
