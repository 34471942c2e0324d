// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The thread of a front-end's connection.
//!
//! It sleeps until a message is there, all of it, before it takes any of it: a front-end that sends
//! half a message keeps nobody waiting, and a supervisor that comes after this one finds the stream
//! at the beginning of a message.

use std::{
    io::{self, IoSliceMut},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
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
    sys::socket::{recv, recvmsg, ControlMessageOwned, MsgFlags},
};
use vhost::vhost_user::{
    message::{FrontendReq, VhostUserVirtioFeatures},
    BackendReqHandler, Error,
};

use super::{frontend::FrontEnd, guest::Slot, hub::Hub};
use crate::{
    device::Limits,
    link::GuestId,
    stop::{wait_ready, StopToken},
};

/// The length of a message's header: request, flags, and length of what follows.
const HEADER: usize = 12;

/// The longest message that the framework takes, without its header.
const LONGEST: usize = 0x1000;

/// The most descriptors that the framework takes of one message.
const MAX_DESCRIPTORS: usize = 32;

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

/// A message's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Header {
    request: u32,
    flags: u32,
    size: u32,
}

impl Header {
    fn parse(bytes: &[u8; HEADER]) -> Self {
        let word = |at: usize| {
            let word = [bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]];
            u32::from_ne_bytes(word)
        };
        Self {
            request: word(0),
            flags: word(4),
            size: word(8),
        }
    }

    /// Returns the name of the request, for the log.
    fn name(self) -> String {
        FrontendReq::try_from(self.request).map_or_else(
            |_| format!("request {}", self.request),
            |name| format!("{name:?}"),
        )
    }
}

struct Handler {
    hub: Arc<Hub>,
    guest: GuestId,
    framework: BackendReqHandler<Mutex<FrontEnd>>,
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
        let front_end = Arc::new(Mutex::new(front_end));
        let framework = match past {
            None => BackendReqHandler::from_stream(socket, front_end),
            Some(past) => replay(front_end, socket, &past)?,
        };
        replayed.store(false, Ordering::Relaxed);
        Ok(Self {
            hub: Arc::clone(hub),
            guest,
            framework,
            lines: 0,
            since: Instant::now(),
        })
    }

    fn socket(&self) -> BorrowedFd<'_> {
        // SAFETY: The framework has the descriptor open as long as it lives.
        unsafe { BorrowedFd::borrow_raw(self.framework.as_raw_fd()) }
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
            let channel = self.channel(header);
            let handled = self.framework.handle_request();
            if let (Ok(()), Some(channel)) = (&handled, channel) {
                self.set_channel(channel);
            }
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
            let copies = (0..count).map(|_| self.socket().try_clone_to_owned());
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

    /// Returns the socket on which the front-end can be asked for things, if that is what the next
    /// message brings. The framework takes the message, and has no descriptor to give that could be
    /// kept, nor waited for.
    fn channel(&self, header: Header) -> Option<OwnedFd> {
        if !matches!(
            FrontendReq::try_from(header.request),
            Ok(FrontendReq::SET_BACKEND_REQ_FD)
        ) {
            return None;
        }
        let mut bytes = [0; HEADER];
        let mut pieces = [IoSliceMut::new(&mut bytes)];
        let mut space = nix::cmsg_space!([RawFd; MAX_DESCRIPTORS]);
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
        let socket = self.socket().as_raw_fd();
        let message = recvmsg::<()>(socket, &mut pieces, Some(&mut space), flags).ok()?;
        let mut copies = Vec::new();
        for control in message.cmsgs().ok()? {
            if let ControlMessageOwned::ScmRights(descriptors) = control {
                // SAFETY: The kernel has just made them, and nobody else knows of them.
                let owned = |fd| unsafe { OwnedFd::from_raw_fd(fd) };
                copies.extend(descriptors.into_iter().map(owned));
            }
        }
        copies.into_iter().next()
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
            let mut fds = [self.socket(), stop.as_fd()]
                .map(|fd| PollFd::new(fd, PollFlags::POLLIN | no_more));
            wait_ready(&mut fds, None)?;
            if stop.is_asked() {
                return Ok(None);
            }
            // Looked at before what has come is. There are no events for nix where there is one
            // without a name.
            let events = fds[0].revents();
            let is_over = events.is_none_or(|events| events.contains(PollFlags::POLLHUP));
            match self.peek()? {
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

    fn peek(&self) -> io::Result<Peek> {
        let mut bytes = [0; HEADER];
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        match recv(self.socket().as_raw_fd(), &mut bytes, flags) {
            Ok(0) | Err(Errno::ECONNRESET) => return Ok(Peek::Ended),
            Ok(HEADER) => {}
            Ok(_) | Err(Errno::EAGAIN | Errno::EINTR) => return Ok(Peek::Part),
            Err(error) => return Err(error.into()),
        }
        let header = Header::parse(&bytes);
        let size = header.size as usize;
        // One that is too long will not be taken anyway.
        let whole = size > LONGEST || self.queued()? >= HEADER + size;
        Ok(if whole {
            Peek::Whole(header)
        } else {
            Peek::Part
        })
    }

    /// Returns how many bytes are there.
    fn queued(&self) -> io::Result<usize> {
        let mut queued: libc::c_int = 0;
        // SAFETY: The socket is open, and the call writes a number of this type.
        let asked =
            unsafe { libc::ioctl(self.socket().as_raw_fd(), libc::FIONREAD, &raw mut queued) };
        match usize::try_from(queued) {
            Ok(queued) if asked == 0 => Ok(queued),
            _ => Err(io::Error::last_os_error()),
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

/// What a look at a connection shows.
enum Peek {
    Ended,
    Part,
    Whole(Header),
}

/// Makes a framework that knows of what was said on a connection before.
///
/// It keeps to itself what the front-end accepted. So it hears it again, from a socket of our own,
/// in whose place the connection is put afterwards.
fn replay(
    front_end: Arc<Mutex<FrontEnd>>,
    socket: UnixStream,
    past: &Past,
) -> Result<BackendReqHandler<Mutex<FrontEnd>>, Error> {
    let (ours, theirs) = UnixStream::pair().map_err(Error::SocketError)?;
    let mut framework = BackendReqHandler::from_stream(theirs, front_end);
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
        let size = if value.is_some() {
            size_of::<u64>() as u32
        } else {
            0
        };
        let mut message = Vec::new();
        for word in [request as u32, 1, size] {
            message.extend(word.to_ne_bytes());
        }
        message.extend(value.into_iter().flat_map(u64::to_ne_bytes));
        io::Write::write_all(&mut &ours, &message).map_err(Error::SocketError)?;
        framework.handle_request()?;
    }
    let socket = OwnedFd::from(socket);
    // SAFETY: The framework has the other descriptor open, and still has it open afterwards: what it
    // is of changes, not who has to close it.
    let put = unsafe { libc::dup3(socket.as_raw_fd(), framework.as_raw_fd(), libc::O_CLOEXEC) };
    if put < 0 {
        return Err(Error::SocketError(io::Error::last_os_error()));
    }
    Ok(framework)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_read() {
        let mut bytes = [0; HEADER];
        for (at, word) in [5u32, 9, 40].into_iter().enumerate() {
            bytes[4 * at..4 * at + 4].copy_from_slice(&word.to_ne_bytes());
        }
        let header = Header::parse(&bytes);
        assert_eq!((header.flags, header.size), (9, 40));
        assert_eq!(header.name(), "SET_MEM_TABLE");
        assert_eq!(
            Header {
                request: 99,
                ..header
            }
            .name(),
            "request 99"
        );
    }
}
