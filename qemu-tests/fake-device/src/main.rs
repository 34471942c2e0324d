// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A tmem device that lies.
//!
//! Left to its defaults it is an honest, simple device. Each option makes it lie in one way: about
//! itself in the configuration space, or in its answers. What it does with pages stays right
//! unless it is told to corrupt them, so that any wrong page in a guest is the driver's fault.

mod answer;
mod device;
mod lies;
mod store;

use std::{path::PathBuf, sync::Arc};

use anyhow::{Context, Result};
use clap::Parser;
use vhost_user_backend::VhostUserDaemon;
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};

use device::Device;
use lies::Lies;

/// A tmem device that lies.
#[derive(Parser)]
#[command(version, about)]
struct Args {
    /// The socket to listen on.
    #[arg(long)]
    socket_path: PathBuf,
    /// The virtqueues that there are, whatever the configuration space says.
    #[arg(long, default_value_t = 4)]
    queues: usize,
    #[command(flatten)]
    lies: Lies,
}

fn main() -> Result<()> {
    let Args {
        socket_path,
        queues,
        lies,
    } = Args::parse();
    let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
    let device = Arc::new(Device::new(lies, queues, memory.clone()));
    VhostUserDaemon::new("tmem-fake-device".into(), device, memory)
        .map_err(|error| anyhow::anyhow!("{error}"))?
        .serve(&socket_path)
        .map_err(|error| anyhow::anyhow!("{error}"))
        .context("serving the guest")
}
