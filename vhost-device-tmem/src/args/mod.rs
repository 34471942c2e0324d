// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The command line of the daemon.

mod error;

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{builder::ArgPredicate, Parser};
use tracing::level_filters::LevelFilter;

pub use error::ArgsError;

use crate::{
    device::Limits,
    limits::{Memory, MemoryOf},
    metrics::Address,
    sandbox::Sandbox,
    size,
    store::{self, Compression, Faults, HugePages, MIN_CAPACITY},
    window,
};

/// Keeps pages for KVM guests: the host side of virtio-tmem.
#[derive(Debug, Parser)]
#[command(name = "vhost-device-tmem", version)]
pub struct Args {
    /// Socket that a guest's vhost-user frontend connects to; repeat it for each guest. NAME is
    /// the guest's name in logs and statistics, by default the file name without extension.
    #[arg(
        short,
        long = "socket-path",
        value_name = "[NAME=]PATH",
        required = true
    )]
    pub socket_paths: Vec<String>,

    /// Memory that all pages together may take, metadata included, such as 512MiB or 1.5GiB.
    #[arg(short, long, value_name = "SIZE")]
    pub capacity: String,

    /// How pages are compressed: by LZ4 where there are windows, since what comes to the store is
    /// cold then, and not at all otherwise.
    #[arg(long, value_name = "METHOD", value_enum)]
    pub compression: Option<Compression>,

    /// Whether pages are kept in huge pages of 2 MiB, if the host has such.
    #[arg(long, value_name = "WHETHER", value_enum, default_value_t)]
    pub huge_pages: HugePages,

    /// Keep pages out of the host's swap. It takes a limit of locked memory (LimitMEMLOCK= of the
    /// service, or ulimit -l) that is as large as the capacity.
    #[arg(long)]
    pub lock_memory: bool,

    /// Give persistent pages a check of their contents, with which they are compared when another
    /// worker has taken over. It takes up to three quarters of the time of the copy.
    #[arg(long)]
    pub check_contents: bool,

    /// Directory on a tmpfs in which guests' windows are made: memory that a guest puts pages into
    /// by itself, as the file NAME.window. Without it there are none.
    #[arg(long, value_name = "DIR", requires = "window_sizes")]
    pub window_dir: Option<PathBuf>,

    /// Size of a guest's window, a power of two such as 4GiB, which is the most that the guest can
    /// take by it; repeat it for each guest that has one. Without NAME it is for all that are not
    /// named. It counts against the capacity as far as it is used.
    #[arg(
        long = "window-size",
        value_name = "[NAME=]SIZE",
        requires = "window_dir"
    )]
    pub window_sizes: Vec<String>,

    /// Socket that tmemctl connects to; the path that it looks at by itself is
    /// /run/vhost-device-tmem/control.sock.
    #[arg(long, value_name = "PATH")]
    pub control_path: Option<PathBuf>,

    /// Where metrics are served, as OpenMetrics over HTTP: an address and a port, such as
    /// 127.0.0.1:9752, or the path of a socket. Who can connect can read them.
    #[arg(long, value_name = "ADDR")]
    pub metrics_listen: Option<Address>,

    /// Threads that serve the virtqueues of all guests; 0 for as many as there are processors.
    #[arg(long, value_name = "N", default_value_t = 0,
          value_parser = clap::value_parser!(u16).range(0..=1024))]
    pub threads: u16,

    /// Permission bits of the guests' sockets.
    #[arg(long, value_name = "OCTAL", value_parser = parse_mode,
          default_value = "0600", default_value_if("socket_group", ArgPredicate::IsPresent, "0660"))]
    pub socket_mode: u32,

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
    #[arg(long, value_name = "WHETHER", value_enum, default_value_t)]
    pub sandbox: Sandbox,

    /// How much the kernel is inclined to kill the daemon where memory runs out, from -1000
    /// (never) to 1000. Less than 0 takes privileges; without them it stays as it is.
    #[arg(long, value_name = "N", default_value_t = -500, allow_negative_numbers = true,
          value_parser = clap::value_parser!(i16).range(-1000..=1000))]
    pub oom_score_adj: i16,

    /// Stop at the first signal, also where guests lose pages by it.
    #[arg(long)]
    pub stop_loses_pages: bool,

    /// Seconds after which the ephemeral pages of a guest are dropped that has stopped using its
    /// device, as after a reboot without a driver; 0 for never. Persistent pages stay: a machine that
    /// is merely paused looks the same.
    #[arg(long, value_name = "SECS", default_value_t = 600)]
    pub abandoned_after: u64,

    /// Data virtqueues of each guest.
    #[arg(long, value_name = "N", default_value_t = 2,
          value_parser = clap::value_parser!(u16).range(1..=i64::from(Limits::MAX_DATA_QUEUES)))]
    pub data_queues: u16,

    /// Microseconds that a data virtqueue is looked at for its next request before it is left
    /// alone until the guest notifies, at most; 0 for never. It is less, down to nothing, where requests do not come
    /// so soon.
    #[arg(long, value_name = "N", default_value_t = 50)]
    pub poll_us: u32,

    /// What to log: off, error, warn, info, debug or trace.
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    pub log_level: LevelFilter,

    /// For tests: refuse this share of all puts at random.
    #[arg(long, value_name = "PERCENT", default_value_t = 0,
          value_parser = clap::value_parser!(u8).range(0..=100))]
    pub fault_refuse_percent: u8,

    /// For tests: forget ephemeral pages at this share of all gets.
    #[arg(long, value_name = "PERCENT", default_value_t = 0,
          value_parser = clap::value_parser!(u8).range(0..=100))]
    pub fault_forget_percent: u8,

    /// For tests: take this many ephemeral chunks of each window back again and again, and ask for
    /// as many persistent ones.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub fault_take_chunks: u32,

    /// For tests: die when a virtqueue of this guest is started.
    #[arg(long, value_name = "GUEST", hide = true)]
    pub fault_crash_guest: Option<String>,

    /// For tests: hang when a virtqueue of this guest is started.
    #[arg(long, value_name = "GUEST", hide = true)]
    pub fault_hang_guest: Option<String>,
}

