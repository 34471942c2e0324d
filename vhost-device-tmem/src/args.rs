// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the daemon is told, on its command line and in its configuration file.
//!
//! Both have the same options, of one definition: a key of the file is the long name of an option.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    time::Duration,
};

use clap::Parser;
use serde::{Deserialize, Serialize};
use tracing::level_filters::LevelFilter;
use uuid::Uuid;

use crate::{
    config::GivenTerms,
    device::Limits,
    metrics::Address,
    policy::Terms,
    pressure::Follow,
    sandbox::Sandbox,
    socket,
    store::{self, Compression, Faults, HugePages},
    tier::choice::TierUse,
    window::WindowSource,
};

/// The most threads.
pub(crate) const MAX_THREADS: i64 = 1024;

/// The bounds of [`Args::oom_score_adj`].
pub(crate) const MAX_OOM_SCORE_ADJ: i64 = 1000;

/// Keeps pages for KVM guests: the host side of virtio-tmem.
///
/// What is not given has its default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Parser, Serialize, Deserialize)]
#[command(name = "vhost-device-tmem", version)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Args {
    /// File with the configuration (TOML): whatever can be given here, as defaults, and a table for
    /// each guest. What is given here comes before what is in the file.
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    pub config: Option<PathBuf>,

    /// Check the configuration, say what is wrong with it, and do nothing.
    #[arg(long)]
    #[serde(skip)]
    pub check_config: bool,

    /// Directory with a file NAME.toml for each guest, which is watched: guests come with their files,
    /// change and go with them.
    #[arg(long, value_name = "DIR")]
    pub guests_dir: Option<PathBuf>,

    /// The guests, by their names.
    #[arg(skip)]
    pub guests: BTreeMap<String, GuestTable>,

    /// The pools that guests may share, by their UUIDs.
    #[arg(skip)]
    pub shared: BTreeMap<String, SharedTable>,

    /// The size of the windows of guests that have no other.
    #[arg(skip)]
    pub window_size: Option<String>,

    /// How much guests count beside others, where their tables do not say: 100 unless given.
    #[arg(skip)]
    pub weight: Option<u32>,

    /// The persistent memory that each guest can always have, where its table does not say.
    #[arg(skip)]
    pub persistent_min: Option<String>,

    /// The persistent memory that no guest has more of, where its table does not say.
    #[arg(skip)]
    pub persistent_max: Option<String>,

    /// The ephemeral memory that each guest can always have, where its table does not say.
    #[arg(skip)]
    pub ephemeral_min: Option<String>,

    /// The ephemeral memory that no guest has more of, where its table does not say.
    #[arg(skip)]
    pub ephemeral_max: Option<String>,

    /// Which pages of guests may be in the tier below the store, where their tables do not say: those
    /// that may be forgotten, unless given.
    #[arg(skip)]
    pub tier: Option<TierUse>,

    /// Take guests off that are not named any more though they are connected.
    #[arg(skip)]
    pub remove_connected: Option<bool>,

    /// Socket that a guest's vhost-user frontend connects to; repeat it for each guest. NAME is
    /// the guest's name in logs and statistics, by default the file name without extension.
    #[arg(short, long = "socket-path", value_name = "[NAME=]PATH")]
    #[serde(skip)]
    pub socket_paths: Vec<String>,

    /// Directory in which guests that are added later may have their sockets, besides those of the
    /// sockets that there are from the start; repeat it for each.
    #[arg(long = "socket-dir", value_name = "DIR")]
    #[serde(rename = "socket-dir")]
    pub socket_dirs: Vec<PathBuf>,

    /// Memory that all pages together may take, metadata included, such as 512MiB or 1.5GiB.
    #[arg(short, long, value_name = "SIZE")]
    pub capacity: Option<String>,

    /// How pages are compressed: by LZ4 where there are windows, since what comes to the store is
    /// cold then, and not at all otherwise.
    #[arg(long, value_name = "METHOD", value_enum)]
    pub compression: Option<Compression>,

    /// Whether pages are kept in huge pages of 2 MiB, if the host has such.
    #[arg(long, value_name = "WHETHER", value_enum)]
    pub huge_pages: Option<HugePages>,

    /// Keep pages out of the host's swap. It takes a limit of locked memory (LimitMEMLOCK= of the
    /// service, or ulimit -l) that is as large as the capacity.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true",
          value_name = "BOOL")]
    pub lock_memory: Option<bool>,

    /// Give persistent pages a check of their contents, with which they are compared when another
    /// worker has taken over. It takes up to three quarters of the time of the copy.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true",
          value_name = "BOOL")]
    pub check_contents: Option<bool>,

    /// Directory on a tmpfs in which guests' windows are made: memory that a guest puts pages into
    /// by itself, as the file NAME.window. Without it there are none.
    #[arg(long, value_name = "DIR")]
    pub window_dir: Option<PathBuf>,

    /// By which device of QEMU's guests reach their windows: an ivshmem-plain device beside the tmem
    /// device unless given, or by the tmem device itself, as a shared memory region of virtio.
    #[arg(long, value_name = "DEVICE", value_enum)]
    pub window_source: Option<WindowSource>,

    /// Size of a guest's window, a power of two such as 4GiB, which is the most that the guest can
    /// take by it; repeat it for each guest that has one. Without NAME it is for all that are not
    /// named. It counts against the capacity as far as it is used.
    #[arg(long = "window-size", value_name = "[NAME=]SIZE")]
    #[serde(skip)]
    pub window_sizes: Vec<String>,

    /// File or block device that cold pages are moved to where the capacity is used up. Without it they
    /// are dropped, or refused. It is encrypted, and of no use to the next daemon.
    #[arg(long, value_name = "PATH")]
    pub tier_file: Option<PathBuf>,

    /// How much that may take, such as 64GiB.
    #[arg(long, value_name = "SIZE")]
    pub tier_size: Option<String>,

    /// Socket that tmemctl connects to; the path that it looks at by itself is
    /// /run/vhost-device-tmem/control.sock.
    #[arg(long, value_name = "PATH")]
    pub control_path: Option<PathBuf>,

    /// Where metrics are served, as OpenMetrics over HTTP: an address and a port, such as
    /// 127.0.0.1:9752, or the path of a socket. Who can connect can read them.
    #[arg(long, value_name = "ADDR")]
    pub metrics_listen: Option<Address>,

    /// Whose shortage of memory the daemon gives way to: guests lose ephemeral pages then, and drain
    /// persistent ones if that is not enough; both unless given.
    #[arg(long, value_name = "WHOSE", value_enum)]
    pub pressure: Option<Follow>,

    /// Threads that serve the virtqueues of all guests; 0 for as many as there are processors.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(0..=MAX_THREADS))]
    pub threads: Option<u16>,

    /// Permission bits of the guests' sockets: 0600 unless given.
    #[arg(long, value_name = "OCTAL", value_parser = parse_mode)]
    #[serde(with = "octal")]
    pub socket_mode: Option<u32>,

    /// Group of the guests' sockets, by name or number; with it their mode is 0660 unless another
    /// is given.
    #[arg(long, value_name = "GROUP")]
    pub socket_group: Option<String>,

    /// Group whose members may use tmemctl, by name or number, besides root and the daemon's user.
    #[arg(long, value_name = "GROUP")]
    pub control_group: Option<String>,

    /// User to become once started, by name or number. The directories of the sockets have to be
    /// its own.
    #[arg(long, value_name = "USER")]
    pub user: Option<String>,

    /// Group to be in instead of the user's.
    #[arg(long, value_name = "GROUP")]
    pub group: Option<String>,

    /// Whether the daemon gives up what it does not need.
    #[arg(long, value_name = "WHETHER", value_enum)]
    pub sandbox: Option<Sandbox>,

    /// How much the kernel is inclined to kill the daemon where memory runs out, from -1000
    /// (never) to 1000; -500 unless given. Less than 0 takes privileges; without them it stays as
    /// it is.
    #[arg(long, value_name = "N", allow_negative_numbers = true,
          value_parser = clap::value_parser!(i16).range(-MAX_OOM_SCORE_ADJ..=MAX_OOM_SCORE_ADJ))]
    pub oom_score_adj: Option<i16>,

    /// Stop at the first signal, also where guests lose pages by it.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true",
          value_name = "BOOL")]
    pub stop_loses_pages: Option<bool>,

    /// Seconds after which the ephemeral pages of a guest are dropped that has stopped using its
    /// device, as after a reboot without a driver; 600 unless given, 0 for never. Persistent pages
    /// stay: a machine that is merely paused looks the same.
    #[arg(long, value_name = "SECS")]
    pub abandoned_after: Option<u64>,

    /// Data virtqueues of each guest: 2 unless given.
    #[arg(long, value_name = "N",
          value_parser = clap::value_parser!(u16).range(1..=i64::from(Limits::MAX_DATA_QUEUES)))]
    pub data_queues: Option<u16>,

    /// Microseconds that a data virtqueue is looked at for its next request before it is left
    /// alone until the guest notifies, at most; 50 unless given, 0 for never. It is less, down to
    /// nothing, where requests do not come so soon.
    #[arg(long, value_name = "N")]
    pub poll_us: Option<u32>,

    /// What to log: off, error, warn, info (unless given), debug or trace.
    #[arg(long, value_name = "LEVEL")]
    #[serde(with = "level")]
    pub log_level: Option<LevelFilter>,

    /// For tests: refuse this share of all puts at random.
    #[arg(long, value_name = "PERCENT",
          value_parser = clap::value_parser!(u8).range(0..=100))]
    pub fault_refuse_percent: Option<u8>,

    /// For tests: forget ephemeral pages at this share of all gets.
    #[arg(long, value_name = "PERCENT",
          value_parser = clap::value_parser!(u8).range(0..=100))]
    pub fault_forget_percent: Option<u8>,

    /// For tests: take this many ephemeral chunks of each window back again and again, and ask for
    /// as many persistent ones.
    #[arg(long, value_name = "N")]
    pub fault_take_chunks: Option<u32>,

    /// For tests: the kernel's files about memory are in this directory, and not in the root.
    #[arg(long, value_name = "DIR", hide = true)]
    pub fault_pressure: Option<PathBuf>,

    /// For tests: die when a virtqueue of this guest is started.
    #[arg(long, value_name = "GUEST", hide = true)]
    pub fault_crash_guest: Option<String>,

    /// For tests: hang when a virtqueue of this guest is started.
    #[arg(long, value_name = "GUEST", hide = true)]
    pub fault_hang_guest: Option<String>,
}

