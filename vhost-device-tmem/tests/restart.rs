// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Workers that die, hang and are replaced, under guests that notice nothing.

mod support;

use std::{
    collections::HashMap,
    path::Path,
    sync::{
        atomic::{AtomicBool, AtomicU64, Ordering},
        Arc,
    },
    thread,
};

use proptest::{
    prelude::*,
    strategy::ValueTree,
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};
use support::{key, stat, wait_until, Daemon, Guest, Place};
use virtio_tmem_abi::{pool_flags, PageResult, Status};

const DATA: usize = 2;

fn start(place: &Place, guests: &[&str], more: &[&str]) -> Daemon {
    let control = place.arg("control.sock");
    let sockets: Vec<_> = guests
        .iter()
        .map(|name| place.arg(&format!("{name}.sock")))
        .collect();
    let mut args = vec!["--capacity", "64MiB", "--control-path", &control];
    args.extend(sockets.iter().flat_map(|socket| ["--socket-path", socket]));
    args.extend(more);
    let mut daemon = Daemon::start(&args);
    daemon.wait_for("waiting for operators");
    daemon
}

/// A guest that puts, gets and flushes, and knows what must come of it.
struct Driver {
    guest: Guest,
    /// What is stored, by index: version and contents.
    stored: HashMap<u64, (u64, u8)>,
    version: u64,
    runner: TestRunner,
}

const INDICES: u64 = 400;

impl Driver {
    fn connect(socket: &Path, seed: u8) -> Self {
        let mut guest = Guest::connect(socket);
        assert_eq!(guest.create_pool(0, pool_flags::PERSISTENT), Status::Ok);
        let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[seed; 32]);
        Self {
            guest,
            stored: HashMap::new(),
            version: 0,
            runner: TestRunner::new_with_rng(Config::default(), rng),
        }
    }

    fn pick(&mut self, below: u64) -> u64 {
        (0..below).new_tree(&mut self.runner).unwrap().current()
    }

    /// Makes one request on one of the data virtqueues, and checks what comes back.
    fn step(&mut self) {
        let queue = DATA + self.pick(2) as usize;
        let count = 1 + self.pick(8);
        let first = self.pick(INDICES - count);
        match self.pick(5) {
            0 | 1 => {
                self.version += 1;
                let fill = self.version as u8;
                let pages: Vec<_> = (first..first + count)
                    .map(|i| (key(1, i, self.version), fill))
                    .collect();
                let put = self.guest.put(queue, 0, &pages);
                assert_eq!(put.status(), Status::Ok);
                for (i, result) in (first..).zip(put.results()) {
                    assert_eq!(result, PageResult::Stored);
                    self.stored.insert(i, (self.version, fill));
                }
            }
            2 | 3 => {
                let known: Vec<_> = (first..first + count)
                    .filter_map(|i| self.stored.get(&i).map(|(v, fill)| (i, *v, *fill)))
                    .collect();
                self.check(queue, &known);
            }
            _ => {
                let keys: Vec<_> = (first..first + count)
                    .filter_map(|i| self.stored.remove(&i).map(|(v, _)| key(1, i, v)))
                    .collect();
                if !keys.is_empty() {
                    let flushed = self.guest.flush(queue, 0, &keys);
                    assert_eq!(flushed.status(), Status::Ok);
                    // One that was flushed, and is flushed again after a restart, is absent.
                    for key in &keys {
                        let got = self.guest.get(queue, 0, 0, &[*key]);
                        assert_eq!(got.results(), [PageResult::Miss]);
                    }
                }
            }
        }
    }

    fn check(&mut self, queue: usize, known: &[(u64, u64, u8)]) {
        if known.is_empty() {
            return;
        }
        let keys: Vec<_> = known.iter().map(|(i, v, _)| key(1, *i, *v)).collect();
        let got = self.guest.get(queue, 0, 0, &keys);
        assert_eq!(got.results(), vec![PageResult::Hit; keys.len()]);
        for (n, (_, _, fill)) in known.iter().enumerate() {
            assert_eq!(got.page(n), [*fill; 4096]);
        }
    }

    /// Checks every page.
    fn check_all(&mut self) {
        let mut known: Vec<_> = self.stored.iter().map(|(i, (v, f))| (*i, *v, *f)).collect();
        known.sort_unstable();
        for known in known.chunks(64) {
            self.check(DATA, known);
        }
    }
}

