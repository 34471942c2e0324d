// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The daemon's binary, and guests that talk vhost-user to it.

mod support;

use support::{key, stat, wait_until, Daemon, Guest, Place, BUFFERS, MEMORY, PAGE};
use tmem_driver::{Part, EVENT_IDX};
use virtio_tmem_abi::{cap, pool_flags, request_flags, EventKind, Opcode, PageResult, Status};
use zerocopy::IntoBytes;

const DATA: usize = 2;

fn start(place: &Place, more: &[&str]) -> Daemon {
    let (guest, control) = (place.arg("guest.sock"), place.arg("control.sock"));
    let mut args = vec!["--socket-path", &guest, "--control-path", &control];
    args.extend(more);
    if !more.contains(&"--capacity") {
        args.extend(["--capacity", "64MiB"]);
    }
    let mut daemon = Daemon::start(&args);
    daemon.wait_for("waiting for operators");
    daemon
}

#[test]
fn pages_come_back_as_they_were_put() {
    let place = Place::new();
    let mut daemon = start(&place, &[]);
    let mut guest = Guest::connect(&place.path("guest.sock"));
    daemon.wait_for("connected");
    assert_eq!(guest.create_pool(0, pool_flags::PERSISTENT), Status::Ok);
    assert_eq!(guest.create_pool(1, 0), Status::Ok);
    for pool in [0, 1] {
        let put = guest.put(DATA, pool, &[(key(1, 1, 1), 0x11), (key(1, 2, 1), 0x22)]);
        assert_eq!(put.results(), [PageResult::Stored; 2]);
        assert_eq!(put.len, 34);
        assert!(put.header.persistent_credits.get() > 0);
        let keys = [key(1, 2, 1), key(1, 3, 1), key(1, 1, 2), key(1, 1, 1)];
        // The other data virtqueue leads to the same pages.
        let get = guest.get(DATA + 1, pool, 0, &keys);
        let (hit, miss) = (PageResult::Hit, PageResult::Miss);
        assert_eq!(get.results(), [hit, miss, miss, hit]);
        assert_eq!(get.len, 36 + 4096);
        assert_eq!(get.page(0), [0x22; 4096]);
        assert_eq!(get.page(3), [0x11; 4096]);
    }
    let take = guest.get(DATA, 1, request_flags::TAKE, &[key(1, 1, 1)]);
    assert_eq!(take.results(), [PageResult::Hit]);
    let take = guest.get(DATA, 1, request_flags::TAKE, &[key(1, 1, 1)]);
    assert_eq!(take.results(), [PageResult::Miss]);
    let flush = guest.flush(DATA, 0, &[key(1, 1, 9), key(1, 1, 1), key(1, 1, 1)]);
    let (flushed, absent) = (PageResult::Flushed, PageResult::Absent);
    assert_eq!(flush.results(), [absent, flushed, absent]);
    let stats = guest.stats(0);
    assert_eq!((stats.pages.get(), stats.puts_stored.get()), (1, 2));

    let stat = stat(&place.path("control.sock"));
    assert_eq!(stat["version"], 1);
    let listed = &stat["guests"][0];
    assert_eq!(listed["name"], "guest");
    assert_eq!(listed["connected"], true);
    assert_eq!(listed["epoch"], guest.epoch());
    assert_eq!(listed["pools"][0]["kind"], "persistent");
    assert_eq!(listed["pools"][0]["pages_flushed"], 1);
    assert_eq!(listed["pools"][1]["kind"], "ephemeral");
    assert_eq!(listed["pools"][1]["gets_hit"], 3);
    assert_eq!(guest.control(Opcode::PoolDestroy, 0), Status::Ok);
    assert_eq!(guest.control(Opcode::PoolDestroy, 0), Status::NoPool);
    let stat = self::stat(&place.path("control.sock"));
    let dropped = &stat["guests"][0]["dropped"]["persistent"];
    assert_eq!(dropped["pools"], 1);
    assert_eq!(dropped["pages"], 1);
    assert_eq!(dropped["pages_flushed"], 1);
}

