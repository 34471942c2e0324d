// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The thread that serves all who connect.

use std::{
    io::{self, Read, Write},
    os::fd::{AsFd, OwnedFd},
    time::{Duration, Instant},
};

use nix::poll::{PollFd, PollFlags};

use super::{
    conversation::{Conversation, Limits, Request},
    socket::{Listener, Stream},
};
use crate::{
    backoff::Backoff,
    stop::{wait_ready, Late, Running, StopToken},
};

/// Bytes that are read at once.
const AT_ONCE: usize = 4096;

/// How long the thread may take to end.
const PATIENCE: Duration = Duration::from_millis(500);

/// What is said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) bytes: Vec<u8>,
    /// Nothing is said after that.
    pub(crate) last: bool,
}

impl Answer {
    /// Somebody else answers, who has the connection now.
    pub(crate) fn by_another() -> Self {
        Self {
            bytes: Vec::new(),
            last: true,
        }
    }
}

/// What is spoken on a socket. Its functions must not wait for anything that takes long.
pub(crate) trait Protocol: Send + 'static {
    /// What those who connect are called in the log.
    const CLIENTS: &'static str;
    /// The name of the thread.
    const THREAD: &'static str;
    /// How many of them there may be at the same time. Who comes then is served, and who was silent
    /// longest is not.
    const MAX_CLIENTS: usize;
    /// What each of them may do.
    const LIMITS: Limits;

    /// Returns how many bytes the first request of these has; nothing if it is not whole.
    fn len_of_request(input: &[u8]) -> Option<usize>;

    /// Returns what is said to somebody who must not ask for anything.
    ///
    /// # Errors
    ///
    /// The operating system's, where it does not know who that is.
    fn refuse(&self, stream: &Stream) -> io::Result<Option<Vec<u8>>>;

    /// Answers a request that came on a connection.
    fn answer(&mut self, request: &[u8], client: &Stream, now: Instant) -> Answer;

    /// Answers a request that is too long.
    fn too_long(&self) -> Vec<u8>;
}

/// A socket that is served by one thread, whoever and how many connect. Dropping it ends the thread;
/// the socket itself belongs to somebody else.
#[derive(Debug)]
pub(crate) struct Server(Option<Running>);

impl Server {
    /// Serves a socket that is being listened on: one that was just bound, or one that another
    /// process has left.
    ///
    /// # Errors
    ///
    /// The operating system's, where it has no thread or descriptor left.
    pub(crate) fn start<P: Protocol>(listener: Listener, protocol: P) -> io::Result<Self> {
        listener.set_nonblocking()?;
        let running = Running::start(P::THREAD, move |stop| {
            let mut serving = Serving {
                listener,
                protocol,
                clients: Vec::new(),
                backoff: Backoff::default(),
                spare: None,
            };
            if let Err(error) = serving.run(stop) {
                tracing::error!("{} are not served any more: {error}", P::CLIENTS);
            }
        })?;
        Ok(Self(Some(running)))
    }

    /// Ends the thread.
    ///
    /// # Errors
    ///
    /// [`Late`], where it does not end by `deadline`.
    pub(crate) fn end(mut self, deadline: Instant) -> Result<(), Late> {
        self.0
            .take()
            .map_or(Ok(()), |running| running.end(deadline))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(running) = self.0.take() {
            if let Err(late) = running.end(Instant::now() + PATIENCE) {
                tracing::warn!("{late}");
            }
        }
    }
}

struct Client {
    stream: Stream,
    conversation: Conversation,
}

/// What the thread has.
struct Serving<P> {
    listener: Listener,
    protocol: P,
    clients: Vec<Client>,
    backoff: Backoff,
    /// A descriptor to give back, so that one client can connect where guests have used up all
    /// others.
    spare: Option<OwnedFd>,
}

impl<P: Protocol> Serving<P> {
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
                    client.converse(&mut self.protocol, now);
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
            .map(|client| client.conversation.has_request(P::len_of_request));
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
            Ok(stream) => {
                let failures = self.backoff.succeeded();
                if failures > 0 {
                    tracing::info!(
                        "{} can connect again, after {failures} failures",
                        P::CLIENTS
                    );
                }
                if let Err(error) = self.admit(stream, now) {
                    tracing::debug!("a connection of {} failed: {error}", P::CLIENTS);
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
                    tracing::warn!("{} cannot connect: {error}; trying again", P::CLIENTS);
                }
            }
        }
    }

    /// Gives back a descriptor, and returns whether there was one to give.
    fn make_room(&mut self) -> bool {
        self.spare.take().is_some() || self.leave_silent()
    }

    /// Leaves the client who was silent longest, and returns whether there was one.
    fn leave_silent(&mut self) -> bool {
        let silent =
            (0..self.clients.len()).min_by_key(|&at| self.clients[at].conversation.idle_since());
        if let Some(silent) = silent {
            self.clients.swap_remove(silent);
        }
        silent.is_some()
    }

    fn admit(&mut self, stream: Stream, now: Instant) -> io::Result<()> {
        let mut conversation = Conversation::new(P::LIMITS, now);
        if let Some(refused) = self.protocol.refuse(&stream)? {
            conversation.dismiss(refused, now);
        }
        if self.clients.len() >= P::MAX_CLIENTS {
            self.leave_silent();
        }
        let mut client = Client {
            stream,
            conversation,
        };
        client.converse(&mut self.protocol, now);
        if !client.conversation.is_over() {
            self.clients.push(client);
        }
        Ok(())
    }
}

impl Client {
    /// Goes on with the conversation as far as that is possible without waiting, for one request
    /// at most.
    fn converse<P: Protocol>(&mut self, protocol: &mut P, now: Instant) {
        if let Err(error) = self.step(protocol, now) {
            if error.kind() != io::ErrorKind::WouldBlock {
                tracing::debug!("a connection of {} failed: {error}", P::CLIENTS);
                self.conversation = Conversation::new(P::LIMITS, now);
                self.conversation.ended();
            }
        }
    }

    fn step<P: Protocol>(&mut self, protocol: &mut P, now: Instant) -> io::Result<()> {
        self.send(now)?;
        let mut buffer = [0; AT_ONCE];
        loop {
            match self.conversation.next_request(P::len_of_request) {
                Some(Request::Whole(request)) => {
                    let Answer { bytes, last } = protocol.answer(&request, &self.stream, now);
                    if last {
                        self.conversation.dismiss(bytes, now);
                    } else {
                        self.conversation.answer(bytes, now);
                    }
                    break;
                }
                Some(Request::TooLong) => {
                    self.conversation.dismiss(protocol.too_long(), now);
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
