// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Ways to make the page cache let go of pages.

use std::{
    fs::{self, File},
    io,
    num::NonZeroU64,
    path::{Path, PathBuf},
    thread,
};

use anyhow::{Context, Result};
use rustix::fs::{fadvise, Advice};

use crate::sys::Mapping;

/// Times that pages which stay are tried again.
const TRIES: usize = 100;

/// How pages are evicted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Eviction {
    /// `posix_fadvise(DONTNEED)` on the range, after what is dirty was written.
    Advise,
    /// `posix_fadvise(DONTNEED)` on the range without waiting for anything.
    AdviseDirty,
    /// `madvise(PAGEOUT)` on a mapping: reclaim proper, of this file only.
    PageOut,
    /// `/proc/sys/vm/drop_caches`.
    DropCaches,
    /// `memory.reclaim` of the memory cgroup that this process is in.
    Reclaim,
}

/// Evicts pages `offset..offset + len` of `file`, and maybe others.
pub fn evict(file: &File, how: Eviction, offset: u64, len: u64) -> Result<()> {
    match how {
        Eviction::Advise => {
            file.sync_data()?;
            advise(file, offset, len)?;
        }
        Eviction::AdviseDirty => advise(file, offset, len)?,
        Eviction::PageOut => {
            file.sync_data()?;
            let len = usize::try_from(file.metadata()?.len())?;
            if len > 0 {
                Mapping::new(file, len)?.page_out()?;
            }
        }
        Eviction::DropCaches => {
            file.sync_data()?;
            drop_caches()?;
        }
        Eviction::Reclaim => {
            file.sync_data()?;
            reclaim(64 << 20)?;
        }
    }
    Ok(())
}

fn advise(file: &File, offset: u64, len: u64) -> io::Result<()> {
    if let Some(len) = NonZeroU64::new(len) {
        fadvise(file, offset, Some(len), Advice::DontNeed)?;
    }
    Ok(())
}

/// Evicts all pages of `file`, and returns whether none is left in memory.
///
/// A page that somebody still holds, if only for the moment after it was read, stays.
pub fn evict_all(file: &File) -> Result<bool> {
    let len = file.metadata()?.len();
    if len == 0 {
        return Ok(true);
    }
    let mapping = Mapping::new(file, usize::try_from(len)?)?;
    for _ in 0..TRIES {
        evict(file, Eviction::Advise, 0, len)?;
        if mapping.resident()? == 0 {
            return Ok(true);
        }
        thread::yield_now();
    }
    Ok(false)
}

/// Drops all clean pages of all files, if this is root.
pub fn drop_caches() -> Result<()> {
    match fs::write("/proc/sys/vm/drop_caches", "1") {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        outcome => outcome.context("dropping caches"),
    }
}

/// Asks for `bytes` of this process's memory cgroup to be reclaimed.
///
/// The kernel answers with an error if it finds fewer; that is no failure here.
pub fn reclaim(bytes: u64) -> Result<()> {
    let Some(folder) = cgroup() else {
        return drop_caches();
    };
    match fs::write(folder.join("memory.reclaim"), bytes.to_string()) {
        Err(error) if error.raw_os_error() == Some(11) => Ok(()),
        outcome => outcome.context("reclaiming"),
    }
}

/// The folder of the memory cgroup that this process is in.
pub fn cgroup() -> Option<PathBuf> {
    let own = fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = own.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let folder = Path::new("/sys/fs/cgroup").join(path);
    folder.join("memory.reclaim").exists().then_some(folder)
}
