// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Sockets that systemd listens on for the daemon, beside what it keeps for it.

mod support;

use std::{
    fs::{self, Metadata},
    os::unix::fs::MetadataExt,
    thread,
};

use support::{key, systemd::Systemd, tmemctl, wait_until, Guest, Place};
use virtio_tmem_abi::{pool_flags, PageResult, Status};

const DATA: usize = 2;

fn file(about: &Metadata) -> (u64, u64) {
    (about.dev(), about.ino())
}

fn listed(control: &str) -> String {
    let (success, said) = tmemctl(&["--control-path", control, "list"]);
    assert!(success, "{said}");
    said
}

#[test]
fn sockets_of_units_are_served_and_stay() {
    let place = Place::new();
    let mut systemd = Systemd::new(&place);
    let (a, b) = (place.path("a.sock"), place.path("b.sock"));
    let control = place.arg("control.sock");
    systemd.listen("socket-guest-a", &a);
    systemd.listen("socket-control", &place.path("control.sock"));
    let before = file(&fs::metadata(&a).unwrap());
    // Whoever comes before the daemon does waits for it.
    let early = {
        let a = a.clone();
        thread::spawn(move || Guest::connect(&a))
    };
    let (a_arg, b_arg) = (place.arg("a.sock"), place.arg("b.sock"));
    let sockets = ["-s", &a_arg, "-s", &b_arg, "--control-path", &control];
    let args = [&["-c", "64MiB"][..], &sockets].concat();
    let mut daemon = systemd.start(&args);
    let mut guest = early.join().unwrap();
    assert_eq!(guest.create_pool(0, pool_flags::PERSISTENT), Status::Ok);
    let put = guest.put(DATA, 0, &[(key(1, 1, 1), 7)]);
    assert_eq!(put.results(), [PageResult::Stored]);
    assert!(listed(&control).contains("connected"));
    // What has a unit is not kept twice, and what has none is kept.
    wait_until("the connection is kept", || {
        systemd.names().contains(&"connection.0".to_owned())
    });
    let listeners = || {
        let mut names = systemd.names();
        names.retain(|name| name.starts_with("listener") || name == "control");
        names
    };
    assert_eq!(listeners(), ["listener.1"]);
    for signal in [libc::SIGTERM, libc::SIGKILL] {
        daemon.signal(signal);
        daemon.child.wait().unwrap();
        daemon = systemd.start(&args);
        daemon.wait_for("guest \"a\": going on with its connection");
        let got = guest.get(DATA, 0, 0, &[key(1, 1, 1)]);
        assert_eq!(got.page(0), [7; 4096]);
        assert_eq!(listeners(), ["listener.1"]);
        assert!(listed(&control).contains("connected"));
        assert_eq!(file(&fs::metadata(&a).unwrap()), before);
    }
    drop(Guest::connect(&b));
}

#[test]
fn who_comes_while_the_daemon_is_stopped_waits() {
    let place = Place::new();
    let mut systemd = Systemd::new(&place).without_store();
    systemd.listen("socket-guest-a", &place.path("a.sock"));
    let a = place.arg("a.sock");
    let args = ["-s", &a, "-c", "8MiB"];
    let mut daemon = systemd.start(&args);
    drop(Guest::connect(&place.path("a.sock")));
    daemon.stop();
    assert!(place.path("a.sock").exists());
    assert!(!place.path("a.sock.lock").exists());
    let waiting = thread::spawn(move || Guest::connect(&place.path("a.sock")));
    let _daemon = systemd.start(&args);
    waiting.join().unwrap();
}

#[test]
fn a_unit_takes_the_place_of_a_socket_that_was_kept() {
    let place = Place::new();
    let mut systemd = Systemd::new(&place);
    let a = place.arg("a.sock");
    let args = ["-s", &a, "-c", "8MiB"];
    let mut daemon = systemd.start(&args);
    assert!(systemd.names().contains(&"listener.0".to_owned()));
    daemon.stop();
    fs::remove_file(&a).unwrap();
    systemd.listen("socket-guest-a", &place.path("a.sock"));
    let _daemon = systemd.start(&args);
    assert!(!systemd.names().contains(&"listener.0".to_owned()));
    drop(Guest::connect(&place.path("a.sock")));
}

#[test]
fn a_socket_at_another_path_is_kept_in_place_of_the_one_before() {
    let place = Place::new();
    let systemd = Systemd::new(&place);
    let (a, b) = (place.arg("a.sock"), place.arg("b.sock"));
    let (old, new) = (format!("a={a}"), format!("a={b}"));
    let mut daemon = systemd.start(&["-s", &old, "-c", "8MiB"]);
    daemon.stop();
    let _daemon = systemd.start(&["-s", &new, "-c", "8MiB"]);
    let mut names = systemd.names();
    names.retain(|name| name == "listener.0");
    assert_eq!(names.len(), 1);
    drop(Guest::connect(&place.path("b.sock")));
}

#[test]
fn what_does_not_fit_the_configuration_is_told() {
    let place = Place::new();
    let mut systemd = Systemd::new(&place);
    systemd.listen("vhost-device-tmem.socket", &place.path("x.sock"));
    systemd.listen("socket-guest-b", &place.path("b.sock"));
    let a = place.arg("a.sock");
    let args = ["-s", &a, "-c", "8MiB"];
    let mut daemon = systemd.start(&args);
    daemon.stop();
    let log = daemon.whole_log();
    assert!(
        log.contains("systemd passes \"vhost-device-tmem.socket\""),
        "{log}"
    );
    assert!(log.contains("systemd listens for guest \"b\""), "{log}");
    // Another path than the one that is configured is no small matter.
    let other = Place::new();
    let mut systemd = Systemd::new(&other);
    systemd.listen("socket-guest-a", &place.path("c.sock"));
    let mut daemon = systemd.spawn(&args);
    let log = daemon.whole_log();
    assert!(log.contains("c.sock for guest \"a\", and the"), "{log}");
    assert!(!daemon.child.wait().unwrap().success());
}
