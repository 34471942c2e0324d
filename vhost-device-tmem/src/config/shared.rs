// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What operators say of shared pools: which guests may have access, and how much memory there is.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{
    problem::{Key, Place, Problem, Problems},
    sources::Sources,
    terms::{DEFAULT, DEFAULT_WEIGHT, NO_SIZE},
};
use crate::{
    args::{Config, GuestConfig, SharedConfig, SharedTable},
    policy::{Bounds, Terms, MAX_WEIGHT},
    size,
    tier::choice::TierUse,
};

/// The least that a shared pool may be limited to, in bytes.
const MIN_MAX: u64 = 1 << 20;

/// The most shared pools, and guests of all of them together: workers are told of all in one message.
const MAX_SHARED: usize = 128;
const MAX_GUESTS: usize = 4096;

/// What an operator asks for about one shared pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "kebab-case")]
pub enum SharedEdit {
    /// Guests may have access, besides those that may already.
    Add {
        /// The pool's UUID, as text.
        uuid: String,
        /// The guests' names.
        guests: Vec<String>,
        /// The memory that it takes at most, as text; `default` takes back what was said.
        #[serde(default)]
        max: Option<String>,
    },
    /// Guests may not have access any more.
    Remove {
        /// The pool's UUID, as text.
        uuid: String,
        /// The guests' names; all of them if there is none.
        #[serde(default)]
        guests: Vec<String>,
    },
}

/// What operators changed of a shared pool, beside what the file says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct SharedChange {
    added: BTreeSet<String>,
    removed: BTreeSet<String>,
    max: Option<u64>,
}

/// Reads a UUID, as it is written by `blkid`.
///
/// # Errors
///
/// What is wrong with it.
pub fn parse_uuid(text: &str) -> Result<Uuid, String> {
    let hyphenated = text.len() == 36;
    match Uuid::try_parse(text).ok().filter(|_| hyphenated) {
        None => Err(format!(
            "{text:?} is no UUID; give that of the file system as blkid shows it, such as \
             6a1e3b7c-52d4-4c1f-9a3e-8f0b1c2d3e4f"
        )),
        Some(uuid) if uuid.is_nil() => {
            Err("the UUID of zeros names no pool; give that of the file system".to_owned())
        }
        Some(uuid) => Ok(uuid),
    }
}

fn parse_max(text: &str) -> Result<u64, String> {
    match size::parse(text) {
        None => Err(format!("{text:?} {NO_SIZE}")),
        Some(max) if max < MIN_MAX => Err(format!("{text:?} is too small; give at least 1MiB")),
        Some(max) => Ok(max),
    }
}

fn unknown(name: &str, guests: &[GuestConfig]) -> String {
    let names: Vec<_> = guests.iter().map(|guest| guest.name.as_str()).collect();
    format!(
        "names guest {name:?}, which there is not; the guests are: {}",
        names.join(", ")
    )
}

impl SharedConfig {
    /// Returns what the policy has to know of the pool, which has this number there.
    pub fn terms(&self, number: u32) -> Terms {
        Terms {
            guest: number,
            name: self.uuid.to_string(),
            weight: self.weight,
            persistent: Bounds { min: 0, cap: 0 },
            ephemeral: Bounds {
                cap: self.max.unwrap_or(Bounds::NONE.cap),
                ..Bounds::NONE
            },
            // What is in it may be forgotten.
            tier: TierUse::default(),
        }
    }
}

impl Sources {
    /// Returns the shared pools for which there are guests, by their UUIDs. Names of guests which there
    /// are not are left out, and are said in `missing`. What else is wrong is handed to `wrong`.
    pub(super) fn shared(
        &self,
        guests: &[GuestConfig],
        missing: &mut Vec<Problem>,
        mut wrong: impl FnMut(Key, String),
    ) -> Vec<SharedConfig> {
        let mut pools: BTreeMap<Uuid, (String, SharedConfig)> = BTreeMap::new();
        let tables = self.file.iter().flat_map(|file| &file.options.shared);
        for (text, table) in tables {
            let key = |key| Key::Shared(text.clone(), key);
            match parse_uuid(text) {
                Ok(uuid) => {
                    let pool = read_table(uuid, table, |at, what| wrong(key(at), what));
                    if pools.insert(uuid, (text.clone(), pool)).is_some() {
                        let what = "is there twice; a UUID is the same in capitals";
                        wrong(key("guests"), what.to_owned());
                    }
                }
                Err(what) => wrong(key("guests"), format!("is of no shared pool: {what}")),
            }
        }
        for (uuid, change) in &self.edits.shared {
            let new = || (uuid.to_string(), SharedConfig::of(*uuid));
            let (_, pool) = pools.entry(*uuid).or_insert_with(new);
            pool.guests.extend(change.added.iter().cloned());
            pool.guests.retain(|name| !change.removed.contains(name));
            pool.max = change.max.or(pool.max);
        }
        let there = |name: &String| guests.iter().any(|guest| guest.name == *name);
        let mut used = Vec::new();
        for (text, mut pool) in pools.into_values() {
            for name in pool.guests.iter().filter(|name| !there(name)) {
                let place = self.place(&Key::Shared(text.clone(), "guests"));
                let what = unknown(name, guests);
                missing.push(Problem { place, what });
            }
            pool.guests.retain(there);
            if pool.guests.is_empty() {
                continue;
            }
            used.push(pool);
            let named: usize = used.iter().map(|pool| pool.guests.len()).sum();
            if used.len() > MAX_SHARED || named > MAX_GUESTS {
                let what = format!(
                    "is one too many: there may be {MAX_SHARED} shared pools, with {MAX_GUESTS} \
                     guests in all"
                );
                wrong(Key::Shared(text, "guests"), what);
                break;
            }
        }
        used
    }

