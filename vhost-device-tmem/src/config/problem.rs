// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What is wrong with a configuration, where, and what to do.

use std::{fmt, path::PathBuf};

/// What something is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    /// An option, by its long name.
    Option(&'static str),
    /// A guest's key.
    Guest(String, &'static str),
    /// A shared pool's key.
    Shared(String, &'static str),
}

impl Key {
    /// Names a guest's socket.
    pub fn socket(guest: &str) -> Self {
        Self::Guest(guest.to_owned(), "socket")
    }

    /// Names a guest's window.
    pub fn window(guest: &str) -> Self {
        Self::Guest(guest.to_owned(), "window-size")
    }
}

/// Where something was said.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// As an option of the command line.
    CommandLine(String),
    /// In a file.
    File {
        /// Which one.
        path: PathBuf,
        /// The line, if it is one.
        line: Option<usize>,
        /// The key, with dots, if there is one.
        key: String,
    },
    /// To the daemon that runs, of a guest of this name.
    Operator(String),
    /// To the daemon that runs, of a shared pool of this UUID.
    Shared(String),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CommandLine(option) => f.write_str(option),
            Self::File { path, line, key } => {
                write!(f, "{}:", path.display())?;
                if let Some(line) = line {
                    write!(f, "{line}:")?;
                }
                if !key.is_empty() {
                    write!(f, " {key}")?;
                }
                Ok(())
            }
            Self::Operator(guest) => write!(f, "guest {guest:?}:"),
            Self::Shared(uuid) => write!(f, "shared pool {uuid}:"),
        }
    }
}

/// Something that is wrong: where it was said, and in words, what it is and what to do.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// Where.
    pub place: Place,
    /// What.
    pub what: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.place, self.what)
    }
}

/// All that is wrong, at least one thing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems(pub Vec<Problem>);

impl From<Problem> for Problems {
    fn from(problem: Problem) -> Self {
        Self(vec![problem])
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, problem) in self.0.iter().enumerate() {
            if n > 0 {
                f.write_str("\n")?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}
