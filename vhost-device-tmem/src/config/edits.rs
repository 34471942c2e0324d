// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What operators changed while the daemon runs, beside what is in files.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use serde::{Deserialize, Serialize};

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
}

/// Guests that were added, and some that were taken off though the command line or a file names
/// them. It stays so until it is undone in the same way.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Edits {
    pub(super) added: BTreeMap<String, GuestConfig>,
    pub(super) removed: BTreeSet<String>,
}

impl Edits {
    /// Returns whether nothing was changed.
    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.removed.is_empty()
    }

    /// Adds a guest.
    pub fn add(&mut self, guest: GuestConfig) {
        self.removed.remove(&guest.name);
        self.added.insert(guest.name.clone(), guest);
    }

    /// Takes a guest off. `named` says whether the command line or a file names it.
    pub fn remove(&mut self, name: &str, named: bool) {
        self.added.remove(name);
        if named {
            self.removed.insert(name.to_owned());
        }
    }

    /// Forgets that guests were taken off which nobody names any more.
    pub fn forget_removed(&mut self, named: impl Fn(&str) -> bool) {
        self.removed.retain(|name| named(name));
    }

    /// Returns the guests that were added.
    pub fn added(&self) -> impl Iterator<Item = &GuestConfig> {
        self.added.values()
    }
}
