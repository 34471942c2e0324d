// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The operator's command.

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    thread,
    time::Duration,
};

use clap::{error::ErrorKind, CommandFactory, Parser, Subcommand};
use vhost_device_tmem::control::{table, Client, ClientError, Request};

/// Talks to vhost-device-tmem.
#[derive(Debug, Parser)]
#[command(name = "tmemctl", version)]
struct Args {
    /// The socket that the daemon was given as its --control-path.
    #[arg(long, value_name = "PATH", global = true)]
    control_path: Option<PathBuf>,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show what the daemon holds, and what it has done.
    Stat {
        /// Print one JSON object.
        #[arg(long)]
        json: bool,

        /// Print again every so many seconds.
        #[arg(long, value_name = "SECS", value_parser = clap::value_parser!(u64).range(1..))]
        watch: Option<u64>,
    },
    /// Stop the daemon. It refuses if guests would lose pages by that, until it is asked twice
    /// within ten seconds.
    Stop {
        /// Lose the pages.
        #[arg(long)]
        force: bool,
    },
    /// Go on with the binary that is installed now, without a guest noticing.
    Upgrade,
}

/// Why the command failed.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("cannot print: {0}")]
    Print(#[from] io::Error),
}

fn main() -> ExitCode {
    let args = Args::parse();
    // Clap demands nothing that may be given in two places.
    let Some(path) = &args.control_path else {
        let missing = "--control-path PATH is missing: the socket that the daemon was given so";
        Args::command()
            .error(ErrorKind::MissingRequiredArgument, missing)
            .exit();
    };
    match run(path, &args.command) {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever reads the output has seen enough.
        Err(Failure::Print(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
            ExitCode::SUCCESS
        }
        Err(failure) => {
            eprintln!("tmemctl: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn run(path: &Path, command: &Command) -> Result<(), Failure> {
    match *command {
        Command::Stat { json, watch } => show(path, json, watch),
        Command::Stop { force } => demand(path, Request::Stop { force }),
        Command::Upgrade => demand(path, Request::Upgrade),
    }
}

fn show(path: &Path, json: bool, watch: Option<u64>) -> Result<(), Failure> {
    loop {
        let stat = Client::connect(path)?.stat()?;
        let text = if json {
            serde_json::to_string(&stat).map_err(ClientError::from)? + "\n"
        } else {
            table(&stat)
        };
        print(&text)?;
        match watch {
            Some(seconds) => thread::sleep(Duration::from_secs(seconds)),
            None => return Ok(()),
        }
    }
}

fn demand(path: &Path, request: Request) -> Result<(), Failure> {
    let message = Client::connect(path)?.demand(request)?;
    print(&format!("{message}\n"))
}

fn print(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}
