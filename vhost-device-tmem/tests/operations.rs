// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What operators do to guests and their pages.

mod support;

use std::process::{Command, Output};

use serde_json::Value;
use support::{key, kill, stat, window::WindowPlace, Daemon, Guest, PAGE};
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
