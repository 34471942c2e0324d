// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Windows: chunks that come and go, guests that write where they should not, workers that die.

mod support;

use support::{
    key, kill, wait_until,
    window::{slot, Window, WindowPlace, CHUNK},
    Daemon, Guest, PAGE,
};
use virtio_tmem_abi::{
    cap, pool_flags, window_flags, ChunkKind, Malformed, PageResult, Status, FIRST_CHUNK,
    WINDOW_MAGIC, WINDOW_VERSION,
};

const DATA: usize = 2;

const EPHEMERAL: ChunkKind = ChunkKind::Ephemeral;
const PERSISTENT: ChunkKind = ChunkKind::Persistent;

/// What a window takes that is open and of which nothing is granted.
const OVERHEAD: u64 = 2 * CHUNK;

/// A daemon with a guest `a` that has a window of 32 MiB, open, and a persistent pool 0.
fn one_guest(place: &WindowPlace, more: &[&str]) -> (Daemon, Guest, Window) {
    let args = [&["-c", "64MiB", "--window-size", "32MiB"], more].concat();
    let daemon = place.start(&["a"], &args);
    let mut guest = Guest::connect(&place.sockets.path("a.sock"));
    assert_eq!(guest.create_pool(0, pool_flags::PERSISTENT), Status::Ok);
    assert_eq!(guest.open_window(0), Status::Ok);
    (daemon, guest, place.window("a"))
}

#[test]
fn a_guest_finds_its_window_and_gets_chunks_of_it() {
    let place = WindowPlace::new();
    let (_daemon, mut guest, window) = one_guest(&place, &[]);
    let config = guest.config;
    assert_ne!(config.capabilities.get() & cap::WINDOW, 0);
    let header = window.header();
    assert_eq!(header.magic.get(), WINDOW_MAGIC);
    assert_eq!(header.version.get(), WINDOW_VERSION);
    assert_eq!((header.page_shift, header.chunk_shift), (12, 21));
    assert_eq!(header.chunks.get(), 16);
    assert_eq!(header.identity, config.window);
    assert_ne!(header.identity, [0; 16]);
    assert_eq!(header.epoch.get(), guest.epoch());
    assert_eq!(window.allocated(), OVERHEAD);

    let chunks = guest.grant(PERSISTENT, 3, 1);
    assert_eq!(chunks.len(), 3);
    for (number, generation) in &chunks {
        assert!((FIRST_CHUNK..16).contains(number));
        assert!(*generation > 0 && generation % 2 == 0);
        assert_eq!(window.generation(*number), *generation);
    }
    // All of their memory is there before the guest touches it, and maybe some for the next.
    assert!(window.allocated() >= OVERHEAD + 3 * CHUNK);
    let more = guest.grant(EPHEMERAL, 62, 2);
    assert_eq!(more.len(), 11, "all that the window has");
    let all: std::collections::BTreeSet<_> = chunks.iter().chain(&more).map(|c| c.0).collect();
    assert_eq!(all, (FIRST_CHUNK..16).collect());
    assert_eq!(guest.grant(EPHEMERAL, 1, 3), []);
    assert_eq!(window.allocated(), OVERHEAD + 14 * CHUNK);
    let told = place.window_stat(0);
    assert_eq!(told["open"], true);
    assert_eq!(told["chunks"]["persistent"], 3);
    assert_eq!(told["chunks"]["ephemeral"], 11);
    assert_eq!(told["allocated"], OVERHEAD + 14 * CHUNK);
    let lent = &place.stat()["lent_bytes"];
    assert_eq!(*lent, OVERHEAD + 14 * CHUNK);
}

#[test]
fn a_chunk_that_is_returned_is_gone_and_may_be_granted_again() {
    let place = WindowPlace::new();
    let (_daemon, mut guest, window) = one_guest(&place, &[]);
    let chunks = guest.grant(PERSISTENT, 14, 1);
    assert_eq!(chunks.len(), 14);
    for chunk in &chunks {
        window.fill(slot(*chunk, 7), 0x77);
    }
    assert_eq!(guest.give_back(&chunks[3..5]).status, Status::Ok);
    for (number, generation) in &chunks[3..5] {
        assert_eq!(window.generation(*number), generation + 2);
    }
    // To return it once more changes nothing, nor does it to return what it was before.
    let again = guest.grant(EPHEMERAL, 2, 2);
    let mut numbers: Vec<_> = again.iter().map(|chunk| chunk.0).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, [chunks[3].0, chunks[4].0]);
    assert_eq!(guest.give_back(&chunks[3..5]).status, Status::Ok);
    for chunk in &again {
        assert_eq!(window.generation(chunk.0), chunk.1);
        assert_eq!(window.read(slot(*chunk, 7)), [0; PAGE]);
    }
    assert_eq!(place.window_stat(0)["chunks"]["ephemeral"], 2);
    assert_eq!(window.read(slot(chunks[0], 7)), [0x77; PAGE]);
}

