// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Guests that share a store too small for all of them: by weight, between minima and caps, and with a
//! host that comes first.

mod support;

use std::{
    fs::{self, OpenOptions},
    os::unix::fs::FileExt,
    path::Path,
};

use serde_json::Value;
use support::{key, kill, stat, tmemctl, wait_until, Daemon, Guest, Place};
use virtio_tmem_abi::{pool_flags, EventKind, PageResult, Status};

const DATA: usize = 2;
const PERSISTENT: u32 = 0;
const EPHEMERAL: u32 = 1;
const MIB: u64 = 1 << 20;
const BATCH: u64 = 64;

/// A daemon of 8 MiB for guests of which the file says this each.
struct Shared {
    place: Place,
    daemon: Daemon,
}

impl Shared {
    fn start(guests: &[(&str, &str)], more: &[&str]) -> Self {
        let place = Place::new();
        let control = place.arg("control.sock");
        let mut text = format!("capacity = \"8MiB\"\ncontrol-path = {control:?}\n");
        for (name, terms) in guests {
            let socket = place.arg(&format!("{name}.sock"));
            text += &format!("[guests.{name}]\nsocket = {socket:?}\n{terms}\n");
        }
        fs::write(place.path("tmem.toml"), text).unwrap();
        let file = place.arg("tmem.toml");
        let args = [&["--config", &file], more].concat();
        let mut daemon = Daemon::start(&args);
        daemon.wait_for("waiting for operators");
        Self { place, daemon }
    }

    fn connect(&self, name: &str) -> Guest {
        let mut guest = Guest::connect(&self.place.path(&format!("{name}.sock")));
        let created = guest.create_pool(PERSISTENT, pool_flags::PERSISTENT);
        assert_eq!(created, Status::Ok);
        assert_eq!(guest.create_pool(EPHEMERAL, 0), Status::Ok);
        guest
    }

    fn stat(&self) -> Value {
        stat(&self.place.path("control.sock"))
    }

    /// What is known of a guest's part.
    fn part(&self, name: &str) -> Value {
        let stat = self.stat();
        let guests = stat["guests"].as_array().unwrap();
        let guest = guests.iter().find(|guest| guest["name"] == name);
        guest.expect("there is such a guest")["part"].clone()
    }

    fn bytes(&self, name: &str, kind: &str, what: &str) -> u64 {
        self.part(name)[kind][what].as_u64().unwrap_or(0)
    }

    fn tmemctl(&self, args: &[&str]) -> (bool, String) {
        let control = self.place.arg("control.sock");
        tmemctl(&[&["--control-path", &control], args].concat())
    }
}

/// Puts a batch of pages from an index on, and returns how many were stored.
fn put(guest: &mut Guest, pool: u32, first: u64) -> u64 {
    let pages = first..first + BATCH;
    let pages: Vec<_> = pages.map(|n| (key(1, n, 1), n as u8)).collect();
    let results = guest.put(DATA, pool, &pages).results();
    let stored = results.iter().filter(|it| **it == PageResult::Stored);
    stored.count() as u64
}

/// Puts pages up to an index, all of which are stored.
fn fill(guest: &mut Guest, pool: u32, pages: u64) {
    for first in (0..pages).step_by(BATCH as usize) {
        assert_eq!(put(guest, pool, first), BATCH, "from {first} on");
    }
}

/// Looks for pages, and returns how many are there, each as it was put.
fn found(guest: &mut Guest, pool: u32, pages: std::ops::Range<u64>) -> u64 {
    let there = |index: &u64| {
        let got = guest.get(DATA, pool, 0, &[key(1, *index, 1)]);
        let hit = got.results() == [PageResult::Hit];
        if hit {
            assert_eq!(got.page(0), [*index as u8; 4096], "page {index}");
        }
        hit
    };
    pages.filter(there).count() as u64
}

#[test]
fn what_guests_get_of_a_store_too_small_follows_their_weights() {
    let guests = [
        ("a", "weight = 100"),
        ("b", "weight = 200"),
        ("c", "weight = 400"),
    ];
    let mut it = Shared::start(&guests, &[]);
    let names = ["a", "b", "c"];
    let mut connected = names.map(|name| it.connect(name));
    for guest in &mut connected {
        fill(guest, EPHEMERAL, BATCH);
    }
    // What a guest had before the others came it keeps until they gain more by it. A worker that has
    // just begun knows nothing but weights.
    kill(it.daemon.worker(), libc::SIGKILL);
    it.daemon.wait_for("a new worker has taken over");
    let mut next = BATCH;
    wait_until("holdings are as the weights", || {
        // Each puts more than there is.
        for _ in 0..40 {
            for guest in &mut connected {
                put(guest, EPHEMERAL, next);
            }
            next += BATCH;
        }
        let held = names.map(|name| it.bytes(name, "ephemeral", "used_bytes"));
        let all: u64 = held.iter().sum();
        let is_near = |held: u64, parts: u64| held.abs_diff(all * parts / 7) < all / 20;
        all > 7 * MIB && is_near(held[0], 1) && is_near(held[1], 2) && is_near(held[2], 4)
    });
    // Another weight, other holdings.
    let (done, said) = it.tmemctl(&["set", "a", "weight=400"]);
    assert!(
        done && said.contains("guest \"a\" has other terms"),
        "{said}"
    );
    wait_until("it has it", || it.part("a")["weight"] == 400);
}

