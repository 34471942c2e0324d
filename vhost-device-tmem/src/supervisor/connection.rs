// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The thread of a front-end's connection.
//!
//! It sleeps until a message is there, all of it, and takes it once it was carried out. The framework
//! that carries messages out is at the other end of a socket of our own: it gets a copy of each, and
//! its answer is passed on.

use std::{
    io::{self, IoSlice, Read},
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::net::UnixStream,
    },
    sync::{
        atomic::{AtomicBool, Ordering},
        Arc, Mutex,
    },
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags},
    sys::socket::{recv, sendmsg, ControlMessage, MsgFlags},
};
use vhost::vhost_user::{
    message::{FrontendReq, VhostUserVirtioFeatures},
    BackendReqHandler, Error,
};

use super::{
    frontend::FrontEnd,
    guest::Slot,
    hub::Hub,
    stream::{Header, Peek, Stream, LONGEST},
};
use crate::{
    device::Limits,
    link::GuestId,
    stop::{wait_ready, StopToken},
};

/// The longest time between two looks at a message that comes in pieces.
const PAUSE: Duration = Duration::from_millis(500);

/// Lines of refusals that a connection may bring into the log, and the time after which it may
/// bring as many again.
const LINES: (u32, Duration) = (10, Duration::from_secs(60));

/// What the framework has to be told of an earlier connection: SET_FEATURES and the like, which it
/// keeps for itself.
#[derive(Clone, Copy, Debug)]
pub(super) struct Past {
    /// Virtio features that the front-end accepted.
    pub(super) features: u64,
    /// The protocol's own features that it accepted.
    pub(super) protocol: u64,
}

/// Serves a front-end until its connection ends, or the supervisor does. Returns whether the
/// connection ended.
///
/// `past` is what was said before, on a connection that another supervisor had.
pub(super) fn serve(
    hub: &Arc<Hub>,
    guest: GuestId,
    limits: Limits,
    socket: UnixStream,
    past: Option<Past>,
    stop: &StopToken,
) -> bool {
    let name = hub.name(guest);
    let handler = match Handler::new(hub, guest, limits, socket, past) {
        Ok(handler) => handler,
        Err(error) => {
            tracing::error!("guest {name:?} cannot be served: {error}");
            return true;
        }
    };
    match handler.run(&name, stop) {
        Ok(ended) => ended,
        Err(error) => {
            tracing::warn!("the connection of guest {name:?} failed: {error}");
            true
        }
    }
}

struct Handler {
    hub: Arc<Hub>,
    guest: GuestId,
    stream: Stream,
    framework: Framework,
    lines: u32,
    since: Instant,
}

impl Handler {
    fn new(
        hub: &Arc<Hub>,
        guest: GuestId,
        limits: Limits,
        socket: UnixStream,
        past: Option<Past>,
    ) -> Result<Self, Error> {
        let replayed = Arc::new(AtomicBool::new(past.is_some()));
        let front_end = FrontEnd::new(Arc::clone(hub), guest, limits, Arc::clone(&replayed));
        let mut framework = Framework::new(front_end).map_err(Error::SocketError)?;
        if let Some(past) = past {
            framework.replay(&past)?;
        }
        replayed.store(false, Ordering::Relaxed);
        Ok(Self {
            hub: Arc::clone(hub),
            guest,
            stream: Stream::new(socket),
            framework,
            lines: 0,
            since: Instant::now(),
        })
    }

