// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The daemon as a service of systemd, which hears how it is, and keeps its descriptors over a
//! restart.

mod support;

use std::{
    io::{Read, Write},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{fs::MetadataExt, net::UnixStream},
    },
    process::Command,
    sync::{
        atomic::{AtomicBool, AtomicU64, Ordering},
        Arc,
    },
    thread,
};

use nix::sys::socket::MsgFlags;
use support::{key, systemd::Systemd, tmemctl, wait_until, Guest, Place};
use virtio_tmem_abi::{cap, pool_flags, PageResult, Status};

const DATA: usize = 2;

#[test]
fn a_restart_of_the_service_goes_unnoticed() {
    let place = Place::new();
    let systemd = Systemd::new(&place);
    let (a, b) = (place.arg("a.sock"), place.arg("b.sock"));
    let control = place.arg("control.sock");
    let metrics = place.arg("metrics.sock");
    let args = [
        "-s",
        &a,
        "-s",
        &b,
        "-c",
        "64MiB",
        "--control-path",
        &control,
        "--metrics-listen",
        &metrics,
    ];
    let mut daemon = systemd.start(&args);
    let stop = Arc::new(AtomicBool::new(false));
    let steps = Arc::new(AtomicU64::new(0));
    let mut guest = Guest::connect(&place.path("a.sock"));
    assert_ne!(guest.config.capabilities.get() & cap::DURABLE, 0);
    assert_eq!(guest.create_pool(0, pool_flags::PERSISTENT), Status::Ok);
    let load = {
        let (stop, steps) = (Arc::clone(&stop), Arc::clone(&steps));
        thread::spawn(move || {
            let mut index = 0;
            while !stop.load(Ordering::Relaxed) {
                let fill = index as u8;
                let put = guest.put(DATA, 0, &[(key(1, index, 1), fill)]);
                assert_eq!(put.results(), [PageResult::Stored]);
                let before = index / 2;
                let got = guest.get(DATA + 1, 0, 0, &[key(1, before, 1)]);
                assert_eq!(got.status(), Status::Ok);
                assert_eq!(got.results(), [PageResult::Hit]);
                assert_eq!(got.page(0), [before as u8; 4096]);
                index += 1;
                steps.fetch_add(1, Ordering::Relaxed);
            }
            for index in 0..index {
                let got = guest.get(DATA, 0, 0, &[key(1, index, 1)]);
                assert_eq!(got.page(0), [index as u8; 4096]);
            }
            // The connection is of use, too: what was said before is known.
            let epoch = guest.epoch();
            guest.tell_memory();
            assert_eq!(guest.read_config(32, 8), epoch.to_le_bytes());
            guest.stop();
            guest.start_anew();
            let got = guest.get(DATA, 0, 0, &[key(1, 0, 1)]);
            assert_eq!(got.page(0), [0; 4096]);
        })
    };
    for signal in [libc::SIGTERM, libc::SIGKILL, libc::SIGTERM, libc::SIGKILL] {
        let before = steps.load(Ordering::Relaxed);
        wait_until("the guest gets on", || {
            steps.load(Ordering::Relaxed) > before + 50
        });
        daemon.signal(signal);
        daemon.child.wait().unwrap();
        assert!(place.path("a.sock").exists());
        daemon = systemd.start(&args);
        daemon.wait_for("guest \"a\": going on with its connection");
    }
    stop.store(true, Ordering::Relaxed);
    load.join().unwrap();
    // Metrics are served where they were.
    let mut scraper = UnixStream::connect(&metrics).unwrap();
    scraper.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").unwrap();
    let mut text = String::new();
    scraper.read_to_string(&mut text).unwrap();
    assert!(text.ends_with("# EOF\n"), "{text}");
    // What tmemctl changed is so after a restart, too, and is forgotten when it is undone.
    let operate = |args: &[&str]| {
        let (success, said) = tmemctl(&[&["--control-path", &control], args].concat());
        assert!(success, "{args:?}: {said}");
    };
    operate(&["guest", "add", "late", "--socket", &place.arg("late.sock")]);
    let mut late = Guest::connect(&place.path("late.sock"));
    assert_eq!(late.create_pool(0, pool_flags::PERSISTENT), Status::Ok);
    let put = late.put(DATA, 0, &[(key(1, 1, 1), 7)]);
    assert_eq!(put.results(), [PageResult::Stored]);
    daemon.signal(libc::SIGKILL);
    daemon.child.wait().unwrap();
    daemon = systemd.start(&args);
    daemon.wait_for("guest \"late\": going on with its connection");
    let got = late.get(DATA, 0, 0, &[key(1, 1, 1)]);
    assert_eq!(got.page(0), [7; 4096]);
    operate(&["guest", "remove", "late", "--force"]);
    let of_it = |name: &String| {
        let mut parts = name.split('.');
        parts.next() != Some("store") && parts.next() == Some("2")
    };
    wait_until("nothing of it is kept", || {
        !systemd.names().iter().any(of_it)
    });
    // A guest that comes later is kept, and one that went is not.
    let names = || systemd.names();
    let theirs = ["connection", "state", "memory", "kick", "call"];
    wait_until("the connection is forgotten", || {
        let of = |name: &String| theirs.iter().any(|kind| name.starts_with(kind));
        !names().iter().any(of)
    });
    let guest = Guest::connect(&place.path("b.sock"));
    wait_until("the other one is kept", || {
        names().contains(&"connection.1".to_owned())
    });
    drop(guest);

    // One that takes the place of another between two starts has nothing of it.
    let guest = Guest::connect(&place.path("b.sock"));
    let epoch = guest.epoch();
    daemon.signal(libc::SIGKILL);
    daemon.child.wait().unwrap();
    let c = place.arg("c.sock");
    let args = args.map(|arg| if arg == b { c.as_str() } else { arg });
    let _daemon = systemd.start(&args);
    wait_until("nothing of the other one is kept", || {
        !names()
            .iter()
            .any(|name| name.ends_with(".1") && !name.starts_with("store"))
    });
    assert_ne!(Guest::connect(&place.path("c.sock")).epoch(), epoch);
}

