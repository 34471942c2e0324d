// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! QEMU's monitor, and what is taken for one.

mod support;

use std::{
    io::{self, Write},
    os::unix::net::UnixStream,
    time::Duration,
};

use serde_json::{json, Value};
use support::{
    qmp::{greet, hear, repeat, serve, Machine, Monitor, GREETING},
    Place,
};
use vhost_device_tmem::qmp::{Balloon, Qmp, QmpError};

/// What is not to be waited for long.
const SHORT: Duration = Duration::from_millis(300);

const LONG: Duration = Duration::from_secs(20);

#[test]
fn a_balloon_is_found_read_and_set() {
    let place = Place::new();
    let path = place.path("web.qmp");
    let monitor = Monitor::start(&path, Machine::new(512));
    let mut balloon = Balloon::connect(&path, LONG).unwrap();
    assert_eq!(balloon.ram(), 512 << 20);
    assert_eq!(balloon.actual().unwrap(), 512 << 20);
    assert!(!balloon.stats().unwrap().is_there());
    balloon.poll_each(2).unwrap();
    assert_eq!(monitor.machine().polling, 2);
    assert!(balloon.stats().unwrap().is_there());
    // Whoever has them told more often has reasons.
    monitor.machine().polling = 1;
    balloon.poll_each(2).unwrap();
    assert_eq!(monitor.machine().polling, 1);
    monitor.machine().polling = 60;
    balloon.poll_each(2).unwrap();
    assert_eq!(monitor.machine().polling, 2);
    balloon.set(256 << 20).unwrap();
    assert_eq!(monitor.machine().told, [256 << 20]);
    assert_eq!(balloon.actual().unwrap(), 256 << 20);
}

#[test]
fn what_qemu_refuses_is_told_and_nothing_is_broken() {
    let place = Place::new();
    let path = place.path("web.qmp");
    Monitor::start(&path, Machine::new(512));
    let mut qmp = Qmp::connect(&path, LONG).unwrap();
    let refused = qmp.ask("no-such-command", json!({})).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "QEMU refuses no-such-command: \"The command has not been found\""
    );
    assert_eq!(
        qmp.ask("query-balloon", json!({})).unwrap(),
        json!({"actual": 512u64 << 20})
    );
}

#[test]
fn a_machine_without_a_balloon_is_told_apart() {
    let place = Place::new();
    let path = place.path("web.qmp");
    let machine = Machine {
        has_balloon: false,
        ..Machine::new(512)
    };
    Monitor::start(&path, machine);
    let error = Balloon::connect(&path, LONG).unwrap_err();
    assert!(matches!(error, QmpError::NoBalloon), "{error}");
}

#[test]
fn answers_of_another_shape_are_errors() {
    let place = Place::new();
    let path = place.path("web.qmp");
    let monitor = Monitor::start(&path, Machine::new(512));
    let strange: [Value; 4] = [
        json!(null),
        json!([]),
        json!({"actual": -1}),
        json!({"actual": "much"}),
    ];
    for answer in strange {
        let mut balloon = Balloon::connect(&path, LONG).unwrap();
        monitor.machine().instead = Some(answer.clone());
        let error = balloon.actual().unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("cannot understand what QEMU answers to query-balloon"),
            "{answer}: {error}"
        );
        monitor.machine().instead = None;
    }
}

#[test]
fn sockets_that_are_none_are_named() {
    let place = Place::new();
    let missing = place.path("missing.qmp");
    let error = Qmp::connect(&missing, SHORT).unwrap_err();
    assert!(
        matches!(&error, QmpError::Missing(path) if *path == missing),
        "{error}"
    );
    let file = place.path("file");
    std::fs::write(&file, "").unwrap();
    let error = Qmp::connect(&file, SHORT).unwrap_err();
    assert!(matches!(error, QmpError::Connect { .. }), "{error}");
    let long = place.path(&"x".repeat(200));
    assert!(Qmp::connect(&long, SHORT).is_err());
    // One of the daemon's says so itself.
    let guest = place.path("web.sock");
    std::fs::write(place.path("web.sock.lock"), "guest \"web\"\n").unwrap();
    let error = Qmp::connect(&guest, SHORT).unwrap_err();
    assert!(
        error.to_string().contains("is the socket of guest \"web\""),
        "{error}"
    );
}