#[test]
fn a_page_moves_from_its_slot_to_the_store() {
    for compression in ["none", "lz4"] {
        let place = WindowPlace::new();
        let (_daemon, mut guest, window) = one_guest(&place, &["--compression", compression]);
        let chunk = guest.grant(PERSISTENT, 1, 1)[0];
        let pages: Vec<_> = (0..100)
            .map(|n| {
                window.fill(slot(chunk, n), n as u8);
                (key(1, n.into(), 1), slot(chunk, n), chunk.1)
            })
            .collect();
        let put = guest.put_slots(DATA, 0, &pages);
        assert_eq!(put, vec![PageResult::Stored; 100]);
        // The slot is the guest's again.
        window.write(u64::from(chunk.0) * CHUNK, &vec![0xee; CHUNK as usize]);
        let keys: Vec<_> = pages.iter().map(|(key, ..)| *key).collect();
        let got = guest.get(DATA, 0, 0, &keys);
        assert_eq!(got.results(), vec![PageResult::Hit; 100]);
        for n in 0..100 {
            assert_eq!(got.page(n), [n as u8; PAGE]);
        }
        // It is a put in all else.
        let put = guest.put_slots(DATA, 0, &[(key(1, 5, 2), slot(chunk, 0), chunk.1)]);
        assert_eq!(put, [PageResult::Stored]);
        let got = guest.get(DATA, 0, 0, &[key(1, 5, 1), key(1, 5, 2)]);
        assert_eq!(got.results(), [PageResult::Miss, PageResult::Hit]);
        assert_eq!(got.page(1), [0xee; PAGE]);
    }
}

#[test]
fn a_page_of_a_slot_that_is_not_granted_is_refused() {
    let place = WindowPlace::new();
    let (_daemon, mut guest, window) = one_guest(&place, &[]);
    let chunks = guest.grant(PERSISTENT, 2, 1);
    guest.give_back(&chunks[1..]);
    let put = guest.put(DATA, 0, &[(key(1, 0, 1), 0x11)]);
    assert_eq!(put.results(), [PageResult::Stored]);
    let (number, generation) = chunks[0];
    let bad = [
        (0, 0),
        (0, 2),
        (511, 2),
        (512, 2),
        (slot(chunks[0], 0), generation + 1),
        (slot(chunks[0], 0), generation.wrapping_sub(2)),
        (slot(chunks[0], 0), 0),
        (slot(chunks[1], 0), chunks[1].1),
        (slot(chunks[1], 0), chunks[1].1 + 2),
        (slot((15, 0), 0), 2),
        (16 * 512, 2),
        (u32::MAX, 2),
        (u32::MAX, u32::MAX),
    ];
    for (slot, generation) in bad {
        let put = guest.put_slots(DATA, 0, &[(key(1, 0, 1), slot, generation)]);
        assert_eq!(put, [PageResult::NoMemory], "{slot:#x} {generation}");
    }
    // As with any refusal, what was there before is gone; and those beside it are stored.
    let pages = [
        (key(1, 1, 1), slot(chunks[0], 1), generation),
        (key(1, 2, 1), u32::MAX, generation),
        (key(1, 3, 1), slot(chunks[0], 3), generation),
    ];
    let (stored, refused) = (PageResult::Stored, PageResult::NoMemory);
    assert_eq!(guest.put_slots(DATA, 0, &pages), [stored, refused, stored]);
    let got = guest.get(DATA, 0, 0, &[key(1, 0, 1)]);
    assert_eq!(got.results(), [PageResult::Miss]);
    // Only whole chunks have memory: no page was touched that is not granted.
    assert_eq!(window.allocated() % CHUNK, 0);
    assert_eq!(window.generation(number), generation);
}

