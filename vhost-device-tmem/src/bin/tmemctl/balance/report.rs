// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What is proposed, for people and for programs.

use serde::Serialize;
use vhost_device_tmem::{
    balance::{Doubt, Plan, Proposal},
    control::VERSION,
};

use super::options::Shared;
use crate::tables::{self, mib, NONE, WORDS};

/// A look, as one line of JSON.
#[derive(Debug, Serialize)]
pub(super) struct Figures<'p> {
    version: u32,
    total_bytes: u64,
    guests: Vec<GuestFigures<'p>>,
    doubts: &'p [Doubt],
}

#[derive(Debug, Serialize)]
struct GuestFigures<'p> {
    name: &'p str,
    min_bytes: u64,
    max_bytes: u64,
    #[serde(flatten)]
    proposal: &'p Proposal,
    /// What its balloon was told.
    told_bytes: Option<u64>,
}

pub(super) fn figures<'p>(
    shared: &'p Shared,
    plan: &'p Plan,
    told: &'p [Option<u64>],
) -> Figures<'p> {
    let guests = shared.guests.iter().zip(&plan.proposals).zip(told);
    let guests = guests.map(|((guest, proposal), told)| GuestFigures {
        name: &guest.terms.name,
        min_bytes: guest.terms.min,
        max_bytes: guest.terms.max,
        proposal,
        told_bytes: *told,
    });
    Figures {
        version: VERSION,
        total_bytes: shared.total,
        guests: guests.collect(),
        doubts: &plan.doubts,
    }
}

/// Returns a line for each guest; with what its balloon was told, if balloons were.
pub(super) fn table(shared: &Shared, plan: &Plan, told: Option<&Vec<Option<u64>>>) -> String {
    let mut columns = vec![
        ("GUEST", WORDS),
        ("MIN", "MiB"),
        ("MAX", "MiB"),
        ("NOW", "MiB"),
        ("TARGET", "MiB"),
    ];
    if told.is_some() {
        columns.push(("TOLD", "MiB"));
    }
    columns.extend([
        ("SPARE", "MiB"),
        ("FROM DISK", "pages/s"),
        ("FROM TMEM", "pages/s"),
        ("REFUSED", "pages/s"),
        ("WHY", WORDS),
    ]);
    let guests = shared.guests.iter().zip(&plan.proposals).enumerate();
    let rows = guests.map(|(n, (guest, of))| {
        let mut row = vec![guest.terms.name.clone()];
        let sizes = [
            guest.terms.min,
            guest.terms.max,
            of.actual_bytes,
            of.target_bytes,
        ];
        row.extend(sizes.map(mib));
        if let Some(told) = told {
            row.push(told[n].map_or(NONE.to_owned(), mib));
        }
        row.push(mib(of.spare_bytes));
        row.extend(match of.rates {
            Some(rates) => {
                [rates.from_disk, rates.from_tmem, rates.refused].map(|rate| format!("{rate:.0}"))
            }
            None => [(); 3].map(|()| NONE.to_owned()),
        });
        row.push(of.reason.words().to_owned());
        row
    });
    tables::table(&columns, rows)
}
