// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The operator's end of the operator's socket.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::Shutdown,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use super::protocol::{Envelope, Reply, Request, Stat, VERSION};
use crate::socket;

/// How long the daemon may take to answer, unless somebody is less patient.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long an operation on a guest's pages may take: some go over all of them.
const OPERATION: Duration = Duration::from_secs(10 * 60);

/// Why the daemon did not answer as it should.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error(
        "cannot connect to {path}: {error}; is vhost-device-tmem running with --control-path \
         {path}?"
    )]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        error: io::Error,
    },
    /// The caller may not.
    #[error(
        "may not connect to {0}: it is open to root, to the daemon's user, and to the group of \
         --control-group"
    )]
    Forbidden(PathBuf),
    /// There is no socket.
    #[error(
        "there is no socket {0}; is vhost-device-tmem running, and is this its --control-path?"
    )]
    Missing(PathBuf),
    /// The socket is there for somebody else.
    #[error(
        "{path} is the socket of {purpose}, not the one for tmemctl; give what the daemon was \
         given as its --control-path"
    )]
    Purpose {
        /// The socket.
        path: PathBuf,
        /// What it is for.
        purpose: String,
    },
    /// The connection ended before there was an answer.
    #[error(
        "{0} closed the connection without an answer; is it the daemon's --control-path, and not \
         a guest's socket?"
    )]
    Silent(PathBuf),
    /// The connection broke.
    #[error("the daemon went away: {0}")]
    Io(#[from] io::Error),
    /// The daemon does not answer.
    #[error("the daemon did not answer within {} seconds", .0.as_secs())]
    Slow(Duration),
    /// The answer is none.
    #[error("cannot understand the daemon's answer: {0}")]
    Answer(#[from] serde_json::Error),
    /// The answer is one to something else.
    #[error("the daemon answers something that was not asked")]
    OtherAnswer,
    /// The daemon refused.
    #[error("the daemon refused: {0}")]
    Refused(String),
}

/// A connection to a daemon.
#[derive(Debug)]
pub struct Client {
    path: PathBuf,
    stream: BufReader<UnixStream>,
    patience: Duration,
}

impl Client {
    /// Connects to the daemon that listens on `path`.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub fn connect(path: &Path) -> Result<Self, ClientError> {
        Self::with_patience(path, PATIENCE)
    }

    /// Connects to the daemon that listens on `path`, which may take `patience` for each answer.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub fn with_patience(path: &Path, patience: Duration) -> Result<Self, ClientError> {
        // A guest's socket would take this for the guest.
        if let Some(purpose) = socket::purpose(path) {
            if purpose.starts_with("guest ") || purpose == socket::METRICS {
                let path = path.to_owned();
                return Err(ClientError::Purpose { path, purpose });
            }
        }
        let connect = || {
            let stream = UnixStream::connect(path)?;
            stream.set_read_timeout(Some(patience))?;
            stream.set_write_timeout(Some(patience))?;
            Ok(stream)
        };
        let stream = connect().map_err(|error: io::Error| {
            let path = path.to_owned();
            match error.kind() {
                io::ErrorKind::NotFound => ClientError::Missing(path),
                io::ErrorKind::PermissionDenied => ClientError::Forbidden(path),
                _ => ClientError::Connect { path, error },
            }
        })?;
        Ok(Self {
            path: path.to_owned(),
            stream: BufReader::new(stream),
            patience,
        })
    }

    /// Asks for all statistics.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub fn stat(&mut self) -> Result<Stat, ClientError> {
        match self.ask(Request::Stat)? {
            Reply::Stat(stat) => Ok(stat),
            Reply::Error { message, .. } => Err(ClientError::Refused(message)),
            Reply::Done { .. } | Reply::Ready { .. } => Err(ClientError::OtherAnswer),
        }
    }

    /// Asks for something to be done, and returns what happens now.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub fn demand(&mut self, request: Request) -> Result<String, ClientError> {
        if matches!(request, Request::Flush { .. } | Request::Destroy { .. }) {
            let stream = self.stream.get_ref();
            stream.set_read_timeout(Some(OPERATION))?;
            self.patience = OPERATION;
        }
        match self.ask(request)? {
            Reply::Done { message, .. } => Ok(message),
            Reply::Error { message, .. } => Err(ClientError::Refused(message)),
            Reply::Stat(_) | Reply::Ready { .. } => Err(ClientError::OtherAnswer),
        }
    }

    /// Has a guest saved, and returns the [stream](crate::saved) that comes. A guest that runs is waited
    /// for without end.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub fn save(mut self, guest: &str, live: bool) -> Result<impl Read, ClientError> {
        let guest = guest.to_owned();
        self.be_ready(Request::Save { guest, live })?;
        let patience = (!live).then_some(OPERATION);
        self.stream.get_ref().set_read_timeout(patience)?;
        Ok(self.stream)
    }

    /// Gives a guest what is in a [stream](crate::saved), and returns what was done.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub fn restore(mut self, guest: &str, stream: &mut impl Read) -> Result<String, ClientError> {
        let guest = guest.to_owned();
        self.be_ready(Request::Restore { guest })?;
        let socket = self.stream.get_mut();
        socket.set_read_timeout(Some(OPERATION))?;
        socket.set_write_timeout(Some(OPERATION))?;
        self.patience = OPERATION;
        let sent = io::copy(stream, socket);
        // Where something is missing, nobody is to wait for it.
        let _ = socket.shutdown(Shutdown::Write);
        // Who does not want to have all of it has said why.
        let reply = self.hear(|_| sent.map(drop))?;
        match reply {
            Reply::Done { message, .. } => Ok(message),
            Reply::Error { message, .. } => Err(ClientError::Refused(message)),
            Reply::Stat(_) | Reply::Ready { .. } => Err(ClientError::OtherAnswer),
        }
    }

    fn be_ready(&mut self, request: Request) -> Result<(), ClientError> {
        match self.ask(request)? {
            Reply::Ready { .. } => Ok(()),
            Reply::Error { message, .. } => Err(ClientError::Refused(message)),
            Reply::Stat(_) | Reply::Done { .. } => Err(ClientError::OtherAnswer),
        }
    }

    fn ask(&mut self, request: Request) -> Result<Reply, ClientError> {
        let mut line = serde_json::to_vec(&Envelope {
            version: VERSION,
            request,
        })?;
        line.push(b'\n');
        // Who does not want to listen may have said why.
        self.hear(|stream| stream.write_all(&line))
    }

    /// Says something, and returns what is answered, whether it was said to its end or not.
    fn hear(
        &mut self,
        say: impl FnOnce(&mut UnixStream) -> io::Result<()>,
    ) -> Result<Reply, ClientError> {
        let mut reply = String::new();
        let exchange = |stream: &mut BufReader<UnixStream>| {
            let sent = say(stream.get_mut());
            match stream.read_line(&mut reply)? {
                0 => sent.and(Ok(0)),
                len => Ok(len),
            }
        };
        match exchange(&mut self.stream) {
            Ok(0) => Err(ClientError::Silent(self.path.clone())),
            Ok(_) => Ok(serde_json::from_str(&reply)?),
            Err(error) => Err(match error.kind() {
                io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
                    ClientError::Silent(self.path.clone())
                }
                io::ErrorKind::WouldBlock => ClientError::Slow(self.patience),
                _ => error.into(),
            }),
        }
    }
}
