// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Loads the daemon, or what could stand in its place, and says how fast it was.
//!
//! It is a guest without a virtual machine: it shares memory with the devices, and keeps so many
//! requests in flight. Each line of its standard input is one run, as JSON, and each line of its
//! standard output is what the run came to. Who writes the lines decides what runs beside what.

mod bare;
mod blk;
mod compress;
mod layout;
mod load;
mod tmem;

use std::{
    fs::File,
    io::{BufRead, Read, Write},
    path::PathBuf,
};

use anyhow::{Context, Result};
use clap::Parser;
use serde::Deserialize;

use crate::{bare::Bare, blk::Disk, layout::Layout, load::Pace, tmem::Guests};

/// Loads tmem and block devices over vhost-user.
#[derive(Debug, Parser)]
#[command(name = "tmem-daemon-load")]
struct Args {
    /// Socket of a tmem device; repeat it for each guest.
    #[arg(long, value_name = "PATH")]
    tmem: Vec<PathBuf>,

    /// Socket of a block device; repeat it for each.
    #[arg(long, value_name = "PATH")]
    blk: Vec<PathBuf>,

    /// Pages to put and to get.
    #[arg(long, value_name = "N", default_value_t = 131_072)]
    pages: u32,

    /// The processor of this driver.
    #[arg(long, value_name = "N")]
    cpu: usize,

    /// The processor of the devices, and of what does their work without a device.
    #[arg(long, value_name = "N")]
    device_cpu: usize,
}

/// One line of the input.
#[derive(Debug, Deserialize)]
#[serde(tag = "run", rename_all = "lowercase")]
enum Run {
    /// Fills the pages that are put with what a file holds, again and again.
    Contents { path: PathBuf },
    /// Has guests forget all that they put.
    Empty {
        /// The first of them.
        first: usize,
        #[serde(default = "one")]
        guests: usize,
    },
    /// Requests to tmem devices.
    Tmem {
        operation: tmem::Operation,
        /// The first guest that takes part.
        first: usize,
        #[serde(default = "one")]
        guests: usize,
        /// Data virtqueues of each.
        #[serde(default = "one")]
        queues: usize,
        #[serde(flatten)]
        pace: Pace,
    },
    /// Requests to a block device.
    Blk {
        device: usize,
        write: bool,
        #[serde(flatten)]
        pace: Pace,
    },
    /// Plain copies.
    Copy {
        /// Out of the shared memory; into it otherwise.
        out: bool,
        /// Whether the other memory is asked for in huge pages.
        huge: bool,
    },
    /// Plain compression, or decompression, page by page.
    Compress {
        method: compress::Method,
        decompress: bool,
    },
}

fn one() -> usize {
    1
}

fn main() -> Result<()> {
    let args = Args::parse();
    let layout = Layout::new(args.pages, args.tmem.len(), args.blk.len());
    let mem = tmem_driver::memory(layout.bytes()).context("no memory to share")?;
    let mut guests = Guests::connect(&args.tmem, &mem, &layout, args.cpu)?;
    let disks = args.blk.iter().enumerate().map(|(n, path)| {
        let disk = Disk::connect(path, &mem, &layout, n, args.cpu);
        disk.with_context(|| format!("{}", path.display()))
    });
    let mut disks = disks.collect::<Result<Vec<_>>>()?;
    let mut bare = Bare::new(&mem, &layout, args.device_cpu)?;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let run = serde_json::from_str(&line).with_context(|| format!("no run: {line}"))?;
        let result = match run {
            Run::Contents { path } => {
                let mut bytes = Vec::new();
                let read = File::open(&path).and_then(|mut file| file.read_to_end(&mut bytes));
                read.with_context(|| format!("{}", path.display()))?;
                layout.fill(&mem, &bytes)?;
                serde_json::Value::Null
            }
            Run::Empty {
                first,
                guests: count,
            } => {
                guests.empty(first..first + count)?;
                serde_json::Value::Null
            }
            Run::Tmem {
                operation,
                first,
                guests: count,
                queues,
                pace,
            } => {
                let outcome = guests.run(operation, first..first + count, queues, &pace)?;
                serde_json::to_value(outcome)?
            }
            Run::Blk {
                device,
                write,
                pace,
            } => {
                let disk = disks.get_mut(device).context("no such block device")?;
                serde_json::to_value(disk.run(write, &pace)?)?
            }
            Run::Compress { method, decompress } => {
                let speed = compress::run(method, decompress, &mem, &layout, args.device_cpu)?;
                serde_json::to_value(speed)?
            }
            Run::Copy { out, huge } => serde_json::to_value(bare.copy(out, huge)?)?,
        };
        let mut output = std::io::stdout().lock();
        serde_json::to_writer(&mut output, &result)?;
        output.write_all(b"\n")?;
        output.flush()?;
    }
    Ok(())
}