/// A guest, as a file has it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct GuestTable {
    /// The socket that it connects to.
    pub socket: Option<PathBuf>,
    /// The size of its window.
    pub window_size: Option<String>,
    /// How much it counts beside others.
    pub weight: Option<u32>,
    /// The persistent memory that it can always have.
    pub persistent_min: Option<String>,
    /// The persistent memory that it never has more of.
    pub persistent_max: Option<String>,
    /// The ephemeral memory that it can always have.
    pub ephemeral_min: Option<String>,
    /// The ephemeral memory that it never has more of.
    pub ephemeral_max: Option<String>,
    /// Which of its pages may be in the tier below the store.
    pub tier: Option<TierUse>,
}

/// A shared pool, as a file has it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct SharedTable {
    /// The guests that may have access, by their names.
    pub guests: Vec<String>,
    /// The memory that it takes at most.
    pub max: Option<String>,
    /// How much it counts beside guests, and other shared pools.
    pub weight: Option<u32>,
}

impl Args {
    /// Returns what is given in either, and in `self` where it is in both.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            config: self.config.or(other.config),
            check_config: self.check_config || other.check_config,
            guests_dir: self.guests_dir.or(other.guests_dir),
            guests: if self.guests.is_empty() {
                other.guests
            } else {
                self.guests
            },
            shared: if self.shared.is_empty() {
                other.shared
            } else {
                self.shared
            },
            window_size: self.window_size.or(other.window_size),
            weight: self.weight.or(other.weight),
            persistent_min: self.persistent_min.or(other.persistent_min),
            persistent_max: self.persistent_max.or(other.persistent_max),
            ephemeral_min: self.ephemeral_min.or(other.ephemeral_min),
            ephemeral_max: self.ephemeral_max.or(other.ephemeral_max),
            tier: self.tier.or(other.tier),
            remove_connected: self.remove_connected.or(other.remove_connected),
            socket_paths: if self.socket_paths.is_empty() {
                other.socket_paths
            } else {
                self.socket_paths
            },
            socket_dirs: [self.socket_dirs, other.socket_dirs].concat(),
            capacity: self.capacity.or(other.capacity),
            compression: self.compression.or(other.compression),
            huge_pages: self.huge_pages.or(other.huge_pages),
            lock_memory: self.lock_memory.or(other.lock_memory),
            check_contents: self.check_contents.or(other.check_contents),
            window_dir: self.window_dir.or(other.window_dir),
            window_source: self.window_source.or(other.window_source),
            window_sizes: if self.window_sizes.is_empty() {
                other.window_sizes
            } else {
                self.window_sizes
            },
            tier_file: self.tier_file.or(other.tier_file),
            tier_size: self.tier_size.or(other.tier_size),
            control_path: self.control_path.or(other.control_path),
            metrics_listen: self.metrics_listen.or(other.metrics_listen),
            pressure: self.pressure.or(other.pressure),
            threads: self.threads.or(other.threads),
            socket_mode: self.socket_mode.or(other.socket_mode),
            socket_group: self.socket_group.or(other.socket_group),
            control_group: self.control_group.or(other.control_group),
            user: self.user.or(other.user),
            group: self.group.or(other.group),
            sandbox: self.sandbox.or(other.sandbox),
            oom_score_adj: self.oom_score_adj.or(other.oom_score_adj),
            stop_loses_pages: self.stop_loses_pages.or(other.stop_loses_pages),
            abandoned_after: self.abandoned_after.or(other.abandoned_after),
            data_queues: self.data_queues.or(other.data_queues),
            poll_us: self.poll_us.or(other.poll_us),
            log_level: self.log_level.or(other.log_level),
            fault_refuse_percent: self.fault_refuse_percent.or(other.fault_refuse_percent),
            fault_forget_percent: self.fault_forget_percent.or(other.fault_forget_percent),
            fault_take_chunks: self.fault_take_chunks.or(other.fault_take_chunks),
            fault_pressure: self.fault_pressure.or(other.fault_pressure),
            fault_crash_guest: self.fault_crash_guest.or(other.fault_crash_guest),
            fault_hang_guest: self.fault_hang_guest.or(other.fault_hang_guest),
        }
    }
}

