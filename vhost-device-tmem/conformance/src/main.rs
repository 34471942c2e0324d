// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Tests a tmem device against its specification, over vhost-user.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{bail, Context, Result};
use clap::Parser;
use tmem_conformance::{clauses, json, markdown, run, text, Clause, Target, Tested, Verdict};

/// Tests a tmem device against SPEC.md, clause by clause. The device has to serve a vhost-user
/// socket, and nobody else may be connected to it.
///
/// Prints a line for each clause, and exits with 0 where none fails, with 1 where one does, and
/// with 2 where nothing could be tested.
#[derive(Parser)]
#[command(version, about)]
struct Args {
    /// The device's socket.
    #[arg(long, value_name = "PATH", required_unless_present = "list")]
    socket: Option<PathBuf>,
    /// The socket at which the same implementation serves another driver, for what is between two.
    #[arg(long, value_name = "PATH")]
    other_socket: Option<PathBuf>,
    /// Only clauses whose number, or whose check's name, begins with one of these.
    #[arg(value_name = "FILTER")]
    filters: Vec<String>,
    /// Print the clauses and how they are tested, and test nothing.
    #[arg(long)]
    list: bool,
    /// Print the list as Markdown.
    #[arg(long, requires = "list")]
    markdown: bool,
    /// Print JSON: an array of the list, or an object a line for each clause that is tested.
    #[arg(long, conflicts_with = "markdown")]
    json: bool,
    /// How long the device may take to answer.
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    timeout: u64,
    /// The most pages with which it is filled, for what a full device does.
    #[arg(long, value_name = "PAGES", default_value_t = 16384)]
    fill: usize,
}

fn chosen(filters: &[String]) -> Result<Vec<Clause>> {
    let mut clauses = clauses();
    for filter in filters {
        let known = clauses.iter().any(|clause| meets(clause, filter));
        if !known {
            bail!("no clause and no check begins with {filter:?}; see --list");
        }
    }
    clauses
        .retain(|clause| filters.is_empty() || filters.iter().any(|filter| meets(clause, filter)));
    Ok(clauses)
}

fn meets(clause: &Clause, filter: &str) -> bool {
    let check = match &clause.tested {
        Tested::Check(name) => name,
        _ => "",
    };
    clause.id.starts_with(filter) || check.starts_with(filter)
}

fn main() -> ExitCode {
    match begin(Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("tmem-conformance: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Returns whether no clause failed.
fn begin(args: Args) -> Result<bool> {
    let clauses = chosen(&args.filters)?;
    if args.list {
        match (args.markdown, args.json) {
            (true, _) => print!("{}", markdown(&clauses)),
            (_, true) => println!("{}", json(&clauses)),
            _ => print!("{}", text(&clauses)),
        }
        return Ok(true);
    }
    let target = Target {
        socket: args.socket.context("--socket is missing")?,
        other: args.other_socket,
        patience: Duration::from_secs(args.timeout),
        fill: args.fill,
    };
    if !target.socket.exists() {
        bail!("{}: there is no such socket", target.socket.display());
    }
    // It is said why as a line of the clause.
    std::panic::set_hook(Box::new(|_| ()));
    let mut failed = false;
    run(&target, &clauses, |report| {
        failed |= report.verdict == Verdict::Fail;
        if args.json {
            println!("{}", serde_json::json!(report));
            return;
        }
        match report.verdict {
            Verdict::Pass => println!("{:<10} pass", report.clause),
            Verdict::Fail => println!("{:<10} FAIL {}", report.clause, report.why),
            Verdict::NotTestable => println!("{:<10} not testable: {}", report.clause, report.why),
        }
    });
    Ok(!failed)
}
