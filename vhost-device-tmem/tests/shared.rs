// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Guests of a running daemon that share a pool.

mod support;

use std::{fs, process::Command};

use serde_json::{json, Value};
use support::{
    key, kill, stat, systemd::Systemd, tmemctl_command, wait_until, Daemon, Guest, Place, Said,
    PAGE,
};
use uuid::Uuid;
use virtio_tmem_abi::{
    cap, pool_flags, request_flags, Malformed, Opcode, PageResult, Status, QUEUE_CONTROL,
};
use zerocopy::IntoBytes;

const DATA: usize = 2;
const CONTROL: usize = QUEUE_CONTROL as usize;
const IMAGE: &str = "6a1e3b7c-52d4-4c1f-9a3e-8f0b1c2d3e4f";
const OTHER: &str = "00000000-0000-4000-8000-000000000001";
/// What guests call the pool of the image.
const WEB: u32 = 3;
const DB: u32 = 7;

fn uuid(text: &str) -> Uuid {
    text.parse().unwrap()
}

/// A daemon with three guests, of which a file says which may share what.
struct Running {
    place: Place,
    daemon: Daemon,
}

impl Running {
    fn start(shared: &str) -> Self {
        Self::start_with(shared, "64MiB")
    }

    fn start_with(shared: &str, capacity: &str) -> Self {
        let place = Place::new();
        write(&place, shared, capacity);
        let (file, dir) = (place.arg("tmem.toml"), place.arg(""));
        let mut daemon =
            Daemon::start(&["--config", &file, "--socket-dir", dir.trim_end_matches('/')]);
        daemon.wait_for("waiting for operators");
        Self { place, daemon }
    }

    fn connect(&self, name: &str) -> Guest {
        Guest::connect(&self.place.path(&format!("{name}.sock")))
    }

    /// The guests that share the pool, with access.
    fn members(&self) -> (Guest, Guest) {
        let (mut web, mut db) = (self.connect("web"), self.connect("db"));
        assert_eq!(web.join_pool(WEB, uuid(IMAGE)), Status::Ok);
        assert_eq!(db.join_pool(DB, uuid(IMAGE)), Status::Ok);
        (web, db)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = tmemctl_command(args);
        command.env("TMEMCTL_CONTROL_PATH", self.place.path("control.sock"));
        command
    }

    fn ok(&self, args: &[&str]) -> String {
        let said = Said::by(&mut self.command(args));
        assert_eq!((said.code, &*said.err), (0, ""), "{args:?}: {said:?}");
        said.out
    }

    /// What is asked for is refused, and nothing has changed by that.
    fn refused(&self, args: &[&str], words: &[&str]) {
        let before = self.terms();
        let said = Said::by(&mut self.command(args));
        assert_eq!((said.code, &*said.out), (1, ""), "{args:?}: {said:?}");
        for word in words {
            assert!(said.err.contains(word), "{word}: {said:?}");
        }
        assert_eq!(self.terms(), before);
    }

    fn stat(&self) -> Value {
        stat(&self.place.path("control.sock"))
    }

    /// What operators say of the pools, and who has access.
    fn terms(&self) -> Vec<[Value; 4]> {
        let stat = self.stat();
        let pools = stat["shared"].as_array().unwrap().iter();
        let keys = ["uuid", "guests", "max_bytes", "members"];
        pools
            .map(|pool| keys.map(|key| pool[key].clone()))
            .collect()
    }

    /// What is told of the only pool.
    fn pool(&self) -> Value {
        let stat = self.stat();
        assert_eq!(stat["shared"].as_array().unwrap().len(), 1);
        stat["shared"][0].clone()
    }

    fn kill_worker(&mut self) {
        kill(self.daemon.worker(), libc::SIGKILL);
        self.daemon.wait_for("a new worker has taken over");
    }
}