#[test]
fn a_new_connection_finds_nothing_of_the_old() {
    let place = Place::new();
    let mut daemon = start(&place, &[]);
    let mut guest = Guest::connect(&place.path("guest.sock"));
    guest.create_pool(0, pool_flags::PERSISTENT);
    let put = guest.put(DATA, 0, &[(key(1, 1, 1), 1), (key(1, 2, 1), 2)]);
    assert_eq!(put.results(), [PageResult::Stored; 2]);
    let old = guest.epoch();
    drop(guest);
    let line = daemon.wait_for("disconnected");
    assert!(
        line.contains("2 persistent and 0 ephemeral pages dropped"),
        "{line}"
    );
    let control = place.path("control.sock");
    wait_until("the counters of the last guest", || {
        let stat = stat(&control);
        let listed = &stat["guests"][0];
        listed["connected"] == false
            && listed["pools"] == serde_json::json!([])
            && listed["dropped"]["persistent"]["pages"] == 2
            && listed["dropped"]["persistent"]["puts_stored"] == 2
    });
    let mut guest = Guest::connect(&place.path("guest.sock"));
    assert_ne!(guest.epoch(), old);
    assert_ne!(guest.epoch(), 0);
    assert_eq!(guest.control(Opcode::PoolDestroy, 0), Status::NoPool);
    guest.create_pool(0, pool_flags::PERSISTENT);
    let get = guest.get(DATA, 0, 0, &[key(1, 1, 1)]);
    assert_eq!(get.results(), [PageResult::Miss]);
    guest.config.epoch = old.into();
    let get = guest.get(DATA, 0, 0, &[key(1, 1, 1)]);
    assert_eq!(get.status(), Status::StaleEpoch);
}

#[test]
fn credits_are_told_when_there_are_some_again() {
    let place = Place::new();
    let _daemon = start(&place, &["--capacity", "1MiB"]);
    let mut guest = Guest::connect(&place.path("guest.sock"));
    guest.create_pool(0, pool_flags::PERSISTENT);
    guest.offer_event();
    let mut stored = 0;
    loop {
        let put = guest.put(DATA, 0, &[(key(1, stored, 1), 1)]);
        if put.results() == [PageResult::OverQuota] {
            assert_eq!(put.header.persistent_credits.get(), 0);
            break;
        }
        stored += 1;
    }
    assert!(stored > 200 && stored <= 256, "{stored}");
    assert_eq!(guest.control(Opcode::FlushPool, 0), Status::Ok);
    let event = guest.wait_event();
    assert_eq!(
        EventKind::from_wire(event.kind.get()),
        Some(EventKind::Credits)
    );
    assert!(event.persistent_credits.get() > 0);
    assert_eq!(event.epoch.get(), guest.epoch());
}

