// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The worker: what may die.
//!
//! A process that was run by the [supervisor](crate::supervisor) with one socket, the
//! [link](crate::link), over which it hears of guests and what they handed over. It serves their
//! virtqueues, keeps their pages, and answers operators. All that it needs to know beyond what it is
//! told is in memory that the supervisor holds, too: the next one goes on from there, whenever this
//! one ends.

mod figures;
mod lend;
mod operated;
mod operations;
mod parts;
mod serve;
mod share;
mod sharing;
mod tidy;
mod tiering;
mod transfer;
mod watched;

use std::{
    ffi::OsString,
    fs, io,
    os::{
        fd::{FromRawFd, OwnedFd, RawFd},
        unix::fs::FileTypeExt,
    },
    path::Path,
    process::ExitCode,
    sync::Arc,
};

use nix::fcntl::{fcntl, FcntlArg};

use crate::{
    args::Config,
    config::Problems,
    control::{Admitted, ControlServer, Operated},
    device::{Engine, EngineConfig, Observer},
    identity::{self, IdentityError},
    limits::{self, Memory, MemoryOf},
    link::{BlamePage, FromWorker, GuestId, Link, LinkError, Received, ToWorker, LINK_VERSION},
    log::{self, Log},
    metrics::MetricsServer,
    pressure,
    sandbox::{self, Places, Role, Sandbox, SandboxError},
    serving::Listener,
    signals::Signals,
    store::{Memory as StoreMemory, SharedPool, Store, StoreError, Walk},
    tier::{spill::Spill, Tier},
};

use operated::Daemon;
use serve::{ServeFaults, Servers, Worker};
use sharing::Sharing;
use tidy::Tidier;
use watched::Watched;

/// The argument that makes a process a worker; the number of an inherited descriptor follows, the
/// worker's end of the [link](crate::link).
pub const ARGUMENT: &str = "--worker-link";

