// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Files of the configuration: text in, what it says and where it says so out.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use serde::de::DeserializeOwned;
use toml::de::DeTable;

use super::problem::{Place, Problem, Problems};
use crate::args::{Args, GuestTable};

/// How like a key another one has to be to be meant.
const ALIKE: f64 = 0.8;

/// The lines of keys, by their paths from the top.
type Lines = BTreeMap<Vec<String>, usize>;

/// The configuration file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// What it says.
    pub options: Args,
    text: Text,
}

impl File {
    /// Reads the text of the file at `path`.
    ///
    /// # Errors
    ///
    /// What is wrong with it first.
    pub fn parse(path: &Path, text: &str) -> Result<Self, Problems> {
        let (options, text) = parse(path, text)?;
        Ok(Self { options, text })
    }

    /// Returns where it says something of a key.
    pub(super) fn place(&self, key: &[&str]) -> Place {
        self.text.place(key)
    }

    /// Returns where it says something of a term: of the guest, or of all.
    pub(super) fn place_of_term(&self, guest: &str, term: &str) -> Place {
        let of_all = self.text.says(&[term]) && !self.text.says(&["guests", guest, term]);
        if of_all {
            self.text.place(&[term])
        } else {
            self.text.place(&["guests", guest, term])
        }
    }
}

/// A guest's own file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestFile {
    /// The guest's name.
    pub name: String,
    /// What it says.
    pub table: GuestTable,
    text: Text,
}

impl GuestFile {
    /// Reads the text of the file at `path`, which is named after the guest.
    ///
    /// # Errors
    ///
    /// What is wrong with it first.
    pub fn parse(path: &Path, text: &str) -> Result<Self, Problems> {
        let (table, text) = parse(path, text)?;
        let name = path.file_stem().and_then(|stem| stem.to_str());
        let name = name.unwrap_or_default().to_owned();
        Ok(Self { name, table, text })
    }

    /// Returns whether it is the file of this path.
    pub(super) fn is_at(&self, path: &Path) -> bool {
        self.text.path == path
    }

    /// Returns where it says something of a key.
    pub(super) fn place(&self, key: &str) -> Place {
        self.text.place(&[key])
    }

    /// Returns whether it says something of a key.
    pub(super) fn says(&self, key: &str) -> bool {
        self.text.says(&[key])
    }
}

/// Reads the text of another file at `path`, whose tables are `T`.
///
/// # Errors
///
/// What is wrong with it first.
pub(super) fn parse_other<T: DeserializeOwned>(path: &Path, text: &str) -> Result<T, Problems> {
    parse(path, text).map(|(value, _)| value)
}

/// Where a file says what.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Text {
    path: PathBuf,
    lines: Lines,
}

impl Text {
    /// Returns whether the file says something of a key.
    fn says(&self, key: &[&str]) -> bool {
        let mut keys = self.lines.keys();
        keys.any(|of| of == key)
    }

    /// Returns where the file says something of a key, or of what the key is in.
    fn place(&self, key: &[&str]) -> Place {
        let key: Vec<_> = key.iter().map(|part| (*part).to_owned()).collect();
        let parts = (1..=key.len()).rev().map(|len| &key[..len]);
        let line = parts.filter_map(|part| self.lines.get(part)).next();
        Place::File {
            path: self.path.clone(),
            line: line.copied(),
            key: key.join("."),
        }
    }
}

fn parse<T: DeserializeOwned>(path: &Path, text: &str) -> Result<(T, Text), Problems> {
    let problem = |at: Option<usize>, key: &[String], what| {
        let (path, key) = (path.to_owned(), key.join("."));
        let line = at.map(|at| line_of(text, at));
        let place = Place::File { path, line, key };
        Problems::from(Problem { place, what })
    };
    let table = match DeTable::parse(text) {
        Ok(table) => table.into_inner(),
        Err(error) => {
            let at = error.span().map(|span| span.start);
            return Err(problem(
                at,
                &[],
                format!("this is no TOML: {}", error.message()),
            ));
        }
    };
    match toml::from_str(text) {
        Ok(value) => {
            let mut lines = Lines::new();
            note_lines(text, &table, &[], &mut lines);
            let path = path.to_owned();
            Ok((value, Text { path, lines }))
        }
        Err(error) => {
            let at = error.span().map(|span| span.start);
            let key = at.map(|at| key_at(&table, at)).unwrap_or_default();
            Err(problem(at, &key, explain(error.message())))
        }
    }
}

fn line_of(text: &str, at: usize) -> usize {
    let before = text.as_bytes().iter().take(at);
    1 + before.filter(|byte| **byte == b'\n').count()
}

fn note_lines(text: &str, table: &DeTable<'_>, path: &[String], lines: &mut Lines) {
    for (key, value) in table {
        let path = [path, &[key.get_ref().to_string()]].concat();
        lines.insert(path.clone(), line_of(text, key.span().start));
        if let Some(table) = value.get_ref().as_table() {
            note_lines(text, table, &path, lines);
        }
    }
}

/// Returns the path of the key that is there, or whose value is.
fn key_at(table: &DeTable<'_>, at: usize) -> Vec<String> {
    for (key, value) in table {
        let below = value.get_ref().as_table().map(|table| key_at(table, at));
        let below = below.unwrap_or_default();
        if !below.is_empty() || key.span().contains(&at) || value.span().contains(&at) {
            return [vec![key.get_ref().to_string()], below].concat();
        }
    }
    Vec::new()
}

/// Says in our words what the reader of TOML says in its own.
fn explain(message: &str) -> String {
    let Some(rest) = message.strip_prefix("unknown field `") else {
        return format!("cannot be so: {message}");
    };
    // The key itself, and then each that there is, between such signs.
    let mut names = rest.split('`').step_by(2);
    let unknown = names.next().unwrap_or_default();
    let known: Vec<_> = names.filter(|name| !name.is_empty()).collect();
    let mut alike: Vec<_> = known
        .iter()
        .map(|name| (strsim::jaro_winkler(unknown, name), *name))
        .filter(|(likeness, _)| *likeness >= ALIKE)
        .collect();
    alike.sort_by(|one, other| other.0.total_cmp(&one.0));
    let alike: Vec<_> = alike.into_iter().take(3).map(|(_, name)| name).collect();
    if alike.is_empty() {
        format!("is no key; the keys here are {}", known.join(", "))
    } else {
        format!("is no key; did you mean {}?", alike.join(" or "))
    }
}