/// A guest, as the operator named it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestConfig {
    /// Its name, of no other guest.
    pub name: String,
    /// The socket that it connects to.
    pub path: PathBuf,
    /// The size of its window in bytes, if it has one.
    pub window: Option<u64>,
}

/// What the daemon is to do: arguments that make sense.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The guests, at least one.
    pub guests: Vec<GuestConfig>,
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
    /// The operator's socket.
    pub control_path: Option<PathBuf>,
    /// Where metrics are served.
    pub metrics_listen: Option<Address>,
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
    /// The guest whose virtqueues the worker dies of when it starts them.
    pub fault_crash_guest: Option<String>,
    /// The guest at whose virtqueues the worker hangs when it starts them.
    pub fault_hang_guest: Option<String>,
}

impl Config {
    /// Returns what the store is to be like.
    pub fn store(&self) -> store::Config {
        store::Config {
            compression: self.compression,
            huge_pages: self.huge_pages,
            lock_memory: self.lock_memory,
            check_contents: self.check_contents,
            faults: self.faults,
            ..store::Config::shared(self.capacity, self.guests.len() as u32)
        }
    }
}

impl Args {
    /// Makes sense of the arguments where the daemon can have so much memory.
    ///
    /// # Errors
    ///
    /// [`ArgsError`].
    pub fn config(&self, memory: &Memory) -> Result<Config, ArgsError> {
        let capacity = size::parse(&self.capacity);
        let capacity = capacity.ok_or_else(|| ArgsError::BadSize(self.capacity.clone()))?;
        if capacity < MIN_CAPACITY {
            return Err(ArgsError::TooSmall(self.capacity.clone()));
        }
        if capacity > memory.bytes {
            let (given, bytes, memory, of) =
                (self.capacity.clone(), capacity, memory.bytes, &memory.of);
            return Err(match of {
                MemoryOf::Host => ArgsError::TooLarge {
                    capacity: given,
                    bytes,
                    memory,
                },
                MemoryOf::ControlGroup(file) => ArgsError::OverLimit {
                    capacity: given,
                    bytes,
                    memory,
                    file: file.clone(),
                },
            });
        }
        let guests = self.socket_paths.iter().map(|arg| parse_guest(arg));
        let mut guests: Vec<_> = guests.collect::<Result<_, _>>()?;
        set_windows(&mut guests, &self.window_sizes)?;
        let mut names = BTreeSet::new();
        let mut paths: BTreeSet<_> = self.control_path.iter().collect();
        if let Some(Address::Unix(path)) = &self.metrics_listen {
            if !paths.insert(path) {
                return Err(ArgsError::SamePath(path.clone()));
            }
        }
        for guest in &guests {
            if !names.insert(&guest.name) {
                return Err(ArgsError::SameName(guest.name.clone()));
            }
            if !paths.insert(&guest.path) {
                return Err(ArgsError::SamePath(guest.path.clone()));
            }
        }
        Ok(Config {
            capacity,
            compression: self.compression.unwrap_or(match self.window_dir {
                Some(_) => Compression::Lz4,
                None => Compression::None,
            }),
            huge_pages: self.huge_pages,
            lock_memory: self.lock_memory,
            check_contents: self.check_contents,
            window_dir: self.window_dir.clone(),
            control_path: self.control_path.clone(),
            metrics_listen: self.metrics_listen.clone(),
            limits: Limits::new(self.data_queues),
            threads: self.threads.into(),
            poll: Duration::from_micros(self.poll_us.into()),
            faults: Faults {
                refuse_percent: self.fault_refuse_percent,
                forget_percent: self.fault_forget_percent,
            },
            log_level: self.log_level,
            socket_mode: self.socket_mode,
            socket_group: self.socket_group.clone(),
            control_group: self.control_group.clone(),
            user: self.user.clone(),
            group: self.group.clone(),
            sandbox: self.sandbox,
            oom_score_adj: self.oom_score_adj,
            stop_loses_pages: self.stop_loses_pages,
            abandoned_after: Duration::from_secs(self.abandoned_after),
            fault_take_chunks: self.fault_take_chunks,
            fault_crash_guest: self.fault_crash_guest.clone(),
            fault_hang_guest: self.fault_hang_guest.clone(),
            guests,
        })
    }
}