#[test]
fn requests_that_break_a_rule_are_refused() {
    let place = WindowPlace::new();
    let (_daemon, mut guest, _window) = one_guest(&place, &[]);
    let malformed = (Status::Malformed, Some(Malformed::Chunk));
    for (kind, count) in [
        (0, 1),
        (3, 1),
        (u32::MAX, 1),
        (1, 0),
        (2, 63),
        (1, u32::MAX),
    ] {
        let (answer, _) = guest.ask(kind, count, 1);
        assert_eq!((answer.status, answer.detail), malformed);
    }
    let chunks = guest.grant(PERSISTENT, 2, 1);
    for number in [0, 1, 16, u32::MAX] {
        // Nothing of it is carried out.
        let answer = guest.give_back(&[chunks[0], (number, 2)]);
        assert_eq!((answer.status, answer.detail), malformed);
    }
    let answer = guest.give_back(&vec![chunks[0]; 63]);
    let count = (Status::Malformed, Some(Malformed::Count));
    assert_eq!((answer.status, answer.detail), count);
    assert_eq!(guest.open_window(2), Status::Malformed);
    assert_eq!(place.window_stat(0)["chunks"]["persistent"], 2);
    assert_eq!(guest.give_back(&vec![chunks[0]; 62]).status, Status::Ok);
    assert_eq!(place.window_stat(0)["chunks"]["persistent"], 1);
}

#[test]
fn who_has_not_opened_the_window_gets_nothing() {
    let place = WindowPlace::new();
    let _daemon = place.start(&["a"], &["-c", "64MiB", "--window-size", "32MiB"]);
    let mut guest = Guest::connect(&place.sockets.path("a.sock"));
    let (answer, _) = guest.ask(EPHEMERAL.to_wire(), 1, 1);
    assert_eq!(answer.status, Status::NoWindow);
    assert_eq!(guest.give_back(&[(2, 2)]).status, Status::NoWindow);
    assert_eq!(guest.keep_window(), Status::NoWindow);
    assert_eq!(place.window("a").allocated(), 0);
}

#[test]
fn a_guest_without_a_window_is_served_as_ever() {
    let place = WindowPlace::new();
    let args = ["-c", "64MiB", "--window-size", "a=32MiB"];
    let _daemon = place.start(&["a", "b"], &args);
    let mut guest = Guest::connect(&place.sockets.path("b.sock"));
    assert_eq!(guest.config.capabilities.get() & cap::WINDOW, 0);
    assert_eq!(guest.config.window, [0; 16]);
    assert_eq!(guest.open_window(0), Status::Unsupported);
    assert_eq!(guest.keep_window(), Status::Unsupported);
    assert_eq!(guest.create_pool(0, pool_flags::PERSISTENT), Status::Ok);
    let put = guest.put(DATA, 0, &[(key(1, 1, 1), 0x11)]);
    assert_eq!(put.results(), [PageResult::Stored]);
    assert!(!place.directory().join("b.window").exists());
    assert_eq!(place.window_stat(1), serde_json::Value::Null);
}

/// A request for chunks that is carried out again is answered with the same.
#[test]
fn a_ticket_is_good_for_one_grant() {
    let place = WindowPlace::new();
    let (mut daemon, mut guest, _window) = one_guest(&place, &[]);
    let first = guest.grant(PERSISTENT, 2, 7);
    assert_eq!(guest.grant(PERSISTENT, 2, 7), first);
    kill(daemon.worker(), libc::SIGKILL);
    daemon.wait_for("a new worker has taken over");
    assert_eq!(guest.grant(PERSISTENT, 2, 7), first);
    let second = guest.grant(PERSISTENT, 2, 8);
    assert!(second.iter().all(|chunk| !first.contains(chunk)));
    guest.give_back(&second[..1]);
    assert_eq!(place.window_stat(0)["chunks"]["persistent"], 3);
    // What is missing of the last request is granted when it comes again.
    let third = guest.grant(PERSISTENT, 2, 8);
    assert_eq!(third.len(), 2);
    assert!(third.contains(&second[1]) && !third.contains(&second[0]));
}