#[test]
fn a_cap_holds_and_the_others_have_the_rest() {
    let guests = [("a", "persistent-max = \"1MiB\""), ("b", "")];
    let it = Shared::start(&guests, &[]);
    let (mut a, mut b) = (it.connect("a"), it.connect("b"));
    let mut stored = 0;
    for first in (0..1024).step_by(BATCH as usize) {
        stored += put(&mut a, PERSISTENT, first);
    }
    assert!(stored > 200 && stored < 256, "{stored}");
    assert!(it.bytes("a", "persistent", "used_bytes") <= MIB);
    assert_eq!(it.bytes("a", "persistent", "max_bytes"), MIB);
    fill(&mut b, PERSISTENT, 768);
    assert_eq!(found(&mut b, PERSISTENT, 0..768), 768);
    assert_eq!(found(&mut a, PERSISTENT, 0..1024), stored);
}

#[test]
fn a_minimum_holds_while_another_guest_floods() {
    let guests = [
        ("a", "ephemeral-min = \"3MiB\"\nweight = 1"),
        ("b", "weight = 10000"),
    ];
    let it = Shared::start(&guests, &[]);
    // It has all before the other one comes.
    let mut b = it.connect("b");
    fill(&mut b, EPHEMERAL, 8192);
    let mut a = it.connect("a");
    fill(&mut a, EPHEMERAL, 640);
    fill(&mut b, EPHEMERAL, 8192);
    assert!(it.stat()["evictions"].as_u64() > Some(4096));
    assert_eq!(found(&mut a, EPHEMERAL, 0..640), 640);
}

#[test]
fn a_guest_drains_to_a_quota_that_is_lowered_and_loses_nothing() {
    let mut it = Shared::start(&[("a", ""), ("b", "")], &[]);
    let mut a = it.connect("a");
    fill(&mut a, PERSISTENT, 512);
    a.offer_event();
    let (done, said) = it.tmemctl(&["set", "a", "persistent-max=1MiB"]);
    assert!(done, "{said}");
    let event = a.wait_event();
    assert_eq!(put(&mut a, PERSISTENT, 4096), 0);
    assert_eq!(
        EventKind::from_wire(event.kind.get()),
        Some(EventKind::Shrink)
    );
    assert_eq!(event.persistent_credits.get(), 0);
    let asked = event.pages.get();
    assert!((256..320).contains(&asked), "{asked}");
    // As drivers do: what was read is elsewhere before it is flushed.
    assert_eq!(found(&mut a, PERSISTENT, 0..asked), asked);
    let keys: Vec<_> = (0..asked).map(|index| key(1, index, 1)).collect();
    a.flush(DATA, PERSISTENT, &keys);
    assert!(it.bytes("a", "persistent", "used_bytes") <= MIB);
    assert_eq!(found(&mut a, PERSISTENT, asked..512), 512 - asked);
    // Another worker knows of it as well.
    kill(it.daemon.worker(), libc::SIGKILL);
    it.daemon.wait_for("a new worker has taken over");
    assert_eq!(it.bytes("a", "persistent", "max_bytes"), MIB);
    assert_eq!(found(&mut a, PERSISTENT, asked..512), 512 - asked);
    assert!(put(&mut a, PERSISTENT, 8192) < BATCH);
    let (done, said) = it.tmemctl(&["set", "a", "persistent-max=default"]);
    assert!(done, "{said}");
    wait_until("it may have more", || {
        put(&mut a, PERSISTENT, 4096) == BATCH
    });
    let (done, said) = it.tmemctl(&["set", "a", "persistent-min=9MiB"]);
    assert!(
        !done && said.contains("guests are guaranteed 9.00 MiB"),
        "{said}"
    );
}

/// The kernel's file about the host, as somebody waits for memory all the time.
struct Waiting {
    file: fs::File,
    micros: u64,
}

impl Waiting {
    fn new(root: &Path) -> Self {
        let directory = root.join("proc/pressure");
        fs::create_dir_all(&directory).unwrap();
        let mut options = OpenOptions::new();
        let options = options.create(true).truncate(true).write(true);
        let file = options.open(directory.join("memory")).unwrap();
        let mut this = Self { file, micros: 0 };
        this.wait(0);
        this
    }

    /// Somebody has waited for so long.
    fn wait(&mut self, micros: u64) {
        self.micros += micros;
        let some = format!(
            "some avg10=9.99 avg60=9.99 avg300=9.99 total={:020}\n",
            self.micros
        );
        self.file.write_at(some.as_bytes(), 0).unwrap();
    }
}

#[test]
fn ephemeral_memory_is_given_back_while_the_host_is_short() {
    let root = tempfile::tempdir().unwrap();
    let mut waiting = Waiting::new(root.path());
    let arg = root.path().to_str().unwrap();
    let more = ["--pressure", "host", "--fault-pressure", arg];
    let mut it = Shared::start(&[("a", ""), ("b", "")], &more);
    let (mut a, mut b) = (it.connect("a"), it.connect("b"));
    fill(&mut a, PERSISTENT, 256);
    fill(&mut b, EPHEMERAL, 1024);
    let before = it.bytes("b", "ephemeral", "used_bytes");
    assert!(before > 3 * MIB);
    assert_eq!(it.stat()["withheld_bytes"], 0);
    wait_until("half of it is given back", || {
        waiting.wait(1_000_000);
        it.bytes("b", "ephemeral", "used_bytes") < before / 2
    });
    it.daemon.wait_for("the host is short of memory");
    let stat = it.stat();
    assert!(stat["withheld_bytes"].as_u64() > Some(2 * MIB), "{stat}");
    assert!(stat["resident_bytes"].as_u64() < Some(6 * MIB), "{stat}");
    // What comes now takes the place of something else.
    for first in (0..1024).step_by(BATCH as usize) {
        put(&mut b, EPHEMERAL, 8192 + first);
    }
    assert!(it.bytes("b", "ephemeral", "used_bytes") < before * 3 / 4);
    assert_eq!(found(&mut a, PERSISTENT, 0..256), 256);
}
