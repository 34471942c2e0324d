// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Making sense of all that was said, wherever that was.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Display,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    time::Duration,
};

use tracing::level_filters::LevelFilter;

use super::{
    edits::Edits,
    file::{File, GuestFile},
    problem::{Key, Place, Problem, Problems},
    read::{self, read_file},
    terms::{self, is_term, GivenTerms, NO_SIZE},
};
use crate::{
    args::{Args, Config, GuestConfig, GuestTable, MAX_OOM_SCORE_ADJ, MAX_THREADS},
    device::Limits,
    limits::{Memory, MemoryOf},
    metrics::Address,
    size,
    store::{Compression, Faults, MIN_CAPACITY},
    tier::spill,
    window,
};

/// The longest name of a guest, in bytes: that of its window's file has some more.
const MAX_NAME: usize = 200;

/// All that was said.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// The command line.
    pub args: Args,
    /// The configuration file.
    pub file: Option<File>,
    /// The guests' own files.
    pub guests: Vec<GuestFile>,
    /// What operators changed since.
    pub edits: Edits,
}

/// Problems that are found one after the other.
struct Found<'s> {
    sources: &'s Sources,
    problems: Vec<Problem>,
}

impl Found<'_> {
    fn add(&mut self, place: Place, what: impl Into<String>) {
        let what = what.into();
        self.problems.push(Problem { place, what });
    }

    fn add_of(&mut self, key: &Key, what: impl Into<String>) {
        self.add(self.sources.place(key), what);
    }

    /// Refuses a number out of its range.
    fn check(&mut self, option: &'static str, value: Option<i64>, range: RangeInclusive<i64>) {
        if let Some(value) = value.filter(|value| !range.contains(value)) {
            let what = format!("{value} is not in {} to {}", range.start(), range.end());
            self.add_of(&Key::Option(option), what);
        }
    }
}

impl Sources {
    /// Returns the options that are given, those of the command line first, without guests and shared
    /// pools.
    pub fn options(&self) -> Args {
        let file = self.file.as_ref().map(|file| file.options.clone());
        let options = self.args.clone().or(file.unwrap_or_default());
        Args {
            guests: BTreeMap::new(),
            shared: BTreeMap::new(),
            ..options
        }
    }

    /// Reads all files again. A guest's own file that is wrong is as it was `before`, and what is
    /// wrong with it is returned.
    ///
    /// # Errors
    ///
    /// What is wrong with the configuration file, or with the directory of guests' files.
    pub fn read(before: &Self) -> Result<(Self, Vec<Problems>), Problems> {
        let file = before.args.config.as_deref().map(read_file).transpose()?;
        let sources = Self {
            file,
            ..before.clone()
        };
        let Some(directory) = sources.options().guests_dir else {
            return Ok((sources, Vec::new()));
        };
        let (guests, problems) = Self::read_guests(&directory, &before.guests)?;
        Ok((Self { guests, ..sources }, problems))
    }

    /// Reads guests' own files, as [`Self::read`] does.
    ///
    /// # Errors
    ///
    /// Where the directory cannot be read.
    pub fn read_guests(
        directory: &Path,
        before: &[GuestFile],
    ) -> Result<(Vec<GuestFile>, Vec<Problems>), Problems> {
        let (mut guests, mut wrong) = (Vec::new(), Vec::new());
        for read::Found { path, file } in read::read_guest_files(directory)? {
            match file {
                Ok(file) => guests.push(file),
                Err(problems) => {
                    guests.extend(before.iter().find(|file| file.is_at(&path)).cloned());
                    wrong.push(problems);
                }
            }
        }
        Ok((guests, wrong))
    }

    /// Returns whether the command line or a file names a guest.
    pub fn names(&self, guest: &str) -> bool {
        let args = self.args.socket_paths.iter();
        let mut args = args.filter_map(|arg| split_guest(arg).ok());
        let file = self.file.as_ref();
        args.any(|(name, _)| name == guest)
            || file.is_some_and(|file| file.options.guests.contains_key(guest))
            || self.guests.iter().any(|file| file.name == guest)
    }

    /// Returns where something was said of a key.
    pub fn place(&self, key: &Key) -> Place {
        match key {
            Key::Option(option) => self.place_of_option(option),
            Key::Guest(guest, key) => self.place_of_guest(guest, key),
            Key::Shared(uuid, key) => match &self.file {
                Some(file) if file.options.shared.contains_key(uuid) => {
                    file.place(&["shared", uuid, key])
                }
                _ => Place::Shared(uuid.clone()),
            },
        }
    }

