// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The clauses of the specification, and how each is tested.

use serde::Deserialize;

/// The specification.
pub const SPEC: &str = include_str!("../../../virtio_tmem_abi/SPEC.md");

/// One clause a line; what the fields are is said there.
const TABLE: &str = include_str!("../clauses.toml");

/// Whom a clause binds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Binds {
    /// The device.
    Device,
    /// The driver.
    Driver,
}

/// How a clause is tested.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tested {
    /// By the check of that name.
    Check(String),
    /// By a test of this repository's driver.
    Driver(String),
    /// Not from outside, for this reason.
    Not(String),
}

/// One MUST.
#[derive(Clone, Debug)]
pub struct Clause {
    /// The number of its section, and which MUST of the section it is, from 1 on.
    pub id: String,
    /// Its words in the specification.
    pub words: String,
    /// Whom it binds.
    pub binds: Binds,
    /// How it is tested.
    pub tested: Tested,
    /// What of it the test leaves out; empty where that is nothing.
    pub leaves: String,
}

impl Clause {
    /// The number of its section.
    pub fn section(&self) -> &str {
        self.id.split_once('-').map_or("", |(section, _)| section)
    }
}

#[derive(Deserialize)]
struct Table {
    clauses: Vec<Row>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    id: String,
    binds: Binds,
    words: String,
    check: Option<String>,
    test: Option<String>,
    #[serde(rename = "not")]
    reason: Option<String>,
    #[serde(default)]
    leaves: String,
}

/// Returns all clauses, in the order of the specification.
///
/// # Panics
///
/// If the table cannot be read, which a test makes sure of.
pub fn clauses() -> Vec<Clause> {
    let table: Table = toml::from_str(TABLE).expect("the table of clauses can be read");
    let clause = |row: Row| Clause {
        tested: match (row.check, row.test, row.reason) {
            (Some(check), None, None) => Tested::Check(check),
            (None, Some(test), None) => Tested::Driver(test),
            (None, None, Some(reason)) => Tested::Not(reason),
            _ => panic!("clause {}: it takes one of check, test and not", row.id),
        },
        id: row.id,
        words: row.words,
        binds: row.binds,
        leaves: row.leaves,
    };
    table.clauses.into_iter().map(clause).collect()
}

/// Returns the title of a section of the specification.
pub fn section_title(section: &str) -> Option<&'static str> {
    let headings = SPEC.lines().filter(|line| line.starts_with('#'));
    let mut titles = headings.filter_map(|line| {
        let (number, title) = line.trim_start_matches(['#', ' ']).split_once(' ')?;
        (number == section).then_some(title)
    });
    titles.next()
}
