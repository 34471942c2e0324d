// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The operator's command.

use std::{
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
    thread,
    time::Duration,
};

use clap::{Parser, Subcommand};
use vhost_device_tmem::{
    control::{Client, ClientError, Stat},
    store::{Compression, Contents, Dropped, PoolCounters, PoolKind},
};

/// Talks to vhost-device-tmem.
#[derive(Debug, Parser)]
#[command(name = "tmemctl", version)]
struct Args {
    /// The socket that the daemon was given as its --control-path.
    #[arg(long, value_name = "PATH")]
    control_path: PathBuf,

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
    match run(&args) {
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

fn run(args: &Args) -> Result<(), Failure> {
    let Command::Stat { json, watch } = args.command;
    loop {
        let stat = Client::connect(&args.control_path)?.stat()?;
        let text = if json {
            serde_json::to_string(&stat).map_err(ClientError::from)? + "\n"
        } else {
            table(&stat)
        };
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes())?;
        out.flush()?;
        drop(out);
        match watch {
            Some(seconds) => thread::sleep(Duration::from_secs(seconds)),
            None => return Ok(()),
        }
    }
}

fn table(stat: &Stat) -> String {
    let mut text = format!(
        "capacity {} MiB, used {} MiB; {} pages ({} without compression), {} of them ephemeral; \
         {} evictions\n",
        stat.capacity_bytes >> 20,
        stat.used_bytes >> 20,
        stat.used_pages,
        stat.capacity_pages,
        stat.ephemeral_pages,
        stat.evictions
    );
    let compressed = stat.compression != Compression::None;
    if compressed {
        text += &contents(&stat.contents);
    }
    for guest in &stat.guests {
        let state = match (guest.connected, guest.epoch) {
            (true, _) => "connected",
            (false, 0) => "never connected",
            (false, _) => "disconnected",
        };
        text += &format!(
            "{}: {state}, epoch {:#018x}, {} requests ({} malformed, {} out of reach), {} kicks, \
             {} of {} polls found some, {} calls, \
             credits {} persistent {} ephemeral\n",
            guest.name,
            guest.epoch,
            guest.requests,
            guest.malformed,
            guest.out_of_reach,
            guest.kicks,
            guest.polls_found,
            guest.polls,
            guest.calls,
            guest.persistent_credits,
            guest.ephemeral_credits
        );
        for pool in &guest.pools {
            let kind = match pool.kind {
                PoolKind::Ephemeral => "ephemeral",
                PoolKind::Persistent => "persistent",
            };
            text += &format!(
                "  pool {} {kind}: {} pages, {} KiB; {}\n",
                pool.pool,
                pool.pages,
                pool.bytes >> 10,
                counters(&pool.counters)
            );
            if compressed {
                text += "    ";
                text += &contents(&pool.contents);
            }
        }
        let Dropped {
            persistent,
            ephemeral,
        } = &guest.dropped;
        for (kind, dropped) in [("persistent", persistent), ("ephemeral", ephemeral)] {
            if dropped.pools > 0 {
                text += &format!(
                    "  {} {kind} pools that are gone, with {} pages: {}\n",
                    dropped.pools,
                    dropped.pages,
                    counters(&dropped.counters)
                );
            }
        }
    }
    text
}

fn counters(counters: &PoolCounters) -> String {
    let PoolCounters {
        puts,
        puts_stored,
        puts_refused,
        gets,
        gets_hit,
        flushes,
        pages_flushed,
        pages_evicted,
        ..
    } = counters;
    format!(
        "puts {puts} stored {puts_stored} refused {puts_refused}; gets {gets} hit {gets_hit}; \
         flushes {flushes} flushed {pages_flushed}; evicted {pages_evicted}"
    )
}

fn contents(contents: &Contents) -> String {
    let ratio = match contents.ratio() {
        Some(ratio) => format!("{ratio:.2}"),
        None => "–".to_owned(),
    };
    format!(
        "compressed: {} pages to {} KiB, {} same-filled, {} incompressible; {ratio} times as much \
         as the {} KiB that they take\n",
        contents.compressed_pages,
        contents.compressed_bytes >> 10,
        contents.same_filled_pages,
        contents.raw_pages,
        contents.slot_bytes >> 10
    )
}