    fn run(mut self, name: &str, stop: &StopToken) -> Result<bool, Error> {
        loop {
            let Some(header) = self.wait(stop).map_err(Error::SocketError)? else {
                return Ok(!stop.is_asked());
            };
            if header.size as usize > LONGEST || FrontendReq::try_from(header.request).is_err() {
                // What follows cannot be told from the next message.
                let what = "the front-end says what is no message";
                tracing::error!("guest {name:?}: {what} ({header:?})");
                return Err(Error::InvalidMessage);
            }
            if !self.has_room(name, header, stop) {
                return Ok(false);
            }
            self.hub.busy(true);
            // Whoever stops the daemon waits for those who were busy before.
            if stop.is_asked() {
                self.hub.busy(false);
                return Ok(false);
            }
            let handled = self.carry_out(header);
            self.hub.busy(false);
            match handled {
                Ok(()) => {}
                Err(Error::Disconnected | Error::PartialMessage | Error::SocketBroken(_)) => {
                    return Ok(true);
                }
                // The front-end was told, if it wanted to be.
                Err(error) => self.refused(name, header, &error),
            }
        }
    }

    /// Waits until the process can have the descriptors that a message brings: they would be lost
    /// otherwise. False if it is time to stop.
    fn has_room(&self, name: &str, header: Header, stop: &StopToken) -> bool {
        let count = match FrontendReq::try_from(header.request) {
            // Two numbers, and four for each piece of memory.
            Ok(FrontendReq::SET_MEM_TABLE) => header.size as usize / 32,
            // The framework's, and ours.
            Ok(FrontendReq::SET_BACKEND_REQ_FD) => 2,
            Ok(
                FrontendReq::SET_VRING_KICK
                | FrontendReq::SET_VRING_CALL
                | FrontendReq::SET_VRING_ERR,
            ) => 1,
            _ => return true,
        };
        let mut told = false;
        loop {
            let copies = (0..count).map(|_| self.stream.as_fd().try_clone_to_owned());
            let Err(error) = copies.collect::<io::Result<Vec<_>>>() else {
                return true;
            };
            if !std::mem::replace(&mut told, true) {
                tracing::error!("guest {name:?} has to wait: {error}");
            }
            if stop.wait(PAUSE) {
                return false;
            }
        }
    }

    /// Carries the next message out, takes it, and answers it.
    fn carry_out(&mut self, header: Header) -> Result<(), Error> {
        let looked = self.stream.message(header);
        let (message, descriptors) = looked.map_err(Error::SocketError)?;
        let (handled, answer) = self.framework.handle(&message, &descriptors)?;
        if handled.is_ok() && header.request == FrontendReq::SET_BACKEND_REQ_FD as u32 {
            // The framework has no descriptor to give that could be kept, nor waited for.
            if let Some(channel) = descriptors.into_iter().next() {
                self.set_channel(channel);
            }
        }
        // An answer that is given twice would be taken for that of another message.
        self.stream.take(header).map_err(Error::SocketError)?;
        if !answer.is_empty() {
            let answered = self.stream.answer(&answer);
            answered.map_err(Error::SocketBroken)?;
        }
        handled
    }

    fn set_channel(&self, channel: OwnedFd) {
        self.hub.change(self.guest, |connection| {
            connection.files.insert(Slot::Channel, channel.into());
            connection.state.set_channel();
            Ok((Vec::new(), ()))
        });
    }

    /// Waits until all of the next message is there; [`None`] if the connection has ended, or it is
    /// time to stop.
    fn wait(&self, stop: &StopToken) -> io::Result<Option<Header>> {
        let mut pause = Duration::from_millis(1);
        loop {
            // That the other end sends no more, of which nix has no name.
            let no_more = PollFlags::from_bits_retain(libc::POLLRDHUP);
            let mut fds = [self.stream.as_fd(), stop.as_fd()]
                .map(|fd| PollFd::new(fd, PollFlags::POLLIN | no_more));
            wait_ready(&mut fds, None)?;
            if stop.is_asked() {
                return Ok(None);
            }
            // Looked at before what has come is. There are no events for nix where there is one
            // without a name.
            let events = fds[0].revents();
            let is_over = events.is_none_or(|events| events.contains(PollFlags::POLLHUP));
            match self.stream.peek()? {
                Peek::Ended => return Ok(None),
                Peek::Whole(header) => return Ok(Some(header)),
                Peek::Part if is_over => return Ok(None),
                // There is no way to wait for so many bytes and for something else, too.
                Peek::Part => {
                    stop.wait(pause);
                    pause = (pause * 2).min(PAUSE);
                }
            }
        }
    }

