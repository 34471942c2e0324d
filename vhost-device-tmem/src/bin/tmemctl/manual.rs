// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Completions and man pages, made from the definitions of the command lines.

use std::{fs, io, path::Path};

use clap::{CommandFactory, ValueEnum};
use clap_complete::{generate, Shell};
use clap_mangen::Man;
use vhost_device_tmem::args;

use crate::args::Arguments;

/// The section of the manual for those who look after machines.
const SECTION: &str = "8";

/// What there is to explain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Program {
    /// The operator's command.
    #[default]
    Tmemctl,
    /// The daemon.
    VhostDeviceTmem,
}

impl Program {
    fn command(self) -> clap::Command {
        match self {
            Self::Tmemctl => Arguments::command(),
            Self::VhostDeviceTmem => args::Args::command(),
        }
    }
}

/// Returns a script that has a shell complete a command line.
pub(crate) fn completions(program: Program, shell: Shell) -> Vec<u8> {
    let mut command = program.command();
    let name = command.get_name().to_owned();
    let mut script = Vec::new();
    generate(shell, &mut command, name, &mut script);
    script
}

/// Writes the man pages of all programs and their commands into a directory.
///
/// # Errors
///
/// The operating system's.
pub(crate) fn write_pages(directory: &Path) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    for program in [Program::Tmemctl, Program::VhostDeviceTmem] {
        let mut command = program.command().disable_help_subcommand(true);
        command.build();
        let source = format!("virtio-tmem {}", env!("CARGO_PKG_VERSION"));
        for each in [&command].into_iter().chain(command.get_subcommands()) {
            let page = Man::new(each.clone()).section(SECTION).source(&source);
            page.generate_to(directory)?;
        }
    }
    Ok(())
}