#[test]
fn the_next_worker_knows_what_is_granted() {
    let place = WindowPlace::new();
    let (mut daemon, mut guest, window) = one_guest(&place, &[]);
    let mut persistent = guest.grant(PERSISTENT, 4, 1);
    let mut ephemeral = guest.grant(EPHEMERAL, 4, 2);
    for round in 0..10u8 {
        for chunk in persistent.iter().chain(&ephemeral) {
            window.fill(slot(*chunk, 1), round);
        }
        let given = [persistent.remove(0), ephemeral.remove(0)];
        // The worker may die in the middle of it, and the next one does it again.
        guest.give_back(&given[..1]);
        kill(daemon.worker(), libc::SIGKILL);
        guest.give_back(&given[1..]);
        for chunk in persistent.iter().chain(&ephemeral) {
            assert_eq!(window.generation(chunk.0), chunk.1);
            assert_eq!(window.read(slot(*chunk, 1)), [round; PAGE]);
        }
        for (number, generation) in given {
            assert_eq!(window.generation(number), generation + 2);
        }
        let pages = [(
            key(1, round.into(), 1),
            slot(persistent[0], 1),
            persistent[0].1,
        )];
        assert_eq!(guest.put_slots(DATA, 0, &pages), [PageResult::Stored]);
        let ticket = 10 + 2 * u64::from(round);
        persistent.extend(guest.grant(PERSISTENT, 1, ticket));
        ephemeral.extend(guest.grant(EPHEMERAL, 1, ticket + 1));
        assert_eq!((persistent.len(), ephemeral.len()), (4, 4));
        daemon.wait_for("a new worker has taken over");
    }
    let told = place.window_stat(0);
    assert_eq!(told["chunks"]["persistent"], 4);
    assert_eq!(told["chunks"]["ephemeral"], 4);
    // What is lent is known as well.
    wait_until("all is accounted for", || {
        let told = place.stat();
        let chunks = &told["guests"][0]["window"]["chunks"];
        let ready = chunks["ready"].as_u64().unwrap();
        told["lent_bytes"].as_u64() == Some(OVERHEAD + (8 + ready) * CHUNK)
    });
    let got = guest.get(DATA, 0, 0, &[key(1, 3, 1)]);
    assert_eq!(got.page(0), [3; PAGE]);
}

#[test]
fn what_is_in_the_window_stays_while_nobody_serves_it() {
    let place = WindowPlace::new();
    let (mut daemon, mut guest, window) = one_guest(&place, &["--stop-loses-pages"]);
    let chunk = guest.grant(PERSISTENT, 1, 1)[0];
    window.fill(slot(chunk, 3), 0x33);
    drop(guest);
    wait_until("the window is closed", || window.allocated() == 0);
    // The connection ended, and all that was granted with it.
    assert_eq!(window.generation(chunk.0), 0);

    let mut guest = Guest::connect(&place.sockets.path("a.sock"));
    assert_eq!(guest.open_window(0), Status::Ok);
    let chunk = guest.grant(PERSISTENT, 1, 1)[0];
    window.fill(slot(chunk, 3), 0x44);
    kill(daemon.child.id() as i32, libc::SIGKILL);
    daemon.child.wait().unwrap();
    assert_eq!(window.generation(chunk.0), chunk.1);
    assert_eq!(window.read(slot(chunk, 3)), [0x44; PAGE]);
    // Nor does the next daemon touch it: the guest still has it, and nobody to ask.
    drop(daemon);
    let mut daemon = place.start(&["a"], &["-c", "64MiB", "--window-size", "32MiB"]);
    let mut next = Guest::connect(&place.sockets.path("a.sock"));
    assert_eq!(next.open_window(0), Status::Ok);
    assert_ne!(
        place.window("a").header().identity,
        window.header().identity
    );
    assert_eq!(window.generation(chunk.0), chunk.1);
    assert_eq!(window.read(slot(chunk, 3)), [0x44; PAGE]);
    daemon.stop();
    assert!(!place.directory().join("a.window").exists());
}