#[test]
fn systemd_hears_what_becomes_of_the_service() {
    let place = Place::new();
    let systemd = Systemd::new(&place).without_store();
    let (file, control) = (place.path("config.toml"), place.arg("control.sock"));
    let configure = |names: &[&str]| {
        let guests = names.iter().map(|name| {
            let socket = place.arg(&format!("{name}.sock"));
            format!("[guests.{name}]\nsocket = {socket:?}\n")
        });
        let text = format!("capacity = \"8MiB\"\ncontrol-path = {control:?}\n");
        std::fs::write(&file, text + &guests.collect::<String>()).unwrap();
    };
    configure(&["a"]);
    let sockets = ["a.sock", "control.sock"].map(|name| place.path(name));
    systemd.try_when_ready(sockets);
    let mut daemon = systemd.start(&["--config", file.to_str().unwrap()]);
    assert_eq!(systemd.silent(), Default::default());
    let serves = |guests: usize| format!("STATUS={guests} guests, served by worker 1");
    assert_eq!(systemd.said(&[]), [&serves(1), "READY=1"]);

    let since = |before: &[String]| systemd.said(&["MONOTONIC_USEC="])[before.len()..].to_vec();
    let reloaded = |before: &[String]| since(before).last().is_some_and(|last| last == "READY=1");
    // Each reload has an end, also one of which nothing comes.
    let before = systemd.said(&["MONOTONIC_USEC="]);
    configure(&["a", "b"]);
    daemon.signal(libc::SIGHUP);
    wait_until("the reload is over", || reloaded(&before));
    assert_eq!(since(&before), ["RELOADING=1", &serves(2), "READY=1"]);
    let times = systemd.said(&["READY", "RELOADING", "STATUS"]);
    assert!(matches!(&times[..], [time] if time.starts_with("MONOTONIC_USEC=")));
    let before = systemd.said(&["MONOTONIC_USEC="]);
    std::fs::write(&file, "nonsense").unwrap();
    assert!(!tmemctl(&["--control-path", &control, "reload"]).0);
    wait_until("the reload is over", || reloaded(&before));
    assert_eq!(since(&before), ["RELOADING=1", "READY=1"]);

    let before = systemd.said(&["MONOTONIC_USEC="]);
    daemon.signal(libc::SIGTERM);
    assert!(daemon.child.wait().unwrap().success());
    wait_until("it is known to stop", || !since(&before).is_empty());
    assert_eq!(since(&before)[0], "STOPPING=1");
}

/// Runs a daemon until it has said all that it says, with `JOURNAL_STREAM` as systemd sets it if it
/// is `told`, and for another file if it is not.
fn logged(args: &[&str], told: bool) -> String {
    let (mut reads, writes) = UnixStream::pair().unwrap();
    let about = std::fs::metadata(format!("/proc/self/fd/{}", writes.as_raw_fd())).unwrap();
    let inode = if told { about.ino() } else { about.ino() + 1 };
    let mut command = Command::new(env!("CARGO_BIN_EXE_vhost-device-tmem"));
    command.args(args).stderr(OwnedFd::from(writes));
    command.env("JOURNAL_STREAM", format!("{}:{inode}", about.dev()));
    let mut child = command.spawn().unwrap();
    // It has the other end as well.
    drop(command);
    let mut log = String::new();
    let mut bytes = [0; 4096];
    loop {
        match reads.read(&mut bytes).unwrap() {
            0 => break,
            len => log += std::str::from_utf8(&bytes[..len]).unwrap(),
        }
        if log.contains("waiting for guest") {
            // SAFETY: The child was not waited for yet, so the number is its.
            unsafe { libc::kill(child.id() as i32, libc::SIGTERM) };
        }
    }
    child.wait().unwrap();
    log
}