    fn place_of_option(&self, option: &str) -> Place {
        // The options that were given are those that can be read again from what is written.
        let given = |options: &Args| {
            let options = serde_json::to_value(options).unwrap_or_default();
            options.get(option).is_some_and(|value| !value.is_null())
        };
        match &self.file {
            Some(file) if given(&file.options) && !given(&self.args) => file.place(&[option]),
            _ => Place::CommandLine(format!("--{option}")),
        }
    }

    fn place_of_guest(&self, guest: &str, key: &str) -> Place {
        let is_edited = self.edits.added.contains_key(guest);
        if is_edited || is_term(key) && self.edits.terms.contains_key(guest) {
            return Place::Operator(guest.to_owned());
        }
        let (option, args) = match key {
            "window-size" => ("--window-size", &self.args.window_sizes),
            _ => ("--socket-path", &self.args.socket_paths),
        };
        let names = |arg: &&String| match key {
            "window-size" => arg.rsplit_once('=').is_some_and(|(name, _)| name == guest),
            _ => split_guest(arg).is_ok_and(|(name, _)| name == guest),
        };
        let mut named = args.iter().filter(|_| !is_term(key));
        if let Some(arg) = named.find(names) {
            return Place::CommandLine(format!("{option} {arg:?}"));
        }
        let mut own = self.guests.iter().filter(|file| file.name == guest);
        if let Some(file) = own.find(|file| !is_term(key) || file.says(key)) {
            return file.place(key);
        }
        match &self.file {
            // What it does not say of the guest it may say of all.
            Some(file) if is_term(key) => file.place_of_term(guest, key),
            Some(file) => file.place(&["guests", guest, key]),
            None => Place::CommandLine(option.to_owned()),
        }
    }

    /// Makes sense of it where the daemon can have so much memory.
    ///
    /// # Errors
    ///
    /// All that is wrong with it.
    pub fn config(&self, memory: &Memory) -> Result<Config, Problems> {
        let (config, missing) = self.config_of_known(memory)?;
        if missing.is_empty() {
            Ok(config)
        } else {
            Err(Problems(missing))
        }
    }

    /// As [`Self::config`], where pools may be shared with guests which there are not: these share
    /// nothing until they come. Returns where they are named.
    ///
    /// # Errors
    ///
    /// All else that is wrong.
    pub fn config_of_known(&self, memory: &Memory) -> Result<(Config, Vec<Problem>), Problems> {
        let mut found = Found {
            sources: self,
            problems: Vec::new(),
        };
        let settings = settings(&self.options(), memory, &mut found);
        let guests = self.guests(&mut found);
        let mut missing = Vec::new();
        let shared = self.shared(&guests, &mut missing, |key, what| found.add_of(&key, what));
        let Some(mut config) = settings.filter(|_| found.problems.is_empty()) else {
            return Err(Problems(found.problems));
        };
        if let Err((key, what)) = terms::check(&guests, config.terms, config.capacity) {
            let place = self.place(&key);
            return Err(Problem { place, what }.into());
        }
        config.guests = guests;
        config.shared = shared;
        Ok((config, missing))
    }

    /// Returns the guests, with what is wrong with them.
    fn guests(&self, found: &mut Found<'_>) -> Vec<GuestConfig> {
        let mut tables: Vec<(String, GuestTable)> = Vec::new();
        for arg in &self.args.socket_paths {
            let place = || Place::CommandLine(format!("--socket-path {arg:?}"));
            match split_guest(arg) {
                Ok((name, _)) if tables.iter().any(|(of, _)| of == name) => {
                    let what = format!(
                        "names a guest {name:?}, and so does another one; name them with NAME=PATH"
                    );
                    found.add(place(), what);
                }
                Ok((name, path)) => {
                    let socket = Some(path.into());
                    let table = GuestTable {
                        socket,
                        ..GuestTable::default()
                    };
                    tables.push((name.to_owned(), table));
                }
                Err(what) => found.add(place(), what),
            }
        }
        let file = self.file.iter().flat_map(|file| &file.options.guests);
        for (name, table) in file {
            merge(&mut tables, name, table);
        }
        let mut own = BTreeSet::new();
        for GuestFile { name, table, .. } in &self.guests {
            let in_file = self.file.as_ref().map(|file| &file.options.guests);
            if in_file.is_some_and(|guests| guests.contains_key(name)) || !own.insert(name) {
                let what =
                    format!("is of guest {name:?}, which the configuration file has as well");
                found.add_of(&Key::socket(name), what);
            }
            merge(&mut tables, name, table);
        }
        let mut guests = self.with_windows(tables, found);
        guests.retain(|guest| !self.edits.removed.contains(&guest.name));
        for guest in &mut guests {
            let edited = self.edits.terms.get(&guest.name).copied();
            guest.terms = edited.unwrap_or_default().or(guest.terms);
        }
        for added in self.edits.added() {
            guests.retain(|guest| guest.name != added.name);
            guests.push(added.clone());
        }
        self.check_guests(&guests, found);
        guests
    }

