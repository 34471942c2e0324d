// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How a daemon that runs comes from one configuration to another: decisions alone, all of it or
//! nothing.

use std::{collections::BTreeSet, path::PathBuf};

use uuid::Uuid;

use super::problem::Key;
use crate::{
    args::{Config, GuestConfig, SharedConfig},
    socket::directory,
};

/// What matters beside the configurations.
#[derive(Clone, Debug, Default)]
pub struct Circumstances {
    /// The guests that are connected.
    pub connected: BTreeSet<String>,
    /// Those that are connected may be taken off, too.
    pub force: bool,
    /// The directories in which there may be sockets, those of the start.
    pub dirs: BTreeSet<PathBuf>,
    /// A guest of the old configuration is the one of the new that has the other name.
    pub renamed: Option<(String, String)>,
}

/// Something to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A guest goes.
    Remove(String),
    /// A guest comes.
    Add(GuestConfig),
    /// A guest is to be found at the socket that it has now.
    Move(GuestConfig),
    /// A guest has another name.
    Rename {
        /// The name that it had.
        from: String,
        /// What it is now.
        to: GuestConfig,
    },
    /// A guest has other terms.
    Terms(String),
    /// A pool is shared in this way.
    Share(SharedConfig),
    /// A pool is shared no more.
    Unshare(Uuid),
    /// Settings that need nothing but to be known change: these.
    Set(Vec<&'static str>),
}

/// Decides what is to be done, in this order.
///
/// # Errors
///
/// All that stands against it: what it is about, and what to do.
pub fn plan(
    old: &Config,
    new: &Config,
    circumstances: &Circumstances,
) -> Result<Vec<Step>, Vec<(Key, String)>> {
    let mut problems = fixed(old, new);
    let mut steps = Vec::new();
    let renamed = circumstances.renamed.as_ref();
    let named = |guests: &[GuestConfig], name: &str| -> Option<GuestConfig> {
        guests.iter().find(|guest| guest.name == name).cloned()
    };
    for guest in &old.guests {
        let name = &guest.name;
        if named(&new.guests, name).is_some() || renamed.is_some_and(|(from, _)| from == name) {
            continue;
        }
        let connected = circumstances.connected.contains(name);
        if connected && !circumstances.force && !new.remove_connected {
            let what =
                "is gone from there, and the guest is connected: end its machine, or take it \
                        off by --force, by which it loses its pages";
            problems.push((Key::socket(name), what.to_owned()));
        }
        steps.push(Step::Remove(name.clone()));
    }
    for guest in &new.guests {
        let from = renamed.filter(|(_, to)| *to == guest.name);
        let before = from.map_or(&guest.name, |(from, _)| from);
        let before = named(&old.guests, before);
        problems.extend(check_socket(&circumstances.dirs, before.as_ref(), guest));
        match before {
            None => steps.push(Step::Add(guest.clone())),
            Some(before) => {
                if before.window != guest.window {
                    let what = "is another one than the guest has, and a window keeps its size; \
                                take the guest off first, and add it again";
                    problems.push((Key::window(&guest.name), what.to_owned()));
                }
                if let Some((from, _)) = from {
                    let from = from.clone();
                    let to = guest.clone();
                    steps.push(Step::Rename { from, to });
                }
                if before.path != guest.path {
                    steps.push(Step::Move(guest.clone()));
                }
                // Names and numbers are no terms.
                let terms = |config: &Config, of: &GuestConfig| {
                    let given = of.terms.or(config.terms);
                    given.of(0, "")
                };
                if terms(old, &before) != terms(new, guest) {
                    steps.push(Step::Terms(guest.name.clone()));
                }
            }
        }
    }
    let gone = |of: &&SharedConfig| new.shared.iter().all(|pool| pool.uuid != of.uuid);
    let gone = old.shared.iter().filter(gone);
    steps.extend(gone.map(|pool| Step::Unshare(pool.uuid)));
    let changed = new.shared.iter().filter(|pool| !old.shared.contains(pool));
    steps.extend(changed.cloned().map(Step::Share));
    let settings = changed_settings(old, new);
    if !settings.is_empty() {
        steps.push(Step::Set(settings));
    }
    if problems.is_empty() {
        Ok(steps)
    } else {
        Err(problems)
    }
}

