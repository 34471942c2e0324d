// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! QEMU's monitor (QMP), as far as balloons need it: lines of JSON over a socket, one answer for each
//! command, and events between them, which are passed over.
//!
//! Who answers need not be QEMU, nor mean well: an answer has a time and a length, and so have all
//! events before it.

mod balloon;
mod line;

use std::{
    io::{self, BufReader, Write},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::sys::{
    socket::{
        connect, setsockopt, socket, sockopt::SendTimeout, AddressFamily, SockFlag, SockType,
        UnixAddr,
    },
    time::TimeVal,
};
use serde::Deserialize;
use serde_json::{json, Value};

pub use self::balloon::Balloon;
use self::line::{read_line, LineError};
use crate::socket;

/// The longest line, in bytes. QEMU's own answers to what is asked here have a few thousand.
const MAX_LINE: usize = 1 << 20;

/// The most events that come before an answer.
const MAX_EVENTS: usize = 1000;

/// Why QEMU did not answer as it should.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// There is no socket.
    #[error(
        "there is no socket {0}; is its machine running, with -qmp unix:{0},server=on,wait=off?"
    )]
    Missing(PathBuf),
    /// The caller may not.
    #[error("may not connect to {0}: it is QEMU's user who may, and root")]
    Forbidden(PathBuf),
    /// Nobody listens.
    #[error("cannot connect to {path}: {error}; is its machine running?")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        error: io::Error,
    },
    /// The socket is there for somebody else.
    #[error("{path} is the socket of {purpose}, not QEMU's monitor; give the path of -qmp unix:…")]
    Purpose {
        /// The socket.
        path: PathBuf,
        /// What it is for.
        purpose: String,
    },
    /// It does not greet.
    #[error(
        "{path} does not greet within {} s; QEMU's monitor has one client at a time: is another \
         connected to it, or is this another socket?", .patience.as_secs()
    )]
    NoGreeting {
        /// The socket.
        path: PathBuf,
        /// How long it was waited for.
        patience: Duration,
    },
    /// It greets with something else.
    #[error("{0} is not QEMU's monitor: it greets with {1}")]
    Stranger(PathBuf, String),
    /// No answer.
    #[error("QEMU does not answer {command} within {} s", .patience.as_secs())]
    Slow {
        /// What was asked for.
        command: String,
        /// How long it was waited for.
        patience: Duration,
    },
    /// More than an answer.
    #[error("QEMU answers {0} with more than {MAX_LINE} bytes in a line")]
    TooLong(String),
    /// Events, and no answer.
    #[error("QEMU answers {0} with more than {MAX_EVENTS} events and no answer")]
    TooMany(String),
    /// Something else than an answer.
    #[error("cannot understand what QEMU answers to {command}: {what}")]
    Nonsense {
        /// What was asked for.
        command: String,
        /// What came.
        what: String,
    },
    /// QEMU refused.
    #[error("QEMU refuses {command}: {what}")]
    Refused {
        /// What was asked for.
        command: String,
        /// Why.
        what: String,
    },
    /// The connection broke.
    #[error("QEMU went away at {command}: {error}")]
    Io {
        /// What was asked for.
        command: String,
        /// What the operating system said.
        #[source]
        error: io::Error,
    },
    /// The machine has no balloon.
    #[error("its machine has no balloon; give it one by -device virtio-balloon-pci,…")]
    NoBalloon,
}

/// What QEMU says. All fields may be in one line; the first that is there counts.
#[derive(Debug, Deserialize)]
struct Said {
    event: Option<Value>,
    error: Option<Refusal>,
    // An answer may be null.
    #[serde(default, rename = "return", deserialize_with = "present")]
    answer: Option<Value>,
    id: Option<Value>,
}

/// Why QEMU does not do it.
#[derive(Debug, Deserialize)]
struct Refusal {
    #[serde(default)]
    desc: String,
}

fn present<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(from).map(Some)
}

/// A connection to the monitor of a machine.
#[derive(Debug)]
pub struct Qmp {
    stream: BufReader<UnixStream>,
    patience: Duration,
    /// How many commands there were.
    asked: u64,
}

