// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The host comes first: where it is short of memory, guests have less.
//!
//! ```text
//! files ── text ── read ── Readings ── Allowance ── what guests may have together
//! (opened before the sandbox)          (decides)
//! ```

mod allowance;
mod files;
mod read;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

pub use allowance::Allowance;
pub use files::Files;
pub use read::{psi, Readings, Room};

/// Whose shortage of memory the daemon gives way to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Follow {
    /// Nobody's.
    Off,
    /// The host's, as the kernel tells how long tasks wait for memory.
    Host,
    /// That of the control groups that the daemon is in.
    Cgroup,
    /// That of both.
    #[default]
    Both,
}

impl Follow {
    pub(crate) fn host(self) -> bool {
        matches!(self, Self::Host | Self::Both)
    }

    pub(crate) fn groups(self) -> bool {
        matches!(self, Self::Cgroup | Self::Both)
    }
}
