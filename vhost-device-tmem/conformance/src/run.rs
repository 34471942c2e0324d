// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Running checks.

use std::{
    collections::BTreeMap,
    panic::{catch_unwind, AssertUnwindSafe},
};

use serde::Serialize;

use crate::{
    checks::CHECKS,
    clauses::{Binds, Clause, Tested},
    session::{Outcome, Stop, Target},
};

/// What became of a clause.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// The device does what it demands, as far as the check sees.
    Pass,
    /// It does not.
    Fail,
    /// It cannot be tested from outside, or not with this device.
    NotTestable,
}

/// A line of what the program says.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The clause.
    pub clause: String,
    /// The check, where there is one.
    pub check: Option<String>,
    /// What became of it.
    pub verdict: Verdict,
    /// Why; empty where it passed.
    pub why: String,
}

impl Report {
    fn new(clause: &Clause, outcome: &Outcome) -> Self {
        let (verdict, why) = match outcome {
            Ok(()) => (Verdict::Pass, ""),
            Err(Stop::Fail(why)) => (Verdict::Fail, &**why),
            Err(Stop::Untestable(why)) => (Verdict::NotTestable, &**why),
        };
        let check = match &clause.tested {
            Tested::Check(name) => Some(name.clone()),
            _ => None,
        };
        Self {
            clause: clause.id.clone(),
            check,
            verdict,
            why: why.to_owned(),
        }
    }
}

/// Tests a device, and hands on what becomes of each clause as soon as that is known. A check that
/// is for several clauses is run once.
pub fn run(target: &Target, clauses: &[Clause], mut report: impl FnMut(&Report)) {
    let mut known = BTreeMap::new();
    for clause in clauses {
        let outcome = match &clause.tested {
            _ if clause.binds == Binds::Driver => {
                &Err(Stop::Untestable("it binds the driver".into()))
            }
            Tested::Check(name) => known
                .entry(name.clone())
                .or_insert_with(|| run_check(name, target)),
            Tested::Not(why) | Tested::Driver(why) => &Err(Stop::Untestable(why.clone())),
        };
        report(&Report::new(clause, outcome));
    }
}

fn run_check(name: &str, target: &Target) -> Outcome {
    let Some(check) = CHECKS.iter().find(|check| check.name == name) else {
        return Err(Stop::Untestable(format!("there is no check {name}")));
    };
    // What the driver below takes for granted of a device, this one may not do.
    let done = catch_unwind(AssertUnwindSafe(|| (check.run)(target)));
    done.unwrap_or_else(|cause| {
        let why = cause
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| cause.downcast_ref::<&str>().copied());
        Err(Stop::Fail(format!("gave up: {}", why.unwrap_or("?"))))
    })
}
