// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The daemon's end of the operator's socket.

use std::{
    io::{self, Read, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
    sync::Arc,
    time::{Duration, Instant},
};

use nix::poll::{PollFd, PollFlags};

use super::{
    conversation::{Conversation, Line},
    peer::Admitted,
    protocol::{Envelope, Reply, Request, Stat, MAX_LINE, VERSION},
};
use crate::{
    backoff::Backoff,
    stop::{wait_ready, Late, Running, StopToken},
};

/// Operators at the same time. Who comes then is served, and who was silent longest is not.
const MAX_CLIENTS: usize = 64;

/// Bytes that are read at once.
const AT_ONCE: usize = 4096;

/// How long the thread may take to end.
const PATIENCE: Duration = Duration::from_millis(500);

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
}

/// The operator's socket, served by one thread, whoever and how many there are: nobody has to wait
/// because of another one who is slow or silent. Dropping it ends the thread; the socket itself
/// belongs to somebody else.
#[derive(Debug)]
pub struct ControlServer(Option<Running>);

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
        listener.set_nonblocking(true)?;
        let running = Running::start("control", move |stop| {
            let mut server = Server {
                listener,
                admitted,
                operated,
                clients: Vec::new(),
                backoff: Backoff::default(),
                spare: None,
            };
            if let Err(error) = server.run(stop) {
                tracing::error!("operators are not served any more: {error}");
            }
        })?;
        Ok(Self(Some(running)))
    }

    /// Ends the thread.
    ///
    /// # Errors
    ///
    /// [`Late`], where it does not end by `deadline`.
    pub fn end(mut self, deadline: Instant) -> Result<(), Late> {
        self.0
            .take()
            .map_or(Ok(()), |running| running.end(deadline))
    }
}

impl Drop for ControlServer {
    fn drop(&mut self) {
        if let Some(running) = self.0.take() {
            if let Err(late) = running.end(Instant::now() + PATIENCE) {
                tracing::warn!("{late}");
            }
        }
    }
}

struct Client {
    stream: UnixStream,
    conversation: Conversation,
}

/// What the thread has.
struct Server {
    listener: UnixListener,
    admitted: Admitted,
    operated: Arc<dyn Operated>,
    clients: Vec<Client>,
    backoff: Backoff,
    /// A descriptor to give back, so that one operator can connect where guests have used up all
    /// others.
    spare: Option<OwnedFd>,
}

impl Server {
    /// Serves until it is asked to stop.
    fn run(&mut self, stop: &StopToken) -> io::Result<()> {
        while !stop.is_asked() {
            if self.spare.is_none() {
                self.spare = self.listener.as_fd().try_clone_to_owned().ok();
            }
            let (accepts, ready) = self.wait(stop)?;
            let now = Instant::now();
            for (client, ready) in self.clients.iter_mut().zip(ready) {
                if ready {
                    client.converse(&*self.operated, now);
                }
            }
            self.clients.retain(|client| {
                !client.conversation.is_over() && client.conversation.deadline() > now
            });
            if accepts {
                self.accept(now);
            }
        }
        Ok(())
    }

    /// Waits for something to do. Returns whether somebody wants to connect, and of each client
    /// whether it can go on.
    fn wait(&self, stop: &StopToken) -> io::Result<(bool, Vec<bool>)> {
        let now = Instant::now();
        let pause = self.backoff.until(now);
        let mut fds = vec![PollFd::new(stop.as_fd(), PollFlags::POLLIN)];
        for Client {
            stream,
            conversation,
        } in &self.clients
        {
            let wanted = if conversation.has_output() {
                PollFlags::POLLOUT
            } else {
                PollFlags::POLLIN
            };
            fds.push(PollFd::new(stream.as_fd(), wanted));
        }
        if pause.is_none() {
            fds.push(PollFd::new(self.listener.as_fd(), PollFlags::POLLIN));
        }
        // Those who sent several requests at once need not be waited for.
        let due = self
            .clients
            .iter()
            .map(|client| client.conversation.has_line());
        let due: Vec<_> = due.collect();
        let until = if due.contains(&true) {
            Some(now)
        } else {
            let clients = self.clients.iter();
            clients
                .map(|client| client.conversation.deadline())
                .chain(pause)
                .min()
        };
        wait_ready(&mut fds, until)?;
        let mut ready = fds[1..].iter().map(|fd| fd.any().unwrap_or(false));
        let clients = due
            .iter()
            .zip(&mut ready)
            .map(|(due, ready)| *due || ready)
            .collect();
        Ok((ready.next().unwrap_or(false), clients))
    }

