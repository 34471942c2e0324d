// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What is done to guests and their pages.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde_json::json;
use vhost_device_tmem::control::{Client, Freeable, Request};

use crate::{
    args::Output, demand, done, failure::Failure, only, print, print_json, tables, transfer,
};

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
    /// Drop ephemeral pages of a guest, which it reads from its disk again: from the store, and from
    /// its window.
    Flush {
        /// The guest, by its name.
        guest: String,

        /// Only those of this pool that are in the store.
        #[arg(long, value_name = "N")]
        pool: Option<u32>,

        #[command(flatten)]
        output: Output,
    },
    /// Say how much memory could be had at once, of all guests or of one: what ephemeral pages take.
    Freeable {
        /// The guest, by its name.
        guest: Option<String>,

        #[command(flatten)]
        output: Output,
    },
    /// Drop all that a guest has put. It is refused if persistent pages would be lost.
    Destroy {
        /// The guest, by its name.
        guest: String,

        /// Only what is in this pool.
        #[arg(long, value_name = "N")]
        pool: Option<u32>,

        /// Lose persistent pages: the guest gets I/O errors where it needs them.
        #[arg(long)]
        force: bool,

        #[command(flatten)]
        output: Output,
    },
    /// Tell the daemon that the disk beneath a guest was set back, as by a snapshot: all that the guest
    /// has put is of a former life, and is dropped. It is refused while the guest is connected.
    Epoch {
        /// The guest, by its name.
        guest: String,

        /// Though it is connected: the guest gets I/O errors where it needs what it had swapped.
        #[arg(long)]
        force: bool,

        #[command(flatten)]
        output: Output,
    },
    /// Write a guest's persistent pages to a file, from which they can be restored: those of a machine
    /// that stands still (QEMU: stop).
    Save {
        /// The guest, by its name.
        guest: String,

        /// The file, which is there once all is in it.
        file: PathBuf,

        /// Begin while the machine runs, and wait for it to stand still with the rest.
        #[arg(long)]
        live: bool,

        #[command(flatten)]
        output: Output,
    },
    /// Give a guest the pages of a file, and the epoch that they are of. It is connected, and its machine
    /// was not started yet (QEMU: -S).
    Restore {
        /// The guest, by its name.
        guest: String,

        /// The file.
        file: PathBuf,

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
            Self::Freeze { output, .. }
            | Self::Thaw { output, .. }
            | Self::Flush { output, .. }
            | Self::Freeable { output, .. }
            | Self::Destroy { output, .. }
            | Self::Epoch { output, .. }
            | Self::Save { output, .. }
            | Self::Restore { output, .. } => *output,
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
            Self::Freeable { guest, .. } => freeable(path, guest.as_deref(), json),
            Self::Flush { guest, pool, .. } => {
                check_name(path, guest)?;
                let (guest, pool) = (guest.clone(), *pool);
                demand(path, Request::Flush { guest, pool }, json)
            }
            Self::Destroy {
                guest, pool, force, ..
            } => {
                check_name(path, guest)?;
                let request = Request::Destroy {
                    guest: guest.clone(),
                    pool: *pool,
                    force: *force,
                };
                demand(path, request, json)
            }
            Self::Save {
                guest, file, live, ..
            } => {
                check_name(path, guest)?;
                save(path, guest, file, *live, json)
            }
            Self::Restore { guest, file, .. } => {
                check_name(path, guest)?;
                done(transfer::restore(path, guest, file)?, json)
            }
            Self::Epoch { guest, force, .. } => {
                check_name(path, guest)?;
                let (guest, force) = (guest.clone(), *force);
                demand(path, Request::Epoch { guest, force }, json)
            }
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

fn save(path: &Path, guest: &str, file: &Path, live: bool, json: bool) -> Result<(), Failure> {
    let waits = |pages: u64| {
        if !json {
            eprintln!(
                "tmemctl: {pages} pages of guest {guest:?} saved while it runs; stop its machine now \
                 (QEMU: stop), the rest follows"
            );
        }
    };
    let live = live.then_some(&waits as &dyn Fn(u64));
    let totals = transfer::save(path, guest, file, live)?;
    let mut said = format!(
        "guest {guest:?} saved to {}: {} pages",
        file.display(),
        totals.pages
    );
    if totals.damaged > 0 {
        said += &format!(
            "; {} more are not in it, since the daemon could not read them back",
            totals.damaged
        );
    }
    done(said, json)
}

fn freeable(path: &Path, guest: Option<&str>, json: bool) -> Result<(), Failure> {
    let stat = only(Client::connect(path)?.stat()?, guest)?;
    if !json {
        return print(tables::freeable(&stat));
    }
    let guests = stat.guests.iter().map(|guest| {
        let freeable = Freeable::of(guest);
        json!({
            "name": guest.name,
            "bytes": freeable.bytes(),
            "store_bytes": freeable.store_bytes,
            "window_bytes": freeable.window_bytes,
        })
    });
    let bytes: u64 = stat.guests.iter().map(|it| Freeable::of(it).bytes()).sum();
    print_json(&json!({
        "version": stat.version,
        "bytes": bytes,
        "guests": guests.collect::<Vec<_>>(),
    }))
}

/// Looks whether there is a guest of this name.
fn check_name(path: &Path, guest: &str) -> Result<(), Failure> {
    let stat = Client::connect(path)?.stat()?;
    only(stat, Some(guest)).map(drop)
}
