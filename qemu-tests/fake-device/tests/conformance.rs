// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Checks of the specification's clauses fail with a device that breaks them.

use std::{
    process::Command,
    thread,
    time::{Duration, Instant},
};

use tmem_conformance::{clauses, run, Report, Target, Verdict};

/// A lie, and clauses that it breaks.
const LIES: [(&[&str], &[&str]); 9] = [
    (&["--config-bytes", "20"], &["5.1-1"]),
    (
        &["--config-bytes", "20", "--config-fill", "255"],
        &["5.1-2", "5.1-3"],
    ),
    (
        &["--corrupt-percent", "100"],
        &["10.8.1-2", "10.8.1-4", "10.7.1-3", "10.9.1-1"],
    ),
    (
        &["--false-miss-percent", "100"],
        &["10.8.1-1", "10.8.1-7", "10.7.1-5", "10.8.1-10"],
    ),
    (&["--behave", "wrong-op"], &["10.8.1-3", "10.9.1-1"]),
    (&["--behave", "status:77"], &["10.8.1-3"]),
    (&["--behave", "count:9"], &["10.8.1-3", "10.9.1-1"]),
    (&["--behave", "long-used"], &["10.1.2-1", "10.8.1-3"]),
    (&["--silent-after", "1"], &["10.4.2-3", "10.8.1-3"]),
];

/// What the device does not do even where it does not lie: it looks at nothing that a driver which
/// follows the rules does not send.
const LEFT_OUT: [&str; 14] = [
    "3.2-1",
    "10.1.2-4",
    "10.1.2-5",
    "10.1.2-7",
    "10.1.2-8",
    "10.2.1-1",
    "10.2.1-2",
    "10.8.1-8",
    "10.11.2-1",
    "10.11.2-2",
    "10.11.2-3",
    "10.12.2-1",
    "10.13.1-1",
    "10.14.1-1",
];

/// Tests one clause with a device that lies in one way.
fn check(clause: &str, lie: &[&str]) -> Report {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("sock");
    let mut command = Command::new(env!("CARGO_BIN_EXE_tmem-fake-device"));
    command.arg("--socket-path").arg(&socket).args(lie);
    let mut child = command.spawn().unwrap();
    let start = Instant::now();
    while !socket.exists() {
        assert!(start.elapsed() < Duration::from_secs(60), "it listens");
        thread::sleep(Duration::from_millis(1));
    }
    let target = Target {
        socket,
        other: None,
        patience: Duration::from_secs(if lie.contains(&"--silent-after") {
            1
        } else {
            60
        }),
        fill: 64,
    };
    let mut clauses = clauses();
    clauses.retain(|known| known.id == clause);
    assert_eq!(clauses.len(), 1, "{clause}");
    let mut reports = Vec::new();
    run(&target, &clauses, |report| reports.push(report.clone()));
    let _ = child.kill();
    let _ = child.wait();
    reports.remove(0)
}

#[test]
fn a_lie_fails_the_clauses_that_it_breaks() {
    for (lie, broken) in LIES {
        for clause in broken {
            let report = check(clause, lie);
            assert_eq!(report.verdict, Verdict::Fail, "{lie:?}: {report:?}");
        }
    }
}

#[test]
fn an_honest_device_passes_them() {
    for clause in LIES.iter().flat_map(|(_, broken)| *broken) {
        let report = check(clause, &[]);
        assert_eq!(report.verdict, Verdict::Pass, "{report:?}");
    }
}

#[test]
fn what_the_device_leaves_out_fails() {
    for clause in LEFT_OUT {
        let report = check(clause, &[]);
        assert_eq!(report.verdict, Verdict::Fail, "{report:?}");
    }
}