    /// Gives the guests their windows.
    fn with_windows(
        &self,
        tables: Vec<(String, GuestTable)>,
        found: &mut Found<'_>,
    ) -> Vec<GuestConfig> {
        let mut named = BTreeMap::new();
        let mut others = None;
        for arg in &self.args.window_sizes {
            let place = Place::CommandLine(format!("--window-size {arg:?}"));
            let (name, size) = match arg.rsplit_once('=') {
                Some((name, size)) => (Some(name), size),
                None => (None, arg.as_str()),
            };
            let Some(size) = window_size(size) else {
                found.add(place, NO_WINDOW.replace("a power", "NAME= and a power"));
                continue;
            };
            let is_there = |name: &str| tables.iter().any(|(of, _)| of == name);
            let before = match name {
                Some(name) if !is_there(name) => {
                    found.add(
                        place,
                        "names no guest; the names are those of --socket-path",
                    );
                    continue;
                }
                Some(name) => named.insert(name.to_owned(), size),
                None => others.replace(size),
            };
            if before.is_some() {
                let what = "gives a size that was given already; give one for each guest";
                found.add(place, what);
            }
        }
        if let (None, Some(file)) = (others, &self.file) {
            if let Some(size) = &file.options.window_size {
                others = window_size(size);
                if others.is_none() {
                    found.add(
                        file.place(&["window-size"]),
                        format!("{size:?} {NO_WINDOW}"),
                    );
                }
            }
        }
        let mut guests = Vec::new();
        for (name, table) in tables {
            let terms = GivenTerms::of_table(&table, &mut |key, what| {
                found.add_of(&Key::Guest(name.clone(), key), what);
            });
            let GuestTable {
                socket,
                window_size: of_its_own,
                ..
            } = table;
            let own = of_its_own.as_ref().map(|size| (size, window_size(size)));
            if let Some((size, None)) = own {
                found.add_of(&Key::window(&name), format!("{size:?} {NO_WINDOW}"));
            }
            let size = named.get(&name).copied();
            let window = size.or(own.and_then(|(_, size)| size)).or(others);
            match socket {
                Some(path) => guests.push(GuestConfig {
                    name,
                    path,
                    window,
                    terms,
                }),
                None => found.add_of(
                    &Key::socket(&name),
                    "is missing; give the path of the socket that the guest's QEMU connects to",
                ),
            }
        }
        guests
    }

    fn check_guests(&self, guests: &[GuestConfig], found: &mut Found<'_>) {
        let options = self.options();
        let may_come =
            self.file.is_some() || options.guests_dir.is_some() || !options.socket_dirs.is_empty();
        if guests.is_empty() && !may_come {
            let what = "is missing: there is no guest; give one, or --config, or --socket-dir for \
                        guests that tmemctl adds";
            found.add_of(&Key::Option("socket-path"), what);
        }
        let mut paths: BTreeMap<_, _> = options
            .control_path
            .iter()
            .map(|path| (path.as_path(), "operators".to_owned()))
            .collect();
        if let Some(Address::Unix(path)) = &options.metrics_listen {
            if paths.insert(path, "metrics".to_owned()).is_some() {
                let what = "is the path of operators as well; each socket needs its own";
                found.add_of(&Key::Option("metrics-listen"), what);
            }
        }
        for GuestConfig {
            name, path, window, ..
        } in guests
        {
            if let Err(what) = check_name(name) {
                found.add_of(&Key::socket(name), what);
            }
            if path.as_os_str().is_empty() {
                found.add_of(&Key::socket(name), "is empty; give a path");
            }
            if let Some(other) = paths.insert(path, format!("guest {name:?}")) {
                let what = format!(
                    "is {}, which is the socket of {other} as well; each needs its own",
                    path.display()
                );
                found.add_of(&Key::socket(name), what);
            }
            if window.is_some() && options.window_dir.is_none() {
                let what = "is of no use without --window-dir (window-dir in the file), where \
                            windows are made; give it";
                found.add_of(&Key::window(name), what);
            }
        }
    }
}

