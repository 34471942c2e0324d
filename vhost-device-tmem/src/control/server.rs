// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The daemon's end of the operator's socket.

use std::{
    io,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixListener,
    },
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    peer::Admitted,
    protocol::{Envelope, Reply, Request, Stat, MAX_LINE, VERSION},
};
use crate::{
    serving::{Answer, Limits, Listener, Protocol, Server, Stream},
    stop::Late,
};

/// What operators ask things of: whoever embeds the server. Its functions are called by the thread
/// that serves all operators, and must not wait for anything that takes long.
pub trait Operated: Send + Sync {
    /// Returns the statistics of this moment.
    fn stat(&self) -> Stat;

    /// Stops the daemon. Returns what happens now.
    ///
    /// # Errors
    ///
    /// Why it does not stop: pages would be lost, and it is not forced to.
    fn stop(&self, force: bool) -> Result<String, String>;

    /// Goes on with a new binary. Returns what happens now.
    ///
    /// # Errors
    ///
    /// Why it does not.
    fn upgrade(&self) -> Result<String, String>;

    /// Has somebody else carry out a request, and answer it on the operator's connection, which is
    /// theirs from then on.
    ///
    /// # Errors
    ///
    /// Why nobody does.
    fn pass_on(&self, _request: &Request, _operator: BorrowedFd<'_>) -> Result<(), String> {
        Err("there is nobody here who could do that".to_owned())
    }
}

/// The operator's socket, served by one thread, whoever and how many there are. Dropping it ends the
/// thread; the socket itself belongs to somebody else.
#[derive(Debug)]
pub struct ControlServer(Server);

impl ControlServer {
    /// Serves operators whom `admitted` admits on a socket that is being listened on: one that was
    /// just bound, or one that another process has left.
    ///
    /// # Errors
    ///
    /// The operating system's, where it has no thread or descriptor left.
    pub fn start(
        listener: UnixListener,
        admitted: Admitted,
        operated: Arc<dyn Operated>,
    ) -> io::Result<Self> {
        let lines = Lines { admitted, operated };
        Ok(Self(Server::start(Listener::Unix(listener), lines)?))
    }

    /// Ends the thread.
    ///
    /// # Errors
    ///
    /// [`Late`], where it does not end by `deadline`.
    pub fn end(self, deadline: Instant) -> Result<(), Late> {
        self.0.end(deadline)
    }
}

/// Lines of JSON.
struct Lines {
    admitted: Admitted,
    operated: Arc<dyn Operated>,
}

impl Protocol for Lines {
    const CLIENTS: &'static str = "operators";
    const THREAD: &'static str = "control";
    const MAX_CLIENTS: usize = 64;
    const LIMITS: Limits = LIMITS;

    fn len_of_request(input: &[u8]) -> Option<usize> {
        len_of_line(input)
    }

    fn refuse(&self, stream: &Stream) -> io::Result<Option<Vec<u8>>> {
        let admitted = match stream {
            Stream::Unix(stream) => self.admitted.admits(stream)?,
            Stream::Tcp(_) => false,
        };
        let refused = "this user may not operate the daemon: see --control-group";
        Ok((!admitted).then(|| encode(&error(refused))))
    }

    fn answer(&mut self, request: &[u8], client: &Stream, _now: Instant) -> Answer {
        let line = request.strip_suffix(b"\n").unwrap_or(request);
        tracing::debug!("an operator says {}", line.escape_ascii());
        let reply = match parse(line) {
            Ok(request) if request.is_passed_on() => {
                match self.operated.pass_on(&request, client.as_fd()) {
                    Ok(()) => return Answer::by_another(),
                    Err(message) => error(message),
                }
            }
            Ok(request) => answer(&*self.operated, request),
            Err(message) => error(message),
        };
        Answer {
            bytes: encode(&reply),
            last: false,
        }
    }

    fn too_long(&self) -> Vec<u8> {
        encode(&error(format!("a request has at most {MAX_LINE} bytes")))
    }
}

/// What an operator may do.
pub(super) const LIMITS: Limits = Limits {
    request: MAX_LINE,
    patience: Duration::from_secs(10),
};

/// Returns the length of the first line, with its end.
pub(super) fn len_of_line(input: &[u8]) -> Option<usize> {
    Some(input.iter().position(|&byte| byte == b'\n')? + 1)
}

pub(super) fn error(message: impl Into<String>) -> Reply {
    Reply::Error {
        version: VERSION,
        message: message.into(),
    }
}

/// Returns a reply as a line.
pub(super) fn encode(reply: &Reply) -> Vec<u8> {
    // Only maps with keys that are no strings cannot be written; there are none.
    let mut line = serde_json::to_vec(reply).unwrap_or_default();
    line.push(b'\n');
    line
}

/// Reads a request, a line without its end.
///
/// # Errors
///
/// Why it is none.
pub(super) fn parse(line: &[u8]) -> Result<Request, String> {
    match serde_json::from_slice::<Envelope>(line) {
        Ok(Envelope { version, .. }) if version != VERSION => Err(format!(
            "this daemon speaks version {VERSION} and not {version}; use its own tmemctl"
        )),
        Ok(Envelope { request, .. }) => Ok(request),
        Err(problem) => Err(format!("this is no request: {problem}")),
    }
}

/// Answers one request.
pub(super) fn answer(operated: &dyn Operated, request: Request) -> Reply {
    let done = |result: Result<String, String>| match result {
        Ok(message) => Reply::Done {
            version: VERSION,
            message,
        },
        Err(message) => error(message),
    };
    match request {
        Request::Stat => Reply::Stat(operated.stat()),
        Request::Stop { force } => done(operated.stop(force)),
        Request::Upgrade => done(operated.upgrade()),
        _ => error("this is for somebody else to answer"),
    }
}

impl Request {
    /// Returns whether somebody else than the server answers it.
    fn is_passed_on(&self) -> bool {
        !matches!(self, Self::Stat | Self::Stop { .. } | Self::Upgrade)
    }
}
