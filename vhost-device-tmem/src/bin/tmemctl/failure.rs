// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Why a command failed, for people and for programs.

use std::{io, path::PathBuf, process::ExitCode};

use serde_json::json;
use vhost_device_tmem::{
    balance::TermsError, config::Problems, control::ClientError, qmp::QmpError, saved::StreamError,
    size::Bytes,
};

/// The exit codes, which programs can depend on.
pub(crate) const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  the daemon refused
  2  the command line makes no sense
  3  the daemon cannot be reached, or went away
  4  the daemon's answer is not understood
  5  there is no guest of that name
  6  the output cannot be written
  7  the file cannot be read, or is no whole saved guest
  8  a guest's QEMU cannot be reached, or its answer is not understood";

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("no guest is named {name:?}; there are: {}", .names.join(", "))]
    NoGuest { name: String, names: Vec<String> },
    #[error("cannot write: {0}")]
    Write(#[from] io::Error),
    #[error("what the daemon sends cannot be used: {0}")]
    Stream(#[source] StreamError),
    #[error("{}: {error}", .path.display())]
    File {
        path: PathBuf,
        #[source]
        error: StreamError,
    },
    #[error("{0}")]
    Config(#[from] Problems),
    #[error("there is no total; give it by --total, or in the file")]
    NoTotal,
    #[error(transparent)]
    Terms(#[from] TermsError),
    #[error(
        "guest {guest:?}: min is {}, and its machine was made with {}; lower min",
        Bytes(*.min), Bytes(*.ram)
    )]
    MinAboveRam { guest: String, min: u64, ram: u64 },
    #[error("guest {guest:?}: {error}")]
    Qmp {
        guest: String,
        #[source]
        error: QmpError,
    },
    #[error("this is no terminal; --once prints one frame, and --json figures for programs")]
    NoTerminal,
}

impl Failure {
    /// Returns its number in [`EXIT_CODES`].
    fn code(&self) -> u8 {
        match self {
            Self::Client(error) => match error {
                ClientError::Refused(_) => 1,
                ClientError::Connect { .. }
                | ClientError::Forbidden(_)
                | ClientError::Missing(_)
                | ClientError::Purpose { .. }
                | ClientError::Silent(_)
                | ClientError::Io(_)
                | ClientError::Slow(_) => 3,
                ClientError::Answer(_) | ClientError::OtherAnswer => 4,
            },
            Self::Config(_) | Self::NoTotal | Self::Terms(_) | Self::MinAboveRam { .. } => 2,
            Self::NoGuest { .. } => 5,
            Self::Stream(StreamError::CutOff(_) | StreamError::Io(_)) => 3,
            Self::Stream(_) => 4,
            Self::File { .. } => 7,
            Self::Qmp { .. } => 8,
            Self::Write(_) | Self::NoTerminal => 6,
        }
    }

    /// Says why on standard error, and returns how the process is to end.
    pub(crate) fn report(&self, json: bool) -> ExitCode {
        // Whoever reads the output has seen enough.
        if matches!(self, Self::Write(error) if error.kind() == io::ErrorKind::BrokenPipe) {
            return ExitCode::SUCCESS;
        }
        let code = self.code();
        if json {
            let error = json!({ "error": { "code": code, "message": self.to_string() } });
            eprintln!("{error}");
        } else {
            eprintln!("tmemctl: {self}");
        }
        code.into()
    }
}