impl Qmp {
    /// Connects to the monitor that listens on `path`, which may take `patience` for the greeting and
    /// for each answer.
    ///
    /// # Errors
    ///
    /// [`QmpError`].
    pub fn connect(path: &Path, patience: Duration) -> Result<Self, QmpError> {
        if let Some(purpose) = socket::purpose(path) {
            let path = path.to_owned();
            return Err(QmpError::Purpose { path, purpose });
        }
        let stream = connected(path, patience).map_err(|error| {
            let path = path.to_owned();
            match error.kind() {
                io::ErrorKind::NotFound => QmpError::Missing(path),
                io::ErrorKind::PermissionDenied => QmpError::Forbidden(path),
                io::ErrorKind::WouldBlock => QmpError::NoGreeting { path, patience },
                _ => QmpError::Connect { path, error },
            }
        })?;
        let mut this = Self {
            stream: BufReader::new(stream),
            patience,
            asked: 0,
        };
        this.greeted(path)?;
        this.ask("qmp_capabilities", json!({}))?;
        Ok(this)
    }

    fn greeted(&mut self, path: &Path) -> Result<(), QmpError> {
        let patience = self.patience;
        let line = match self.line(Instant::now() + patience) {
            Err(LineError::Late) => {
                let path = path.to_owned();
                return Err(QmpError::NoGreeting { path, patience });
            }
            line => line.map_err(|error| self.failed("the connection", error))?,
        };
        let greeting: Option<Value> = serde_json::from_slice(&line).ok();
        match greeting {
            Some(greeting) if greeting.get("QMP").is_some() => Ok(()),
            _ => Err(QmpError::Stranger(path.to_owned(), shown(&line))),
        }
    }

    /// Has QEMU execute a command, and returns what it answers.
    ///
    /// # Errors
    ///
    /// [`QmpError`]. After any but [`QmpError::Refused`] nothing more should be asked.
    pub fn ask(&mut self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        self.asked += 1;
        let id = self.asked;
        let mut request = json!({"execute": command, "arguments": arguments, "id": id}).to_string();
        request.push('\n');
        let sent = self.stream.get_mut().write_all(request.as_bytes());
        sent.map_err(|error| self.failed(command, error.into()))?;
        let until = Instant::now() + self.patience;
        for _ in 0..=MAX_EVENTS {
            let line = self
                .line(until)
                .map_err(|error| self.failed(command, error))?;
            let nonsense = |what: String| QmpError::Nonsense {
                command: command.to_owned(),
                what,
            };
            let said: Said = serde_json::from_slice(&line)
                .map_err(|error| nonsense(format!("{}: {error}", shown(&line))))?;
            if said.event.is_some() {
                continue;
            }
            if said.id.is_some_and(|of| of != json!(id)) {
                return Err(nonsense(format!(
                    "{}, which answers something else",
                    shown(&line)
                )));
            }
            return match said {
                Said {
                    error: Some(refusal),
                    ..
                } => Err(QmpError::Refused {
                    command: command.to_owned(),
                    what: shown(refusal.desc.as_bytes()),
                }),
                Said {
                    answer: Some(answer),
                    ..
                } => Ok(answer),
                _ => Err(nonsense(format!("{}, which is no answer", shown(&line)))),
            };
        }
        Err(QmpError::TooMany(command.to_owned()))
    }

    fn line(&mut self, until: Instant) -> Result<Vec<u8>, LineError> {
        read_line(&mut self.stream, MAX_LINE, |stream| {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(LineError::Late);
            }
            Ok(stream.get_ref().set_read_timeout(Some(left))?)
        })
    }

    fn failed(&self, command: &str, error: LineError) -> QmpError {
        let command = command.to_owned();
        match error {
            LineError::Late => QmpError::Slow {
                command,
                patience: self.patience,
            },
            LineError::TooLong => QmpError::TooLong(command),
            LineError::Ended => QmpError::Io {
                command,
                error: io::ErrorKind::UnexpectedEof.into(),
            },
            LineError::Io(error) => QmpError::Io { command, error },
        }
    }
}

/// Connects. Where too many wait for the monitor already, that is for no longer than `patience`.
fn connected(path: &Path, patience: Duration) -> io::Result<UnixStream> {
    let socket: OwnedFd = socket(
        AddressFamily::Unix,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    let limit = TimeVal::new(patience.as_secs().max(1) as i64, 0);
    setsockopt(&socket, SendTimeout, &limit)?;
    connect(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(socket.into())
}

/// Shows the beginning of what came.
fn shown(line: &[u8]) -> String {
    const MOST_SHOWN: usize = 80;
    let text = String::from_utf8_lossy(&line[..line.len().min(MOST_SHOWN)]);
    let text = text.trim_end();
    let more = if line.len() > MOST_SHOWN { "…" } else { "" };
    format!("{text:?}{more}")
}