    /// Does what an operator asks for about one shared pool.
    ///
    /// # Errors
    ///
    /// Why that cannot be.
    pub fn edit_shared(&mut self, edit: &SharedEdit, config: &Config) -> Result<(), Problems> {
        let (SharedEdit::Add {
            uuid: text, guests, ..
        }
        | SharedEdit::Remove { uuid: text, guests }) = edit;
        let problem = |what: String| {
            let place = Place::Shared(text.clone());
            Problems::from(Problem { place, what })
        };
        let uuid = parse_uuid(text).map_err(|what| problem(format!("cannot be: {what}")))?;
        let mut named = BTreeSet::new();
        if let Some(twice) = guests.iter().find(|name| !named.insert(*name)) {
            return Err(problem(format!("names guest {twice:?} twice")));
        }
        let pool = config.shared.iter().find(|pool| pool.uuid == uuid);
        let has = |name: &String| pool.is_some_and(|pool| pool.guests.contains(name));
        let of_file = |name: &String| {
            let mut tables = self.file.iter().flat_map(|file| &file.options.shared);
            tables.any(|(of, table)| parse_uuid(of) == Ok(uuid) && table.guests.contains(name))
        };
        let mut change = self.edits.shared.get(&uuid).cloned().unwrap_or_default();
        match edit {
            SharedEdit::Add { max, .. } => {
                if pool.is_none() && guests.is_empty() {
                    let what = "has no guests; name those that may have access by --guest";
                    return Err(problem(what.to_owned()));
                }
                for name in guests {
                    if !config.guests.iter().any(|guest| guest.name == *name) {
                        return Err(problem(unknown(name, &config.guests)));
                    }
                    change.removed.remove(name);
                    if !of_file(name) {
                        change.added.insert(name.clone());
                    }
                }
                match max.as_deref() {
                    None => {}
                    Some(DEFAULT) => change.max = None,
                    Some(max) => {
                        let max = parse_max(max);
                        let max =
                            max.map_err(|what| problem(format!("max {what}, or {DEFAULT}")))?;
                        change.max = Some(max);
                    }
                }
            }
            SharedEdit::Remove { .. } => {
                let Some(pool) = pool else {
                    return Err(problem("is shared with nobody".to_owned()));
                };
                if let Some(name) = guests.iter().find(|name| !has(name)) {
                    let names: Vec<_> = pool.guests.iter().map(String::as_str).collect();
                    return Err(problem(format!(
                        "is not shared with guest {name:?}, but with {}",
                        names.join(", ")
                    )));
                }
                let all: Vec<_> = pool.guests.iter().cloned().collect();
                let gone = if guests.is_empty() { &all } else { guests };
                for name in gone {
                    change.remove(name, of_file(name));
                }
                if gone.len() == all.len() {
                    change.max = None;
                }
            }
        }
        self.edits.set_shared(uuid, change);
        Ok(())
    }

    /// A guest is not there any more, or has another name from now on, and with it access to the same
    /// shared pools.
    pub fn rename_shared(&mut self, name: &str, to: Option<&str>, shared: &[SharedConfig]) {
        for pool in shared.iter().filter(|pool| pool.guests.contains(name)) {
            let mut change = self
                .edits
                .shared
                .get(&pool.uuid)
                .cloned()
                .unwrap_or_default();
            let mut tables = self.file.iter().flat_map(|file| &file.options.shared);
            let of_file = tables.any(|(of, table)| {
                parse_uuid(of) == Ok(pool.uuid) && table.guests.iter().any(|of| of == name)
            });
            change.remove(name, of_file);
            if let Some(to) = to {
                change.removed.remove(to);
                change.added.insert(to.to_owned());
            }
            self.edits.set_shared(pool.uuid, change);
        }
    }
}

impl SharedChange {
    /// A guest may not have access any more. `of_file` says whether the file names it.
    fn remove(&mut self, name: &str, of_file: bool) {
        self.added.remove(name);
        if of_file {
            self.removed.insert(name.to_owned());
        }
    }
}

impl SharedConfig {
    fn of(uuid: Uuid) -> Self {
        Self {
            uuid,
            guests: BTreeSet::new(),
            max: None,
            weight: DEFAULT_WEIGHT,
        }
    }
}

fn read_table(
    uuid: Uuid,
    table: &SharedTable,
    mut wrong: impl FnMut(&'static str, String),
) -> SharedConfig {
    let mut pool = SharedConfig::of(uuid);
    for name in &table.guests {
        if !pool.guests.insert(name.clone()) {
            wrong("guests", format!("names guest {name:?} twice"));
        }
    }
    match table.max.as_deref().map(parse_max).transpose() {
        Ok(max) => pool.max = max,
        Err(what) => wrong("max", what),
    }
    pool.weight = table.weight.unwrap_or(DEFAULT_WEIGHT);
    if !(1..=MAX_WEIGHT).contains(&pool.weight) {
        let weight = pool.weight;
        wrong("weight", format!("{weight} is not in 1 to {MAX_WEIGHT}"));
    }
    pool
}