/// Runs guests until `disturb` returns, and checks all that they have then. Returns them, connected.
fn under_load(place: &Place, guests: &[&str], disturb: impl FnOnce(&AtomicU64)) -> Vec<Driver> {
    let (stop, steps) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU64::new(0)),
    );
    let threads: Vec<_> = guests
        .iter()
        .enumerate()
        .map(|(n, name)| {
            let mut driver = Driver::connect(&place.path(&format!("{name}.sock")), n as u8);
            let (stop, steps) = (Arc::clone(&stop), Arc::clone(&steps));
            thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    driver.step();
                    steps.fetch_add(1, Ordering::Relaxed);
                }
                driver.check_all();
                driver
            })
        })
        .collect();
    disturb(&steps);
    stop.store(true, Ordering::Relaxed);
    let ended = threads.into_iter().map(|thread| thread.join().unwrap());
    ended.collect()
}

/// Waits until guests have got on by so many requests.
fn get_on(steps: &AtomicU64, by: u64) {
    let before = steps.load(Ordering::Relaxed);
    wait_until("guests get on", || {
        steps.load(Ordering::Relaxed) >= before + by
    });
}

#[test]
fn a_worker_may_be_killed_at_any_time() {
    let place = Place::new();
    let mut daemon = start(&place, &["a", "b", "c"], &[]);
    let drivers = under_load(&place, &["a", "b", "c"], |steps| {
        for n in 0..40u64 {
            let worker = daemon.worker();
            support::kill(worker, libc::SIGKILL);
            // Some at once after the one before has begun, some in the midst of things.
            daemon.wait_for("a new worker has taken over");
            get_on(steps, n % 4 * 50);
        }
    });
    let stat = stat(&place.path("control.sock"));
    for guest in stat["guests"].as_array().unwrap() {
        assert_eq!(
            (&guest["connected"], &guest["malformed"]),
            (&true.into(), &0.into()),
            "{stat}"
        );
    }
    drop(drivers);
    daemon.stop();
    let log = daemon.whole_log();
    assert_eq!(log.matches("was killed (SIGKILL)").count(), 40, "{log}");
    for guest in ["a", "b", "c"] {
        assert_eq!(
            log.matches(&format!("guest \"{guest}\" connected")).count(),
            1,
            "{log}"
        );
    }
}

#[test]
fn a_worker_that_hangs_is_replaced() {
    let place = Place::new();
    let mut daemon = start(&place, &["a"], &[]);
    under_load(&place, &["a"], |steps| {
        let worker = daemon.worker();
        support::kill(worker, libc::SIGSTOP);
        daemon.wait_for("it is replaced");
        daemon.wait_for("a new worker has taken over");
        get_on(steps, 100);
        assert_ne!(daemon.worker(), worker);
    });
}

#[test]
fn a_guest_that_kills_workers_is_served_no_more_and_others_are() {
    for (fault, how) in [
        ("--fault-crash-guest", "died of SIGABRT"),
        ("--fault-hang-guest", "hangs at guest \"evil\""),
    ] {
        let place = Place::new();
        let mut daemon = start(&place, &["evil", "good"], &[fault, "evil"]);
        under_load(&place, &["good"], |steps| {
            let evil = place.path("evil.sock");
            let evil = thread::spawn(move || {
                // Its virtqueues are what kills.
                let mem = tmem_driver::memory(support::MEMORY).unwrap();
                let known = tmem_driver::FEATURES;
                tmem_driver::TmemDevice::connect(&evil, &mem, known, 64, 0)
            });
            for _ in 0..3 {
                daemon.wait_for(how);
            }
            daemon.wait_for("guest \"evil\" has brought the worker down again and again");
            daemon.wait_for("a new worker has taken over");
            get_on(steps, 100);
            let device = evil.join().unwrap().unwrap();
            // Its connection stays open.
            let stat = stat(&place.path("control.sock"));
            assert_eq!(stat["guests"][0]["connected"], true, "{stat}");
            drop(device);
        });
    }
}

