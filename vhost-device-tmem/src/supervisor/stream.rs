// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The messages of a front-end, looked at before they are taken.
//!
//! A message stays in the socket until it was carried out. So a front-end that sends half a message
//! keeps nobody waiting, and a supervisor that comes after one that was killed finds the stream at
//! the beginning of a message: of the one that was being carried out, if there was one. What messages
//! ask for may be done twice.

use std::{
    io::{self, IoSliceMut, Write},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
        unix::net::UnixStream,
    },
};

use nix::{
    errno::Errno,
    sys::socket::{recv, recvmsg, ControlMessageOwned, MsgFlags},
};
use vhost::vhost_user::message::FrontendReq;

/// The length of a message's header: request, flags, and length of what follows.
pub(super) const HEADER: usize = 12;

/// The longest message that the framework takes, without its header.
pub(super) const LONGEST: usize = 0x1000;

/// The most descriptors that the framework takes of one message.
const MAX_DESCRIPTORS: usize = 32;

/// A message's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) request: u32,
    pub(super) flags: u32,
    pub(super) size: u32,
}

impl Header {
    /// Reads a header, which is so long.
    fn parse(bytes: &[u8]) -> Self {
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
    pub(super) fn name(self) -> String {
        FrontendReq::try_from(self.request).map_or_else(
            |_| format!("request {}", self.request),
            |name| format!("{name:?}"),
        )
    }

    /// Returns the length of the message in bytes.
    fn len(self) -> usize {
        HEADER + self.size as usize
    }
}

/// What a look at a stream shows.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Peek {
    /// There will be no more messages.
    Ended,
    /// Nothing, or a part of a message.
    Part,
    /// All of a message, or the header of one that is too long to be taken.
    Whole(Header),
}

/// A front-end's end of a connection.
#[derive(Debug)]
pub(super) struct Stream(UnixStream);

impl Stream {
    /// Takes a connection over, on which nobody else reads.
    pub(super) fn new(socket: UnixStream) -> Self {
        Self(socket)
    }

    /// Looks whether a message is there.
    ///
    /// # Errors
    ///
    /// The operating system's.
    pub(super) fn peek(&self) -> io::Result<Peek> {
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        match recv(self.0.as_raw_fd(), &mut [0], flags) {
            Ok(0) | Err(Errno::ECONNRESET) => return Ok(Peek::Ended),
            Ok(_) => {}
            Err(Errno::EAGAIN | Errno::EINTR) => return Ok(Peek::Part),
            Err(error) => return Err(error.into()),
        }
        let queued = self.queued()?;
        if queued < HEADER {
            return Ok(Peek::Part);
        }
        let (bytes, _) = self.look(HEADER)?;
        let header = Header::parse(&bytes);
        // One that is too long will not be taken anyway.
        let whole = header.size as usize > LONGEST || queued >= header.len();
        Ok(if whole {
            Peek::Whole(header)
        } else {
            Peek::Part
        })
    }

