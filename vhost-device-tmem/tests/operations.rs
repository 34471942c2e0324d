// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What operators do to guests and their pages.

mod support;

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Read},
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    process::{Command, Output, Stdio},
};

use serde_json::Value;
use support::{
    key, kill, stat, wait_until,
    window::{slot, WindowPlace, CHUNK},
    Daemon, Guest, PAGE,
};
use vhost_device_tmem::metrics::names;
use virtio_tmem_abi::{pool_flags, ChunkKind, EventKind, PageResult, Status};

const DATA: usize = 2;
const SWAP: u32 = 0;
const FILES: u32 = 1;

/// A daemon with two guests, `web` and `db`, each with a window.
struct Operated {
    place: WindowPlace,
    daemon: Daemon,
}

impl Operated {
    fn new() -> Self {
        let place = WindowPlace::new();
        let (web, db) = (place.sockets.arg("web.sock"), place.sockets.arg("db.sock"));
        let control = place.sockets.arg("control.sock");
        let args = ["-s", &web, "-s", &db, "--control-path", &control];
        let windows = place.directory().to_str().unwrap();
        let windows = ["--window-dir", windows, "--window-size", "32MiB"];
        let mut daemon = Daemon::start(&[&["-c", "64MiB"][..], &args, &windows].concat());
        daemon.wait_for("waiting for operators");
        Self { place, daemon }
    }

    fn connect(&self, name: &str) -> Guest {
        let mut guest = Guest::connect(&self.place.sockets.path(&format!("{name}.sock")));
        create_pools(&mut guest);
        guest
    }

    fn run(&self, args: &[&str]) -> Said {
        let output = Command::new(env!("CARGO_BIN_EXE_tmemctl"))
            .env(
                "TMEMCTL_CONTROL_PATH",
                self.place.sockets.path("control.sock"),
            )
            .args(args)
            .output();
        output.unwrap().into()
    }

    /// Does what is done, and returns what was said of it.
    fn ok(&self, args: &[&str]) -> String {
        let said = self.run(args);
        assert_eq!((said.code, &*said.err), (0, ""), "{args:?}: {said:?}");
        said.out
    }

    fn refused(&self, args: &[&str], code: i32, words: &[&str]) {
        let said = self.run(args);
        assert_eq!((said.code, &*said.out), (code, ""), "{args:?}: {said:?}");
        for word in words {
            assert!(said.err.contains(word), "{word}: {said:?}");
        }
    }

    fn stat(&self, guest: usize) -> Value {
        stat(&self.place.sockets.path("control.sock"))["guests"][guest].clone()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.place.sockets.path(name)
    }

    fn kill_worker(&mut self) {
        kill(self.daemon.worker(), libc::SIGKILL);
        self.daemon.wait_for("a new worker has taken over");
    }
}

#[derive(Debug)]
struct Said {
    code: i32,
    out: String,
    err: String,
}