#[test]
fn a_reset_frees_what_the_driver_did_not_mean_to_come_back_for() {
    let place = Place::new();
    let mut daemon = start(&place, &[]);
    let mut guest = Guest::connect(&place.path("guest.sock"));
    assert_ne!(guest.config.capabilities.get() & cap::KEEP, 0);
    let (persistent, released) = (pool_flags::PERSISTENT, pool_flags::RELEASED_BY_RESET);
    // One that stays in any case, one that is kept, and two that are not.
    let pools = [
        persistent,
        persistent | released,
        persistent | released,
        released,
    ];
    for (pool, flags) in (0..).zip(pools) {
        assert_eq!(guest.create_pool(pool, flags), Status::Ok);
        let put = guest.put(DATA, pool, &[(key(1, 1, 1), 0x10 + pool as u8)]);
        assert_eq!(put.results(), [PageResult::Stored]);
    }
    assert_eq!(guest.control(Opcode::PoolKeep, 1), Status::Ok);
    assert_eq!(guest.control(Opcode::PoolKeep, 9), Status::NoPool);
    // As when the machine is paused: no reset.
    guest.stop();
    guest.start_anew();
    assert_eq!(guest.stats(2).pages.get(), 1);
    guest.reset();
    let line = daemon.wait_for("was reset");
    assert!(
        line.contains("1 persistent and 1 ephemeral pages"),
        "{line}"
    );
    let control = place.path("control.sock");
    wait_until("the pages are freed", || stat(&control)["used_pages"] == 2);
    guest.reset();
    guest.start_anew();
    for (pool, status) in [(1, Status::Ok), (2, Status::NoPool), (3, Status::NoPool)] {
        assert_eq!(guest.control(Opcode::PoolKeep, pool), status);
    }
    for (pool, flags) in (0..).zip(pools) {
        assert_eq!(guest.create_pool(pool, flags), Status::Ok);
        let got = guest.get(DATA, pool, 0, &[key(1, 1, 1)]);
        if pool < 2 {
            assert_eq!(got.page(0), [0x10 + pool as u8; PAGE]);
        } else {
            assert_eq!(got.results(), [PageResult::Miss]);
        }
    }
    // It was kept for one absence.
    guest.reset();
    guest.start_anew();
    assert_eq!(guest.control(Opcode::PoolKeep, 1), Status::NoPool);
    assert_eq!(guest.stats(0).pages.get(), 1);
}

#[test]
fn a_page_that_the_daemon_cannot_reach_is_not_lost() {
    let place = Place::new();
    let _daemon = start(&place, &[]);
    let mut guest = Guest::connect(&place.path("guest.sock"));
    guest.create_pool(0, pool_flags::PERSISTENT);
    guest.put(DATA, 0, &[(key(1, 1, 1), 0x77)]);
    let request = |guest: &Guest, opcode, index| {
        let header = guest.header(opcode, 0, 1);
        [header.as_bytes(), key(1, index, 1).as_bytes()].concat()
    };
    let (answer, away) = (BUFFERS * 2, MEMORY as u64);
    let (refused, missed) = (PageResult::NoMemory, PageResult::Miss);
    let put = request(&guest, Opcode::Put, 2);
    let parts = [
        Part::readable(BUFFERS, put.len()),
        Part::readable(away, PAGE),
        Part::writable(answer, 33),
    ];
    assert_eq!(guest.send_parts(DATA, &put, &parts), 33);
    assert_eq!(guest.read(answer + 32, 1), [refused.to_wire()]);
    let get = request(&guest, Opcode::Get, 1);
    let parts = [
        Part::readable(BUFFERS, get.len()),
        Part::writable(answer, 33),
        Part::writable(away, PAGE),
    ];
    assert_eq!(guest.send_parts(DATA, &get, &parts), 33);
    assert_eq!(guest.read(answer + 32, 1), [missed.to_wire()]);
    let got = guest.get(DATA, 0, 0, &[key(1, 1, 1)]);
    assert_eq!(got.page(0), [0x77; PAGE]);
    // Where there is no answer, nothing was done.
    let flush = request(&guest, Opcode::FlushPage, 1);
    let parts = [
        Part::readable(BUFFERS, flush.len()),
        Part::writable(away, 33),
    ];
    assert_eq!(guest.send_parts(DATA, &flush, &parts), 0);
    let parts = [
        Part::readable(away, flush.len()),
        Part::writable(answer, 33),
    ];
    assert_eq!(guest.send_parts(DATA, &flush, &parts), 0);
    assert_eq!(guest.stats(0).pages.get(), 1);
    let listed = &stat(&place.path("control.sock"))["guests"][0];
    assert_eq!(
        (&listed["out_of_reach"], &listed["malformed"]),
        (&4.into(), &0.into())
    );
}

#[test]
fn a_share_of_the_puts_is_refused_on_demand() {
    let place = Place::new();
    let _daemon = start(&place, &["--fault-refuse-percent", "100"]);
    let mut guest = Guest::connect(&place.path("guest.sock"));
    guest.create_pool(0, pool_flags::PERSISTENT);
    let put = guest.put(DATA, 0, &[(key(1, 1, 1), 1)]);
    assert_eq!(put.results(), [PageResult::NoMemory]);
}