    /// Returns the next message, with copies of the descriptors that come with it. It stays there.
    ///
    /// # Errors
    ///
    /// The operating system's. There are fewer descriptors than were sent where the process may not
    /// have more.
    pub(super) fn message(&self, header: Header) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
        self.look(header.len())
    }

    /// Takes the next message away.
    ///
    /// # Errors
    ///
    /// The operating system's.
    pub(super) fn take(&self, header: Header) -> io::Result<()> {
        let mut bytes = vec![0; header.len()];
        let mut taken = 0;
        // No more at once than what came with the same descriptors, which are closed.
        while taken < bytes.len() {
            let flags = MsgFlags::MSG_DONTWAIT;
            match recv(self.0.as_raw_fd(), &mut bytes[taken..], flags) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => taken += count,
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Sends an answer.
    ///
    /// # Errors
    ///
    /// The operating system's.
    pub(super) fn answer(&self, bytes: &[u8]) -> io::Result<()> {
        (&self.0).write_all(bytes)
    }

    /// Returns the next `len` bytes, of which so many are there, and copies of the descriptors that
    /// came with them. All of it stays there.
    fn look(&self, len: usize) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
        // A look at a message without descriptors finds those of a later one. It ends where it finds
        // some: behind the end, if it may go there.
        let mut bytes = vec![0; len + 1];
        let mut descriptors = Vec::new();
        let mut seen = 0;
        self.look_from(0)?;
        while seen < len {
            let mut pieces = [IoSliceMut::new(&mut bytes[seen..])];
            let mut space = nix::cmsg_space!([RawFd; MAX_DESCRIPTORS]);
            let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
            let looked = recvmsg::<()>(self.0.as_raw_fd(), &mut pieces, Some(&mut space), flags);
            let message = match looked {
                Ok(message) if message.bytes == 0 => {
                    return Err(io::ErrorKind::UnexpectedEof.into())
                }
                Ok(message) => message,
                Err(Errno::EINTR) => continue,
                Err(error) => return Err(error.into()),
            };
            seen += message.bytes;
            for control in message.cmsgs()? {
                if let ControlMessageOwned::ScmRights(copies) = control {
                    // SAFETY: The kernel has just made them, and nobody else knows of them.
                    let owned = |fd| unsafe { OwnedFd::from_raw_fd(fd) };
                    let copies: Vec<_> = copies.into_iter().map(owned).collect();
                    if seen <= len {
                        descriptors.extend(copies);
                    }
                }
            }
        }
        // Looks begin at the beginning again, also those of other processes.
        self.look_from(-1)?;
        bytes.truncate(len);
        Ok((bytes, descriptors))
    }

    /// Has looks begin behind so many bytes, and go on from where they end; with -1, always at the
    /// beginning.
    fn look_from(&self, offset: libc::c_int) -> io::Result<()> {
        // SAFETY: The socket is open, and the call reads a number of this type.
        let set = unsafe {
            libc::setsockopt(
                self.0.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEEK_OFF,
                (&raw const offset).cast(),
                size_of_val(&offset) as libc::socklen_t,
            )
        };
        if set == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }

    /// Returns how many bytes are there.
    fn queued(&self) -> io::Result<usize> {
        let mut queued: libc::c_int = 0;
        // SAFETY: The socket is open, and the call writes a number of this type.
        let asked = unsafe { libc::ioctl(self.0.as_raw_fd(), libc::FIONREAD, &raw mut queued) };
        match usize::try_from(queued) {
            Ok(queued) if asked == 0 => Ok(queued),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, io::IoSlice, os::fd::AsRawFd};

    use nix::sys::socket::{sendmsg, ControlMessage};

    use super::*;

    const SIZE: u32 = 8;

    fn header(request: u32) -> Header {
        Header {
            request,
            flags: 1,
            size: SIZE,
        }
    }

    fn bytes(request: u32) -> Vec<u8> {
        let mut bytes = [request, 1, SIZE].map(u32::to_ne_bytes).concat();
        bytes.extend([request as u8; SIZE as usize]);
        bytes
    }

    fn pair() -> (UnixStream, Stream) {
        let (front_end, socket) = UnixStream::pair().unwrap();
        (front_end, Stream::new(socket))
    }

    #[test]
    fn headers_are_read() {
        let bytes = [5u32, 9, 40].map(u32::to_ne_bytes).concat();
        let header = Header::parse(&bytes);
        assert_eq!((header.flags, header.size), (9, 40));
        assert_eq!((header.name(), header.len()), ("SET_MEM_TABLE".into(), 52));
        let unknown = Header {
            request: 99,
            ..header
        };
        assert_eq!(unknown.name(), "request 99");
    }

    #[test]
    fn a_message_is_there_once_all_of_it_is() {
        let (mut front_end, stream) = pair();
        let message = bytes(3);
        for byte in &message {
            assert_eq!(stream.peek().unwrap(), Peek::Part);
            front_end.write_all(&[*byte]).unwrap();
        }
        assert_eq!(stream.peek().unwrap(), Peek::Whole(header(3)));
        drop(front_end);
        assert_eq!(stream.peek().unwrap(), Peek::Whole(header(3)));
        stream.take(header(3)).unwrap();
        assert_eq!(stream.peek().unwrap(), Peek::Ended);
    }

    #[test]
    fn a_message_stays_until_it_is_taken() {
        let (mut front_end, stream) = pair();
        let file = tempfile::tempfile().unwrap();
        // The descriptors come with the header, and more follows; then with none; then with all.
        let message = bytes(5);
        for (part, rights) in [
            (&message[..HEADER], true),
            (&message[HEADER..], false),
            (&bytes(6), false),
            (&bytes(7), true),
        ] {
            let descriptors = [file.as_raw_fd()];
            let rights = rights.then_some(ControlMessage::ScmRights(&descriptors));
            let pieces = [IoSlice::new(part)];
            let rights = rights.as_slice();
            let flags = MsgFlags::empty();
            sendmsg::<()>(front_end.as_raw_fd(), &pieces, rights, flags, None).unwrap();
        }
        front_end.write_all(&bytes(8)).unwrap();
        for (request, count) in [(5, 1), (6, 0), (7, 1), (8, 0)] {
            // As often as one likes.
            for _ in 0..2 {
                assert_eq!(stream.peek().unwrap(), Peek::Whole(header(request)));
                let (message, descriptors) = stream.message(header(request)).unwrap();
                assert_eq!((message, descriptors.len()), (bytes(request), count));
                for copy in descriptors {
                    File::from(copy).metadata().unwrap();
                }
            }
            stream.take(header(request)).unwrap();
        }
        assert_eq!(stream.peek().unwrap(), Peek::Part);
    }
}
