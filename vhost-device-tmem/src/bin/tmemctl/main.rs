// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The operator's command.

mod args;
mod balance;
mod failure;
mod figures;
mod manual;
mod operations;
mod tables;
mod top;
mod transfer;

use std::{
    io::{self, Write},
    path::Path,
    process::ExitCode,
    thread,
    time::Duration,
};

use clap::Parser;
use serde::Serialize;
use vhost_device_tmem::{
    config::GuestEdit,
    control::{Client, ClientError, Reply, Request, Stat, VERSION},
};

use args::{Arguments, Command};
use failure::Failure;
use figures::Listed;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(arguments.command.output().json),
    }
}

fn run(arguments: &Arguments) -> Result<(), Failure> {
    let path = &arguments.control_path;
    match &arguments.command {
        Command::List { output } => {
            let stat = Client::connect(path)?.stat()?;
            if output.json {
                print_json(&Listed::all(&stat))
            } else {
                print(tables::overview(&stat))
            }
        }
        Command::Stat {
            guest,
            output,
            watch,
        } => loop {
            let stat = Client::connect(path)?.stat()?;
            let stat = only(stat, guest.as_deref())?;
            if output.json {
                print_json(&stat)?;
            } else {
                print(tables::all(&stat))?;
            }
            match watch {
                Some(seconds) => thread::sleep(Duration::from_secs(*seconds)),
                None => return Ok(()),
            }
        },
        Command::Top(options) => top::run(path, options),
        Command::Balance(options) => balance::run(path, options),
        Command::Stop { force, output } => {
            demand(path, Request::Stop { force: *force }, output.json)
        }
        Command::Upgrade { output } => demand(path, Request::Upgrade, output.json),
        Command::Reload { force, output } => {
            demand(path, Request::Reload { force: *force }, output.json)
        }
        Command::Guest { command, output } => demand(path, command.into(), output.json),
        Command::Shared { command, output } => demand(path, command.into(), output.json),
        Command::Set {
            guest,
            terms,
            output,
        } => {
            let set = GuestEdit::Set {
                name: guest.clone(),
                terms: terms.iter().cloned().collect(),
            };
            demand(path, Request::Guest(set), output.json)
        }
        Command::Operation(operation) => operation.run(path),
        Command::Completions { shell, of } => print(manual::completions(*of, *shell)),
        Command::Man { directory } => Ok(manual::write_pages(directory)?),
    }
}

/// Leaves out all guests but one, and the pools that it does not share.
fn only(mut stat: Stat, guest: Option<&str>) -> Result<Stat, Failure> {
    if let Some(name) = guest {
        if !stat.guests.iter().any(|guest| guest.name == name) {
            return Err(Failure::NoGuest {
                name: name.to_owned(),
                names: stat.guests.into_iter().map(|guest| guest.name).collect(),
            });
        }
        stat.guests.retain(|guest| guest.name == name);
        let shares = |of: &String| of == name;
        stat.shared.retain(|pool| pool.guests.iter().any(shares));
    }
    Ok(stat)
}

fn demand(path: &Path, request: Request, json: bool) -> Result<(), Failure> {
    let message = Client::connect(path)?.demand(request)?;
    done(message, json)
}

/// Says what was done.
fn done(message: String, json: bool) -> Result<(), Failure> {
    if json {
        print_json(&Reply::Done {
            version: VERSION,
            message,
        })
    } else {
        print(format!("{message}\n"))
    }
}

fn print_json(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string(value).map_err(ClientError::from)?;
    print(text + "\n")
}

fn print(text: impl AsRef<[u8]>) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_ref())?;
    Ok(out.flush()?)
}