#[test]
fn a_path_has_one_daemon() {
    let place = Place::new();
    let mut daemon = start(&place, &[]);
    let args = ["-s", &place.arg("guest.sock"), "-c", "4MiB"];
    let second = Daemon::command(&args).output().unwrap();
    assert!(!second.status.success());
    let message = String::from_utf8(second.stderr).unwrap();
    assert!(
        message.contains("another daemon is listening there"),
        "{message}"
    );
    // The first one did not suffer.
    let mut guest = Guest::connect(&place.path("guest.sock"));
    assert_eq!(guest.create_pool(0, 0), Status::Ok);
    daemon.signal(libc::SIGKILL);
    daemon.child.wait().unwrap();
    assert!(place.path("guest.sock").exists());
    let mut third = Daemon::start(&args);
    third.wait_for("taking over the stale socket");
    third.wait_for("waiting for guest");
    let mut guest = Guest::connect(&place.path("guest.sock"));
    assert_eq!(guest.create_pool(0, 0), Status::Ok);
}

#[test]
fn a_signal_ends_the_daemon_and_leaves_nothing_behind() {
    for signal in [libc::SIGTERM, libc::SIGINT] {
        let place = Place::new();
        let mut daemon = start(&place, &[]);
        let mut guest = Guest::connect(&place.path("guest.sock"));
        assert_eq!(guest.create_pool(0, 0), Status::Ok);
        daemon.signal(signal);
        assert!(daemon.child.wait().unwrap().success());
        for name in [
            "guest.sock",
            "guest.sock.lock",
            "control.sock",
            "control.sock.lock",
        ] {
            assert!(!place.path(name).exists(), "{name}");
        }
    }
}

/// Makes a request, with a notification only if the device wants one, and returns whether it did.
fn flush_quietly(guest: &mut Guest) -> bool {
    let mut request = guest.header(Opcode::FlushPage, 0, 1).as_bytes().to_vec();
    request.extend(key(1, 1, 1).as_bytes());
    guest.add(DATA, 1 << 20, &request, 33);
    let notified = guest.queues[DATA].notify();
    assert_eq!(guest.wait(DATA), 33);
    notified
}

#[test]
fn a_device_that_polls_needs_no_notification() {
    let place = Place::new();
    // So long that each request comes soon.
    let _daemon = start(&place, &["--poll-us", "3600000000"]);
    for left_out in [0, EVENT_IDX] {
        let mut guest = Guest::connect_without(&place.path("guest.sock"), left_out);
        assert_eq!(guest.create_pool(0, 0), Status::Ok);
        // It begins with next to nothing.
        wait_until("a request without a notification", || {
            !flush_quietly(&mut guest)
        });
        let control = place.path("control.sock");
        let listed = &stat(&control)["guests"][0];
        assert!(listed["polls_found"].as_u64() > Some(0), "{listed}");
        // It is in the midst of it, or will be again.
        assert_eq!(
            guest.stop_queue(DATA),
            u32::from(guest.queues[DATA].added())
        );
        drop(guest);
        wait_until("the guest to be gone", || {
            stat(&control)["guests"][0]["connected"] == false
        });
    }
}

#[test]
fn a_device_that_does_not_poll_wants_every_notification() {
    let place = Place::new();
    let _daemon = start(&place, &["--poll-us", "0"]);
    let mut guest = Guest::connect_without(&place.path("guest.sock"), 0);
    assert_eq!(guest.create_pool(0, 0), Status::Ok);
    for _ in 0..100 {
        guest.wait_avail_event(DATA);
        assert!(flush_quietly(&mut guest));
    }
    let listed = &stat(&place.path("control.sock"))["guests"][0];
    assert_eq!(listed["polls"], 0);
}
