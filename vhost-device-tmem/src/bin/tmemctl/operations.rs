// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What is done to guests and their pages.

use std::path::Path;

use clap::{Args, Subcommand};
use vhost_device_tmem::control::{Client, Request};

use crate::{args::Output, demand, failure::Failure, only};

#[derive(Debug, Subcommand)]
pub(crate) enum Operation {
    /// Take nothing more of a guest: puts are refused, gets and flushes go on. It stays so until it is
    /// thawed, whatever becomes of its connection and of the daemon's processes.
    Freeze {
        #[command(flatten)]
        whom: Whom,

        #[command(flatten)]
        output: Output,
    },
    /// Take pages again of a guest that was frozen.
    Thaw {
        #[command(flatten)]
        whom: Whom,

        #[command(flatten)]
        output: Output,
    },
}

/// One guest, or all.
#[derive(Clone, Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct Whom {
    /// The guest, by its name.
    guest: Option<String>,

    /// All guests that there are.
    #[arg(long)]
    all: bool,
}

impl Operation {
    pub(crate) fn output(&self) -> Output {
        match self {
            Self::Freeze { output, .. } | Self::Thaw { output, .. } => *output,
        }
    }

    /// Does it.
    ///
    /// # Errors
    ///
    /// [`Failure`].
    pub(crate) fn run(&self, path: &Path) -> Result<(), Failure> {
        let json = self.output().json;
        match self {
            Self::Freeze { whom, .. } => freeze(path, whom, true, json),
            Self::Thaw { whom, .. } => freeze(path, whom, false, json),
        }
    }
}

fn freeze(path: &Path, whom: &Whom, frozen: bool, json: bool) -> Result<(), Failure> {
    if let Some(guest) = &whom.guest {
        check_name(path, guest)?;
    }
    let guest = whom.guest.clone();
    demand(path, Request::Freeze { guest, frozen }, json)
}

/// Looks whether there is a guest of this name.
fn check_name(path: &Path, guest: &str) -> Result<(), Failure> {
    let stat = Client::connect(path)?.stat()?;
    only(stat, Some(guest)).map(drop)
}