#[test]
fn the_program_is_replaced_under_load() {
    let place = Place::new();
    let program = place.path("daemon");
    let install = |from: &str| {
        let new = place.path("new");
        std::fs::copy(from, &new).unwrap();
        std::fs::rename(&new, &program).unwrap();
    };
    install(env!("CARGO_BIN_EXE_vhost-device-tmem"));
    let (a, control) = (place.arg("a.sock"), place.arg("control.sock"));
    let args = ["-s", &a, "-c", "64MiB", "--control-path", &control];
    let mut daemon = Daemon::start_program(&program, &args);
    daemon.wait_for("waiting for operators");
    under_load(&place, &["a"], |steps| {
        let mut worker = daemon.worker();
        for _ in 0..5 {
            install(env!("CARGO_BIN_EXE_vhost-device-tmem"));
            daemon.signal(libc::SIGUSR2);
            daemon.wait_for("upgraded");
            assert_ne!(daemon.worker(), worker);
            worker = daemon.worker();
            get_on(steps, 50);
        }
        // A program that is another one, and none at all.
        install("/bin/true");
        daemon.signal(libc::SIGUSR2);
        let line = daemon.wait_for("no upgrade");
        assert!(line.contains("not vhost-device-tmem"), "{line}");
        std::fs::remove_file(&program).unwrap();
        daemon.signal(libc::SIGUSR2);
        let line = daemon.wait_for("no upgrade");
        assert!(line.contains("the old worker goes on"), "{line}");
        get_on(steps, 50);
        assert_eq!(daemon.worker(), worker);
        // The old program is still what a new worker is.
        support::kill(worker, libc::SIGKILL);
        daemon.wait_for("a new worker has taken over");
        get_on(steps, 50);
    });
}

#[test]
fn stopping_waits_for_no_worker() {
    let place = Place::new();
    let mut daemon = start(&place, &["a"], &["--stop-loses-pages"]);
    let mut driver = Driver::connect(&place.path("a.sock"), 0);
    driver.step();
    support::kill(daemon.worker(), libc::SIGSTOP);
    daemon.signal(libc::SIGTERM);
    // It ends by itself, long before a worker is given up because it hangs.
    assert!(daemon.child.wait().unwrap().success());
    let log = daemon.whole_log();
    assert!(log.contains("does not stop, and is killed"), "{log}");
    assert!(!place.path("a.sock").exists());
}

/// A connection may end, and another begin, while no worker is there to be told.
#[test]
fn a_new_front_end_finds_nothing_of_the_old_whoever_died_meanwhile() {
    let place = Place::new();
    let mut daemon = start(&place, &["a"], &[]);
    let mut epochs = std::collections::HashSet::new();
    for round in 0..20 {
        let mut guest = Guest::connect(&place.path("a.sock"));
        assert!(epochs.insert(guest.epoch()));
        // It knows nothing of pools that it did not create.
        let got = guest.get(DATA, 0, 0, &[key(1, 1, 1)]);
        assert_eq!(got.status(), Status::NoPool, "round {round}");
        assert_eq!(guest.create_pool(0, pool_flags::PERSISTENT), Status::Ok);
        let got = guest.get(DATA, 0, 0, &[key(1, 1, 1)]);
        assert_eq!(got.results(), [PageResult::Miss], "round {round}");
        let put = guest.put(DATA, 0, &[(key(1, 1, 1), 7)]);
        assert_eq!(put.results(), [PageResult::Stored]);
        support::kill(daemon.worker(), libc::SIGKILL);
        if round % 2 == 0 {
            daemon.wait_for("a new worker has taken over");
        }
        drop(guest);
    }
}