/// What is said of a size that no window has.
pub(super) const NO_WINDOW: &str =
    "is no size of a window; give a power of two from 8MiB to 256GiB";

pub(super) fn window_size(size: &str) -> Option<u64> {
    size::parse(size).filter(|size| {
        size.is_power_of_two() && (window::MIN_SIZE..=window::MAX_SIZE).contains(size)
    })
}

/// Adds what a file says of a guest, unless that was said already.
fn merge(tables: &mut Vec<(String, GuestTable)>, name: &str, table: &GuestTable) {
    match tables.iter_mut().find(|(of, _)| of == name) {
        Some((_, before)) => {
            // The command line says no more than these.
            *before = GuestTable {
                socket: before.socket.take().or(table.socket.clone()),
                window_size: before.window_size.take().or(table.window_size.clone()),
                ..table.clone()
            };
        }
        None => tables.push((name.to_owned(), table.clone())),
    }
}

/// Looks whether a guest can have this name.
///
/// # Errors
///
/// Why not.
fn check_name(name: &str) -> Result<(), String> {
    let odd = |c: char| c == '/' || c.is_control();
    if name.is_empty() || name.len() > MAX_NAME || name.contains(odd) {
        return Err(format!(
            "is of a guest named {name:?}: a name has 1 to {MAX_NAME} bytes, and no slash; choose \
             another"
        ));
    }
    Ok(())
}

/// Returns name and path of a guest of the command line.
fn split_guest(arg: &str) -> Result<(&str, &str), String> {
    let (name, path) = match arg.split_once('=') {
        // A path may have such a sign, a name no slash.
        Some((name, path)) if !name.contains('/') => (Some(name), path),
        Some((name, path)) if path.starts_with('/') && !name.starts_with(['/', '.']) => {
            return Err(format!(
                "gives the guest the name {name:?}, and a name has no slash; choose another, or \
                 write NAME=PATH if all of it is a path"
            ));
        }
        _ => (None, arg),
    };
    if path.is_empty() {
        return Err("has no path; write it as NAME=PATH".to_owned());
    }
    let stem = || Path::new(path).file_stem().and_then(|stem| stem.to_str());
    match name.or_else(stem) {
        Some(name) if !name.is_empty() => Ok((name, path)),
        _ => Err("gives no name for the guest; write it as NAME=PATH".to_owned()),
    }
}

impl Args {
    /// Makes sense of options alone, which were looked at before: of all but guests.
    ///
    /// # Errors
    ///
    /// All that is wrong with them.
    pub fn settings(&self, memory: &Memory) -> Result<Config, Problems> {
        let sources = Sources::default();
        let mut found = Found {
            sources: &sources,
            problems: Vec::new(),
        };
        match settings(self, memory, &mut found) {
            Some(config) if found.problems.is_empty() => Ok(config),
            _ => Err(Problems(found.problems)),
        }
    }
}

