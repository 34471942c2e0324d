// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A daemon with a spill file, and guests whose pages do not fit into its memory.

mod support;

use std::{fs, io::Read};

use support::{key, stat, wait_until, Daemon, Guest, Place, PAGE};
use virtio_tmem_abi::{pool_flags, Key, Opcode, PageResult, Status};
use zerocopy::IntoBytes;

const DATA: usize = 2;

/// Pages that no compression makes smaller, by their numbers.
fn contents(number: u64) -> Vec<u8> {
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let words = std::iter::from_fn(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        Some(state)
    });
    words.take(PAGE / 8).flat_map(u64::to_le_bytes).collect()
}

/// Puts pages of these numbers, and returns what became of them.
fn put(guest: &mut Guest, pool: u32, numbers: &[u64]) -> Vec<PageResult> {
    let header = guest.header(Opcode::Put, pool, numbers.len());
    let mut bytes = header.as_bytes().to_vec();
    numbers
        .iter()
        .for_each(|n| bytes.extend(key(1, *n, 1).as_bytes()));
    numbers.iter().for_each(|n| bytes.extend(contents(*n)));
    let put = guest.request(DATA, &bytes, 32 + numbers.len());
    assert_eq!(put.status(), Status::Ok);
    put.results()
}

/// Gets pages of these numbers, and returns how many of them were there.
fn get(guest: &mut Guest, pool: u32, numbers: &[u64]) -> usize {
    let keys: Vec<Key> = numbers.iter().map(|n| key(1, *n, 1)).collect();
    let got = guest.get(DATA, pool, 0, &keys);
    assert_eq!(got.status(), Status::Ok);
    let results = got.results();
    for (n, result) in results.iter().enumerate() {
        match result {
            PageResult::Hit => assert!(got.page(n) == contents(numbers[n]), "a foreign page"),
            result => assert_eq!(*result, PageResult::Miss),
        }
    }
    let hits = results.iter().filter(|result| **result == PageResult::Hit);
    hits.count()
}

/// Starts a daemon, which may refuse to.
fn begin(place: &Place, more: &[&str]) -> Daemon {
    let (control, socket) = (place.arg("control.sock"), place.arg("a.sock"));
    let config = place.arg("config.toml");
    let args = [
        "--config",
        &config,
        "--socket-path",
        &socket,
        "--control-path",
        &control,
    ];
    Daemon::start(&[&args[..], more].concat())
}

fn start(place: &Place, more: &[&str]) -> Daemon {
    let mut daemon = begin(place, more);
    daemon.wait_for("waiting for operators");
    daemon
}

/// Where the disk has direct input and output.
fn disk() -> tempfile::TempDir {
    tempfile::tempdir_in("/var/tmp").unwrap()
}

fn configure(place: &Place, disk: &tempfile::TempDir, tier: &str) {
    let file = disk.path().join("spill");
    let text = format!(
        "capacity = \"8MiB\"\ntier-file = {file:?}\ntier-size = \"64MiB\"\ntier = \"{tier}\"\n"
    );
    fs::write(place.path("config.toml"), text).unwrap();
}

/// Pages that are put; some three times of what fits.
const PAGES: u64 = 6000;

/// Puts persistent pages as fast as they are taken.
fn fill(guest: &mut Guest) {
    assert_eq!(guest.create_pool(0, pool_flags::PERSISTENT), Status::Ok);
    for first in (0..PAGES).step_by(8) {
        let numbers: Vec<_> = (first..first + 8).collect();
        let mut left = numbers;
        wait_until("there is room again", || {
            let results = put(guest, 0, &left);
            let refused = left.iter().zip(results);
            let refused = refused.filter(|(_, result)| *result != PageResult::Stored);
            left = refused.map(|(n, _)| *n).collect();
            left.is_empty()
        });
    }
}

fn get_all(guest: &mut Guest) {
    for first in (0..PAGES).step_by(64) {
        let numbers: Vec<_> = (first..PAGES.min(first + 64)).collect();
        assert_eq!(get(guest, 0, &numbers), numbers.len());
    }
}