fn parse_guest(arg: &str) -> Result<GuestConfig, ArgsError> {
    let (name, path) = match arg.split_once('=') {
        // A path may have such a sign, a name no slash.
        Some((name, path)) if !name.contains('/') => (Some(name), path),
        Some((name, path)) if path.starts_with('/') && !name.starts_with(['/', '.']) => {
            return Err(ArgsError::SlashInName {
                arg: arg.to_owned(),
                name: name.to_owned(),
            });
        }
        _ => (None, arg),
    };
    if path.is_empty() {
        return Err(ArgsError::NoPath(arg.to_owned()));
    }
    let stem = || Path::new(path).file_stem().and_then(|stem| stem.to_str());
    match name.or_else(stem) {
        Some(name) if !name.is_empty() => Ok(GuestConfig {
            name: name.to_owned(),
            path: path.into(),
            window: None,
        }),
        _ => Err(ArgsError::NoName(arg.to_owned())),
    }
}

/// Gives the guests their windows.
fn set_windows(guests: &mut [GuestConfig], sizes: &[String]) -> Result<(), ArgsError> {
    let mut others = None;
    for arg in sizes {
        let (name, size) = match arg.rsplit_once('=') {
            Some((name, size)) => (Some(name), size),
            None => (None, arg.as_str()),
        };
        let size = size::parse(size).filter(|size| {
            size.is_power_of_two() && (window::MIN_SIZE..=window::MAX_SIZE).contains(size)
        });
        let size = size.ok_or_else(|| ArgsError::BadWindow(arg.clone()))?;
        let place = match name {
            Some(name) => {
                let named = guests.iter_mut().find(|guest| guest.name == name);
                let named = named.ok_or_else(|| ArgsError::WindowOfNobody(arg.clone()))?;
                &mut named.window
            }
            None => &mut others,
        };
        if place.replace(size).is_some() {
            return Err(ArgsError::SameWindow(arg.clone()));
        }
    }
    for guest in guests {
        guest.window = guest.window.or(others);
    }
    Ok(())
}