#[test]
fn a_second_boot_starts_with_nothing() {
    let place = WindowPlace::new();
    let (_daemon, mut guest, window) = one_guest(&place, &[]);
    let chunks = guest.grant(PERSISTENT, 5, 1);
    guest.grant(EPHEMERAL, 3, 2);
    window.fill(slot(chunks[0], 0), 0x55);
    // As QEMU does it: the virtqueues stop, and nothing says that it is a reset.
    guest.stop();
    guest.start_anew();
    assert_eq!(place.window_stat(0)["chunks"]["persistent"], 5);
    assert_eq!(guest.open_window(0), Status::Ok);
    let told = place.window_stat(0);
    assert_eq!(told["chunks"]["persistent"], 0);
    assert_eq!(told["chunks"]["ephemeral"], 0);
    assert_eq!(window.allocated(), OVERHEAD);
    for (number, generation) in &chunks {
        assert_eq!(window.generation(*number), generation + 2);
    }
    // Tickets begin anew as well.
    let again = guest.grant(PERSISTENT, 5, 1);
    assert_eq!(again.len(), 5);
    assert!(again.iter().all(|chunk| !chunks.contains(chunk)));
    assert_eq!(window.read(slot(again[0], 0)), [0; PAGE]);
}

#[test]
fn who_comes_back_finds_what_it_had() {
    let place = WindowPlace::new();
    let (_daemon, mut guest, window) = one_guest(&place, &[]);
    let chunks = guest.grant(PERSISTENT, 2, 1);
    window.fill(slot(chunks[0], 0), 0x55);
    assert_eq!(guest.keep_window(), Status::Ok);
    for _ in 0..3 {
        guest.reset();
        guest.start_anew();
    }
    assert_eq!(guest.open_window(window_flags::RESUME), Status::Ok);
    assert_eq!(window.generation(chunks[0].0), chunks[0].1);
    assert_eq!(window.read(slot(chunks[0], 0)), [0x55; PAGE]);
    assert_eq!(guest.create_pool(0, pool_flags::PERSISTENT), Status::Ok);
    let page = (key(1, 1, 1), slot(chunks[0], 0), chunks[0].1);
    assert_eq!(guest.put_slots(DATA, 0, &[page]), [PageResult::Stored]);
    // One that did not say so loses all, whatever it says afterwards.
    guest.reset();
    guest.start_anew();
    wait_until("the window is closed", || window.allocated() == 0);
    assert_eq!(guest.open_window(window_flags::RESUME), Status::Ok);
    for (number, generation) in &chunks {
        assert_eq!(window.generation(*number), generation + 2);
    }
}

#[test]
fn a_guest_that_takes_what_it_was_not_granted_loses_it() {
    let place = WindowPlace::new();
    let (mut daemon, mut guest, window) = one_guest(&place, &[]);
    let chunk = guest.grant(PERSISTENT, 1, 1)[0];
    window.fill(slot(chunk, 0), 0x66);
    for n in FIRST_CHUNK..16 {
        window.fill(n * 512 + 9, 0x99);
    }
    wait_until("the rest is taken away", || {
        place.window_stat(0)["trimmed"].as_u64() > Some(0)
    });
    let line = daemon.wait_for("nothing is granted");
    assert!(line.contains("guest \"a\""), "{line}");
    wait_until("all of it is taken away", || {
        let ready = place.window_stat(0)["chunks"]["ready"].as_u64().unwrap();
        window.allocated() <= OVERHEAD + (1 + ready) * CHUNK
    });
    assert_eq!(window.read(slot(chunk, 0)), [0x66; PAGE]);
    assert_eq!(window.generation(chunk.0), chunk.1);
}

#[test]
fn a_header_that_the_guest_wrote_is_not_believed() {
    let place = WindowPlace::new();
    let (mut daemon, mut guest, window) = one_guest(&place, &[]);
    let chunks = guest.grant(PERSISTENT, 3, 1);
    window.fill(slot(chunks[0], 0), 0x66);
    window.write(0, &[0xff; 2 * CHUNK as usize]);
    let page = (key(1, 1, 1), slot(chunks[0], 0), chunks[0].1);
    assert_eq!(guest.put_slots(DATA, 0, &[page]), [PageResult::Stored]);
    let wrong = (key(1, 2, 1), slot(chunks[0], 0), u32::MAX);
    assert_eq!(guest.put_slots(DATA, 0, &[wrong]), [PageResult::NoMemory]);
    assert_eq!(guest.give_back(&chunks[1..2]).status, Status::Ok);
    assert_eq!(window.generation(chunks[1].0), chunks[1].1 + 2);
    let more = guest.grant(EPHEMERAL, 62, 2);
    assert_eq!(more.len(), 12);
    assert!(more.iter().all(|chunk| chunk.1 % 2 == 0 && chunk.1 < 8));
    // Nor does the next worker believe it.
    window.write(0, &[0xff; 2 * CHUNK as usize]);
    kill(daemon.worker(), libc::SIGKILL);
    daemon.wait_for("a new worker has taken over");
    assert_eq!(guest.put_slots(DATA, 0, &[page]), [PageResult::Stored]);
    assert_eq!(window.generation(chunks[0].0), chunks[0].1);
    assert_eq!(guest.open_window(window_flags::RESUME), Status::Ok);
    assert_eq!(window.header().identity, guest.config.window);
}