/// Connects to what does something else than a monitor, and asks it something.
fn asked(
    with: impl FnMut(UnixStream) -> io::Result<()> + Send + 'static,
    patience: Duration,
) -> String {
    let place = Place::new();
    let path = place.path("strange.qmp");
    serve(&path, with);
    let asked =
        Qmp::connect(&path, patience).and_then(|mut qmp| qmp.ask("query-balloon", json!({})));
    asked.unwrap_err().to_string()
}

#[test]
fn who_does_not_greet_is_not_waited_for() {
    let said = asked(|stream| hear(&stream), SHORT);
    assert!(
        said.contains("does not greet") && said.contains("one client at a time"),
        "{said}"
    );
    let drips = |mut stream: UnixStream| repeat(&mut stream, " ", Duration::from_millis(20));
    let said = asked(drips, SHORT);
    assert!(said.contains("does not greet"), "{said}");
}

#[test]
fn who_greets_otherwise_is_no_monitor() {
    for greeting in [
        "HTTP/1.1 400 Bad Request",
        "{}",
        "[]",
        "\u{0}\u{7f}",
        r#"{"return": {}}"#,
    ] {
        let said = asked(
            move |mut stream| {
                writeln!(stream, "{greeting}")?;
                hear(&stream)
            },
            LONG,
        );
        assert!(
            said.contains("is not QEMU's monitor"),
            "{greeting:?}: {said}"
        );
    }
}

#[test]
fn who_does_not_answer_is_not_waited_for() {
    let hangs = |mut stream: UnixStream| {
        greet(&mut stream)?;
        hear(&stream)
    };
    let said = asked(hangs, SHORT);
    assert!(
        said.starts_with("QEMU does not answer query-balloon within"),
        "{said}"
    );
    // Nor if it sends a little again and again.
    let drips = |mut stream: UnixStream| {
        greet(&mut stream)?;
        repeat(&mut stream, "{\"event\": 1}\n", Duration::from_millis(20))
    };
    let said = asked(drips, SHORT);
    assert!(
        said.starts_with("QEMU does not answer query-balloon within"),
        "{said}"
    );
}

#[test]
fn who_floods_is_left() {
    let line = |mut stream: UnixStream| {
        greet(&mut stream)?;
        repeat(&mut stream, &"x".repeat(1 << 16), Duration::ZERO)
    };
    let said = asked(line, LONG);
    assert!(said.contains("more than 1048576 bytes in a line"), "{said}");
    let events = |mut stream: UnixStream| {
        greet(&mut stream)?;
        repeat(&mut stream, "{\"event\": \"RTC_CHANGE\"}\n", Duration::ZERO)
    };
    let said = asked(events, LONG);
    assert!(said.contains("more than 1000 events"), "{said}");
}

#[test]
fn nonsense_is_no_answer() {
    let lines = [
        "nonsense",
        "{}",
        "null",
        "[1, 2]",
        r#"{"return": {"actual": 1}, "id": 7}"#,
        r#"{"return": {"actual": NaN}}"#,
        r#"{"error": "no object"}"#,
        "{\"return\": \u{1}}",
    ];
    for line in lines {
        let says = move |mut stream: UnixStream| {
            greet(&mut stream)?;
            writeln!(stream, "{line}")?;
            hear(&stream)
        };
        let said = asked(says, LONG);
        assert!(
            said.starts_with("cannot understand what QEMU answers to query-balloon"),
            "{line}: {said}"
        );
    }
}

#[test]
fn who_goes_away_is_named() {
    let goes = |mut stream: UnixStream| greet(&mut stream);
    let said = asked(goes, LONG);
    assert!(
        said.starts_with("QEMU went away at query-balloon"),
        "{said}"
    );
    let half = |mut stream: UnixStream| write!(stream, "{}", &GREETING[..20]);
    let said = asked(half, LONG);
    assert!(
        said.starts_with("QEMU went away at the connection"),
        "{said}"
    );
}
