// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Messages and descriptors over a socket.

use std::{
    fs::File,
    io::{self, IoSlice, IoSliceMut},
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
    time::Duration,
};

use nix::{
    cmsg_space,
    errno::Errno,
    sys::{
        socket::{
            recvmsg, sendmsg, setsockopt, socketpair, sockopt, AddressFamily, ControlMessage,
            ControlMessageOwned, MsgFlags, SockFlag, SockType,
        },
        time::TimeVal,
    },
};
use serde::{de::DeserializeOwned, Serialize};

/// The longest message, in bytes.
pub const MAX_MESSAGE: usize = 128 << 10;

/// The most descriptors of a message.
pub const MAX_DESCRIPTORS: usize = 64;

/// Why nothing was sent or received.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The other process is gone.
    #[error("the other process is gone")]
    Closed,
    /// The other process does not take what it is sent.
    #[error("the other process does not read")]
    Full,
    /// A message, sent or received, is too long.
    #[error("a message of {0} bytes is too long")]
    TooLong(usize),
    /// A message, sent or received, has too many descriptors.
    #[error("a message with {0} descriptors is too much")]
    TooManyDescriptors(usize),
    /// A message is none.
    #[error("cannot understand a message: {0}")]
    Unknown(#[from] serde_json::Error),
    /// The operating system refused.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl From<Errno> for LinkError {
    fn from(error: Errno) -> Self {
        match error {
            Errno::EPIPE | Errno::ECONNRESET | Errno::ENOTCONN => Self::Closed,
            // A timeout that was set is over.
            Errno::EAGAIN => Self::Full,
            error => Self::Io(error.into()),
        }
    }
}

/// A message as it came.
#[derive(Debug)]
pub struct Received<T> {
    /// The message.
    pub message: T,
    /// Its descriptors, all of them closed on exec.
    pub descriptors: Vec<OwnedFd>,
}

/// One end of the link. Both ends may be used by several threads.
#[derive(Debug)]
pub struct Link(OwnedFd);

