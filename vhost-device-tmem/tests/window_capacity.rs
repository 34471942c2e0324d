// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Windows share one capacity: with each other, and with the pages of the store.

mod support;

use support::{key, wait_until, window::WindowPlace, Guest};
use virtio_tmem_abi::{pool_flags, ChunkKind, EventKind, Opcode, PageResult, Status};

const DATA: usize = 2;

const EPHEMERAL: ChunkKind = ChunkKind::Ephemeral;
const PERSISTENT: ChunkKind = ChunkKind::Persistent;

#[test]
fn persistent_chunks_are_had_by_taking_ephemeral_ones_of_others() {
    let place = WindowPlace::new();
    let args = ["-c", "64MiB", "--window-size", "64MiB"];
    let _daemon = place.start(&["a", "b"], &args);
    let mut greedy = Guest::connect(&place.sockets.path("a.sock"));
    let mut other = Guest::connect(&place.sockets.path("b.sock"));
    assert_eq!(greedy.open_window(0), Status::Ok);
    assert_eq!(other.open_window(0), Status::Ok);
    let taken = greedy.grant(EPHEMERAL, 62, 1);
    assert!(taken.len() > 16, "{}", taken.len());
    let window = place.window("a");
    let mut granted = Vec::new();
    let mut ticket = 0;
    wait_until("the other gets what it was promised", || {
        ticket += 1;
        granted.extend(other.grant(PERSISTENT, 4, ticket));
        granted.len() >= 7
    });
    let gone = taken
        .iter()
        .filter(|c| window.generation(c.0) != c.1)
        .count();
    assert!(gone > 0);
    assert!(place.window_stat(0)["taken"].as_u64() >= Some(gone as u64));
    let stat = place.stat();
    assert!(
        stat["lent_bytes"].as_u64() <= stat["capacity_bytes"].as_u64(),
        "{stat}"
    );
}

#[test]
fn persistent_chunks_are_asked_for_where_another_was_promised_them() {
    let place = WindowPlace::new();
    // So that what each is promised is not a number of chunks.
    let args = ["-c", "65MiB", "--window-size", "64MiB"];
    let _daemon = place.start(&["a", "b"], &args);
    let mut rich = Guest::connect(&place.sockets.path("a.sock"));
    let mut poor = Guest::connect(&place.sockets.path("b.sock"));
    assert_eq!(rich.open_window(0), Status::Ok);
    // It takes all that is not promised to the other.
    let had = rich.grant(PERSISTENT, 62, 1);
    assert!(had.len() > 16, "{}", had.len());
    assert_eq!(rich.create_pool(0, pool_flags::PERSISTENT), Status::Ok);
    let mut stored = true;
    for n in 0.. {
        if !stored {
            break;
        }
        let put = rich.put(DATA, 0, &[(key(1, n, 1), n as u8)]);
        stored = put.results() == [PageResult::Stored];
    }
    assert_eq!(poor.create_pool(0, pool_flags::PERSISTENT), Status::Ok);
    assert_eq!(poor.open_window(0), Status::Ok);
    let mut ticket = 0;
    let mut got = 0;
    // It may be refused one before what is ready for the other has gone back.
    wait_until("it has what there is", || {
        ticket += 1;
        let granted = poor.grant(PERSISTENT, 1, ticket).len();
        got += granted;
        granted == 0 && got > 3
    });
    // It has less than it was promised, and goes on asking.
    let event = loop {
        rich.offer_event();
        ticket += 1;
        while !poor.grant(PERSISTENT, 1, ticket).is_empty() {
            ticket += 1;
        }
        let event = rich.wait_event();
        if event.kind.get() == EventKind::Recall.to_wire() {
            break event;
        }
    };
    assert_eq!(event.pages.get() % 512, 0);
    assert!(event.pages.get() > 0);
    rich.give_back(&had[..1]);
    wait_until("it gets one", || {
        ticket += 1;
        !poor.grant(PERSISTENT, 1, ticket).is_empty()
    });
}

/// The store's pages and the chunks of windows are of one capacity.
#[test]
fn the_capacity_is_for_store_and_windows_together() {
    let place = WindowPlace::new();
    // Pages of one byte take next to nothing otherwise.
    let args = [
        "-c",
        "32MiB",
        "--window-size",
        "32MiB",
        "--compression",
        "none",
    ];
    let _daemon = place.start(&["a"], &args);
    let mut guest = Guest::connect(&place.sockets.path("a.sock"));
    assert_eq!(guest.create_pool(0, pool_flags::PERSISTENT), Status::Ok);
    assert_eq!(guest.open_window(0), Status::Ok);
    let before = guest.put(DATA, 0, &[(key(1, 0, 1), 1)]);
    let credits = |header: virtio_tmem_abi::ResponseHeader| header.persistent_credits.get();
    let chunks = guest.grant(PERSISTENT, 6, 1);
    assert_eq!(chunks.len(), 6);
    let after = guest.put(DATA, 0, &[(key(1, 0, 1), 1)]);
    let less = credits(before.header) - credits(after.header);
    // Some more are ready for the next who asks.
    assert!((6 * 512..=12 * 512 + 64).contains(&less), "{less}");
    // What is full is full for both.
    let mut stored = 0;
    for n in (0..8192).step_by(64) {
        let pages: Vec<_> = (n..n + 64).map(|n| (key(2, n, 1), n as u8)).collect();
        let put = guest.put(DATA, 0, &pages);
        let results = put.results().into_iter();
        stored += results
            .filter(|result| *result == PageResult::Stored)
            .count() as u64;
    }
    assert!(stored < 8192 - 8 * 512);
    let mut ticket = 1;
    wait_until("nothing is left", || {
        ticket += 1;
        guest.grant(PERSISTENT, 1, ticket).is_empty()
    });
    guest.give_back(&chunks);
    assert_eq!(guest.control(Opcode::PoolDestroy, 0), Status::Ok);
    wait_until("there is room again", || {
        ticket += 1;
        !guest.grant(PERSISTENT, 4, ticket).is_empty()
    });
}