fn write(place: &Place, shared: &str, capacity: &str) {
    let control = place.arg("control.sock");
    let mut text = format!("capacity = {capacity:?}\ncontrol-path = {control:?}\n");
    for name in ["web", "db", "third"] {
        let socket = place.arg(&format!("{name}.sock"));
        text += &format!("[guests.{name}]\nsocket = {socket:?}\nephemeral-min = \"2MiB\"\n");
    }
    fs::write(place.path("new"), text + shared).unwrap();
    fs::rename(place.path("new"), place.path("tmem.toml")).unwrap();
}

fn shared(guests: &str) -> String {
    format!("[shared.\"{IMAGE}\"]\nguests = {guests}\n")
}

fn put(guest: &mut Guest, pool: u32, index: u64) -> PageResult {
    let put = guest.put(DATA, pool, &[(key(1, index, 1), index as u8)]);
    put.results()[0]
}

/// Whether a page is there, and is what was put.
fn get(guest: &mut Guest, pool: u32, index: u64) -> Result<bool, Status> {
    let got = guest.get(DATA, pool, 0, &[key(1, index, 1)]);
    if got.status() != Status::Ok {
        return Err(got.status());
    }
    let hit = got.results() == [PageResult::Hit];
    assert!(!hit || got.page(0) == [index as u8; PAGE]);
    Ok(hit)
}

