// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What operators do to guests and their pages.

mod support;

use serde_json::Value;
use support::{
    key,
    operated::{create_pools, get, put, Operated, DATA, FILES, SWAP},
    tmemctl_command,
    window::{slot, CHUNK},
    Said, PAGE,
};
use vhost_device_tmem::metrics::names;
use virtio_tmem_abi::{ChunkKind, EventKind, PageResult, Status};

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

#[test]
fn parity_names_what_there_is() {
    let parity = include_str!("../PARITY.md");
    let help = Said::by(&mut tmemctl_command(&["--help"])).out;
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