/// A guest, as the operator named it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestConfig {
    /// Its name, of no other guest.
    pub name: String,
    /// The socket that it connects to.
    pub path: PathBuf,
    /// The size of its window in bytes, if it has one.
    pub window: Option<u64>,
    /// What is said of its part of the memory.
    #[serde(default)]
    pub terms: GivenTerms,
}

/// A shared pool, as the operator wants it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedConfig {
    /// What guests call it.
    pub uuid: Uuid,
    /// The guests that may have access, by their names: at least one.
    pub guests: BTreeSet<String>,
    /// The bytes that it takes at most.
    pub max: Option<u64>,
    /// How much it counts beside guests, and other shared pools.
    pub weight: u32,
}

/// What the daemon is to do: arguments that make sense.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The guests.
    pub guests: Vec<GuestConfig>,
    /// The shared pools, by their UUIDs.
    pub shared: Vec<SharedConfig>,
    /// What is said of the parts of guests where nothing is said of one.
    pub terms: GivenTerms,
    /// Directories in which guests may have their sockets, besides those of the first ones.
    pub socket_dirs: BTreeSet<PathBuf>,
    /// Whether guests that are connected are taken off when they are not named any more.
    pub remove_connected: bool,
    /// The capacity in bytes.
    pub capacity: u64,
    /// How pages are compressed.
    pub compression: Compression,
    /// Whether pages are kept in huge pages.
    pub huge_pages: HugePages,
    /// Whether pages are kept out of the host's swap.
    pub lock_memory: bool,
    /// Whether persistent pages get a check of their contents.
    pub check_contents: bool,
    /// Where windows are made.
    pub window_dir: Option<PathBuf>,
    /// By which device guests reach them.
    pub window_source: WindowSource,
    /// Where guests' files are.
    pub guests_dir: Option<PathBuf>,
    /// The spill file, and the bytes that it may take.
    pub tier_file: Option<(PathBuf, u64)>,
    /// The operator's socket.
    pub control_path: Option<PathBuf>,
    /// Where metrics are served.
    pub metrics_listen: Option<Address>,
    /// Whose shortage of memory guests give way to.
    pub pressure: Follow,
    /// What drivers may ask for.
    pub limits: Limits,
    /// Threads that serve virtqueues; 0 for as many as there are processors.
    pub threads: usize,
    /// How long virtqueues are looked at before notifications are waited for.
    pub poll: Duration,
    /// Misbehaviour on purpose.
    pub faults: Faults,
    /// What to log.
    pub log_level: LevelFilter,
    /// Permission bits of the guests' sockets.
    pub socket_mode: u32,
    /// The group of the guests' sockets.
    pub socket_group: Option<String>,
    /// The group of the operator's socket.
    pub control_group: Option<String>,
    /// The user to become.
    pub user: Option<String>,
    /// The group to be in.
    pub group: Option<String>,
    /// Whether there is a sandbox.
    pub sandbox: Sandbox,
    /// How much the kernel is inclined to kill the daemon.
    pub oom_score_adj: i16,
    /// Whether to stop though pages are lost.
    pub stop_loses_pages: bool,
    /// When the ephemeral pages of a guest go that has stopped using its device; never if it is
    /// zero.
    pub abandoned_after: Duration,
    /// Chunks of each window that are taken back again and again.
    pub fault_take_chunks: u32,
    /// Where the kernel's files about memory are, in place of the root.
    pub fault_pressure: Option<PathBuf>,
    /// The guest whose virtqueues the worker dies of when it starts them.
    pub fault_crash_guest: Option<String>,
    /// The guest at whose virtqueues the worker hangs when it starts them.
    pub fault_hang_guest: Option<String>,
}

