// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Work in phases of which each does one thing to each of many pages, to be measured from outside.

pub mod copy;
pub mod file;
pub mod swap;

use std::{fs, io, path::PathBuf, thread::sleep, time::Duration};

use anyhow::{bail, Context, Result};
use serde_json::json;

use crate::{evict::cgroup, page::PAGE_SIZE, sys::mark};

/// Bytes more than wanted that do not matter. Counters of the kernel's are not exact.
const SLACK: u64 = 64 << 10;

/// Times that reclaim is asked for what is left.
const TRIES: u32 = 200;

/// The time that writes are given to end, before reclaim is asked again.
const WHILE: Duration = Duration::from_millis(10);

/// Tells whoever measures where phases begin and end.
pub struct Phases {
    label: String,
}

impl Phases {
    /// Phases with names that begin with `label`.
    pub fn new(label: &str) -> Self {
        Self {
            label: label.to_owned(),
        }
    }

    /// Does `work`, a phase of so many pages.
    pub fn run<T>(&self, name: &str, pages: u64, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let name = format!("{}{name}", self.label);
        mark(&name);
        let outcome = work();
        mark("");
        println!("{}", json!({"of": "phase", "phase": name, "pages": pages}));
        outcome.with_context(|| name)
    }
}

/// What reclaim is to take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Anonymous memory.
    Anon,
    /// Pages of files.
    File,
}

/// The memory of the cgroup that this process is in.
pub struct Group {
    folder: PathBuf,
}

impl Group {
    /// The cgroup, which must be one with the memory controller.
    pub fn new() -> Result<Self> {
        let folder = cgroup().context("this process is in no cgroup with memory.reclaim")?;
        Ok(Self { folder })
    }

    /// The bytes that it has, without what zswap made of others.
    fn current(&self) -> Result<u64> {
        let read = |name| -> Result<u64> {
            let text = fs::read_to_string(self.folder.join(name))?;
            Ok(text.trim().parse()?)
        };
        Ok(read("memory.current")?.saturating_sub(read("memory.zswap.current")?))
    }

    /// Has so many pages reclaimed, or nearly: some are always in use just then.
    pub fn reclaim(&self, pages: u64, kind: Kind) -> Result<()> {
        let almost = pages * PAGE_SIZE as u64 / 20 * 19;
        self.shrink_to(self.current()?.saturating_sub(almost), kind)
    }

    /// Has memory reclaimed until no more than `bytes` are left.
    fn shrink_to(&self, bytes: u64, kind: Kind) -> Result<()> {
        let swappiness = match kind {
            Kind::Anon => "max",
            Kind::File => "0",
        };
        for _ in 0..TRIES {
            let more = self.current()?.saturating_sub(bytes);
            if more < SLACK {
                return Ok(());
            }
            let asked = format!("{more} swappiness={swappiness}");
            match fs::write(self.folder.join("memory.reclaim"), asked) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => sleep(WHILE),
                outcome => outcome.context("reclaiming")?,
            }
        }
        bail!("there are still {} bytes, not {bytes}", self.current()?)
    }
}
