// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The daemon does what the specification demands, as far as that can be seen from outside.

mod support;

use std::time::Duration;

use support::window::WindowPlace;
use tmem_conformance::{clauses, run, Target, Tested, Verdict};

/// What this daemon gives no reason to test: it has pools of both kinds.
const NOT_HERE: [&str; 1] = ["8.2-2"];

#[test]
fn the_daemon_passes_all_checks() {
    let place = WindowPlace::new();
    let _daemon = place.start(&["a", "b"], &["-c", "16MiB", "--window-size", "32MiB"]);
    let target = Target {
        socket: place.sockets.path("a.sock"),
        other: Some(place.sockets.path("b.sock")),
        patience: Duration::from_secs(60),
        fill: 1 << 16,
    };
    let mut clauses = clauses();
    clauses.retain(|clause| matches!(clause.tested, Tested::Check(_)));
    assert!(!clauses.is_empty());
    let mut others = Vec::new();
    run(&target, &clauses, |report| {
        let known = NOT_HERE.contains(&&*report.clause);
        if report.verdict != Verdict::Pass && !(known && report.verdict == Verdict::NotTestable) {
            others.push(report.clone());
        }
    });
    assert!(others.is_empty(), "{others:#?}");
}
