// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What operators changed while the daemon runs, beside what is in files.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{
    problem::{Place, Problem, Problems},
    shared::SharedChange,
    sources::{window_size, Sources, NO_WINDOW},
    terms::GivenTerms,
};
use crate::args::GuestConfig;

/// What an operator asks for about one guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "kebab-case")]
pub enum GuestEdit {
    /// A guest comes.
    Add {
        /// Its name.
        name: String,
        /// The socket that it connects to.
        socket: PathBuf,
        /// The size of its window, as text.
        #[serde(default)]
        window_size: Option<String>,
        /// Its terms, as text, by their keys.
        #[serde(default)]
        terms: BTreeMap<String, String>,
    },
    /// A guest goes.
    Remove {
        /// Its name.
        name: String,
        /// Even if it is connected.
        #[serde(default)]
        force: bool,
    },
    /// A guest gets another name.
    Rename {
        /// The name that it has.
        name: String,
        /// The name that it gets.
        to: String,
    },
    /// A guest gets other terms.
    Set {
        /// Its name.
        name: String,
        /// The terms, as text, by their keys; `default` takes back what was said.
        terms: BTreeMap<String, String>,
    },
}

/// Guests that were added, some that were taken off though the command line or a file names them, and
/// terms of those that stayed. It stays so until it is undone in the same way.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Edits {
    pub(super) added: BTreeMap<String, GuestConfig>,
    pub(super) removed: BTreeSet<String>,
    /// The terms of guests that the command line or a file names.
    pub(super) terms: BTreeMap<String, GivenTerms>,
    /// What is to be otherwise of shared pools.
    pub(super) shared: BTreeMap<Uuid, SharedChange>,
}

impl Edits {
    /// Returns whether nothing was changed.
    pub fn is_empty(&self) -> bool {
        let Self {
            added,
            removed,
            terms,
            shared,
        } = self;
        added.is_empty() && removed.is_empty() && terms.is_empty() && shared.is_empty()
    }

    /// Adds a guest.
    pub fn add(&mut self, guest: GuestConfig) {
        self.removed.remove(&guest.name);
        self.added.insert(guest.name.clone(), guest);
    }

    /// Takes a guest off. `named` says whether the command line or a file names it.
    pub fn remove(&mut self, name: &str, named: bool) {
        self.added.remove(name);
        self.terms.remove(name);
        if named {
            self.removed.insert(name.to_owned());
        }
    }

    /// Gives a guest other terms.
    ///
    /// # Errors
    ///
    /// What is wrong with them; some may be others then.
    pub fn set(&mut self, name: &str, terms: &BTreeMap<String, String>) -> Result<(), String> {
        if let Some(added) = self.added.get_mut(name) {
            return added.terms.set(terms);
        }
        let of = self.terms.entry(name.to_owned()).or_default();
        of.set(terms)?;
        if *of == GivenTerms::default() {
            self.terms.remove(name);
        }
        Ok(())
    }

    /// Changes a shared pool.
    pub(super) fn set_shared(&mut self, uuid: Uuid, change: SharedChange) {
        if change == SharedChange::default() {
            self.shared.remove(&uuid);
        } else {
            self.shared.insert(uuid, change);
        }
    }

    /// Forgets what is about guests that nobody names any more.
    pub fn forget(&mut self, named: impl Fn(&str) -> bool) {
        self.removed.retain(|name| named(name));
        self.terms.retain(|name, _| named(name));
    }

    /// Returns the guests that were added.
    pub fn added(&self) -> impl Iterator<Item = &GuestConfig> {
        self.added.values()
    }
}

impl Sources {
    /// Does what an operator asks for about one guest.
    ///
    /// # Errors
    ///
    /// Why that cannot be.
    pub fn edit(&mut self, edit: &GuestEdit, guests: &[GuestConfig]) -> Result<(), Problems> {
        let problem = |name: &str, what: String| {
            let place = Place::Operator(name.to_owned());
            Err(Problems::from(Problem { place, what }))
        };
        let there = |name: &str| guests.iter().find(|guest| guest.name == *name);
        let none = || {
            let names = guests.iter().map(|guest| guest.name.as_str());
            let names = names.collect::<Vec<_>>().join(", ");
            format!("there is none of that name; the guests are: {names}")
        };
        match edit {
            GuestEdit::Add { name, .. } | GuestEdit::Rename { to: name, .. }
                if there(name).is_some() =>
            {
                problem(
                    name,
                    "there is one of that name already; choose another".to_owned(),
                )
            }
            GuestEdit::Add {
                name,
                socket,
                window_size: size,
                terms: values,
            } => {
                let mut terms = GivenTerms::default();
                if let Err(what) = terms.set(values) {
                    return problem(name, what);
                }
                let window = size.as_ref().map(|size| window_size(size).ok_or(size));
                match window.transpose() {
                    Err(size) => problem(name, format!("{size:?} {NO_WINDOW}")),
                    Ok(window) => {
                        self.edits.add(GuestConfig {
                            name: name.clone(),
                            path: socket.clone(),
                            window,
                            terms,
                        });
                        Ok(())
                    }
                }
            }
            GuestEdit::Remove { name, .. } => match there(name) {
                None => problem(name, none()),
                Some(_) => {
                    self.edits.remove(name, self.names(name));
                    Ok(())
                }
            },
            GuestEdit::Rename { name, to } => match there(name) {
                None => problem(name, none()),
                Some(guest) => {
                    self.edits.remove(name, self.names(name));
                    self.edits.add(GuestConfig {
                        name: to.clone(),
                        ..guest.clone()
                    });
                    Ok(())
                }
            },
            GuestEdit::Set { name, terms } => match there(name) {
                None => problem(name, none()),
                Some(_) => {
                    let set = self.edits.set(name, terms);
                    set.or_else(|what| problem(name, what))
                }
            },
        }
    }
}
