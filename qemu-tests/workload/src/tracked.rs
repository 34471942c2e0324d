// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Files that are changed together with a model of what they should hold.

mod exchange;
mod names;
mod space;
mod verify;
mod write;

use std::{
    collections::VecDeque,
    fs::{File, OpenOptions},
    io,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    sync::{
        atomic::{AtomicU32, Ordering},
        Arc,
    },
};

use anyhow::{Context, Result};
use rustix::fs::{open, Mode, OFlags};

use crate::word;

pub use names::Anonymous;
pub use verify::Reading;

/// Operations that are remembered.
const HISTORY: usize = 24;

/// Whether an operation took place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Done {
    /// It did, and the model follows.
    Yes,
    /// The filesystem does not have it, and nothing changed.
    Unsupported,
}

/// The number of the latest write to any of a run's files.
///
/// No two writes of a run share one, so that content which was anywhere before is never mistaken
/// for the newest.
#[derive(Clone, Debug, Default)]
pub struct Generations(Arc<AtomicU32>);

impl Generations {
    fn next(&self) -> u32 {
        self.0.fetch_add(1, Ordering::Relaxed) + 1
    }
}

/// A file and what it should hold.
pub struct Tracked {
    path: PathBuf,
    file: File,
    number: u8,
    generations: Generations,
    model: Vec<u8>,
    history: VecDeque<String>,
}

impl Tracked {
    /// Creates the file `path`, empty, replacing any other.
    pub fn create(path: &Path, number: u8, generations: &Generations) -> Result<Self> {
        Ok(Self {
            path: path.into(),
            file: create(path)?,
            number,
            generations: generations.clone(),
            model: Vec::new(),
            history: VecDeque::new(),
        })
    }

    /// The file's name.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The open file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// What the file should hold.
    pub fn model(&self) -> &[u8] {
        &self.model
    }

    /// The length that the file should have.
    pub fn len(&self) -> usize {
        self.model.len()
    }

    /// Returns whether the file should be empty.
    pub fn is_empty(&self) -> bool {
        self.model.is_empty()
    }

    /// Remembers that something happened to the file.
    pub fn note(&mut self, what: impl Into<String>) {
        if self.history.len() == HISTORY {
            self.history.pop_front();
        }
        self.history.push_back(what.into());
    }

    /// Makes the next `len` bytes of content that were nowhere before.
    fn fresh(&mut self, offset: usize, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        let generation = self.generations.next();
        word::fill(&mut bytes, self.number, generation, offset as u64);
        bytes
    }

    /// Puts `bytes` into the model, which grows where they reach beyond its end.
    fn patch(&mut self, offset: usize, bytes: &[u8]) {
        let end = offset + bytes.len();
        if self.model.len() < end {
            self.model.resize(end, 0);
        }
        self.model[offset..end].copy_from_slice(bytes);
    }

    /// Opens the file once more, whatever its name now is.
    fn reopen(&self, flags: OFlags) -> Result<File> {
        let own = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        let file = open(own, OFlags::RDWR | flags, Mode::empty());
        Ok(file.context("opening the file again")?.into())
    }
}

fn create(path: &Path) -> Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(path)
        .with_context(|| format!("creating {}", path.display()))
}

/// Turns the errors by which filesystems say "not here" into [`Done::Unsupported`].
fn done(outcome: rustix::io::Result<()>) -> Result<Done> {
    match outcome {
        Ok(()) => Ok(Done::Yes),
        Err(rustix::io::Errno::OPNOTSUPP) => Ok(Done::Unsupported),
        Err(error) => Err(io::Error::from(error).into()),
    }
}
