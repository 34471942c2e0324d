// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The daemon: reads the command line, serves until somebody says to stop, and cleans up.

use std::{
    io,
    path::PathBuf,
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use clap::Parser;
use vhost_device_tmem::{
    args::{Args, ArgsError, Config},
    control::{stat, Admitted, ControlServer, Operated, Stat},
    device::{ListenError, Listening, Slot},
    identity::{self, Identity, IdentityError},
    limits::{self, FewDescriptors},
    log::Log,
    sandbox::{self, Places, Role, Sandbox, SandboxError},
    signals::{Signal, Signals},
    size::Bytes,
    socket::{OwnedSocket, Rights, SocketError},
    stop::{self, StopToken},
    stop_policy::{Asked, Decision, StopPolicy, WINDOW},
    store::{Store, StoreError},
};

/// How long guests' threads may take to end.
const PATIENCE: Duration = Duration::from_millis(800);

/// Why the daemon does not run.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Args(#[from] ArgsError),
    #[error(transparent)]
    Descriptors(#[from] FewDescriptors),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    Socket(#[from] SocketError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error("cannot {what}: {error}")]
    Io {
        what: &'static str,
        #[source]
        error: io::Error,
    },
}

fn cannot(what: &'static str) -> impl FnOnce(io::Error) -> Failure {
    move |error| Failure::Io { what, error }
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
    let config = args.config(&limits::memory())?;
    let mut log = Log::start(config.log_level);
    // Before there are threads, which inherit it.
    let signals = Signals::block().map_err(cannot("wait for signals"))?;
    reckon(&config)?;
    let groups = groups(&config)?;
    if let Some(identity) = Identity::resolve(config.user.as_deref(), config.group.as_deref())? {
        let also: Vec<_> = groups.0.into_iter().chain(groups.1).collect();
        identity.assume(&also)?;
    }
    let store = Store::new(
        config.capacity,
        config.compression,
        config.faults,
        config.huge_pages,
    )?;
    let store = Arc::new(store);
    if config.faults != Default::default() {
        tracing::warn!("misbehaving on purpose: {:?}", config.faults);
    }
    let (sockets, control) = bind(&config, groups)?;
    if config.sandbox == Sandbox::On {
        let own = sockets.iter().chain(&control).map(|(socket, _)| socket);
        let places = Places {
            sockets: own.map(|socket| socket.directory().to_owned()).collect(),
            ..Places::default()
        };
        for missing in sandbox::enter(Role::Supervisor, &places)? {
            tracing::warn!("{missing}");
        }
    } else {
        tracing::warn!("running without a sandbox");
    }
    log.background().map_err(cannot("write a log"))?;
    let mut listening = Vec::new();
    for (guest, socket) in config.guests.iter().zip(sockets) {
        let guest = Listening::start(&guest.name, socket, &store, config.limits, config.poll)?;
        listening.push(guest);
    }
    let slots = listening.iter().map(|guest| Arc::clone(guest.slot()));
    let operated = Arc::new(Daemon {
        store: Arc::clone(&store),
        slots: slots.collect(),
        policy: Mutex::new(StopPolicy::new(config.stop_loses_pages)),
        stop: StopToken::new().map_err(cannot("wait"))?,
    });
    let (_socket, server) = match control {
        None => (None, None),
        Some((socket, listener)) => {
            let admitted = Admitted::new(groups.1);
            let server = ControlServer::start(listener, admitted, operated.clone());
            let server = server.map_err(cannot("serve the control socket"))?;
            tracing::info!("waiting for operators on {}", socket.path().display());
            (Some(socket), Some(server))
        }
    };
    let failed = serve(&signals, &operated);
    drop(server);
    let guests = stop::within(Instant::now() + PATIENCE, "ending guests", move || {
        drop(listening);
    });
    if let Err(late) = guests {
        tracing::warn!("{late}");
    }
    failed.map_err(cannot("wait for signals"))
}

/// Compares what there will be with what there may be.
fn reckon(config: &Config) -> Result<(), Failure> {
    if let Err(error) = limits::adjust_oom_score(config.oom_score_adj) {
        tracing::info!(
            "this process may not be given --oom-score-adj {} ({error}): it keeps the one it has",
            config.oom_score_adj
        );
    }
    let have = limits::raise_descriptors().map_err(cannot("raise the limit of descriptors"))?;
    let queues = config.limits.data_queues + 2;
    match limits::check_descriptors(have, config.guests.len(), queues) {
        Err(few) if few.hopeless => Err(few.into()),
        Err(few) => {
            tracing::warn!("{few}; until then not all guests can be connected at a time");
            Ok(())
        }
        Ok(()) => Ok(()),
    }
}

/// The groups of the guests' sockets, and of the operator's.
type Groups = (Option<u32>, Option<u32>);

fn groups(config: &Config) -> Result<Groups, IdentityError> {
    let group = |name: &Option<String>, option| match name {
        Some(name) => identity::group(name, option).map(Some),
        None => Ok(None),
    };
    Ok((
        group(&config.socket_group, "--socket-group")?,
        group(&config.control_group, "--control-group")?,
    ))
}

type Bound = (OwnedSocket, std::os::unix::net::UnixListener);

/// Listens on all sockets.
fn bind(config: &Config, groups: Groups) -> Result<(Vec<Bound>, Option<Bound>), SocketError> {
    let rights = Rights {
        mode: config.socket_mode,
        group: groups.0,
    };
    let guests = config.guests.iter().map(|guest| {
        let purpose = format!("guest {:?}", guest.name);
        OwnedSocket::bind(&guest.path, rights, &purpose)
    });
    let guests = guests.collect::<Result<_, _>>()?;
    let rights = Rights {
        mode: if groups.1.is_some() { 0o660 } else { 0o600 },
        group: groups.1,
    };
    let control = config.control_path.as_ref();
    let control = control.map(|path: &PathBuf| OwnedSocket::bind(path, rights, "operators"));
    Ok((guests, control.transpose()?))
}

/// Does what signals ask for until the daemon is to stop.
fn serve(signals: &Signals, daemon: &Daemon) -> io::Result<()> {
    while let Some(signal) = signals.wait(&daemon.stop)? {
        match signal {
            Signal::Terminate | Signal::Interrupt => match daemon.ask(Asked::Plainly) {
                Ok(()) => tracing::info!("stopping on {signal}"),
                Err(why) => tracing::warn!(
                    "not stopping on {signal}: {why}; send it again within {} seconds to lose them",
                    WINDOW.as_secs()
                ),
            },
            Signal::Reload => tracing::info!("{signal}: there is nothing to read again"),
            Signal::Statistics => daemon.summarise(),
            Signal::Upgrade => {
                if let Err(why) = daemon.upgrade() {
                    tracing::warn!("{signal}: {why}");
                }
            }
        }
    }
    Ok(())
}

/// What operators and signals ask things of.
struct Daemon {
    store: Arc<Store>,
    slots: Vec<Arc<Slot>>,
    policy: Mutex<StopPolicy>,
    stop: StopToken,
}

impl Daemon {
    /// Stops, or says why not.
    fn ask(&self, asked: Asked) -> Result<(), String> {
        let report = self.store.report();
        let persistent = report.used_pages.saturating_sub(report.ephemeral_pages);
        let mut policy = self.policy.lock().unwrap_or_else(PoisonError::into_inner);
        match policy.decide(Instant::now(), asked, persistent) {
            Decision::Stop { loses } => {
                if loses > 0 {
                    tracing::warn!("{loses} persistent pages are lost by stopping");
                }
                self.stop.ask();
                Ok(())
            }
            Decision::Refuse { would_lose } => Err(format!(
                "guests would lose {would_lose} persistent pages that only this daemon has"
            )),
        }
    }

    fn summarise(&self) {
        let stat = Operated::stat(self);
        let connected = stat.guests.iter().filter(|guest| guest.connected).count();
        let requests: u64 = stat.guests.iter().map(|guest| guest.requests).sum();
        tracing::info!(
            "{connected} of {} guests connected, {requests} requests; {} of {} used, {} resident; \
             {} pages, {} of them ephemeral; {} evictions",
            stat.guests.len(),
            Bytes(stat.used_bytes),
            Bytes(stat.capacity_bytes),
            Bytes(stat.resident_bytes),
            stat.used_pages,
            stat.ephemeral_pages,
            stat.evictions
        );
    }
}

impl Operated for Daemon {
    fn stat(&self) -> Stat {
        stat(&self.store, self.slots.iter().map(|slot| &**slot))
    }

    fn stop(&self, force: bool) -> Result<String, String> {
        let asked = if force {
            Asked::ByForce
        } else {
            Asked::Plainly
        };
        match self.ask(asked) {
            Ok(()) => {
                tracing::info!("stopping as an operator asked");
                Ok("stopping".to_owned())
            }
            Err(why) => {
                tracing::warn!("not stopping as an operator asked: {why}");
                Err(format!("{why}; stop --force loses them"))
            }
        }
    }

    fn upgrade(&self) -> Result<String, String> {
        Err("this daemon cannot go on with a new binary; stop it and start it again".to_owned())
    }
}