impl From<Output> for Said {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().expect("it exits"),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

fn create_pools(guest: &mut Guest) {
    assert_eq!(guest.create_pool(SWAP, pool_flags::PERSISTENT), Status::Ok);
    assert_eq!(guest.create_pool(FILES, 0), Status::Ok);
}

fn put(guest: &mut Guest, pool: u32, index: u64, fill: u8) -> PageResult {
    let put = guest.put(DATA, pool, &[(key(1, index, 1), fill)]);
    put.results()[0]
}

/// Returns what a page is filled with.
fn get(guest: &mut Guest, pool: u32, index: u64) -> Option<u8> {
    let got = guest.get(DATA, pool, 0, &[key(1, index, 1)]);
    (got.results() == [PageResult::Hit]).then(|| {
        let fill = got.page(0)[0];
        assert_eq!(got.page(0), [fill; PAGE]);
        fill
    })
}

#[test]
fn a_frozen_guest_puts_nothing_until_it_is_thawed() {
    let mut it = Operated::new();
    let (mut web, mut db) = (it.connect("web"), it.connect("db"));
    assert_eq!(web.open_window(0), Status::Ok);
    assert_eq!(web.grant(ChunkKind::Persistent, 1, 1).len(), 1);
    assert_eq!(put(&mut web, SWAP, 0, 10), PageResult::Stored);
    assert_eq!(put(&mut web, SWAP, 1, 11), PageResult::Stored);
    let said = it.ok(&["freeze", "web"]);
    assert!(said.contains("granted of its window"), "{said}");
    for _ in 0..2 {
        for pool in [SWAP, FILES] {
            assert_eq!(put(&mut web, pool, 1, 20), PageResult::Frozen);
        }
        assert_eq!(
            (get(&mut web, SWAP, 0), get(&mut web, SWAP, 1)),
            (Some(10), None)
        );
        for kind in [ChunkKind::Persistent, ChunkKind::Ephemeral] {
            assert_eq!(web.grant(kind, 1, 2 + u64::from(kind.to_wire())), []);
        }
        assert_eq!(put(&mut db, SWAP, 0, 30), PageResult::Stored);
        assert_eq!(
            (it.stat(0)["frozen"].clone(), it.stat(1)["frozen"].clone()),
            (true.into(), false.into())
        );
        assert_eq!(it.stat(0)["persistent_credits"], 0);
        assert!(it.ok(&["list"]).contains("connected, frozen"));
        // The next worker knows.
        it.kill_worker();
    }
    // So does a connection that comes later.
    drop(web);
    it.daemon.wait_for("disconnected");
    let mut web = it.connect("web");
    assert_eq!(put(&mut web, SWAP, 1, 20), PageResult::Frozen);
    // It hears that it may put again.
    web.offer_event();
    let said: Value = serde_json::from_str(&it.ok(&["thaw", "web", "--json"])).unwrap();
    assert_eq!(said["reply"], "done");
    let event = web.wait_event();
    assert_eq!(
        EventKind::from_wire(event.kind.get()),
        Some(EventKind::Credits)
    );
    assert!(event.persistent_credits.get() > 0);
    assert_eq!(put(&mut web, SWAP, 1, 20), PageResult::Stored);
    it.ok(&["freeze", "--all"]);
    assert_eq!(put(&mut web, SWAP, 2, 20), PageResult::Frozen);
    assert_eq!(put(&mut db, SWAP, 2, 20), PageResult::Frozen);
    it.ok(&["thaw", "--all"]);
    assert_eq!(put(&mut db, SWAP, 2, 20), PageResult::Stored);
    it.refused(
        &["freeze", "mail"],
        5,
        &["no guest is named \"mail\"", "web, db"],
    );
    it.refused(&["freeze"], 2, &[]);
    it.refused(&["freeze", "web", "--all"], 2, &[]);
}

#[test]
fn ephemeral_pages_are_counted_and_dropped_and_no_others() {
    let it = Operated::new();
    let mut web = it.connect("web");
    assert_eq!(web.open_window(0), Status::Ok);
    let window = it.place.window("web");
    let kept = web.grant(ChunkKind::Persistent, 1, 1)[0];
    let lent = web.grant(ChunkKind::Ephemeral, 2, 2);
    window.fill(slot(kept, 0), 7);
    for index in 0..20 {
        assert_eq!(put(&mut web, SWAP, index, 1), PageResult::Stored);
        assert_eq!(put(&mut web, FILES, index, 2), PageResult::Stored);
    }
    let freeable = |it: &Operated| -> Value {
        serde_json::from_str(&it.ok(&["freeable", "web", "--json"])).unwrap()
    };
    let told = freeable(&it);
    let store = told["guests"][0]["store_bytes"].as_u64().unwrap();
    assert!(store > 0 && store < 20 * PAGE as u64 * 2, "{told}");
    assert!(told["guests"][0]["window_bytes"].as_u64().unwrap() >= 2 * CHUNK);
    let text = it.ok(&["freeable"]);
    assert!(
        text.contains("FREEABLE") && text.contains("(all)"),
        "{text}"
    );
    // One pool, of which the window knows nothing.
    it.refused(&["flush", "web", "--pool", "9"], 1, &["there is no pool 9"]);
    it.refused(
        &["flush", "web", "--pool", "0"],
        1,
        &["pool 0 is persistent"],
    );
    let said = it.ok(&["flush", "web", "--pool", "1"]);
    assert!(said.contains("20 ephemeral pages"), "{said}");
    assert_eq!(get(&mut web, FILES, 3), None);
    assert_eq!(window.generation(lent[0].0), lent[0].1);
    assert_eq!(put(&mut web, FILES, 3, 2), PageResult::Stored);
    let said = it.ok(&["flush", "web"]);
    assert!(
        said.contains("1 ephemeral pages") && said.contains("4.00 MiB"),
        "{said}"
    );
    assert_eq!(
        (get(&mut web, FILES, 3), get(&mut web, SWAP, 3)),
        (None, Some(1))
    );
    for chunk in lent {
        assert_eq!(window.generation(chunk.0), chunk.1 + 2);
    }
    assert_eq!(
        (window.generation(kept.0), window.read(slot(kept, 0))[0]),
        (kept.1, 7)
    );
    assert_eq!(freeable(&it)["guests"][0]["store_bytes"], 0);
    it.refused(&["flush", "db"], 1, &["is not connected"]);
}

#[test]
fn persistent_pages_are_destroyed_by_force_alone() {
    let it = Operated::new();
    let mut web = it.connect("web");
    for index in 0..5 {
        assert_eq!(put(&mut web, SWAP, index, 1), PageResult::Stored);
        assert_eq!(put(&mut web, FILES, index, 2), PageResult::Stored);
    }
    let words = [
        "guest \"web\"",
        "5 persistent pages",
        "5 of pool 0",
        "--force",
    ];
    it.refused(&["destroy", "web"], 1, &words);
    it.refused(&["destroy", "web", "--pool", "0"], 1, &words);
    let alone = ["destroy", "web", "--pool", "0", "--force"];
    it.refused(&alone, 1, &["new epoch", "leave out --pool 0"]);
    assert_eq!(
        (get(&mut web, SWAP, 3), get(&mut web, FILES, 3)),
        (Some(1), Some(2))
    );
    let said = it.ok(&["destroy", "web", "--pool", "1"]);
    assert!(said.contains("5 ephemeral pages"), "{said}");
    assert_eq!(
        (get(&mut web, SWAP, 3), get(&mut web, FILES, 3)),
        (Some(1), None)
    );
    let said = it.ok(&["destroy", "web", "--force"]);
    assert!(said.contains("another epoch"), "{said}");
    assert_eq!(it.stat(0)["pools"].as_array().unwrap().len(), 0);
    // A driver without persistent pages loses nothing.
    let mut db = it.connect("db");
    assert_eq!(put(&mut db, FILES, 0, 2), PageResult::Stored);
    it.ok(&["destroy", "db"]);
    assert_eq!(get(&mut db, FILES, 0), None);
    assert_eq!(put(&mut db, SWAP, 0, 2), PageResult::Stored);
    // Persistent chunks of a window may have any pages.
    assert_eq!(
        db.flush(DATA, SWAP, &[key(1, 0, 1)]).results(),
        [PageResult::Flushed]
    );
    assert_eq!(db.open_window(0), Status::Ok);
    assert_eq!(db.grant(ChunkKind::Persistent, 1, 1).len(), 1);
    it.refused(&["destroy", "db"], 1, &["up to 512 in its window"]);
}

#[test]
fn a_new_epoch_ends_all_that_was_put() {
    let mut it = Operated::new();
    let mut web = it.connect("web");
    let mut db = it.connect("db");
    assert_eq!(web.open_window(0), Status::Ok);
    let chunk = web.grant(ChunkKind::Persistent, 1, 1)[0];
    assert_eq!(put(&mut web, SWAP, 0, 1), PageResult::Stored);
    assert_eq!(put(&mut db, SWAP, 0, 9), PageResult::Stored);
    it.refused(
        &["epoch", "web"],
        1,
        &["is connected", "I/O errors", "--force"],
    );
    assert_eq!(get(&mut web, SWAP, 0), Some(1));
    let before = web.epoch();
    web.offer_event();
    let said = it.ok(&["epoch", "web", "--force"]);
    assert!(said.contains("reset that machine"), "{said}");
    let event = web.wait_event();
    assert_eq!(
        EventKind::from_wire(event.kind.get()),
        Some(EventKind::Epoch)
    );
    let epoch = event.epoch.get();
    assert_ne!(epoch, before);
    // What the driver asks in its former life is not carried out.
    let stale = web.get(DATA, SWAP, 0, &[key(1, 0, 1)]);
    assert_eq!(
        (stale.status(), stale.header.epoch.get()),
        (Status::StaleEpoch, epoch)
    );
    assert_ne!(it.place.window("web").generation(chunk.0), chunk.1);
    let config = web.read_config(0, 64);
    assert_eq!(config[32..40], epoch.to_le_bytes());
    web.config.epoch = epoch.into();
    for _ in 0..2 {
        let gone = web.get(DATA, SWAP, 0, &[key(1, 0, 1)]);
        assert_eq!(gone.status(), Status::NoPool);
        // Whoever comes after this worker knows the epoch, and none of the pages.
        it.kill_worker();
    }
    create_pools(&mut web);
    assert_eq!(get(&mut web, SWAP, 0), None);
    assert_eq!(put(&mut web, SWAP, 0, 2), PageResult::Stored);
    assert_eq!(get(&mut db, SWAP, 0), Some(9));
    drop(db);
    it.daemon.wait_for("guest \"db\" disconnected");
    assert!(it.ok(&["epoch", "db"]).contains("is not connected"));
    it.refused(&["epoch", "mail"], 5, &["mail"]);
}

/// Puts pages of a few sorts.
fn put_many(guest: &mut Guest, count: u64) {
    for index in 0..count {
        assert_eq!(put(guest, SWAP, index, index as u8), PageResult::Stored);
    }
}

/// Resumes what was saved of a guest, as the driver that goes on in its memory.
fn resume(guest: &mut Guest, epoch: u64) {
    guest.config.epoch = epoch.into();
    guest.start_anew();
}

#[test]
fn a_guest_is_saved_and_restored() {
    let it = Operated::new();
    let mut web = it.connect("web");
    put_many(&mut web, 100);
    let file = it.place.sockets.arg("web.tmem");
    let save = ["save", "web", &file];
    it.refused(&save, 1, &["virtqueues run", "--live"]);
    assert!(!it.path("web.tmem").exists() && !it.path("web.tmem.partial").exists());
    web.stop();
    let said = it.ok(&save);
    assert!(said.contains("100 pages"), "{said}");
    let mode = fs::metadata(it.path("web.tmem"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    let gets = it.stat(0)["pools"][0]["gets"].clone();
    assert_eq!(gets, 0, "the guest asked for none");
    // A full disk is tmemctl's own trouble.
    let full = it.place.sockets.path("full");
    std::os::unix::fs::symlink("/dev/full", it.path("full.partial")).unwrap();
    it.refused(
        &["save", "web", full.to_str().unwrap()],
        6,
        &["cannot write"],
    );
    assert!(!full.exists());
    assert_eq!(it.stat(0)["pools"][0]["pages"], 100);
    let epoch = web.epoch();
    let restore = ["restore", "web", &file];
    it.refused(&restore, 1, &["has 2 pools already"]);
    it.refused(&["restore", "db", &file], 1, &["is not connected"]);
    drop(web);

    // A machine that was saved with them, and is not started yet.
    let mut db = Guest::connect(&it.path("db.sock"));
    it.refused(&["restore", "db", &file], 1, &["virtqueues run"]);
    db.stop();
    it.ok(&["freeze", "db"]);
    it.refused(&["restore", "db", &file], 1, &["frozen"]);
    it.ok(&["thaw", "db"]);
    let said = it.ok(&["restore", "db", &file]);
    assert!(
        said.contains("100 pages") && said.contains("\"web\""),
        "{said}"
    );
    resume(&mut db, epoch);
    for index in 0..100 {
        assert_eq!(get(&mut db, SWAP, index), Some(index as u8));
    }
    assert_eq!(db.create_pool(SWAP, pool_flags::PERSISTENT), Status::Ok);
    assert_eq!(it.stat(1)["epoch"], epoch);
    assert_eq!(get(&mut db, SWAP, 5), Some(5));
}

#[test]
fn what_cannot_be_restored_changes_nothing() {
    let mut it = Operated::new();
    let mut web = it.connect("web");
    put_many(&mut web, 40);
    web.stop();
    let file = it.place.sockets.arg("web.tmem");
    it.ok(&["save", "web", &file]);
    drop(web);
    it.daemon.wait_for("disconnected");
    let mut db = Guest::connect(&it.path("db.sock"));
    db.stop();
    let whole = fs::read(&file).unwrap();
    let changed = |at: usize| {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        bytes
    };
    let bad: [(Vec<u8>, &str); 5] = [
        (changed(whole.len() / 2), "is damaged"),
        (whole[..whole.len() - 1].to_vec(), "cut off"),
        (b"#!/bin/sh\nexit\n# not much".to_vec(), "no saved guest"),
        (changed(8), "version"),
        ([&*whole, b"x"].concat(), "follows its end"),
    ];
    let other = it.place.sockets.arg("bad.tmem");
    let used = |it: &Operated| stat(&it.path("control.sock"))["used_pages"].clone();
    wait_until("the pages are gone", || used(&it) == 0);
    for (bytes, words) in bad {
        fs::write(&other, &bytes).unwrap();
        it.refused(&["restore", "db", &other], 7, &[words]);
    }
    it.refused(&["restore", "db", "/nowhere"], 7, &["/nowhere"]);
    assert_eq!(
        (used(&it), it.stat(1)["pools"].as_array().unwrap().len()),
        (0.into(), 0)
    );
    // Nor does the daemon believe a client that looks at nothing.
    let said = send_raw(&it, "db", &changed(whole.len() / 2));
    assert!(said.contains("is damaged"), "{said}");
    let said = send_raw(&it, "db", &whole[..whole.len() / 2]);
    assert!(said.contains("cut off"), "{said}");
    wait_until("what came is dropped", || used(&it) == 0);
    assert_eq!(it.stat(1)["pools"].as_array().unwrap().len(), 0);
    it.ok(&["restore", "db", &file]);
    assert_eq!(used(&it), 40);
}

/// Asks for a restore, and sends whatever it is told.
fn send_raw(it: &Operated, guest: &str, bytes: &[u8]) -> String {
    use std::io::Write;
    let stream = std::os::unix::net::UnixStream::connect(it.path("control.sock")).unwrap();
    let request = format!(r#"{{"version":1,"command":"restore","guest":"{guest}"}}"#);
    (&stream)
        .write_all(format!("{request}\n").as_bytes())
        .unwrap();
    let mut answers = BufReader::new(&stream).lines();
    let ready = answers.next().unwrap().unwrap();
    assert!(ready.contains("ready"), "{ready}");
    // It may have heard enough before the end.
    let _ = (&stream).write_all(bytes);
    let _ = stream.shutdown(std::net::Shutdown::Write);
    answers.next().unwrap().unwrap()
}

#[test]
fn a_guest_that_runs_is_saved_with_what_changed_meanwhile() {
    let it = Operated::new();
    let mut web = it.connect("web");
    put_many(&mut web, 200);
    let file = it.place.sockets.arg("web.tmem");
    let mut saving = Command::new(env!("CARGO_BIN_EXE_tmemctl"))
        .env("TMEMCTL_CONTROL_PATH", it.path("control.sock"))
        .args(["save", "web", &file, "--live"])
        .stderr(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(saving.stderr.take().unwrap());
    let mut line = String::new();
    said.read_line(&mut line).unwrap();
    assert!(
        line.contains("200 pages") && line.contains("stop its machine"),
        "{line}"
    );
    // Some are others now, some are gone, and some are new.
    for index in 0..10 {
        let put = web.put(DATA, SWAP, &[(key(1, index, 2), 0xee)]);
        assert_eq!(put.results(), [PageResult::Stored]);
    }
    let gone: Vec<_> = (10..20).map(|index| key(1, index, 1)).collect();
    assert_eq!(
        web.flush(DATA, SWAP, &gone).results(),
        [PageResult::Flushed; 10]
    );
    for index in 200..210 {
        assert_eq!(put(&mut web, SWAP, index, 0xdd), PageResult::Stored);
    }
    assert!(
        saving.try_wait().unwrap().is_none(),
        "it waits for the machine"
    );
    let epoch = web.epoch();
    web.stop();
    let mut rest = String::new();
    said.read_to_string(&mut rest).unwrap();
    assert!(saving.wait().unwrap().success(), "{rest}");

    let mut db = Guest::connect(&it.path("db.sock"));
    db.stop();
    let said = it.ok(&["restore", "db", &file]);
    assert!(said.contains("200 pages"), "{said}");
    resume(&mut db, epoch);
    for index in 0..10 {
        let got = db.get(DATA, SWAP, 0, &[key(1, index, 2)]);
        assert_eq!(
            (got.results(), got.page(0)[0]),
            (vec![PageResult::Hit], 0xee)
        );
        assert_eq!(get(&mut db, SWAP, index), None);
    }
    for index in 10..20 {
        assert_eq!(get(&mut db, SWAP, index), None);
    }
    for index in 20..200 {
        assert_eq!(get(&mut db, SWAP, index), Some(index as u8));
    }
    for index in 200..210 {
        assert_eq!(get(&mut db, SWAP, index), Some(0xdd));
    }
}

#[test]
fn pages_in_a_window_are_not_left_behind() {
    let it = Operated::new();
    let mut web = it.connect("web");
    assert_eq!(web.open_window(0), Status::Ok);
    assert_eq!(web.grant(ChunkKind::Persistent, 2, 1).len(), 2);
    let file = it.place.sockets.arg("web.tmem");
    web.stop();
    it.refused(
        &["save", "web", &file],
        1,
        &["2 persistent chunks of its window"],
    );
    assert!(File::open(file).is_err());
}

#[test]
fn parity_names_what_there_is() {
    let parity = include_str!("../PARITY.md");
    let help = Command::new(env!("CARGO_BIN_EXE_tmemctl"))
        .arg("--help")
        .output();
    let help = String::from_utf8(help.unwrap().stdout).unwrap();
    let commands: Vec<_> = parity.split("`tmemctl ").skip(1).collect();
    assert!(commands.len() > 10);
    for command in commands {
        let name = command
            .split(|c: char| !c.is_ascii_lowercase())
            .next()
            .unwrap();
        assert!(
            help.contains(&format!("\n  {name} ")),
            "there is no tmemctl {name}"
        );
    }
    let names = names();
    let words = parity.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let metrics: Vec<_> = words.filter(|word| word.starts_with("tmem_")).collect();
    let boot = ["tmem_compress", "tmem_dedup", "tmem_shared_auth"];
    for metric in metrics {
        let known = boot.contains(&metric) || names.iter().any(|name| name == metric);
        assert!(known, "there is no metric {metric}");
    }
}