#[test]
fn a_file_that_becomes_shorter_costs_the_window_and_nothing_else() {
    let place = WindowPlace::new();
    let args = ["-c", "64MiB", "--window-size", "32MiB"];
    let mut daemon = place.start(&["a", "b"], &args);
    let mut guest = Guest::connect(&place.sockets.path("a.sock"));
    let mut other = Guest::connect(&place.sockets.path("b.sock"));
    for guest in [&mut guest, &mut other] {
        assert_eq!(guest.create_pool(0, pool_flags::PERSISTENT), Status::Ok);
        assert_eq!(guest.open_window(0), Status::Ok);
    }
    let chunk = guest.grant(PERSISTENT, 1, 1)[0];
    let others = other.grant(PERSISTENT, 1, 1)[0];
    place.window("a").file.set_len(CHUNK).unwrap();
    let worker = daemon.worker();
    let page = (key(1, 1, 1), slot(chunk, 0), chunk.1);
    assert_eq!(guest.put_slots(DATA, 0, &[page]), [PageResult::NoMemory]);
    assert_eq!(guest.grant(PERSISTENT, 1, 2), []);
    // Without it the guest is served as before.
    let put = guest.put(DATA, 0, &[(key(1, 1, 1), 0x11)]);
    assert_eq!(put.results(), [PageResult::Stored]);
    let window = place.window("b");
    window.fill(slot(others, 0), 0x22);
    let page = (key(1, 1, 1), slot(others, 0), others.1);
    assert_eq!(other.put_slots(DATA, 0, &[page]), [PageResult::Stored]);
    assert_eq!(daemon.worker(), worker);
    // And by the next worker, which says why there is none.
    kill(worker, libc::SIGKILL);
    let line = daemon.wait_for("goes on without a window");
    assert!(
        line.contains("guest \"a\"") && line.contains("2097152 bytes"),
        "{line}"
    );
    let got = guest.get(DATA, 0, 0, &[key(1, 1, 1)]);
    assert_eq!(got.page(0), [0x11; PAGE]);
    assert_eq!(guest.open_window(0), Status::Unsupported);
    assert_eq!(window.generation(others.0), others.1);
}

/// Chunks are taken back while somebody reads: what it reads is right, or it knows that it is not.
#[test]
fn a_reader_sees_by_the_generation_what_it_lost() {
    let place = WindowPlace::new();
    // Of few chunks, so that it is often one of which something is just read.
    let args = [
        "-c",
        "64MiB",
        "--window-size",
        "8MiB",
        "--fault-take-chunks",
        "2",
    ];
    let _daemon = place.start(&["a"], &args);
    let mut guest = Guest::connect(&place.sockets.path("a.sock"));
    assert_eq!(guest.open_window(0), Status::Ok);
    let window = place.window("a");
    let (mut hits, mut lost, mut ticket) = (0u64, 0u64, 0);
    let mut held: Vec<(u32, u32)> = Vec::new();
    wait_until("enough was read and lost", || {
        ticket += 1;
        for chunk in guest.grant(EPHEMERAL, 2, ticket) {
            for n in 0..512 {
                window.fill(slot(chunk, n), (n as u8) | 1);
            }
            held.push(chunk);
        }
        for _ in 0..20 {
            held.retain(|chunk| {
                for n in 0..512 {
                    let page = window.read(slot(*chunk, n));
                    if window.generation(chunk.0) != chunk.1 {
                        lost += 1;
                        return false;
                    }
                    assert_eq!(page, [(n as u8) | 1; PAGE]);
                    hits += 1;
                }
                true
            });
        }
        hits > 20_000 && lost > 200
    });
}
