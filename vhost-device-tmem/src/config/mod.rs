// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! From what operators say to what the daemon does.
//!
//! ```text
//! command line ─┐
//! file ─────────┼── sources ── Config ── plan ── steps
//! guests' files ┤               (what is to be)   (from what is to what is to be)
//! edits ────────┘
//! ```
//!
//! All of this is text and values in, values or [`Problems`] out; `read` alone opens files.

mod edits;
mod file;
mod plan;
mod problem;
mod read;
mod shared;
mod sources;
mod terms;

#[cfg(test)]
mod tests;

pub use edits::{Edits, GuestEdit};
pub use file::{File, GuestFile};
pub use plan::{plan, Circumstances, Step};
pub use problem::{Key, Place, Problem, Problems};
pub use read::read_other;
pub use shared::{parse_uuid, SharedEdit};
pub use sources::Sources;
pub use terms::GivenTerms;