    /// Says that a message was refused, but not for ever.
    fn refused(&mut self, name: &str, header: Header, error: &Error) {
        let (most, interval) = LINES;
        if self.since.elapsed() >= interval {
            (self.lines, self.since) = (0, Instant::now());
        }
        self.lines += 1;
        if self.lines > most {
            return;
        }
        let request = header.name();
        let error = match error {
            Error::ReqHandlerError(error) => error.to_string(),
            // The framework does not ask what memory without descriptors is.
            Error::InvalidMessage if header.request == FrontendReq::SET_MEM_TABLE as u32 => {
                "the memory came without descriptors, or with too few: it is not shared; give \
                 each memory backend of QEMU share=on"
                    .to_owned()
            }
            error => error.to_string(),
        };
        tracing::error!("guest {name:?} cannot be served: {request} is refused: {error}");
        if self.lines == most {
            tracing::error!("guest {name:?}: further refusals are not told for a while");
        }
    }
}

/// The framework that reads messages, with our end of its connection.
struct Framework {
    ours: UnixStream,
    handler: BackendReqHandler<Mutex<FrontEnd>>,
}

impl Framework {
    fn new(front_end: FrontEnd) -> io::Result<Self> {
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let front_end = Arc::new(Mutex::new(front_end));
        let handler = BackendReqHandler::from_stream(theirs, front_end);
        Ok(Self { ours, handler })
    }

    /// Has it carry a message out. Returns what became of that, and its answer.
    fn handle(
        &mut self,
        message: &[u8],
        descriptors: &[OwnedFd],
    ) -> Result<(Result<(), Error>, Vec<u8>), Error> {
        let raw: Vec<_> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = (!raw.is_empty()).then_some(ControlMessage::ScmRights(&raw));
        let sent = sendmsg::<()>(
            self.ours.as_raw_fd(),
            &[IoSlice::new(message)],
            rights.as_slice(),
            MsgFlags::MSG_NOSIGNAL,
            None,
        );
        let sent = sent.map_err(|error| Error::SocketError(error.into()))?;
        if sent != message.len() {
            return Err(Error::SocketError(io::ErrorKind::WriteZero.into()));
        }
        let handled = self.handler.handle_request();
        self.drop_rest();
        let mut answer = Vec::new();
        match (&self.ours).read_to_end(&mut answer) {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
                Err(Error::SocketError(error))
            }
            _ => Ok((handled, answer)),
        }
    }

    /// Drops what it left of a message that it refused, so that the next one is read from its
    /// beginning.
    fn drop_rest(&self) {
        let mut bytes = [0; 512];
        let rest = |bytes: &mut [u8]| {
            let socket = self.handler.as_raw_fd();
            recv(socket, bytes, MsgFlags::MSG_DONTWAIT)
        };
        while matches!(rest(&mut bytes), Ok(1..) | Err(Errno::EINTR)) {}
    }

    /// Tells it what was said on a connection before: it keeps to itself what the front-end accepted.
    fn replay(&mut self, past: &Past) -> Result<(), Error> {
        let protocol = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
        // The protocol's own features may be set before others, but are only heard with these.
        let said = [
            (FrontendReq::GET_FEATURES, None),
            (FrontendReq::SET_FEATURES, Some(past.features | protocol)),
            (FrontendReq::GET_PROTOCOL_FEATURES, None),
            (FrontendReq::SET_PROTOCOL_FEATURES, Some(past.protocol)),
            (FrontendReq::SET_FEATURES, Some(past.features)),
        ];
        for (request, value) in said {
            let value: Vec<_> = value.into_iter().flat_map(u64::to_ne_bytes).collect();
            let words = [request as u32, 1, value.len() as u32];
            let mut message = words.map(u32::to_ne_bytes).concat();
            message.extend(value);
            let (handled, _) = self.handle(&message, &[])?;
            handled?;
        }
        Ok(())
    }
}
