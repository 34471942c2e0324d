// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The command line of the daemon.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Parser;
use tracing::level_filters::LevelFilter;

use crate::{
    device::Limits,
    store::{Compression, Faults, HugePages, MIN_CAPACITY},
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

    /// Memory that all pages together may take, metadata included, such as 512MiB or 4GiB.
    #[arg(short, long, value_name = "SIZE")]
    pub capacity: String,

    /// How pages are compressed.
    #[arg(long, value_name = "METHOD", value_enum, default_value_t)]
    pub compression: Compression,

    /// Whether pages are kept in huge pages of 2 MiB, if the host has such
    /// (/sys/kernel/mm/transparent_hugepage).
    #[arg(long, value_name = "WHETHER", value_enum, default_value_t)]
    pub huge_pages: HugePages,

    /// Socket that tmemctl connects to.
    #[arg(long, value_name = "PATH")]
    pub control_path: Option<PathBuf>,

    /// Threads that serve the virtqueues of all guests; 0 for as many as there are processors.
    #[arg(long, value_name = "N", default_value_t = 0,
          value_parser = clap::value_parser!(u16).range(0..=1024))]
    pub threads: u16,

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
}

/// A guest, as the operator named it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestConfig {
    /// Its name, of no other guest.
    pub name: String,
    /// The socket that it connects to.
    pub path: PathBuf,
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
    /// The operator's socket.
    pub control_path: Option<PathBuf>,
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
}

/// What is wrong with the arguments, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ArgsError {
    /// A size that is none.
    #[error("--capacity {0:?} is no size; give a number with a unit, such as 512MiB or 4GiB")]
    BadSize(String),
    /// A capacity that holds nothing.
    #[error("--capacity {0:?} is too small; give at least 1MiB")]
    TooSmall(String),
    /// A capacity that the host does not have.
    #[error(
        "--capacity {capacity:?} is {bytes} bytes, more than this host's memory of {memory} \
         bytes; give less"
    )]
    TooLarge {
        /// As it was given.
        capacity: String,
        /// As it was understood.
        bytes: u64,
        /// What the host has.
        memory: u64,
    },
    /// A guest without a name.
    #[error("--socket-path {0:?} gives no name for the guest; write it as NAME=PATH")]
    NoName(String),
    /// A guest without a socket.
    #[error("--socket-path {0:?} has no path; write it as NAME=PATH")]
    NoPath(String),
    /// Two guests of one name.
    #[error("two guests are named {0:?}; name them with --socket-path NAME=PATH")]
    SameName(String),
    /// One socket for two purposes.
    #[error("the path {0} is given twice; each socket needs its own")]
    SamePath(PathBuf),
}

impl Args {
    /// Makes sense of the arguments on a host with `memory` bytes.
    ///
    /// # Errors
    ///
    /// [`ArgsError`].
    pub fn config(&self, memory: u64) -> Result<Config, ArgsError> {
        let capacity = parse_size(&self.capacity)?;
        if capacity < MIN_CAPACITY {
            return Err(ArgsError::TooSmall(self.capacity.clone()));
        }
        if capacity > memory {
            return Err(ArgsError::TooLarge {
                capacity: self.capacity.clone(),
                bytes: capacity,
                memory,
            });
        }
        let guests = self.socket_paths.iter().map(|arg| parse_guest(arg));
        let guests: Vec<_> = guests.collect::<Result<_, _>>()?;
        let mut names = BTreeSet::new();
        let mut paths: BTreeSet<_> = self.control_path.iter().collect();
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
            compression: self.compression,
            huge_pages: self.huge_pages,
            control_path: self.control_path.clone(),
            limits: Limits::new(self.data_queues),
            threads: self.threads.into(),
            poll: Duration::from_micros(self.poll_us.into()),
            faults: Faults {
                refuse_percent: self.fault_refuse_percent,
                forget_percent: self.fault_forget_percent,
            },
            log_level: self.log_level,
            guests,
        })
    }
}

fn parse_guest(arg: &str) -> Result<GuestConfig, ArgsError> {
    let (name, path) = match arg.split_once('=') {
        // A path may have such a sign, a name no slash.
        Some((name, path)) if !name.contains('/') => (Some(name), path),
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
        }),
        _ => Err(ArgsError::NoName(arg.to_owned())),
    }
}

/// Reads a number of bytes with a unit: none or B, K, M, G, T (also as KiB, KB, …, all of them
/// powers of 1024), in either case.
///
/// # Errors
///
/// [`ArgsError::BadSize`].
pub fn parse_size(size: &str) -> Result<u64, ArgsError> {
    let bad = || ArgsError::BadSize(size.to_owned());
    let digits = size.find(|c: char| !c.is_ascii_digit());
    let (number, unit) = size.split_at(digits.unwrap_or(size.len()));
    let unit = unit.trim_start().to_ascii_uppercase();
    let shift = match unit.as_str() {
        "" | "B" => 0,
        "K" | "KB" | "KIB" => 10,
        "M" | "MB" | "MIB" => 20,
        "G" | "GB" | "GIB" => 30,
        "T" | "TB" | "TIB" => 40,
        _ => return Err(bad()),
    };
    let number: u64 = number.parse().map_err(|_| bad())?;
    number.checked_mul(1 << shift).ok_or_else(bad)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMORY: u64 = 8 << 30;

    fn config(args: &[&str]) -> Result<Config, ArgsError> {
        let args = [&["vhost-device-tmem"], args].concat();
        Args::try_parse_from(args).unwrap().config(MEMORY)
    }

    #[test]
    fn sizes_have_units() {
        let sizes = [
            ("1048576", 1 << 20),
            ("7B", 7),
            ("512MiB", 512 << 20),
            ("512 mib", 512 << 20),
            ("4G", 4 << 30),
            ("3kb", 3 << 10),
            ("1TiB", 1 << 40),
        ];
        for (text, size) in sizes {
            assert_eq!(parse_size(text), Ok(size), "{text}");
        }
        let bad = [
            "",
            "MiB",
            "-1G",
            "1.5G",
            "4Gib/s",
            "0x10",
            "99999999999999999999",
            "16777216T",
        ];
        for text in bad {
            assert_eq!(
                parse_size(text),
                Err(ArgsError::BadSize(text.into())),
                "{text}"
            );
        }
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
        let refused: [(&[&str], ArgsError); 6] = [
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
        ];
        for [option, value] in bad {
            let args = ["vhost-device-tmem", "-s", "a", "-c", "1G", option, value];
            assert!(Args::try_parse_from(args).is_err(), "{option} {value}");
        }
        assert!(Args::try_parse_from(["vhost-device-tmem", "-c", "1G"]).is_err());
    }
}