#[test]
fn what_one_guest_puts_another_gets() {
    let mut it = Running::start(&shared(r#"["web", "db"]"#));
    let mut third = it.connect("third");
    assert_ne!(third.config.capabilities.get() & cap::SHARED, 0);
    // Whether there is such a pool is nobody else's business.
    assert_eq!(third.join_pool(1, uuid(IMAGE)), Status::NotAllowed);
    let (mut web, mut db) = it.members();
    assert_eq!(third.join_pool(1, uuid(IMAGE)), Status::NotAllowed);
    assert_eq!(third.join_pool(1, uuid(OTHER)), Status::NotAllowed);
    assert_eq!(web.join_pool(1, uuid(OTHER)), Status::NotAllowed);
    assert_eq!(web.join_pool(1, Uuid::nil()), Status::NotAllowed);
    for number in [WEB, DB] {
        assert_eq!(get(&mut third, number, 0), Err(Status::NoPool));
    }
    for index in 0..100 {
        assert_eq!(put(&mut web, WEB, index), PageResult::Stored);
        assert_eq!(put(&mut db, DB, index), PageResult::Stored);
    }
    // It is there once, and nobody is charged.
    let stat = it.stat();
    assert_eq!(
        (&stat["used_pages"], &stat["objects"]),
        (&100.into(), &1.into())
    );
    for guest in stat["guests"].as_array().unwrap() {
        assert_eq!(guest["pools"], json!([]));
    }
    for _ in 0..2 {
        for index in 0..100 {
            assert_eq!(get(&mut db, DB, index), Ok(true));
        }
        assert_eq!(get(&mut web, WEB, 100), Ok(false));
        // Those of a worker before are there as well, and so is the access.
        it.kill_worker();
        assert_eq!(third.join_pool(1, uuid(IMAGE)), Status::NotAllowed);
    }
    it.ok(&["upgrade"]);
    it.daemon.wait_for("upgraded");
    assert_eq!(get(&mut db, DB, 99), Ok(true));
    it.kill_worker();
    assert_eq!(put(&mut db, DB, 100), PageResult::Stored);
    assert_eq!(get(&mut web, WEB, 100), Ok(true));
    // What was put, and found, since this worker is there.
    let pool = it.pool();
    assert_eq!(
        (&pool["uuid"], &pool["pages"]),
        (&IMAGE.into(), &101.into())
    );
    assert_eq!(pool["guests"], json!(["db", "web"]));
    let member = |n: usize, field: &str| pool["members"][n][field].clone();
    assert_eq!(
        (member(0, "guest"), member(0, "puts_stored")),
        (json!("db"), json!(1))
    );
    assert_eq!(
        (member(1, "guest"), member(1, "gets_hit")),
        (json!("web"), json!(1))
    );
}

#[test]
fn a_shared_pool_is_as_the_specification_says() {
    let it = Running::start(&shared(r#"["web", "db"]"#));
    let (mut web, mut db) = it.members();
    put(&mut web, WEB, 0);
    let take = db.get(DATA, DB, request_flags::TAKE, &[key(1, 0, 1)]);
    let malformed = (Status::Malformed, Malformed::Flags.to_wire());
    assert_eq!((take.status(), take.header.detail.get()), malformed);
    assert_eq!(get(&mut db, DB, 0), Ok(true));
    // The same again is no error; anything else under its number is.
    assert_eq!(web.join_pool(WEB, uuid(IMAGE)), Status::Ok);
    assert_eq!(web.join_pool(WEB, uuid(OTHER)), Status::PoolExists);
    assert_eq!(web.create_pool(WEB, 0), Status::PoolExists);
    assert_eq!(web.create_pool(1, 0), Status::Ok);
    assert_eq!(web.join_pool(1, uuid(IMAGE)), Status::PoolExists);
    // Both see all that is done there.
    assert_eq!((db.stats(DB).pages.get(), db.stats(DB).puts.get()), (1, 1));
    // What one flushes is gone for all.
    assert_eq!(
        db.flush(DATA, DB, &[key(1, 0, 1)]).results(),
        [PageResult::Flushed]
    );
    assert_eq!(get(&mut web, WEB, 0), Ok(false));
    put(&mut web, WEB, 0);
    assert_eq!(db.control(Opcode::FlushPool, DB), Status::Ok);
    assert_eq!(get(&mut web, WEB, 0), Ok(false));
    put(&mut web, WEB, 0);
    // A reset leaves it as it is, and so does one who leaves.
    assert_eq!(web.control(Opcode::PoolKeep, WEB), Status::Ok);
    web.reset();
    web.start_anew();
    assert_eq!(get(&mut web, WEB, 0), Ok(true));
    assert_eq!(web.control(Opcode::PoolDestroy, WEB), Status::Ok);
    assert_eq!(get(&mut web, WEB, 0), Err(Status::NoPool));
    assert_eq!(web.control(Opcode::PoolDestroy, WEB), Status::NoPool);
    assert_eq!(get(&mut db, DB, 0), Ok(true));
    assert_eq!(web.join_pool(WEB, uuid(IMAGE)), Status::Ok);
    assert_eq!(get(&mut web, WEB, 0), Ok(true));
    // A request that makes no sense is refused, and changes nothing.
    let mut bytes = web.header(Opcode::PoolCreate, 9, 1).as_bytes().to_vec();
    bytes.extend([
        (pool_flags::SHARED | pool_flags::PERSISTENT) as u8,
        0,
        0,
        0,
        12,
    ]);
    bytes.resize(64, 0);
    assert_eq!(web.request(CONTROL, &bytes, 32).status(), Status::Malformed);
}

#[test]
fn the_pool_is_there_while_a_guest_is() {
    let mut it = Running::start(&shared(r#"["web", "db"]"#));
    let (mut web, mut db) = it.members();
    put(&mut web, WEB, 0);
    drop(web);
    it.daemon.wait_for("disconnected");
    wait_until("it has left", || {
        it.pool()["members"].as_array().unwrap().len() == 1
    });
    assert_eq!(get(&mut db, DB, 0), Ok(true));
    let mut web = it.connect("web");
    assert_eq!(get(&mut web, WEB, 0), Err(Status::NoPool));
    assert_eq!(web.join_pool(WEB, uuid(IMAGE)), Status::Ok);
    assert_eq!(get(&mut web, WEB, 0), Ok(true));
    drop((web, db));
    wait_until("nothing is left", || {
        let stat = it.stat();
        stat["used_pages"] == 0 && stat["shared"][0]["members"] == json!([])
    });
    let (mut web, _db) = it.members();
    assert_eq!(get(&mut web, WEB, 0), Ok(false));
}

#[test]
fn operators_change_who_shares_while_guests_run() {
    let mut it = Running::start("");
    let (mut web, mut db, mut third) = (it.connect("web"), it.connect("db"), it.connect("third"));
    assert_eq!(web.join_pool(WEB, uuid(IMAGE)), Status::NotAllowed);
    let share = ["shared", "add", IMAGE, "--guest", "web", "--guest", "db"];
    let said = it.ok(&[&share[..], &["--max", "8MiB"]].concat());
    assert!(
        said.contains("\"db\", \"web\", with at most 8.00 MiB"),
        "{said}"
    );
    assert_eq!(web.join_pool(WEB, uuid(IMAGE)), Status::Ok);
    assert_eq!(db.join_pool(DB, uuid(IMAGE)), Status::Ok);
    assert_eq!(third.join_pool(0, uuid(IMAGE)), Status::NotAllowed);
    put(&mut web, WEB, 0);
    assert_eq!(it.pool()["max_bytes"], 8 << 20);
    // Capitals are the same.
    let again = IMAGE.to_uppercase();
    let json = ["shared", "add", &again, "--guest", "third", "--json"];
    let said: Value = serde_json::from_str(&it.ok(&json)).unwrap();
    assert_eq!(said["reply"], "done");
    assert_eq!(third.join_pool(0, uuid(IMAGE)), Status::Ok);
    assert_eq!(get(&mut third, 0, 0), Ok(true));
    // Who is taken off is out when that was said, and stays out.
    it.ok(&["shared", "remove", IMAGE, "--guest", "web"]);
    for _ in 0..2 {
        assert_eq!(get(&mut web, WEB, 0), Err(Status::NoPool));
        assert_eq!(web.join_pool(WEB, uuid(IMAGE)), Status::NotAllowed);
        assert_eq!(get(&mut db, DB, 0), Ok(true));
        it.kill_worker();
    }
    it.ok(&["shared", "flush", IMAGE]);
    assert_eq!(get(&mut db, DB, 0), Ok(false));
    put(&mut db, DB, 0);
    it.ok(&["shared", "remove", IMAGE]);
    assert_eq!(get(&mut db, DB, 0), Err(Status::NoPool));
    wait_until("its memory is free", || it.stat()["used_pages"] == 0);
    assert_eq!(it.stat()["shared"], json!([]));
    // What was there is not there for who comes next.
    it.ok(&["shared", "add", IMAGE, "--guest", "web"]);
    assert_eq!(web.join_pool(WEB, uuid(IMAGE)), Status::Ok);
    assert_eq!(get(&mut web, WEB, 0), Ok(false));
    // A guest of another name has it, and one that is gone has not.
    put(&mut web, WEB, 1);
    it.ok(&["guest", "rename", "web", "www"]);
    assert_eq!(it.pool()["guests"], json!(["www"]));
    assert_eq!(get(&mut web, WEB, 1), Ok(true));
    it.ok(&["guest", "remove", "www", "--force"]);
    assert_eq!(it.stat()["shared"], json!([]));
}

#[test]
fn a_guest_that_is_not_there_shares_nothing_until_it_comes() {
    let it = Running::start(&shared(r#"["web", "late"]"#));
    assert_eq!(it.pool()["guests"], json!(["web"]));
    // Other guests come and go meanwhile; only the file has to make sense to be read again.
    it.refused(&["reload"], &["guests names guest \"late\""]);
    it.ok(&["guest", "remove", "db"]);
    it.ok(&[
        "guest",
        "add",
        "late",
        "--socket",
        &it.place.arg("late.sock"),
    ]);
    assert_eq!(it.pool()["guests"], json!(["web", "late"]));
    assert_eq!(it.connect("late").join_pool(DB, uuid(IMAGE)), Status::Ok);
    it.ok(&["reload"]);
}

#[test]
fn what_makes_no_sense_changes_nothing() {
    let it = Running::start(&shared(r#"["web", "db"]"#));
    let (mut web, _db) = it.members();
    put(&mut web, WEB, 0);
    let add = |uuid, more: &[&str], words: &[&str]| {
        it.refused(&[&["shared", "add", uuid][..], more].concat(), words);
    };
    let plain = IMAGE.replace('-', "");
    let nil = "00000000-0000-0000-0000-000000000000";
    add(
        "1234",
        &["--guest", "web"],
        &["\"1234\" is no UUID", "blkid"],
    );
    add(&plain, &["--guest", "web"], &["is no UUID"]);
    add(nil, &["--guest", "web"], &["names no pool"]);
    add(OTHER, &[], &["has no guests", "--guest"]);
    add(
        OTHER,
        &["--guest", "nobody"],
        &["nobody", "the guests are: db, third, web"],
    );
    add(
        OTHER,
        &["--guest", "web", "--guest", "web"],
        &["\"web\" twice"],
    );
    add(IMAGE, &["--max", "lots"], &["\"lots\" is no size"]);
    add(IMAGE, &["--max", "1KiB"], &["too small"]);
    it.refused(&["shared", "remove", OTHER], &["shared with nobody"]);
    it.refused(&["shared", "flush", OTHER], &["shared with nobody"]);
    it.refused(&["shared", "flush", "x"], &["is no UUID"]);
    let third = ["shared", "remove", IMAGE, "--guest", "third"];
    it.refused(
        &third,
        &["not shared with guest \"third\", but with db, web"],
    );
    // Neither does a file.
    let reload = |text: &str, words: &[&str]| {
        write(&it.place, text, "64MiB");
        it.refused(&["reload"], words);
    };
    reload(
        &shared(r#"["web", "nobody"]"#),
        &[IMAGE, "guests names guest \"nobody\""],
    );
    reload(&shared(r#"["web", "web"]"#), &["names guest \"web\" twice"]);
    reload(&shared("[]").replace(IMAGE, nil), &["names no pool"]);
    reload(&shared("[]").replace(IMAGE, "x"), &["\"x\" is no UUID"]);
    reload(&(shared("[]") + "max = \"1\""), &["max", "too small"]);
    reload(
        &(shared("[]") + "weight = 0"),
        &["weight 0 is not in 1 to 10000"],
    );
    reload(&(shared("[]") + "guest = []"), &["did you mean guests"]);
    let twice = shared("[\"web\"]") + &shared("[\"db\"]").replace(IMAGE, &IMAGE.to_uppercase());
    reload(&twice, &["is there twice"]);
    assert_eq!(get(&mut web, WEB, 0), Ok(true));
    // And one that makes sense does.
    write(
        &it.place,
        &(shared(r#"["web"]"#) + "max = \"2MiB\""),
        "64MiB",
    );
    it.ok(&["reload"]);
    assert_eq!(it.pool()["guests"], json!(["web"]));
    assert_eq!(get(&mut web, WEB, 0), Ok(true));
    assert_eq!(it.pool()["max_bytes"], 2 << 20);
    it.ok(&["shared", "add", IMAGE, "--max", "4MiB"]);
    assert_eq!(it.pool()["max_bytes"], 4 << 20);
    it.ok(&["shared", "add", IMAGE, "--max", "default"]);
    assert_eq!(it.pool()["max_bytes"], 2 << 20);
    // Who is taken off by tmemctl stays off when the file is read again.
    it.ok(&["shared", "remove", IMAGE, "--guest", "web"]);
    it.ok(&["reload"]);
    assert_eq!(it.stat()["shared"], json!([]));
    it.ok(&["shared", "add", IMAGE, "--guest", "web"]);
    assert_eq!(it.pool()["guests"], json!(["web"]));
}

#[test]
fn what_is_done_to_one_guest_is_not_done_to_the_pool() {
    let mut it = Running::start(&shared(r#"["web", "db"]"#));
    let (mut web, mut db) = it.members();
    assert_eq!(web.create_pool(0, 0), Status::Ok);
    put(&mut web, WEB, 0);
    put(&mut web, 0, 0);
    // Its own pages are freed, flushed and destroyed.
    let freeable: Value = serde_json::from_str(&it.ok(&["freeable", "web", "--json"])).unwrap();
    assert_eq!(
        freeable["bytes"],
        it.stat()["guests"][2]["pools"][0]["bytes"]
    );
    it.ok(&["flush", "web"]);
    assert_eq!(
        (get(&mut web, 0, 0), get(&mut web, WEB, 0)),
        (Ok(false), Ok(true))
    );
    it.ok(&["destroy", "web"]);
    assert_eq!(get(&mut web, WEB, 0), Ok(true));
    let pool = WEB.to_string();
    for command in ["flush", "destroy"] {
        it.refused(
            &[command, "web", "--pool", &pool],
            &["shared", "tmemctl shared flush"],
        );
    }
    // It is frozen there as well.
    it.ok(&["freeze", "web"]);
    assert_eq!(put(&mut web, WEB, 1), PageResult::Frozen);
    assert_eq!(put(&mut db, DB, 1), PageResult::Stored);
    it.ok(&["thaw", "web"]);
    // Saved are the pages that it alone has.
    web.stop();
    let file = it.place.arg("saved");
    let said = it.ok(&["save", "web", &file]);
    assert!(said.contains(": 0 pages"), "{said}");
    web.start_anew();
    // Its epoch ends its own pools, and it has to come back to this one.
    it.ok(&["epoch", "web", "--force"]);
    it.daemon.wait_for("begins another epoch");
    wait_until("it is told", || {
        let now = web.read_config(32, 8);
        now != web.epoch().to_le_bytes()
    });
    web.config.epoch = u64::from_le_bytes(web.read_config(32, 8).try_into().unwrap()).into();
    assert_eq!(get(&mut web, WEB, 0), Err(Status::NoPool));
    assert_eq!(get(&mut db, DB, 0), Ok(true));
    assert_eq!(web.join_pool(WEB, uuid(IMAGE)), Status::Ok);
    assert_eq!(get(&mut web, WEB, 0), Ok(true));
}

#[test]
fn a_flood_leaves_others_what_they_are_guaranteed() {
    let mut it = Running::start_with(&shared(r#"["web", "db"]"#), "16MiB");
    let (mut web, mut db) = it.members();
    let mut third = it.connect("third");
    assert_eq!(third.create_pool(0, 0), Status::Ok);
    for index in 0..500 {
        assert_eq!(put(&mut third, 0, index), PageResult::Stored);
    }
    // All sizes and contents, from both sides.
    for round in 0..4 {
        for first in (0..8000).step_by(32) {
            let page = |n: u64| (key(2, first + n, round), (first + n) as u8);
            let pages: Vec<_> = (0..32).map(page).collect();
            let (guest, pool) = match first % 64 {
                0 => (&mut web, WEB),
                _ => (&mut db, DB),
            };
            let put = guest.put(DATA, pool, &pages);
            assert_eq!(put.results(), [PageResult::Stored; 32]);
        }
        it.kill_worker();
    }
    for index in 0..500 {
        assert_eq!(get(&mut third, 0, index), Ok(true), "{index}");
    }
}

#[test]
fn a_restart_of_the_service_goes_unnoticed() {
    let place = Place::new();
    let systemd = Systemd::new(&place);
    let (web, db, control) = (
        place.arg("web.sock"),
        place.arg("db.sock"),
        place.arg("control.sock"),
    );
    let args = [
        "-s",
        &web,
        "-s",
        &db,
        "-c",
        "64MiB",
        "--control-path",
        &control,
    ];
    let mut daemon = systemd.start(&args);
    let share = ["shared", "add", IMAGE, "--guest", "web", "--guest", "db"];
    let shared = Said::by(tmemctl_command(&share).env("TMEMCTL_CONTROL_PATH", &control));
    assert_eq!(shared.code, 0, "{shared:?}");
    let (mut web, mut db) = (
        Guest::connect(&place.path("web.sock")),
        Guest::connect(&place.path("db.sock")),
    );
    assert_eq!(web.join_pool(WEB, uuid(IMAGE)), Status::Ok);
    assert_eq!(db.join_pool(DB, uuid(IMAGE)), Status::Ok);
    assert_eq!(put(&mut web, WEB, 0), PageResult::Stored);
    for signal in [libc::SIGTERM, libc::SIGKILL] {
        daemon.signal(signal);
        daemon.child.wait().unwrap();
        daemon = systemd.start(&args);
        daemon.wait_for("guest \"db\": going on with its connection");
        assert_eq!(get(&mut db, DB, 0), Ok(true));
        assert_eq!(get(&mut web, WEB, 0), Ok(true));
    }
}
