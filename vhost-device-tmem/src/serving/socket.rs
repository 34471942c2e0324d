// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Sockets of either sort.

use std::{
    io::{self, Read, Write},
    net::{TcpListener, TcpStream},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
};

/// A socket that is being listened on.
#[derive(Debug)]
pub enum Listener {
    /// One with a path.
    Unix(UnixListener),
    /// One with an address of the network.
    Tcp(TcpListener),
}

impl Listener {
    /// Takes a socket that another process has left, of either sort.
    pub fn of(socket: OwnedFd) -> Self {
        let socket = UnixListener::from(socket);
        // Only those of its own sort have an address.
        match socket.local_addr() {
            Ok(_) => Self::Unix(socket),
            Err(_) => Self::Tcp(OwnedFd::from(socket).into()),
        }
    }

    /// Returns where it listens, in words.
    pub fn address(&self) -> Option<String> {
        match self {
            Self::Unix(listener) => {
                let address = listener.local_addr().ok()?;
                Some(address.as_pathname()?.display().to_string())
            }
            Self::Tcp(listener) => Some(listener.local_addr().ok()?.to_string()),
        }
    }

    pub(super) fn set_nonblocking(&self) -> io::Result<()> {
        match self {
            Self::Unix(listener) => listener.set_nonblocking(true),
            Self::Tcp(listener) => listener.set_nonblocking(true),
        }
    }

    /// Takes the next connection, which never blocks.
    pub(super) fn accept(&self) -> io::Result<Stream> {
        let stream = match self {
            Self::Unix(listener) => Stream::Unix(listener.accept()?.0),
            Self::Tcp(listener) => Stream::Tcp(listener.accept()?.0),
        };
        match &stream {
            Stream::Unix(stream) => stream.set_nonblocking(true)?,
            Stream::Tcp(stream) => stream.set_nonblocking(true)?,
        }
        Ok(stream)
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Unix(listener) => listener.as_fd(),
            Self::Tcp(listener) => listener.as_fd(),
        }
    }
}

impl From<Listener> for OwnedFd {
    fn from(listener: Listener) -> Self {
        match listener {
            Listener::Unix(listener) => listener.into(),
            Listener::Tcp(listener) => listener.into(),
        }
    }
}

/// A connection.
#[derive(Debug)]
pub(crate) enum Stream {
    /// To a path.
    Unix(UnixStream),
    /// Over the network.
    Tcp(TcpStream),
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Unix(stream) => stream.as_fd(),
            Self::Tcp(stream) => stream.as_fd(),
        }
    }
}

impl Read for Stream {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.read(bytes),
            Self::Tcp(stream) => stream.read(bytes),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.write(bytes),
            Self::Tcp(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
