// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The daemon: reads the command line, takes what it needs, and then is the supervisor, or a worker
//! of one.

use std::{
    io,
    os::{fd::OwnedFd, unix::net::UnixListener},
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::Parser;
use vhost_device_tmem::{
    args::{Args, Config, GuestConfig},
    config::{Edits, Problems, Sources},
    identity::{self, Identity, IdentityError},
    limits::{self, FewDescriptors},
    link::GuestId,
    log::{self, Log},
    metrics::Address,
    sandbox::{self, Places, Role, Sandbox, SandboxError},
    serving::Listener,
    signals::Signals,
    socket::{self, listen_at, OwnedSocket, Rights, SocketError},
    store::{HugePages, Memory, StoreError},
    supervisor::{self, GuestSetup, Inherited, Passed, Premises, Settings, Setup, SupervisorError},
    tier::spill::{self, SpillError},
    tmpfs::Tmpfs,
    window::{self, OwnedPath, WindowError, WindowFiles},
    worker,
};

/// Why the daemon does not run.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Config(#[from] Problems),
    #[error(transparent)]
    Descriptors(#[from] FewDescriptors),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    Socket(#[from] SocketError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Spill(#[from] SpillError),
    #[error(transparent)]
    Window(#[from] WindowError),
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    #[error(transparent)]
    Supervisor(#[from] SupervisorError),
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
    let failure = match worker::inherited_link(std::env::args_os()) {
        Some(Ok(link)) => return worker::run(link),
        Some(Err(error)) => error.to_string(),
        None => match run(Args::parse()) {
            Ok(()) => return ExitCode::SUCCESS,
            Err(failure) => failure.to_string(),
        },
    };
    log::last_words(&format!("vhost-device-tmem: {failure}"));
    ExitCode::FAILURE
}

fn run(args: Args) -> Result<(), Failure> {
    let given = Sources {
        args,
        ..Sources::default()
    };
    let (mut sources, wrong) = Sources::read(&given)?;
    let host = limits::memory();
    let (mut config, mut missing) = sources.config_of_known(&host)?;
    if sources.args.check_config {
        let wrong = wrong.into_iter().flat_map(|problems| problems.0);
        let wrong: Vec<_> = wrong.chain(missing).collect();
        if !wrong.is_empty() {
            return Err(Problems(wrong).into());
        }
        println!(
            "the configuration is well, with {} guests",
            config.guests.len()
        );
        return Ok(());
    }
    let mut log = Log::start(config.log_level);
    limits::raise_locked().map_err(cannot("look at the limit of locked memory"))?;
    limits::stay_in_memory();
    for problems in &wrong {
        tracing::error!("there is no such guest until its file is mended: {problems}");
    }
    // Before there are threads, which inherit it.
    let signals = Signals::block().map_err(cannot("wait for signals"))?;
    // Before anything else is opened.
    let mut inherited = Inherited::take().map_err(cannot("take over from the daemon before"))?;
    // What was changed while it ran is so after a restart as well.
    sources.edits = inherited.edits();
    match sources.config_of_known(&host) {
        Ok(edited) => (config, missing) = edited,
        Err(problems) => {
            tracing::error!("what tmemctl changed of guests is left out: {problems}");
            sources.edits = Edits::default();
        }
    }
    for problem in &missing {
        tracing::warn!("a guest shares nothing until it is there: {problem}");
    }
    let descriptors = reckon(&config)?;
    let groups = groups(&config)?;
    // With the privileges that are left.
    let memory = memory(&config, &mut inherited)?;
    let tier = tier(&config)?;
    if let Some(identity) = Identity::resolve(config.user.as_deref(), config.group.as_deref())? {
        let also: Vec<_> = groups.0.into_iter().chain(groups.1).collect();
        identity.assume(&also)?;
    }
    if config.faults != Default::default() {
        tracing::warn!("misbehaving on purpose: {:?}", config.faults);
    }
    let names: Vec<_> = config.guests.iter().map(|guest| &*guest.name).collect();
    let numbers = inherited.number(&names);
    let mut guests = Vec::new();
    let rights = Rights {
        mode: config.socket_mode,
        group: groups.0,
    };
    for (guest, number) in config.guests.iter().zip(numbers) {
        let purpose = supervisor::purpose(&guest.name);
        let before = inherited.listener(number, &guest.name, &guest.path)?;
        let (socket, listener) = listen(before, &guest.path, rights, &purpose)?;
        let window = window(&config, guest, number, rights, &mut inherited)?;
        let (window, path) = window.unzip();
        guests.push(GuestSetup {
            number,
            name: guest.name.clone(),
            listener,
            window,
            premises: Premises {
                socket,
                window: path.flatten(),
            },
        });
    }
    if let Some(why) = small_pages_of_windows(&config, &guests) {
        tracing::warn!("{why}");
    }
    let for_operators = Rights {
        mode: if groups.1.is_some() { 0o660 } else { 0o600 },
        group: groups.1,
    };
    let (operators, control) = match &config.control_path {
        None => (None, None),
        Some(path) => {
            let before = inherited.control(path)?;
            let (socket, listener) = listen(before, path, for_operators, "operators")?;
            (Some(socket), Some(listener))
        }
    };
    let (_for_metrics, metrics) = match &config.metrics_listen {
        None => (None, None),
        Some(Address::Tcp(address)) => (None, Some(Listener::Tcp(listen_at(*address)?))),
        Some(Address::Unix(path)) => {
            let (socket, listener) = OwnedSocket::bind(path, for_operators, socket::METRICS)?;
            (Some(socket), Some(Listener::Unix(listener)))
        }
    };
    inherited.drop_other_sockets();
    let program = std::env::current_exe().map_err(cannot("find out which program this is"))?;
    let files = sources.args.config.is_some() || config.guests_dir.is_some();
    let changes = files || control.is_some();
    enter_sandbox(&config, sources.args.config.as_deref(), changes, &program)?;
    log.background().map_err(cannot("write a log"))?;
    let setup = Setup {
        guests,
        control,
        metrics,
        memory,
        tier,
        settings: Settings {
            sources,
            config,
            memory: host,
            rights,
            operators: groups.1,
            descriptors,
        },
        program,
        inherited,
    };
    let outlived = supervisor::run(setup, signals)?;
    if outlived {
        // The next one listens on it.
        operators.into_iter().for_each(OwnedSocket::leave);
    }
    Ok(())
}

/// Compares what there will be with what there may be. Returns how many descriptors that are.
fn reckon(config: &Config) -> Result<u64, Failure> {
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
            Ok(have)
        }
        Ok(()) => Ok(have),
    }
}

/// The groups of the guests' sockets, and of the operator's.
fn groups(config: &Config) -> Result<(Option<u32>, Option<u32>), IdentityError> {
    let group = |name: &Option<String>, option| match name {
        Some(name) => identity::group(name, option).map(Some),
        None => Ok(None),
    };
    Ok((
        group(&config.socket_group, "--socket-group")?,
        group(&config.control_group, "--control-group")?,
    ))
}

/// Listens on a socket, or goes on listening.
fn listen(
    before: Option<Passed>,
    path: &Path,
    rights: Rights,
    purpose: &str,
) -> Result<(OwnedSocket, UnixListener), SocketError> {
    match before {
        Some(Passed {
            listener,
            activated,
        }) => {
            let socket = if activated {
                OwnedSocket::borrow(path, purpose)
            } else {
                OwnedSocket::adopt(path, purpose)
            };
            Ok((socket?, listener))
        }
        None => OwnedSocket::bind(path, rights, purpose),
    }
}

/// Returns the memory of the store, which may be that of a daemon before, and a file by whose lock
/// workers have it one after the other.
fn memory(config: &Config, inherited: &mut Inherited) -> Result<Vec<OwnedFd>, Failure> {
    let memory = inherited.memory();
    if memory.len() == supervisor::MEMORY {
        return Ok(memory);
    }
    let tmpfs = Tmpfs::mount().or_else(|_| Tmpfs::mount_in_namespace());
    let memory = Memory::create(&config.store(), tmpfs.as_ref().ok())?;
    if config.huge_pages == HugePages::On && !memory.has_huge_pages() {
        let why = match tmpfs {
            Ok(_) => "the kernel has none to give for files in memory".to_owned(),
            Err(error) => format!(
                "no file system for them can be mounted ({error}); start the daemon as root \
                 (--user), or let it have user namespaces, or set \
                 /sys/kernel/mm/transparent_hugepage/shmem_enabled to advise"
            ),
        };
        tracing::warn!(
            "the store has no huge pages, so that a page that is put into new memory takes about \
             three times as long: {why}; --huge-pages off is content with that"
        );
    }
    let copies = memory.descriptors().map(|file| file.try_clone_to_owned());
    let mut files = copies.into_iter().collect::<Result<Vec<_>, _>>();
    if let Ok(files) = &mut files {
        files.push(supervisor::new_claim().map_err(cannot("make a file in memory"))?);
    }
    files.map_err(cannot("keep the store's memory"))
}

/// Opens the spill file, if there is to be one.
fn tier(config: &Config) -> Result<Option<OwnedFd>, SpillError> {
    let Some((path, size)) = &config.tier_file else {
        return Ok(None);
    };
    // No other daemon listens there.
    let guests = config.guests.iter().map(|guest| &guest.path);
    let socket = config.control_path.iter().chain(guests).next();
    let identity = spill::identity(socket.map_or(Path::new("no socket"), PathBuf::as_path));
    spill::prepare(path, *size, &identity).map(|file| Some(file.into()))
}

/// Returns a guest's window, which may be that of a daemon before, and its path if the file is there.
fn window(
    config: &Config,
    guest: &GuestConfig,
    number: GuestId,
    rights: Rights,
    inherited: &mut Inherited,
) -> Result<Option<(WindowFiles, Option<OwnedPath>)>, Failure> {
    let before = inherited.window(number);
    let (Some(directory), Some(size)) = (&config.window_dir, guest.window) else {
        return Ok(None);
    };
    // The guest has it mapped, whatever the size is to be by now.
    if let Some(window) = before {
        let path = OwnedPath::adopt(directory, &guest.name, &window);
        if path.is_none() {
            tracing::warn!(
                "the window of guest {:?} is not in {} any more: the guest goes on with it, and a \
                 machine that is started anew does not find it",
                guest.name,
                directory.display()
            );
        }
        return Ok(Some((window, path)));
    }
    let (window, path) = window::create(directory, &guest.name, size, rights)?;
    tracing::info!(
        "guest {:?} has the window {}",
        guest.name,
        path.path().display()
    );
    Ok(Some((window, Some(path))))
}

/// Returns why windows have small pages, where there are windows and that is so.
fn small_pages_of_windows(config: &Config, guests: &[GuestSetup]) -> Option<String> {
    let directory = config.window_dir.as_ref()?;
    let mut windows = guests.iter().filter_map(|guest| guest.window.as_ref());
    windows.next().and_then(|_| window::small_pages(directory))
}

fn enter_sandbox(
    config: &Config,
    file: Option<&Path>,
    changes: bool,
    program: &Path,
) -> Result<(), Failure> {
    if config.sandbox == Sandbox::None {
        tracing::warn!("running without a sandbox");
        return Ok(());
    }
    // Workers are run from the same place, also when another program is there then.
    let programs = ["/lib", "/lib64", "/usr/lib", "/usr/lib64"].map(PathBuf::from);
    let own = program.parent().map(Path::to_owned);
    let read = ["/dev/null", "/etc/ld.so.cache", "/proc", "/sys/fs/cgroup"];
    let sockets = config.directories().into_iter();
    let sockets: Vec<_> = sockets.chain(config.window_dir.clone()).collect();
    // The whole directory, since editors put a new file in the place of the old one.
    let file = file.map(|file| socket::directory(file).to_owned());
    let places = Places {
        made: if changes { sockets.clone() } else { Vec::new() },
        sockets,
        programs: programs.into_iter().chain(own).collect(),
        read: read
            .map(PathBuf::from)
            .into_iter()
            .chain(file)
            .chain(config.guests_dir.clone())
            .chain(config.fault_pressure.clone())
            .collect(),
    };
    for missing in sandbox::enter(Role::Supervisor, &places)? {
        tracing::warn!("{missing}");
    }
    Ok(())
}
