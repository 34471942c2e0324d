// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Which program the workers are.

use std::{
    fs::File,
    io,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
};

/// A program that can be run, also when its file has been replaced or removed.
#[derive(Debug)]
pub(super) struct Program {
    /// What is run.
    run: PathBuf,
    /// The open file that `run` means.
    _file: Option<File>,
}

impl Program {
    /// The program of this process.
    pub(super) fn own() -> Self {
        Self {
            run: "/proc/self/exe".into(),
            _file: None,
        }
    }

    /// The program that is in a file now.
    ///
    /// # Errors
    ///
    /// The operating system's.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        Ok(Self {
            run: format!("/proc/self/fd/{}", file.as_raw_fd()).into(),
            _file: Some(file),
        })
    }

    /// Returns what is to be run, by a child of this process.
    pub(super) fn path(&self) -> &Path {
        &self.run
    }
}
