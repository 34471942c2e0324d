// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Saving guests to files, and restoring them.

mod support;

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    os::unix::fs::PermissionsExt,
    process::{Child, ChildStderr, Stdio},
};

use support::{
    key,
    operated::{get, put, Operated, DATA, SWAP},
    stat, wait_until,
    window::slot,
    Guest,
};
use virtio_tmem_abi::{pool_flags, ChunkKind, EventKind, PageResult, Status};

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

/// The guest `web` that is saved while it runs.
struct Live {
    child: Child,
    said: BufReader<ChildStderr>,
}

impl Live {
    fn begin(it: &Operated, file: &str) -> Self {
        let mut command = it.command(&["save", "web", file, "--live"]);
        command.stderr(Stdio::piped()).stdout(Stdio::null());
        let mut child = command.spawn().unwrap();
        let said = BufReader::new(child.stderr.take().unwrap());
        Self { child, said }
    }

    /// Waits until the machine is to be stopped, with so many pages saved.
    fn wait_for(&mut self, pages: &str) {
        let mut line = String::new();
        self.said.read_line(&mut line).unwrap();
        assert!(
            line.contains(pages) && line.contains("stop its machine"),
            "{line}"
        );
    }

    fn succeeds(mut self) {
        let mut rest = String::new();
        self.said.read_to_string(&mut rest).unwrap();
        assert!(self.child.wait().unwrap().success(), "{rest}");
    }
}

#[test]
fn a_guest_that_runs_is_saved_with_what_changed_meanwhile() {
    let it = Operated::new();
    let mut web = it.connect("web");
    put_many(&mut web, 200);
    let file = it.place.sockets.arg("web.tmem");
    let mut saving = Live::begin(&it, &file);
    saving.wait_for("200 pages");
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
        saving.child.try_wait().unwrap().is_none(),
        "it waits for the machine"
    );
    let epoch = web.epoch();
    web.stop();
    saving.succeeds();

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
    let chunks = web.grant(ChunkKind::Persistent, 2, 1);
    assert_eq!(chunks.len(), 2);
    it.place.window("web").fill(slot(chunks[0], 3), 0x77);
    let file = it.place.sockets.arg("web.tmem");
    let refused = || {
        for more in [None, Some("--live")] {
            let args: Vec<_> = ["save", "web", &file].into_iter().chain(more).collect();
            let words = "2 persistent chunks of its window";
            it.refused(&args, 1, &[words]);
        }
        assert!(!it.path("web.tmem").exists() && !it.path("web.tmem.partial").exists());
    };
    // A driver that does not run can be asked for nothing.
    web.stop();
    refused();
    web.start_anew();
    // Once the last virtqueue is served, all are.
    let last = web.queues.len() - 1;
    assert_eq!(
        web.get(last, SWAP, 0, &[key(1, 99, 1)]).status(),
        Status::Ok
    );

    // One that runs is asked for what is there, and gets nothing more of it meanwhile.
    web.offer_event();
    let mut saving = Live::begin(&it, &file);
    let event = web.wait_event();
    let kind = EventKind::from_wire(event.kind.get());
    assert_eq!(
        (kind, event.pages.get()),
        (Some(EventKind::Recall), 2 * 512)
    );
    assert_eq!(web.grant(ChunkKind::Persistent, 1, 2), []);
    assert_eq!(web.grant(ChunkKind::Ephemeral, 1, 3).len(), 1);
    let moved = [(key(1, 7, 1), slot(chunks[0], 3), chunks[0].1)];
    assert_eq!(web.put_slots(DATA, SWAP, &moved), [PageResult::Stored]);
    assert_eq!(web.give_back(&chunks).status, Status::Ok);
    saving.wait_for("1 pages");
    assert_eq!(web.grant(ChunkKind::Persistent, 1, 4), []);
    let epoch = web.epoch();
    web.stop();
    saving.succeeds();

    let mut db = Guest::connect(&it.path("db.sock"));
    db.stop();
    it.ok(&["restore", "db", &file]);
    resume(&mut db, epoch);
    assert_eq!(get(&mut db, SWAP, 7), Some(0x77));
}

#[test]
fn a_guest_has_its_window_again_once_nobody_saves_it() {
    let it = Operated::new();
    let mut web = it.connect("web");
    assert_eq!(web.open_window(0), Status::Ok);
    let mut saving = Live::begin(&it, &it.place.sockets.arg("web.tmem"));
    saving.wait_for("0 pages");
    assert_eq!(web.grant(ChunkKind::Persistent, 1, 1), []);
    saving.child.kill().unwrap();
    saving.child.wait().unwrap();
    let mut tickets = 2..;
    wait_until("chunks are granted again", || {
        let ticket = tickets.next().unwrap();
        web.grant(ChunkKind::Persistent, 1, ticket).len() == 1
    });
}