/// Looks whether a new socket is where the daemon may make one.
fn check_socket(
    dirs: &BTreeSet<PathBuf>,
    before: Option<&GuestConfig>,
    guest: &GuestConfig,
) -> Option<(Key, String)> {
    let moved = before.is_none_or(|before| before.path != guest.path);
    if !moved || dirs.contains(directory(&guest.path)) {
        return None;
    }
    let dirs = dirs.iter().map(|dir| dir.display().to_string());
    let what = format!(
        "is {}, which is in none of the directories that this daemon has kept for sockets since \
         its start ({}); choose one of these, or start it anew with --socket-dir",
        guest.path.display(),
        dirs.collect::<Vec<_>>().join(", ")
    );
    Some((Key::socket(&guest.name), what))
}

/// Returns what changes that cannot, while the daemon runs.
fn fixed(old: &Config, new: &Config) -> Vec<(Key, String)> {
    let changed = [
        ("capacity", old.capacity != new.capacity),
        ("compression", old.compression != new.compression),
        ("huge-pages", old.huge_pages != new.huge_pages),
        ("lock-memory", old.lock_memory != new.lock_memory),
        ("check-contents", old.check_contents != new.check_contents),
        ("window-dir", old.window_dir != new.window_dir),
        ("window-source", old.window_source != new.window_source),
        ("guests-dir", old.guests_dir != new.guests_dir),
        ("socket-dir", old.socket_dirs != new.socket_dirs),
        ("tier-file", old.tier_file != new.tier_file),
        ("control-path", old.control_path != new.control_path),
        ("metrics-listen", old.metrics_listen != new.metrics_listen),
        ("data-queues", old.limits != new.limits),
        ("pressure", old.pressure != new.pressure),
        ("threads", old.threads != new.threads),
        ("poll-us", old.poll != new.poll),
        (
            "fault-refuse-percent",
            old.faults.refuse_percent != new.faults.refuse_percent,
        ),
        (
            "fault-forget-percent",
            old.faults.forget_percent != new.faults.forget_percent,
        ),
        ("socket-mode", old.socket_mode != new.socket_mode),
        ("socket-group", old.socket_group != new.socket_group),
        ("control-group", old.control_group != new.control_group),
        ("user", old.user != new.user),
        ("group", old.group != new.group),
        ("sandbox", old.sandbox != new.sandbox),
        ("oom-score-adj", old.oom_score_adj != new.oom_score_adj),
        (
            "fault-take-chunks",
            old.fault_take_chunks != new.fault_take_chunks,
        ),
        ("fault-pressure", old.fault_pressure != new.fault_pressure),
        (
            "fault-crash-guest",
            old.fault_crash_guest != new.fault_crash_guest,
        ),
        (
            "fault-hang-guest",
            old.fault_hang_guest != new.fault_hang_guest,
        ),
    ];
    let changed = changed.into_iter().filter(|(_, changed)| *changed);
    let what = "is another one than the daemon was started with, and cannot change while it runs; \
                put it back, or start the daemon anew";
    changed
        .map(|(option, _)| (Key::Option(option), what.to_owned()))
        .collect()
}

/// Returns what changes of which it is enough to know.
fn changed_settings(old: &Config, new: &Config) -> Vec<&'static str> {
    let changed = [
        ("log-level", old.log_level != new.log_level),
        (
            "remove-connected",
            old.remove_connected != new.remove_connected,
        ),
        (
            "abandoned-after",
            old.abandoned_after != new.abandoned_after,
        ),
        (
            "stop-loses-pages",
            old.stop_loses_pages != new.stop_loses_pages,
        ),
    ];
    let changed = changed.into_iter().filter(|(_, changed)| *changed);
    changed.map(|(option, _)| option).collect()
}
