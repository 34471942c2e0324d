// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The operator's end of the operator's socket.

use std::{
    io::{self, BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use super::protocol::{Envelope, Reply, Request, Stat, VERSION};

/// How long the daemon may take to answer.
const PATIENCE: Duration = Duration::from_secs(30);

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
    /// The connection broke.
    #[error("the daemon went away: {0}")]
    Io(#[from] io::Error),
    /// The answer is none.
    #[error("cannot understand the daemon's answer: {0}")]
    Answer(#[from] serde_json::Error),
    /// The daemon refused.
    #[error("the daemon refused: {0}")]
    Refused(String),
}

/// A connection to a daemon.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<UnixStream>,
}

impl Client {
    /// Connects to the daemon that listens on `path`.
    ///
    /// # Errors
    ///
    /// [`ClientError::Connect`].
    pub fn connect(path: &Path) -> Result<Self, ClientError> {
        let connect = || {
            let stream = UnixStream::connect(path)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
            Ok(stream)
        };
        let stream = connect().map_err(|error| ClientError::Connect {
            path: path.to_owned(),
            error,
        })?;
        Ok(Self {
            stream: BufReader::new(stream),
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
        }
    }

    fn ask(&mut self, request: Request) -> Result<Reply, ClientError> {
        let mut line = serde_json::to_vec(&Envelope {
            version: VERSION,
            request,
        })?;
        line.push(b'\n');
        self.stream.get_mut().write_all(&line)?;
        let mut reply = String::new();
        if self.stream.read_line(&mut reply)? == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        Ok(serde_json::from_str(&reply)?)
    }
}