    fn accept(&mut self, now: Instant) {
        match self.listener.accept() {
            Ok((stream, _)) => {
                let failures = self.backoff.succeeded();
                if failures > 0 {
                    tracing::info!("operators can connect again, after {failures} failures");
                }
                if let Err(error) = self.admit(stream, now) {
                    tracing::debug!("an operator's connection failed: {error}");
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            // Who wanted to connect has gone.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) if error.raw_os_error() == Some(libc::EMFILE) && self.make_room() => {
                self.accept(now);
            }
            Err(error) => {
                if self.backoff.failed(now) {
                    tracing::warn!("operators cannot connect: {error}; trying again");
                }
            }
        }
    }

    /// Gives back a descriptor, and returns whether there was one to give.
    fn make_room(&mut self) -> bool {
        self.spare.take().is_some() || self.leave_silent()
    }

    /// Leaves the operator who was silent longest, and returns whether there was one.
    fn leave_silent(&mut self) -> bool {
        let silent =
            (0..self.clients.len()).min_by_key(|&at| self.clients[at].conversation.idle_since());
        if let Some(silent) = silent {
            self.clients.swap_remove(silent);
        }
        silent.is_some()
    }

    fn admit(&mut self, stream: UnixStream, now: Instant) -> io::Result<()> {
        stream.set_nonblocking(true)?;
        let mut conversation = Conversation::new(now);
        if !self.admitted.admits(&stream)? {
            let refused = error("this user may not operate the daemon: see --control-group");
            conversation.dismiss(&encode(&refused), now);
        }
        if self.clients.len() >= MAX_CLIENTS {
            self.leave_silent();
        }
        let mut client = Client {
            stream,
            conversation,
        };
        client.converse(&*self.operated, now);
        if !client.conversation.is_over() {
            self.clients.push(client);
        }
        Ok(())
    }
}

impl Client {
    /// Goes on with the conversation as far as that is possible without waiting, for one request
    /// at most.
    fn converse(&mut self, operated: &dyn Operated, now: Instant) {
        if let Err(error) = self.step(operated, now) {
            if error.kind() != io::ErrorKind::WouldBlock {
                tracing::debug!("an operator's connection failed: {error}");
                self.conversation = Conversation::new(now);
                self.conversation.ended();
            }
        }
    }

    fn step(&mut self, operated: &dyn Operated, now: Instant) -> io::Result<()> {
        self.send(now)?;
        let mut buffer = [0; AT_ONCE];
        loop {
            match self.conversation.next_line() {
                Some(Line::Whole(line)) => {
                    tracing::debug!("an operator says {}", line.escape_ascii());
                    let reply = encode(&answer(operated, &line));
                    self.conversation.answer(&reply, now);
                    break;
                }
                Some(Line::TooLong) => {
                    let reply = error(format!("a request has at most {MAX_LINE} bytes"));
                    self.conversation.dismiss(&encode(&reply), now);
                    break;
                }
                None => {}
            }
            let room = self.conversation.room().min(AT_ONCE);
            if room == 0 {
                break;
            }
            match self.stream.read(&mut buffer[..room]) {
                Ok(0) => {
                    self.conversation.ended();
                    break;
                }
                Ok(count) => self.conversation.receive(&buffer[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.send(now)
    }

    fn send(&mut self, now: Instant) -> io::Result<()> {
        while self.conversation.has_output() {
            match self.stream.write(self.conversation.output()) {
                Ok(count) => self.conversation.sent(count, now),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

fn error(message: impl Into<String>) -> Reply {
    Reply::Error {
        version: VERSION,
        message: message.into(),
    }
}

pub(super) fn encode(reply: &Reply) -> Vec<u8> {
    // Only maps with keys that are no strings cannot be written; there are none.
    serde_json::to_vec(reply).unwrap_or_default()
}

/// Answers one request, a line without its end.
pub(super) fn answer(operated: &dyn Operated, line: &[u8]) -> Reply {
    let done = |result: Result<String, String>| match result {
        Ok(message) => Reply::Done {
            version: VERSION,
            message,
        },
        Err(message) => error(message),
    };
    match serde_json::from_slice::<Envelope>(line) {
        Ok(Envelope { version, .. }) if version != VERSION => error(format!(
            "this daemon speaks version {VERSION} and not {version}; use its own tmemctl"
        )),
        Ok(Envelope { request, .. }) => match request {
            Request::Stat => Reply::Stat(operated.stat()),
            Request::Stop { force } => done(operated.stop(force)),
            Request::Upgrade => done(operated.upgrade()),
        },
        Err(problem) => error(format!("this is no request: {problem}")),
    }
}
