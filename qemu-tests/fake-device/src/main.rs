// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A tmem device that lies.
//!
//! Left to its defaults it is an honest, simple device. Each option makes it lie in one way: about
//! itself in the configuration space, or at random in its answers. What it does with pages stays
//! right unless it is told to corrupt them, so that any wrong page in a guest is the driver's
//! fault.
//!
//! A behaviour is what it does with every request until it is told otherwise, on the socket
//! `--control-path`: it keeps answers back, gives results of another operation, and so on. See
//! `behaviour.rs` for their names.

mod answer;
mod behaviour;
mod control;
mod device;
mod lies;
mod store;

use std::{path::PathBuf, sync::Arc};

use anyhow::{Context, Result};
use clap::Parser;
use vhost_user_backend::VhostUserDaemon;
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};

use behaviour::Behaviour;
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
    /// How to behave at first: NAME or NAME:ARGUMENT; may be repeated.
    #[arg(long, value_name = "BEHAVIOUR")]
    behave: Vec<Behaviour>,
    /// The socket on which it is told to behave otherwise.
    #[arg(long)]
    control_path: Option<PathBuf>,
    #[command(flatten)]
    lies: Lies,
}

fn main() -> Result<()> {
    let Args {
        socket_path,
        queues,
        behave,
        control_path,
        lies,
    } = Args::parse();
    let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
    let device = Arc::new(Device::new(lies, behave, queues, memory.clone()));
    device::start_giving_back(&device).context("starting a thread")?;
    if let Some(path) = control_path {
        control::listen(&path, &device)
            .with_context(|| format!("listening on {}", path.display()))?;
    }
    VhostUserDaemon::new("tmem-fake-device".into(), device, memory)
        .map_err(|error| anyhow::anyhow!("{error}"))?
        .serve(&socket_path)
        .map_err(|error| anyhow::anyhow!("{error}"))
        .context("serving the guest")
}
