// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The supervisor: what must live.
//!
//! ```text
//! front-ends ── acceptor ── connection (a thread each) ── frontend ─┐
//!                                                                   ├── hub ── link ── worker
//! signals ──────────────── manager (workers' lives) ────────────────┘
//!                             └── policy (decides)        guest (what is known of each)
//!                                                         share (asks front-ends for windows)
//! ```
//!
//! It holds the connections, and everything that front-ends handed over, and the memory of the
//! store. It looks into none of that memory: whatever a guest writes is for the worker to read, which
//! may die of it. A worker that dies, hangs, or is to be replaced by a newer one is followed by
//! another, which is told all that is known, and goes on where the one before was.
//!
//! The connections are never closed from here, except where the front-end speaks another protocol:
//! to QEMU the end of one is the end of the virtual machine.

mod acceptor;
mod activated;
mod changes;
mod checks;
mod connection;
mod frontend;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod guest;
mod hub;
mod keep;
mod manager;
mod policy;
mod process;
mod program;
mod service;
mod settling;
mod share;
mod stream;
mod takeover;
mod watched;

use std::{
    io,
    os::{fd::OwnedFd, unix::net::UnixListener},
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use nix::sys::memfd::{memfd_create, MFdFlags};

pub use changes::{purpose, Premises, Settings};
pub use takeover::{Inherited, Passed};

use acceptor::Acceptor;
use changes::Changes;
use hub::Hub;
use manager::{Manager, Needs};
use process::StartError;

use crate::{link::GuestId, serving::Listener, signals::Signals, window::WindowFiles};

/// How long connections' threads may take to come to the end of a message.
const PATIENCE: Duration = Duration::from_millis(300);

/// The store's memory and the file by whose lock workers have it one after the other: so many
/// descriptors.
pub const MEMORY: usize = 3;

/// Makes the file by whose lock workers have the store's memory one after the other.
///
/// # Errors
///
/// The operating system's.
pub fn new_claim() -> io::Result<OwnedFd> {
    Ok(memfd_create(c"tmem claim", MFdFlags::MFD_CLOEXEC)?)
}

/// Why the supervisor does not go on.
#[derive(Debug, thiserror::Error)]
pub enum SupervisorError {
    /// There never was a worker.
    #[error("{0}")]
    Worker(String),
    /// The operating system refused.
    #[error("cannot supervise: {0}")]
    Io(#[from] io::Error),
}

impl From<StartError> for SupervisorError {
    fn from(error: StartError) -> Self {
        Self::Worker(error.to_string())
    }
}

/// A guest.
#[derive(Debug)]
pub struct GuestSetup {
    /// Its number.
    pub number: GuestId,
    /// Its name.
    pub name: String,
    /// The socket that its front-end connects to.
    pub listener: UnixListener,
    /// Its window, if it has one.
    pub window: Option<WindowFiles>,
    /// Where both are.
    pub premises: Premises,
}

/// What to supervise.
#[derive(Debug)]
pub struct Setup {
    /// The guests.
    pub guests: Vec<GuestSetup>,
    /// The operator's socket, which workers serve.
    pub control: Option<UnixListener>,
    /// The socket of metrics, which workers serve, too.
    pub metrics: Option<Listener>,
    /// The store's memory.
    pub memory: Vec<OwnedFd>,
    /// The spill file, if there is one.
    pub tier: Option<OwnedFd>,
    /// What the daemon was told.
    pub settings: Settings,
    /// Where an upgrade takes the program from.
    pub program: PathBuf,
    /// What a supervisor before has left.
    pub inherited: Inherited,
}

/// Serves until it is time to stop. Returns whether another supervisor is to go on with the sockets.
///
/// # Errors
///
/// [`SupervisorError`].
pub fn run(setup: Setup, signals: Signals) -> Result<bool, SupervisorError> {
    let mut inherited = setup.inherited;
    let mut guests = Vec::new();
    let mut members = Vec::new();
    let (mut listeners, mut resumed) = (Vec::new(), Vec::new());
    let mut waiting = Vec::new();
    inherited.keep_windows(&setup.guests);
    for each in setup.guests {
        let GuestSetup {
            number: guest,
            name,
            listener,
            window,
            premises,
        } = each;
        let connection = inherited.connections.remove(&guest);
        if let Some(connection) = &connection {
            let (socket, past) = takeover::resume(connection)?;
            resumed.push((guest, socket, past));
        }
        waiting.push((name.clone(), listener.local_addr().ok()));
        members.push((guest, name.clone(), premises));
        guests.push((guest, name, window, connection));
        listeners.push((guest, listener));
    }
    inherited.keep(&listeners, setup.control.as_ref(), &setup.memory);
    let operators = setup
        .control
        .as_ref()
        .and_then(|control| control.local_addr().ok());
    let metrics = setup.metrics.as_ref().and_then(Listener::address);
    let outlived = inherited.keeper.keeps();
    let hub = Arc::new(Hub::new(
        guests,
        setup.settings.config.window_source,
        inherited.keeper,
    )?);
    if !inherited.frozen.is_empty() {
        hub.freeze(&inherited.frozen, true);
    }
    let limits = setup.settings.config.limits;
    let acceptor = Acceptor::new(Arc::clone(&hub), limits, listeners, resumed)?;
    let acceptor = Arc::new(acceptor);
    let changes = Changes::new(
        setup.settings,
        members,
        inherited.shared,
        Arc::clone(&hub),
        Arc::clone(&acceptor),
    );
    let mut manager = Manager::new(Needs {
        hub: Arc::clone(&hub),
        signals,
        changes,
        control: setup.control.map(OwnedFd::from),
        metrics: setup.metrics.map(OwnedFd::from),
        memory: setup.memory,
        tier: setup.tier,
        program: setup.program,
        outlived,
    })?;
    match manager.start() {
        // It is asked to stop, most likely.
        Ok(()) | Err(StartError::Interrupted) => {}
        Err(error) => return Err(error.into()),
    }
    let accepting = acceptor::start(acceptor)?;
    service::ready();
    for (name, address) in &waiting {
        if let Some(path) = address.as_ref().and_then(|address| address.as_pathname()) {
            tracing::info!("waiting for guest {name:?} on {}", path.display());
        }
    }
    if let Some(path) = operators.as_ref().and_then(|address| address.as_pathname()) {
        tracing::info!("waiting for operators on {}", path.display());
    }
    if let Some(address) = metrics {
        tracing::info!("serving metrics on {address}");
    }
    let ran = manager.run();
    // Each connection's thread answers what it has taken, and takes nothing more.
    accepting.ask();
    service::stopping();
    let until = Instant::now() + PATIENCE;
    if let Err(late) = accepting.end(until) {
        tracing::warn!("{late}");
    }
    if !hub.wait_quiet(until) {
        tracing::warn!("a front-end's message is not carried out to its end");
    }
    manager.end();
    ran?;
    if outlived {
        // The next one listens on the sockets.
        manager.leave();
    }
    Ok(outlived)
}