/// Why a worker does not serve.
#[derive(Debug, thiserror::Error)]
enum WorkerError {
    #[error("the supervisor says {0}, and should say what to serve")]
    NoStart(&'static str),
    #[error("the supervisor hands over too few descriptors")]
    FewDescriptors,
    #[error(transparent)]
    Config(#[from] Problems),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    #[error("the link to the supervisor is broken: {0}")]
    Link(#[from] LinkError),
    #[error("the worker cannot begin: {0}")]
    Io(#[from] io::Error),
}

/// Returns the worker's end of the link, if this process is to be a worker. To be called once, by
/// what begins the process.
///
/// # Errors
///
/// If the argument is there, and names no socket.
pub fn inherited_link(mut args: impl Iterator<Item = OsString>) -> Option<io::Result<OwnedFd>> {
    if args.nth(1)? != ARGUMENT {
        return None;
    }
    let fd = args
        .next()
        .and_then(|fd| fd.to_str()?.parse::<RawFd>().ok());
    let link = fd.filter(|fd| *fd > 2).and_then(|fd| {
        let about = fs::metadata(format!("/proc/self/fd/{fd}")).ok()?;
        about.file_type().is_socket().then_some(fd)
    });
    Some(match link {
        // SAFETY: Whoever ran this process left the descriptor open for it, it is a socket, and
        // nobody else in the process knows of it yet.
        Some(fd) => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        None => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{ARGUMENT} is for the daemon itself: it names no socket"),
        )),
    })
}

/// Serves what the supervisor at the other end of `socket` says, until that says to stop or is gone.
pub fn run(socket: OwnedFd) -> ExitCode {
    // They are for the supervisor, which may be in the same process group or service.
    let signals = Signals::block();
    let link = Arc::new(Link::new(socket));
    match signals
        .map_err(WorkerError::from)
        .and_then(|_| begin(&link))
    {
        Ok(()) => ExitCode::SUCCESS,
        // There is nobody left to serve.
        Err(WorkerError::Link(LinkError::Closed)) => ExitCode::SUCCESS,
        Err(error) => {
            let why = error.to_string();
            if link.send(&FromWorker::Failed { why }, &[]).is_err() {
                log::last_words(&format!("vhost-device-tmem: {error}"));
            }
            ExitCode::FAILURE
        }
    }
}

fn begin(link: &Arc<Link>) -> Result<(), WorkerError> {
    let hello = FromWorker::Hello {
        version: LINK_VERSION,
        program: env!("CARGO_PKG_VERSION").to_owned(),
    };
    link.send(&hello, &[])?;
    let Received {
        message,
        descriptors,
    } = link.receive::<ToWorker>()?;
    let ToWorker::Start {
        options,
        threads,
        control,
        metrics,
        tier,
        worker_starts,
        guests,
        known,
        terms,
        shared,
    } = message
    else {
        return Err(WorkerError::NoStart("something else"));
    };
    let mut descriptors = descriptors.into_iter();
    let mut next = || descriptors.next().ok_or(WorkerError::FewDescriptors);
    let page = Arc::new(BlamePage::open(next()?)?);
    let control = if control { Some(next()?) } else { None };
    let memory = StoreMemory::from_descriptors([next()?, next()?]);
    let claim = next()?;
    let metrics = if metrics { Some(next()?) } else { None };
    let tier = if tier { Some(next()?) } else { None };
    // How much memory there is was looked at when the store's was made.
    let any = Memory {
        bytes: u64::MAX,
        of: MemoryOf::Host,
    };
    let config = options.settings(&any)?;
    let mut log = Log::start(config.log_level);
    limits::stay_in_memory();
    let operators = config.control_group.as_deref();
    let operators = operators
        .map(|group| identity::group(group, "--control-group"))
        .transpose()?;
    let root = config.fault_pressure.as_deref();
    let files = pressure::Files::open(root.unwrap_or(Path::new("/")), config.pressure);
    if config.sandbox == Sandbox::On {
        // What is missing was told when the supervisor missed it.
        sandbox::enter(Role::Worker, &Places::default())?;
    }
    log.background()?;
    // For as long as this process is there.
    std::mem::forget(claimed(claim)?);
    let spill = match (&config.tier_file, tier) {
        (Some((_, size)), Some(file)) => Some(Spill::start(file.into(), *size)?),
        _ => None,
    };
    let tier = spill.map(|spill| Arc::new(spill) as Arc<dyn Tier>);
    let has_tier = tier.is_some();
    let (store, lost) = recover(&config, memory, tier, &known, shared)?;
    let store = Arc::new(store);
    let tiering = has_tier.then(|| tiering::start(Arc::clone(&store)));
    let tidier = Tidier::start(Arc::clone(&store), tiering.transpose()?)?;
    let watched = Arc::new(Watched::new(page, Arc::clone(link), tidier));
    let engine = Engine::start(
        Arc::clone(&store),
        EngineConfig {
            // Where it matters whose turn it is, there is one thread.
            threads: if threads > 0 {
                threads as usize
            } else {
                config.threads
            },
            poll: config.poll,
            limits: config.limits,
            taken_anyway: config.fault_take_chunks,
        },
        Arc::clone(&watched) as Arc<dyn Observer>,
    )?;
    let engine = Arc::new(engine);
    let lending = match config.window_dir {
        Some(_) => Some(lend::start(Arc::clone(engine.lenders()))?),
        None => None,
    };
    let sharing = Sharing::new(Arc::clone(&store), terms);
    let daemon = Daemon::new(
        Arc::clone(link),
        store,
        sharing,
        &engine,
        &guests,
        worker_starts,
    );
    let daemon = Arc::new(daemon);
    share::start(Arc::clone(&daemon), files, lending)?;
    let operated = Arc::clone(&daemon) as Arc<dyn Operated>;
    // What operators ask for comes after this.
    link.send(&FromWorker::Ready { lost }, &[])?;
    let metrics = metrics.map(|socket| {
        let listener = Listener::of(socket);
        MetricsServer::start(listener, Arc::clone(&operated))
    });
    let metrics = metrics.transpose()?;
    let control = match control {
        Some(listener) => {
            let admitted = Admitted::new(operators);
            Some(ControlServer::start(listener.into(), admitted, operated)?)
        }
        None => None,
    };
    Worker {
        link: Arc::clone(link),
        watched,
        engine,
        daemon,
        faults: ServeFaults {
            crash: config.fault_crash_guest.clone(),
            hang: config.fault_hang_guest.clone(),
        },
    }
    .run(Servers { control, metrics })?;
    Ok(())
}

/// Waits until no other process has the store's memory in use. A supervisor that is killed takes its
/// worker with it, but the next supervisor may be there before that one is gone.
fn claimed(claim: OwnedFd) -> io::Result<OwnedFd> {
    let whole = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    // Locks of this kind are the process's, so that it does not matter who opened the file.
    fcntl(&claim, FcntlArg::F_SETLKW(&whole))?;
    Ok(claim)
}

/// Takes over the pages that a worker before has left, but for those of guests who are gone, and of
/// pools that are shared no more. Returns the store, and how many descriptions in it were damaged.
fn recover(
    config: &Config,
    memory: StoreMemory,
    tier: Option<Arc<dyn Tier>>,
    known: &[GuestId],
    shared: Vec<SharedPool>,
) -> Result<(Store, u64), WorkerError> {
    let (store, recovered) = Store::recover_above(&config.store(), memory, tier)?;
    store.set_shared(shared);
    let mut gone = 0;
    for guest in &recovered.guests {
        if !known.contains(&GuestId(guest.guest)) {
            let place = store.guest(guest.guest);
            // The memory is freed when there is nothing better to do.
            let (_, dropped) = Walk::remove_guest(&store, &place);
            gone += dropped.persistent.pages + dropped.ephemeral.pages;
        }
    }
    if recovered.pages > 0 {
        tracing::info!(
            "took {} pages over, {gone} of them of guests that are gone; {} are damaged",
            recovered.pages,
            recovered.damaged
        );
    }
    Ok((store, recovered.lost))
}