/// Reads permission bits.
fn parse_mode(mode: &str) -> Result<u32, String> {
    match u32::from_str_radix(mode, 8) {
        Ok(mode) if mode <= 0o777 => Ok(mode),
        _ => Err("give permission bits as an octal number, such as 0660".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMORY: u64 = 8 << 30;

    fn config_with(of: MemoryOf, args: &[&str]) -> Result<Config, ArgsError> {
        let args = [&["vhost-device-tmem"], args].concat();
        let memory = Memory { bytes: MEMORY, of };
        Args::try_parse_from(args).unwrap().config(&memory)
    }

    fn config(args: &[&str]) -> Result<Config, ArgsError> {
        config_with(MemoryOf::Host, args)
    }

    #[test]
    fn the_capacity_is_what_the_host_can_give() {
        let with = |capacity| config(&["-s", "/run/a.sock", "-c", capacity]);
        assert_eq!(with("8GiB").unwrap().capacity, MEMORY);
        let (small, large) = (|c: &str| ArgsError::TooSmall(c.into()), "8589934593");
        assert_eq!(with("0"), Err(small("0")));
        assert_eq!(with("1023KiB"), Err(small("1023KiB")));
        let error = ArgsError::TooLarge {
            capacity: large.into(),
            bytes: MEMORY + 1,
            memory: MEMORY,
        };
        assert_eq!(with(large), Err(error));
        assert_eq!(with("1.5GiB").unwrap().capacity, 3 << 29);
        assert_eq!(with("many"), Err(ArgsError::BadSize("many".into())));
        let of = MemoryOf::ControlGroup("/sys/memory.max".into());
        let error = config_with(of, &["-s", "/run/a.sock", "-c", large]).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("8589934592 bytes that /sys/memory.max lets"),
            "{text}"
        );
    }

    #[test]
    fn a_socket_is_open_to_its_group_where_there_is_one() {
        let mode = |more: &[&str]| {
            let args = [&["-s", "a", "-c", "1GiB"], more].concat();
            config(&args).unwrap().socket_mode
        };
        assert_eq!(mode(&[]), 0o600);
        assert_eq!(mode(&["--socket-group", "kvm"]), 0o660);
        assert_eq!(
            mode(&["--socket-group", "kvm", "--socket-mode", "666"]),
            0o666
        );
    }

    #[test]
    fn guests_have_names_and_sockets_of_their_own() {
        let with = |paths: &[&str]| {
            let mut args = vec!["-c", "1GiB", "--control-path", "/run/control.sock"];
            args.extend(paths.iter().flat_map(|path| ["--socket-path", path]));
            let guests = config(&args)?.guests;
            Ok(guests
                .into_iter()
                .map(|guest| (guest.name, guest.path.to_str().unwrap().to_owned()))
                .collect::<Vec<_>>())
        };
        let named = |name: &str, path: &str| (name.to_owned(), path.to_owned());
        assert_eq!(
            with(&["/run/a.sock", "web=/run/b=c.sock", "/run/x=y/d.sock", "e"]),
            Ok(vec![
                named("a", "/run/a.sock"),
                named("web", "/run/b=c.sock"),
                named("d", "/run/x=y/d.sock"),
                named("e", "e"),
            ])
        );
        let slash = |arg: &str, name: &str| ArgsError::SlashInName {
            arg: arg.into(),
            name: name.into(),
        };
        let refused: [(&[&str], ArgsError); 7] = [
            (&["we/b=/run/b"], slash("we/b=/run/b", "we/b")),
            (&["a="], ArgsError::NoPath("a=".into())),
            (&[""], ArgsError::NoPath("".into())),
            (&["=/run/a"], ArgsError::NoName("=/run/a".into())),
            (&["/run/a", "/tmp/a"], ArgsError::SameName("a".into())),
            (
                &["a=/run/a", "b=/run/a"],
                ArgsError::SamePath("/run/a".into()),
            ),
            (
                &["/run/control.sock"],
                ArgsError::SamePath("/run/control.sock".into()),
            ),
        ];
        for (paths, error) in refused {
            assert_eq!(with(paths), Err(error));
        }
    }

    #[test]
    fn pages_are_compressed_where_there_are_windows_or_it_is_asked_for() {
        let compression = |more: &[&str]| {
            let args = [&["-c", "1GiB", "-s", "a=/run/a"], more].concat();
            config(&args).map(|config| config.compression)
        };
        let windows = ["--window-dir", "/dev/shm", "--window-size", "8MiB"];
        assert_eq!(compression(&[]), Ok(Compression::None));
        assert_eq!(compression(&windows), Ok(Compression::Lz4));
        let asked = ["--compression", "none"];
        assert_eq!(
            compression(&[&windows[..], &asked].concat()),
            Ok(Compression::None)
        );
        assert_eq!(
            compression(&["--compression", "zstd"]),
            Ok(Compression::Zstd)
        );
    }

    #[test]
    fn a_window_is_that_of_its_guest_or_of_all_that_are_not_named() {
        let with = |sizes: &[&str]| {
            let mut args = vec!["-c", "1GiB", "-s", "a=/run/a", "-s", "b=/run/b"];
            args.extend(["--window-dir", "/dev/shm"]);
            args.extend(sizes.iter().flat_map(|size| ["--window-size", size]));
            let guests = config(&args)?.guests;
            Ok(guests.iter().map(|guest| guest.window).collect::<Vec<_>>())
        };
        assert_eq!(with(&["b=8MiB"]), Ok(vec![None, Some(8 << 20)]));
        assert_eq!(with(&["4GiB"]), Ok(vec![Some(4 << 30); 2]));
        assert_eq!(
            with(&["a=16MiB", "4GiB"]),
            Ok(vec![Some(16 << 20), Some(4 << 30)])
        );
        for size in ["3MiB", "12MiB", "4MiB", "512GiB", "", "b=", "much"] {
            assert_eq!(with(&[size]), Err(ArgsError::BadWindow(size.into())));
        }
        assert_eq!(
            with(&["c=8MiB"]),
            Err(ArgsError::WindowOfNobody("c=8MiB".into()))
        );
        for again in ["16MiB", "a=16MiB"] {
            let first = again.replace("16", "8");
            assert_eq!(
                with(&[&first, again]),
                Err(ArgsError::SameWindow(again.into()))
            );
        }
        // Neither makes sense alone.
        for [option, value] in [["--window-dir", "/dev/shm"], ["--window-size", "8MiB"]] {
            let args = ["vhost-device-tmem", "-s", "a", "-c", "1G", option, value];
            assert!(Args::try_parse_from(args).is_err());
        }
    }

    #[test]
    fn numbers_out_of_range_are_refused() {
        let bad = [
            ["--data-queues", "0"],
            ["--data-queues", "63"],
            ["--fault-refuse-percent", "101"],
            ["--fault-forget-percent", "-1"],
            ["--poll-us", "-1"],
            ["--log-level", "loud"],
            ["--compression", "lzo"],
            ["--huge-pages", "maybe"],
            ["--socket-mode", "0680"],
            ["--socket-mode", "1777"],
            ["--oom-score-adj", "-1001"],
            ["--sandbox", "off"],
        ];
        for [option, value] in bad {
            let args = ["vhost-device-tmem", "-s", "a", "-c", "1G", option, value];
            assert!(Args::try_parse_from(args).is_err(), "{option} {value}");
        }
        assert!(Args::try_parse_from(["vhost-device-tmem", "-c", "1G"]).is_err());
    }
}