impl Link {
    /// Makes both ends. Both are closed on exec.
    ///
    /// # Errors
    ///
    /// The operating system's, where it has no descriptor left.
    pub fn pair() -> io::Result<(Self, Self)> {
        let (one, other) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )?;
        Ok((Self(one), Self(other)))
    }

    /// Takes an end that was inherited.
    pub fn new(socket: OwnedFd) -> Self {
        Self(socket)
    }

    /// Gives a message up with [`LinkError::Full`] when the other side has not taken it after so
    /// long.
    ///
    /// # Errors
    ///
    /// The operating system's.
    pub fn set_patience(&self, patience: Duration) -> io::Result<()> {
        let patience = TimeVal::new(
            i64::try_from(patience.as_secs()).unwrap_or(i64::MAX),
            patience.subsec_micros().max(1).into(),
        );
        Ok(setsockopt(&self.0, sockopt::SendTimeout, &patience)?)
    }

    /// Sends a message.
    ///
    /// # Errors
    ///
    /// [`LinkError`]. A message that is too long, or has too many descriptors, was not sent.
    pub fn send(
        &self,
        message: &impl Serialize,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), LinkError> {
        let bytes = serde_json::to_vec(message)?;
        if bytes.len() > MAX_MESSAGE {
            return Err(LinkError::TooLong(bytes.len()));
        }
        if descriptors.len() > MAX_DESCRIPTORS {
            return Err(LinkError::TooManyDescriptors(descriptors.len()));
        }
        let raw: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let control = if raw.is_empty() { &[][..] } else { &rights[..] };
        loop {
            let data = [IoSlice::new(&bytes)];
            let fd = self.0.as_raw_fd();
            match sendmsg::<()>(fd, &data, control, MsgFlags::MSG_NOSIGNAL, None) {
                Ok(_) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Waits for a message.
    ///
    /// # Errors
    ///
    /// [`LinkError`]; [`LinkError::Closed`] when the other side is gone and everything that it sent
    /// was received.
    pub fn receive<T: DeserializeOwned>(&self) -> Result<Received<T>, LinkError> {
        let mut bytes = vec![0; MAX_MESSAGE];
        // One more, to see that there are too many.
        let mut control = cmsg_space!([RawFd; MAX_DESCRIPTORS + 1]);
        let (len, flags, descriptors) = loop {
            let mut data = [IoSliceMut::new(&mut bytes)];
            let flags = MsgFlags::MSG_CMSG_CLOEXEC;
            match recvmsg::<()>(self.0.as_raw_fd(), &mut data, Some(&mut control), flags) {
                Ok(received) => {
                    let descriptors = own(received.cmsgs()?);
                    break (received.bytes, received.flags, descriptors);
                }
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        };
        if descriptors.len() > MAX_DESCRIPTORS || flags.contains(MsgFlags::MSG_CTRUNC) {
            return Err(LinkError::TooManyDescriptors(descriptors.len()));
        }
        if flags.contains(MsgFlags::MSG_TRUNC) {
            return Err(LinkError::TooLong(len));
        }
        // No message is empty.
        if len == 0 {
            return Err(LinkError::Closed);
        }
        let message = serde_json::from_slice(&bytes[..len])?;
        Ok(Received {
            message,
            descriptors,
        })
    }
}

/// Takes possession of the descriptors that came with a message.
fn own(control: impl Iterator<Item = ControlMessageOwned>) -> Vec<OwnedFd> {
    let mut descriptors = Vec::new();
    for message in control {
        if let ControlMessageOwned::ScmRights(raw) = message {
            // SAFETY: The kernel has just made these descriptors for this process, and nobody else
            // has seen their numbers.
            descriptors.extend(raw.iter().map(|fd| unsafe { OwnedFd::from_raw_fd(*fd) }));
        }
    }
    descriptors
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<Link> for OwnedFd {
    fn from(link: Link) -> Self {
        link.0
    }
}

impl From<Link> for File {
    fn from(link: Link) -> Self {
        link.0.into()
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Seek, Write},
        os::unix::net::UnixDatagram,
    };

    use super::*;

    fn file(contents: &str) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(contents.as_bytes()).unwrap();
        file.rewind().unwrap();
        file
    }

    #[test]
    fn messages_come_with_their_descriptors() {
        let (one, other) = Link::pair().unwrap();
        let (a, b) = (file("a"), file("b"));
        one.send(&"first", &[a.as_fd(), b.as_fd()]).unwrap();
        one.send(&"second", &[]).unwrap();
        drop((a, b));
        let first = other.receive::<String>().unwrap();
        assert_eq!(first.message, "first");
        let mut contents = String::new();
        for descriptor in first.descriptors {
            let flags = nix::fcntl::fcntl(&descriptor, nix::fcntl::FcntlArg::F_GETFD).unwrap();
            assert_eq!(flags, libc::FD_CLOEXEC);
            File::from(descriptor)
                .read_to_string(&mut contents)
                .unwrap();
        }
        assert_eq!(contents, "ab");
        let second = other.receive::<String>().unwrap();
        assert_eq!((&*second.message, second.descriptors.len()), ("second", 0));
        drop(one);
        assert!(matches!(other.receive::<String>(), Err(LinkError::Closed)));
        assert!(matches!(other.send(&"x", &[]), Err(LinkError::Closed)));
    }

    #[test]
    fn what_is_too_large_is_refused_on_both_sides() {
        let (one, other) = Link::pair().unwrap();
        let fits = "x".repeat(MAX_MESSAGE - 2);
        one.send(&fits, &[]).unwrap();
        assert_eq!(other.receive::<String>().unwrap().message, fits);
        let long = "x".repeat(MAX_MESSAGE - 1);
        assert!(matches!(one.send(&long, &[]), Err(LinkError::TooLong(n)) if n > MAX_MESSAGE));
        let null = file("");
        let many = vec![null.as_fd(); MAX_DESCRIPTORS];
        one.send(&(), &many).unwrap();
        assert_eq!(
            other.receive::<()>().unwrap().descriptors.len(),
            MAX_DESCRIPTORS
        );
        let too_many = vec![null.as_fd(); MAX_DESCRIPTORS + 1];
        let sent = one.send(&(), &too_many);
        assert!(matches!(sent, Err(LinkError::TooManyDescriptors(65))));

        // A side that does not keep to it.
        let raw = UnixDatagram::from(OwnedFd::from(one));
        raw.send(&vec![b' '; MAX_MESSAGE + 1]).unwrap();
        assert!(matches!(other.receive::<()>(), Err(LinkError::TooLong(_))));
        let count = MAX_DESCRIPTORS + 1;
        let fds = vec![null.as_raw_fd(); count];
        vmm_sys_util::sock_ctrl_msg::ScmSocket::send_with_fds(&raw, &[&b"null"[..]], &fds).unwrap();
        let received = other.receive::<()>();
        assert!(matches!(received, Err(LinkError::TooManyDescriptors(n)) if n == count));
        raw.send(b"{").unwrap();
        assert!(matches!(other.receive::<()>(), Err(LinkError::Unknown(_))));
        // It is of use after all of this.
        raw.send(b"null").unwrap();
        other.receive::<()>().unwrap();
    }

    #[test]
    fn who_does_not_read_is_given_up() {
        let (one, _other) = Link::pair().unwrap();
        one.set_patience(Duration::from_millis(1)).unwrap();
        let error = loop {
            if let Err(error) = one.send(&"x".repeat(1000), &[]) {
                break error;
            }
        };
        assert!(matches!(error, LinkError::Full), "{error:?}");
    }
}
