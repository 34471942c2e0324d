// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Tests of a tmem device against its specification, clause by clause.
//!
//! A [`Clause`] is one MUST of the specification: who it binds, and how it is tested, or why it is
//! not. A [`Check`] is a driver of its own: it connects to the device, says something, and looks at
//! what comes back. It needs the device's socket and nothing else.

mod checks;
mod clauses;
mod coverage;
mod run;
mod session;

pub use checks::{Check, CHECKS};
pub use clauses::{clauses, section_title, Binds, Clause, Tested, SPEC};
pub use coverage::{json, markdown, text};
pub use run::{run, Report, Verdict};
pub use session::{Outcome, Stop, Target};