/// Returns everything but guests and shared pools; nothing where it is not even known how much memory there is.
fn settings(options: &Args, memory: &Memory, found: &mut Found<'_>) -> Option<Config> {
    let of = |number: Option<u16>| number.map(i64::from);
    found.check("threads", of(options.threads), 0..=MAX_THREADS);
    let queues = 1..=i64::from(Limits::MAX_DATA_QUEUES);
    found.check("data-queues", of(options.data_queues), queues);
    let adj = options.oom_score_adj.map(i64::from);
    let range = -MAX_OOM_SCORE_ADJ..=MAX_OOM_SCORE_ADJ;
    found.check("oom-score-adj", adj, range);
    let percent = |percent: Option<u8>| percent.map(i64::from);
    let (refuse, forget) = (options.fault_refuse_percent, options.fault_forget_percent);
    found.check("fault-refuse-percent", percent(refuse), 0..=100);
    found.check("fault-forget-percent", percent(forget), 0..=100);
    let capacity = match check_capacity(options.capacity.as_deref(), memory) {
        Ok(capacity) => capacity,
        Err(what) => {
            found.add_of(&Key::Option("capacity"), what);
            return None;
        }
    };
    let terms = GivenTerms::of_all(options, &mut |key, what| {
        found.add_of(&Key::Option(key), what);
    });
    let tier_file = tier_file(options, found);
    Some(Config {
        guests: Vec::new(),
        shared: Vec::new(),
        terms,
        socket_dirs: options.socket_dirs.iter().cloned().collect(),
        remove_connected: options.remove_connected.unwrap_or(false),
        capacity,
        compression: match (options.compression, &options.window_dir, &tier_file) {
            (Some(compression), ..) => compression,
            (None, None, None) => Compression::None,
            (None, ..) => Compression::Lz4,
        },
        huge_pages: options.huge_pages.unwrap_or_default(),
        lock_memory: options.lock_memory.unwrap_or(false),
        check_contents: options.check_contents.unwrap_or(false),
        window_dir: options.window_dir.clone(),
        window_source: options.window_source.unwrap_or_default(),
        guests_dir: options.guests_dir.clone(),
        tier_file,
        control_path: options.control_path.clone(),
        metrics_listen: options.metrics_listen.clone(),
        pressure: options.pressure.unwrap_or_default(),
        limits: Limits::new(options.data_queues.unwrap_or(2)),
        threads: options.threads.unwrap_or(0).into(),
        poll: Duration::from_micros(options.poll_us.unwrap_or(50).into()),
        faults: Faults {
            refuse_percent: refuse.unwrap_or(0),
            forget_percent: forget.unwrap_or(0),
        },
        log_level: options.log_level.unwrap_or(LevelFilter::INFO),
        socket_mode: options.socket_mode.unwrap_or(match options.socket_group {
            Some(_) => 0o660,
            None => 0o600,
        }),
        socket_group: options.socket_group.clone(),
        control_group: options.control_group.clone(),
        user: options.user.clone(),
        group: options.group.clone(),
        sandbox: options.sandbox.unwrap_or_default(),
        oom_score_adj: options.oom_score_adj.unwrap_or(-500),
        stop_loses_pages: options.stop_loses_pages.unwrap_or(false),
        abandoned_after: Duration::from_secs(options.abandoned_after.unwrap_or(600)),
        fault_take_chunks: options.fault_take_chunks.unwrap_or(0),
        fault_pressure: options.fault_pressure.clone(),
        fault_crash_guest: options.fault_crash_guest.clone(),
        fault_hang_guest: options.fault_hang_guest.clone(),
    })
}

/// Returns the spill file and its size, if there is to be one.
fn tier_file(options: &Args, found: &mut Found<'_>) -> Option<(PathBuf, u64)> {
    let (path, given) = match (&options.tier_file, &options.tier_size) {
        (None, None) => return None,
        (Some(path), Some(size)) => (path, size),
        (None, Some(_)) => {
            let what = "is of no use without --tier-file (tier-file in the file); give both";
            found.add_of(&Key::Option("tier-size"), what);
            return None;
        }
        (Some(_), None) => {
            let what =
                "takes --tier-size (tier-size in the file): how much it may take, such as 64GiB";
            found.add_of(&Key::Option("tier-file"), what);
            return None;
        }
    };
    if options.compression == Some(Compression::None) {
        let what =
            "is for pages that are compressed; give --compression lz4 or zstd, or none at all";
        found.add_of(&Key::Option("tier-file"), what);
        return None;
    }
    let Some(size) = size::parse(given) else {
        found.add_of(&Key::Option("tier-size"), format!("{given:?} {NO_SIZE}"));
        return None;
    };
    if !spill::is_size(size) {
        let what = format!("{given:?} is no size of a spill file; give whole MiB, at least 16MiB");
        found.add_of(&Key::Option("tier-size"), what);
        return None;
    }
    Some((path.clone(), size))
}

/// Returns a capacity in bytes, if it is one that the daemon can have.
fn check_capacity(given: Option<&str>, memory: &Memory) -> Result<u64, String> {
    let Some(given) = given else {
        return Err("is missing: give the memory that all pages may take, such as 2GiB".to_owned());
    };
    let Some(capacity) = size::parse(given) else {
        return Err(format!("{given:?} {NO_SIZE}"));
    };
    if capacity < MIN_CAPACITY {
        return Err(format!("{given:?} is too small; give at least 1MiB"));
    }
    if capacity <= memory.bytes {
        return Ok(capacity);
    }
    let than = |what: &dyn Display| format!("{given:?} is {capacity} bytes, more than {what}");
    Err(match &memory.of {
        MemoryOf::Host => than(&format_args!(
            "this host's memory of {} bytes; give less",
            memory.bytes
        )),
        MemoryOf::ControlGroup(file) => than(&format_args!(
            "the {} bytes that {} lets the daemon have; give less, or raise that (MemoryMax= of \
             the service)",
            memory.bytes,
            file.display()
        )),
    })
}