#[test]
fn persistent_pages_outlive_workers_in_the_spill_file() {
    let (place, disk) = (Place::new(), disk());
    configure(&place, &disk, "all");
    let mut daemon = start(&place, &[]);
    let mut guest = Guest::connect(&place.path("a.sock"));
    fill(&mut guest);
    let below = || {
        let stat = stat(&place.path("control.sock"));
        assert_eq!(stat["tier"]["engine"], "spill");
        stat["below_pages"].as_u64().unwrap()
    };
    assert!(below() > PAGES / 2, "{}", below());
    get_all(&mut guest);
    for _ in 0..3 {
        support::kill(daemon.worker(), libc::SIGKILL);
        daemon.wait_for("a new worker has taken over");
        get_all(&mut guest);
    }
    assert!(below() > PAGES / 2);
    // Nobody reads them there.
    let mut spilled = Vec::new();
    let mut file = fs::File::open(disk.path().join("spill")).unwrap();
    file.read_to_end(&mut spilled).unwrap();
    let some = contents(17)[..32].to_vec();
    assert!(!spilled.windows(32).any(|bytes| bytes == some));
    let stat = stat(&place.path("control.sock"));
    let pool = &stat["guests"][0]["pools"][0];
    assert_eq!(pool["gets_lost_below"], 0, "{stat}");
    assert!(pool["gets_below"].as_u64() > Some(0), "{stat}");
}

#[test]
fn persistent_pages_stay_where_nobody_allowed_more() {
    let (place, disk) = (Place::new(), disk());
    configure(&place, &disk, "ephemeral");
    let _daemon = start(&place, &[]);
    let mut guest = Guest::connect(&place.path("a.sock"));
    assert_eq!(guest.create_pool(0, pool_flags::PERSISTENT), Status::Ok);
    let numbers: Vec<_> = (0..PAGES).collect();
    let refused = numbers.chunks(8).any(|numbers| {
        let results = put(&mut guest, 0, numbers);
        results.contains(&PageResult::OverQuota)
    });
    assert!(refused);
    let stat = stat(&place.path("control.sock"));
    assert_eq!(stat["below_pages"], 0, "{stat}");
}

#[test]
fn a_damaged_spill_file_gives_no_wrong_page() {
    let (place, disk) = (Place::new(), disk());
    configure(&place, &disk, "all");
    let _daemon = start(&place, &[]);
    let mut guest = Guest::connect(&place.path("a.sock"));
    fill(&mut guest);
    // Somebody writes over all of it.
    let path = disk.path().join("spill");
    let mut spilled = fs::read(&path).unwrap();
    spilled[4096..]
        .iter_mut()
        .step_by(512)
        .for_each(|byte| *byte ^= 4);
    use std::os::unix::fs::FileExt;
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(&spilled, 0).unwrap();
    file.sync_all().unwrap();
    let mut damaged = 0;
    for n in 0..PAGES {
        let got = guest.get(DATA, 0, 0, &[key(1, n, 1)]);
        match got.results()[..] {
            [PageResult::Hit] => assert!(got.page(0) == contents(n), "a foreign page"),
            [PageResult::Damaged] => damaged += 1,
            ref other => panic!("{other:?}"),
        }
    }
    assert!(damaged > PAGES / 2, "{damaged}");
}

#[test]
fn a_spill_file_of_another_daemon_is_refused() {
    let (place, other, disk) = (Place::new(), Place::new(), disk());
    configure(&place, &disk, "all");
    configure(&other, &disk, "all");
    let refused = |place: &Place, what: &str| {
        let mut daemon = begin(place, &[]);
        assert!(!daemon.child.wait().unwrap().success());
        let log = daemon.whole_log();
        assert!(log.contains(what), "{log}");
    };
    let mut daemon = start(&place, &[]);
    refused(&other, "in use by another process");
    daemon.stop();
    refused(&other, "is that of another daemon");
    // It is still its own.
    start(&place, &[]).stop();
    fs::write(disk.path().join("spill"), b"letters").unwrap();
    refused(&place, "something is in it already");
}

#[test]
fn options_that_make_no_sense_are_told() {
    let place = Place::new();
    for (text, what) in [
        ("tier-file = \"/x\"", "takes --tier-size"),
        ("tier-size = \"1GiB\"", "is of no use without --tier-file"),
        (
            "tier-file = \"/x\"\ntier-size = \"1MiB\"",
            "no size of a spill file",
        ),
        ("tier-file = \"/x\"\ntier-size = \"much\"", "is no size"),
        (
            "tier-file = \"/x\"\ntier-size = \"1GiB\"\ncompression = \"none\"",
            "for pages that are compressed",
        ),
        ("tier = \"some\"", "tier"),
    ] {
        let config = place.path("config.toml");
        fs::write(&config, format!("capacity = \"8MiB\"\n{text}\n")).unwrap();
        let socket = place.arg("a.sock");
        let args = [
            "--config",
            config.to_str().unwrap(),
            "--socket-path",
            &socket,
        ];
        let mut daemon = Daemon::start(&[&args[..], &["--check-config"]].concat());
        assert!(!daemon.child.wait().unwrap().success(), "{text}");
        let log = daemon.whole_log();
        assert!(log.contains(what), "{text}: {log}");
    }
}