#[test]
fn lines_for_the_journal_have_priorities() {
    let place = Place::new();
    let socket = place.arg("a.sock");
    let args = ["-s", &socket, "-c", "8MiB", "--fault-refuse-percent", "1"];
    let log = logged(&args, true);
    for line in log.lines() {
        assert!(line.starts_with('<') && line[2..].starts_with('>'), "{log}");
    }
    assert!(log.contains("<4>vhost_device_tmem: misbehaving"), "{log}");
    assert!(
        log.contains("<6>vhost_device_tmem::supervisor: waiting"),
        "{log}"
    );
    let why = logged(&["-s", &socket, "-c", "1"], true);
    assert!(why.starts_with("<3>vhost-device-tmem: "), "{why}");
    // To whoever else reads it, lines say their level and time.
    let log = logged(&args, false);
    assert!(
        log.contains(" WARN vhost_device_tmem: misbehaving"),
        "{log}"
    );
    let why = logged(&["-s", &socket, "-c", "1"], false);
    assert!(why.starts_with("vhost-device-tmem: "), "{why}");
}

#[test]
fn a_front_end_that_was_being_asked_to_map_a_window_is_let_go_of() {
    let place = Place::new();
    let windows = tempfile::tempdir_in("/dev/shm").unwrap();
    let systemd = Systemd::new(&place);
    let socket = place.arg("a.sock");
    let args = [
        "-s",
        &socket,
        "-c",
        "64MiB",
        "--window-dir",
        windows.path().to_str().unwrap(),
        "--window-size",
        "8MiB",
        "--window-source",
        "virtio",
    ];
    let mut daemon = systemd.start(&args);
    let (mut channel, theirs) = UnixStream::pair().unwrap();
    let mut guest = Guest::connect_sharing(&place.path("a.sock"), &theirs);
    drop(theirs);
    let mut byte = [0];
    let flags = MsgFlags::MSG_PEEK;
    let asked = nix::sys::socket::recv(channel.as_raw_fd(), &mut byte, flags);
    assert_eq!(asked, Ok(1));
    daemon.signal(libc::SIGKILL);
    daemon.child.wait().unwrap();
    let _daemon = systemd.start(&args);
    // Half of what is asked is all that it ever hears.
    let mut heard = Vec::new();
    channel.read_to_end(&mut heard).unwrap();
    assert_eq!(heard.len(), 12);
    assert_eq!(guest.create_pool(0, 0), Status::Ok);
}

/// Returns whether a thread of a process waits for another thread.
fn waits(process: u32, thread: &str) -> bool {
    let tasks = std::fs::read_dir(format!("/proc/{process}/task")).unwrap();
    tasks.map(|task| task.unwrap().path()).any(|task| {
        let read = |file| std::fs::read_to_string(task.join(file)).unwrap_or_default();
        let futex = format!("{} ", libc::SYS_futex);
        read("comm").trim_end() == thread && read("syscall").starts_with(&futex)
    })
}

#[test]
fn a_message_that_was_being_carried_out_is_not_lost() {
    let place = Place::new();
    let systemd = Systemd::new(&place);
    let socket = place.arg("a.sock");
    let args = ["-s", &socket, "-c", "64MiB"];
    let mut daemon = systemd.start(&args);
    let mut guest = Guest::connect(&place.path("a.sock"));
    assert_eq!(guest.create_pool(0, pool_flags::PERSISTENT), Status::Ok);
    let put = guest.put(DATA, 0, &[(key(1, 1, 1), 7)]);
    assert_eq!(put.results(), [PageResult::Stored]);
    // A virtqueue is stopped by the worker, and that will not come to it.
    // SAFETY: The worker was not waited for, so the number is its.
    unsafe { libc::kill(daemon.worker(), libc::SIGSTOP) };
    let front_end = thread::spawn(move || {
        let taken = guest.stop_queue(DATA);
        (guest, taken)
    });
    wait_until("the message is being carried out", || {
        waits(daemon.child.id(), "guest a")
    });
    daemon.signal(libc::SIGKILL);
    daemon.child.wait().unwrap();
    let _daemon = systemd.start(&args);
    let (mut guest, taken) = front_end.join().unwrap();
    assert_eq!(taken, 1);
    guest.start_queue(DATA);
    let got = guest.get(DATA, 0, 0, &[key(1, 1, 1)]);
    assert_eq!(got.page(0), [7; 4096]);
}