impl Config {
    /// Returns all directories of sockets, of those that there are and of those that may be.
    pub fn directories(&self) -> BTreeSet<PathBuf> {
        let guests = self.guests.iter().map(|guest| &guest.path);
        let metrics = match &self.metrics_listen {
            Some(Address::Unix(path)) => Some(path),
            _ => None,
        };
        let sockets = guests.chain(&self.control_path).chain(metrics);
        let directories = sockets.map(|path| socket::directory(path).to_owned());
        directories
            .chain(self.socket_dirs.iter().cloned())
            .collect()
    }

    /// Returns the terms of a guest, which has this number.
    pub fn terms(&self, guest: &GuestConfig, number: u32) -> Terms {
        guest.terms.or(self.terms).of(number, &guest.name)
    }

    /// Returns what the store is to be like. What it promises to guests is told it as they come.
    pub fn store(&self) -> store::Config {
        store::Config {
            compression: self.compression,
            huge_pages: self.huge_pages,
            lock_memory: self.lock_memory,
            check_contents: self.check_contents,
            faults: self.faults,
            ..store::Config::new(self.capacity)
        }
    }
}

/// Reads permission bits.
fn parse_mode(mode: &str) -> Result<u32, String> {
    match u32::from_str_radix(mode, 8) {
        Ok(mode) if mode <= 0o777 => Ok(mode),
        _ => Err("give permission bits as an octal number, such as 0660".to_owned()),
    }
}

/// Permission bits as text.
mod octal {
    use serde::{de::Error, Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(mode: &Option<u32>, to: S) -> Result<S::Ok, S::Error> {
        mode.map(|mode| format!("{mode:04o}")).serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u32>, D::Error> {
        let mode = Option::<String>::deserialize(from)?;
        mode.map(|mode| super::parse_mode(&mode).map_err(Error::custom))
            .transpose()
    }
}

/// A level of the log as text.
mod level {
    use serde::{de::Error, Deserialize, Deserializer, Serialize, Serializer};
    use tracing::level_filters::LevelFilter;

    pub(super) fn serialize<S: Serializer>(
        level: &Option<LevelFilter>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        level.map(|level| level.to_string()).serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<LevelFilter>, D::Error> {
        let level = Option::<String>::deserialize(from)?;
        let parse = |level: String| {
            let what = "give off, error, warn, info, debug or trace";
            level.parse().map_err(|_| Error::custom(what))
        };
        level.map(parse).transpose()
    }
}
