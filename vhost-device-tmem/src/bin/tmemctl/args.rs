// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The command line of tmemctl.

use std::{collections::BTreeMap, path::PathBuf};

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use vhost_device_tmem::{
    config::{GuestEdit, SharedEdit},
    control::{Request, DEFAULT_PATH},
};

use crate::{balance, failure::EXIT_CODES, manual::Program, operations::Operation, top};

/// Talks to vhost-device-tmem.
#[derive(Debug, Parser)]
#[command(name = "tmemctl", version, after_help = EXIT_CODES)]
pub(crate) struct Arguments {
    /// The socket that the daemon was given as its --control-path.
    #[arg(
        long,
        value_name = "PATH",
        global = true,
        env = "TMEMCTL_CONTROL_PATH",
        default_value = DEFAULT_PATH
    )]
    pub(crate) control_path: PathBuf,

    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List the guests, one a line: what each has of the host's memory, and what it gains by that.
    List {
        #[command(flatten)]
        output: Output,
    },
    /// Show all that the daemon knows, of all guests or of one.
    Stat {
        /// The guest, by its name.
        guest: Option<String>,

        #[command(flatten)]
        output: Output,

        /// Print again every so many seconds.
        #[arg(long, value_name = "SECS", value_parser = clap::value_parser!(u64).range(1..))]
        watch: Option<u64>,
    },
    /// Show the guests live: rates, and how they were lately, beside what the host waits for.
    Top(top::Options),
    /// Propose how large guests' own memory should be, and with --apply have their balloons make it so:
    /// memory goes to guests whose pages come back, from those whose pages do not.
    Balance(balance::Options),
    /// Stop the daemon. It refuses if guests would lose pages by that.
    Stop {
        /// Lose the pages.
        #[arg(long)]
        force: bool,

        #[command(flatten)]
        output: Output,
    },
    /// Go on with the binary that is installed now, without a guest noticing.
    Upgrade {
        #[command(flatten)]
        output: Output,
    },
    /// Read the configuration file again, and do what it says now, all of it or nothing.
    Reload {
        /// Take guests off that are not named any more though they are connected.
        #[arg(long)]
        force: bool,

        #[command(flatten)]
        output: Output,
    },
    /// Add, remove or rename guests while the daemon runs.
    Guest {
        #[command(subcommand)]
        command: GuestCommand,

        #[command(flatten)]
        output: Output,
    },
    /// Have guests share a pool while the daemon runs: what one of them reads from a file system that all
    /// of them have, and nobody writes to, others need not read from the disk.
    Shared {
        #[command(subcommand)]
        command: SharedCommand,

        #[command(flatten)]
        output: Output,
    },
    /// Give a guest another part of the memory, from now on and after a restart as well.
    Set {
        /// The guest, by its name.
        guest: String,

        /// What is to be: weight (1 to 10000), persistent-min, persistent-max, ephemeral-min or
        /// ephemeral-max (sizes, such as 512MiB), or tier (off, ephemeral or all). The value `default` takes back what was set.
        #[arg(value_name = "KEY=VALUE", required = true, value_parser = key_value)]
        terms: Vec<(String, String)>,

        #[command(flatten)]
        output: Output,
    },
    #[command(flatten)]
    Operation(Operation),
    /// Print a script that has a shell complete command lines.
    Completions {
        /// The shell.
        shell: Shell,

        /// Whose command lines.
        #[arg(long, value_name = "PROGRAM", value_enum, default_value_t)]
        of: Program,
    },
    /// Write man pages of tmemctl, its commands, and the daemon.
    Man {
        /// Where to.
        directory: PathBuf,
    },
}

impl Command {
    /// Returns what is printed, which is also how errors are.
    pub(crate) fn output(&self) -> Output {
        match self {
            Self::List { output }
            | Self::Stat { output, .. }
            | Self::Top(top::Options { output, .. })
            | Self::Balance(balance::Options { output, .. })
            | Self::Stop { output, .. }
            | Self::Reload { output, .. }
            | Self::Guest { output, .. }
            | Self::Shared { output, .. }
            | Self::Set { output, .. }
            | Self::Upgrade { output } => *output,
            Self::Operation(operation) => operation.output(),
            Self::Completions { .. } | Self::Man { .. } => Output::default(),
        }
    }
}

