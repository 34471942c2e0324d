// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Ways to give a file the blocks of another one.

use std::{io, mem::swap};

use anyhow::{ensure, Result};
use rustix::fs::fstatfs;

use super::{Done, Tracked};
use crate::sys::{exchange_range, move_extents};

impl Tracked {
    /// Takes over the blocks of `origin`, a file of the same length, whose content moves to the blocks
    /// that were this file's.
    ///
    /// Nobody is to read what was in there: this file has zeros afterwards.
    pub fn take_extents(&mut self, origin: &Self) -> Result<Done> {
        self.note(format!("extents of {}", origin.path.display()));
        ensure!(origin.len() == self.len(), "the files differ in length");
        let block = usize::try_from(fstatfs(&self.file)?.f_bsize)?;
        let blocks = (self.len() / block) as u64;
        match supported(move_extents(&origin.file, &self.file, blocks))? {
            None => Ok(Done::Unsupported),
            Some(moved) => {
                ensure!(moved == blocks, "{moved} of {blocks} blocks were moved");
                self.model.fill(0);
                Ok(Done::Yes)
            }
        }
    }

    /// Exchanges its content with that of `other`, a file of the same length.
    pub fn exchange(&mut self, other: &mut Self) -> Result<Done> {
        self.note(format!("exchange with {}", other.path.display()));
        ensure!(other.len() == self.len(), "the files differ in length");
        let outcome = exchange_range(&self.file, &other.file, self.len() as u64);
        match supported(outcome)? {
            None => Ok(Done::Unsupported),
            Some(()) => {
                swap(&mut self.model, &mut other.model);
                Ok(Done::Yes)
            }
        }
    }
}

/// Turns the errors by which filesystems say "not here" into [`None`].
fn supported<T>(outcome: io::Result<T>) -> Result<Option<T>> {
    match outcome {
        Ok(value) => Ok(Some(value)),
        Err(error)
            if matches!(
                error.raw_os_error(),
                Some(libc::ENOTTY | libc::EOPNOTSUPP | libc::EINVAL | libc::ENOSYS)
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}
