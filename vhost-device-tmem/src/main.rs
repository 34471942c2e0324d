// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The daemon: reads the command line, serves until a signal says to stop, and cleans up.

use std::{
    io::{self, IsTerminal},
    process::ExitCode,
    sync::Arc,
};

use clap::Parser;
use tracing_subscriber::{filter::Targets, layer::SubscriberExt, util::SubscriberInitExt};
use vhost_device_tmem::{
    args::{Args, ArgsError, Config},
    control::{ControlError, ControlServer},
    device::{Engine, EngineConfig, GuestId, ListenError, Listening},
    store::{self, Store, StoreError},
};

/// Why the daemon does not run.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Args(#[from] ArgsError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error(transparent)]
    Control(#[from] ControlError),
    #[error("cannot start the threads that serve guests: {0}")]
    Engine(#[source] io::Error),
    #[error("cannot wait for signals: {0}")]
    Signals(#[source] io::Error),
}

fn main() -> ExitCode {
    let args = Args::parse();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("vhost-device-tmem: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<(), Failure> {
    let config = args.config(host_memory())?;
    start_log(&config);
    // Before there are threads, which inherit it.
    let signals = Signals::block().map_err(Failure::Signals)?;
    let store = Store::new(&store::Config {
        compression: config.compression,
        faults: config.faults,
        huge_pages: config.huge_pages,
        ..store::Config::shared(config.capacity, config.guests.len() as u32)
    })?;
    let store = Arc::new(store);
    if config.faults != Default::default() {
        tracing::warn!("misbehaving on purpose: {:?}", config.faults);
    }
    let engine_config = EngineConfig {
        threads: config.threads,
        poll: config.poll,
        limits: config.limits,
    };
    let engine = Engine::start(Arc::clone(&store), engine_config, Arc::new(()));
    let engine = Arc::new(engine.map_err(Failure::Engine)?);
    let mut listening = Vec::new();
    for (number, guest) in (0..).zip(&config.guests) {
        let (name, path) = (&guest.name, &guest.path);
        let guest = Listening::start(&engine, GuestId(number), name, path)?;
        listening.push(guest);
    }
    let slots = listening
        .iter()
        .map(|guest| Arc::clone(guest.slot()))
        .collect();
    let control = match &config.control_path {
        Some(path) => Some(ControlServer::start(path, Arc::clone(&store), slots)?),
        None => None,
    };
    let signal = signals.wait().map_err(Failure::Signals)?;
    tracing::info!("stopping on signal {signal}");
    drop(control);
    drop(listening);
    Ok(())
}

fn start_log(config: &Config) {
    // What the framework says of each broken virtqueue, the device says itself, but not as often.
    let targets = Targets::new()
        .with_default(config.log_level)
        .with_target("virtio_queue", tracing_subscriber::filter::LevelFilter::OFF);
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal());
    tracing_subscriber::registry()
        .with(lines)
        .with(targets)
        .init();
}

/// Returns the host's memory in bytes; without limit if it is not known.
fn host_memory() -> u64 {
    // SAFETY: Plain queries.
    let (pages, size) = unsafe {
        (
            libc::sysconf(libc::_SC_PHYS_PAGES),
            libc::sysconf(libc::_SC_PAGESIZE),
        )
    };
    match (u64::try_from(pages), u64::try_from(size)) {
        (Ok(pages), Ok(size)) => pages.saturating_mul(size),
        _ => u64::MAX,
    }
}

/// The signals that end the daemon, blocked in all threads.
struct Signals(libc::sigset_t);

impl Signals {
    fn block() -> io::Result<Self> {
        // SAFETY: The set is plain data, initialised by `sigemptyset`.
        let set = unsafe {
            let mut set = std::mem::zeroed();
            libc::sigemptyset(&raw mut set);
            libc::sigaddset(&raw mut set, libc::SIGTERM);
            libc::sigaddset(&raw mut set, libc::SIGINT);
            set
        };
        // SAFETY: The set is initialised.
        match unsafe {
            libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut())
        } {
            0 => Ok(Self(set)),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }

    fn wait(&self) -> io::Result<i32> {
        let mut signal = 0;
        // SAFETY: The set is initialised, and `signal` is ours.
        match unsafe { libc::sigwait(&raw const self.0, &raw mut signal) } {
            0 => Ok(signal),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }
}