/// What is done with a guest.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum GuestCommand {
    /// Add a guest.
    Add {
        /// The guest's name.
        name: String,
        /// The socket that its QEMU connects to.
        #[arg(long, value_name = "PATH")]
        socket: PathBuf,
        /// The size of its window, a power of two such as 4GiB; none without it.
        #[arg(long, value_name = "SIZE")]
        window_size: Option<String>,
        #[command(flatten)]
        terms: TermsOptions,
    },
    /// Take a guest off. Its pages are dropped. It is refused while the guest is connected.
    Remove {
        /// The guest's name.
        name: String,
        /// Though it is connected: its device is gone then, and its pages are lost.
        #[arg(long)]
        force: bool,
    },
    /// Give a guest another name.
    Rename {
        /// The name that it has.
        old: String,
        /// The name that it gets.
        new: String,
    },
}

/// What is done with a shared pool.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum SharedCommand {
    /// Have guests share a pool, besides those that do already. Each can read, replace and drop all of
    /// its pages.
    Add {
        /// The UUID of the file system, as blkid shows it.
        uuid: String,
        /// A guest that may have access, by its name; repeat it for each.
        #[arg(long = "guest", value_name = "GUEST")]
        guests: Vec<String>,
        /// The memory that the pool takes at most; `default` for what the configuration file says.
        #[arg(long, value_name = "SIZE")]
        max: Option<String>,
    },
    /// Take guests off a shared pool, at once. The pool goes with the last.
    Remove {
        /// The UUID of the file system.
        uuid: String,
        /// A guest that may not have access any more; repeat it for each. All of them without it.
        #[arg(long = "guest", value_name = "GUEST")]
        guests: Vec<String>,
    },
    /// Drop all pages of a shared pool, as when the file system was replaced.
    Flush {
        /// The UUID of the file system.
        uuid: String,
    },
}

impl From<&SharedCommand> for Request {
    fn from(command: &SharedCommand) -> Self {
        match command.clone() {
            SharedCommand::Add { uuid, guests, max } => {
                Self::Shared(SharedEdit::Add { uuid, guests, max })
            }
            SharedCommand::Remove { uuid, guests } => {
                Self::Shared(SharedEdit::Remove { uuid, guests })
            }
            SharedCommand::Flush { uuid } => Self::FlushShared { uuid },
        }
    }
}

/// What is said of a guest's part of the memory.
#[derive(Clone, Debug, Args)]
pub(crate) struct TermsOptions {
    /// How much it counts beside others, from 1 to 10000; 100 unless given.
    #[arg(long, value_name = "N")]
    weight: Option<u32>,
    /// The persistent memory that it can always have.
    #[arg(long, value_name = "SIZE")]
    persistent_min: Option<String>,
    /// The persistent memory that it never has more of.
    #[arg(long, value_name = "SIZE")]
    persistent_max: Option<String>,
    /// The ephemeral memory that it can always have.
    #[arg(long, value_name = "SIZE")]
    ephemeral_min: Option<String>,
    /// The ephemeral memory that it never has more of.
    #[arg(long, value_name = "SIZE")]
    ephemeral_max: Option<String>,
    /// Which of its pages may be in the tier below the store: off, ephemeral (unless given) or all.
    #[arg(long, value_name = "WHICH")]
    tier: Option<String>,
}

impl TermsOptions {
    /// Returns what is given, by its keys.
    fn given(self) -> BTreeMap<String, String> {
        let weight = self.weight.map(|weight| weight.to_string());
        let all = [
            ("weight", weight),
            ("persistent-min", self.persistent_min),
            ("persistent-max", self.persistent_max),
            ("ephemeral-min", self.ephemeral_min),
            ("ephemeral-max", self.ephemeral_max),
            ("tier", self.tier),
        ];
        let given = all.into_iter();
        given
            .filter_map(|(key, value)| Some((key.to_owned(), value?)))
            .collect()
    }
}

fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) => Ok((key.to_owned(), value.to_owned())),
        None => Err("write it as KEY=VALUE".to_owned()),
    }
}

impl From<&GuestCommand> for Request {
    fn from(command: &GuestCommand) -> Self {
        Self::Guest(match command.clone() {
            GuestCommand::Add {
                name,
                socket,
                window_size,
                terms,
            } => GuestEdit::Add {
                name,
                // The daemon may be elsewhere.
                socket: std::path::absolute(&socket).unwrap_or(socket),
                window_size,
                terms: terms.given(),
            },
            GuestCommand::Remove { name, force } => GuestEdit::Remove { name, force },
            GuestCommand::Rename { old, new } => GuestEdit::Rename { name: old, to: new },
        })
    }
}

/// What is printed.
#[derive(Clone, Copy, Debug, Default, Args)]
pub(crate) struct Output {
    /// Print one line of JSON, and errors as one, too.
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_makes_sense() {
        Arguments::command().debug_assert();
    }
}
