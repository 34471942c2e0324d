// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The daemon's sockets, its operators, and guests that come, go and misbehave.

mod support;

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    os::{
        fd::AsRawFd,
        unix::{
            net::{UnixListener, UnixStream},
            process::CommandExt,
        },
    },
    path::Path,
    process::Output,
};

use support::{key, stat, wait_until, Daemon, Guest, Place};
use virtio_tmem_abi::{pool_flags, PageResult, Status};

const DATA: usize = 2;

/// As in `linux/capability.h`.
const CAP_IPC_LOCK: libc::c_ulong = 14;

fn run(args: &[&str]) -> (bool, String) {
    let Output { status, stderr, .. } = Daemon::command(args).output().unwrap();
    (status.success(), String::from_utf8(stderr).unwrap())
}

fn start(place: &Place, more: &[&str]) -> Daemon {
    let (guest, control) = (place.arg("guest.sock"), place.arg("control.sock"));
    let args = ["--socket-path", &guest, "--control-path", &control];
    let mut daemon = Daemon::start(&[&args, more].concat());
    daemon.wait_for("waiting for operators");
    daemon
}

#[test]
fn what_cannot_work_is_said_at_once() {
    let place = Place::new();
    fs::write(place.path("file"), "precious").unwrap();
    let _other = UnixListener::bind(place.path("other.sock")).unwrap();
    // A daemon that has the path, and does not listen yet.
    let lock = fs::File::create(place.path("locked.sock.lock")).unwrap();
    // SAFETY: The descriptor is open.
    assert_eq!(unsafe { libc::flock(lock.as_raw_fd(), libc::LOCK_EX) }, 0);
    let locked = place.arg("locked.sock");
    let (good, missing) = (place.arg("good.sock"), place.arg("no/such.sock"));
    let (file, other) = (place.arg("file"), place.arg("other.sock"));
    let cases: [(&[&str], &[&str]); 8] = [
        (
            &["-s", &locked, "-c", "4MiB"],
            &[&locked, "another daemon is listening"],
        ),
        (
            &["-s", &good, "-c", "0"],
            &["--capacity \"0\"", "give at least 1MiB"],
        ),
        (
            &["-s", &good, "-c", "many"],
            &["\"many\" is no size", "512MiB"],
        ),
        (
            &["-s", &good, "-c", "1000TiB"],
            &["this host's memory", "give less"],
        ),
        (
            &["-s", &missing, "-c", "4MiB"],
            &[&missing, "does not exist; create it"],
        ),
        (
            &["-s", &file, "-c", "4MiB"],
            &[&file, "no socket", "choose another path"],
        ),
        (
            &["-s", &other, "-c", "4MiB"],
            &[&other, "another daemon is listening"],
        ),
        (
            &["-s", &good, "-c", "4MiB", "--control-path", &missing],
            &[&missing, "does not exist; create it"],
        ),
    ];
    for (args, words) in cases {
        let (success, message) = run(args);
        assert!(!success, "{args:?}");
        let last = message.lines().last().unwrap();
        for word in words {
            assert!(last.contains(word), "{args:?}: {message}");
        }
    }
    assert_eq!(fs::read_to_string(place.path("file")).unwrap(), "precious");
    assert!(
        !place.path("good.sock").exists(),
        "a failed start left its socket"
    );
    // A socket whose owner died without a lock file is taken over.
    drop(_other);
    let mut daemon = Daemon::start(&["-s", &other, "-c", "4MiB"]);
    daemon.wait_for("taking over the stale socket");
}

#[test]
fn guests_do_not_see_each_other() {
    let place = Place::new();
    let (a, b) = (place.arg("a.sock"), place.arg("b.sock"));
    let mut daemon = Daemon::start(&["-s", &a, "-s", &format!("second={b}"), "-c", "8MiB"]);
    daemon.wait_for("\"second\"");
    let mut first = Guest::connect(Path::new(&a));
    let mut second = Guest::connect(Path::new(&b));
    assert_ne!(first.epoch(), second.epoch());
    for guest in [&mut first, &mut second] {
        assert_eq!(guest.create_pool(3, pool_flags::PERSISTENT), Status::Ok);
    }
    let put = first.put(DATA, 3, &[(key(1, 1, 1), 0xaa)]);
    assert_eq!(put.results(), [PageResult::Stored]);
    let get = second.get(DATA, 3, 0, &[key(1, 1, 1)]);
    assert_eq!(get.results(), [PageResult::Miss]);
    let put = second.put(DATA, 3, &[(key(1, 1, 1), 0xbb)]);
    assert_eq!(put.results(), [PageResult::Stored]);
    drop(second);
    daemon.wait_for("guest \"second\" disconnected: 1 persistent");
    let get = first.get(DATA, 3, 0, &[key(1, 1, 1)]);
    assert_eq!(get.page(0), [0xaa; 4096]);
}

#[test]
fn connections_leave_no_descriptors_threads_or_pages_behind() {
    let place = Place::new();
    let mut daemon = start(&place, &["-c", "8MiB"]);
    let (pid, worker) = (daemon.child.id(), daemon.worker());
    let count = |pid, what| fs::read_dir(format!("/proc/{pid}/{what}")).unwrap().count();
    let all = || {
        let of = |pid| (count(pid, "fd"), count(pid, "task"));
        (of(pid), of(worker as u32))
    };
    // Who answers has all that it serves operators with.
    let control = place.path("control.sock");
    stat(&control);
    let after = all();
    for _ in 0..6 {
        let mut guest = Guest::connect(&place.path("guest.sock"));
        guest.create_pool(0, pool_flags::PERSISTENT);
        let put = guest.put(DATA, 0, &[(key(1, 1, 1), 1)]);
        assert_eq!(put.results(), [PageResult::Stored]);
        // A thread for the connection, and none for what the guest asks for.
        let ((files, threads), (worker_files, worker_threads)) = all();
        assert!(files > after.0 .0 && worker_files > after.1 .0);
        assert_eq!((threads, worker_threads), (after.0 .1 + 1, after.1 .1));
        drop(guest);
        daemon.wait_for("disconnected");
        // What belongs to the start may have been there when this was looked at first.
        wait_until("everything is closed", || {
            let ((files, threads), (worker_files, worker_threads)) = all();
            files <= after.0 .0
                && threads <= after.0 .1
                && worker_files <= after.1 .0
                && worker_threads <= after.1 .1
        });
    }
    wait_until("the pages are gone", || stat(&control)["used_pages"] == 0);
}

#[test]
fn a_guest_that_breaks_its_rings_harms_itself_only() {
    let place = Place::new();
    let mut daemon = start(&place, &["-c", "8MiB"]);
    let mut guest = Guest::connect(&place.path("guest.sock"));
    guest.create_pool(0, 0);
    let control = place.path("control.sock");
    // Far more available buffers than descriptors, again and again.
    for n in 0..50u16 {
        guest.break_ring(DATA, 0x8000 + n);
        guest.break_ring(DATA + 1, 0x4000);
        guest.break_ring(1, 0x8000 + n);
    }
    wait_until("the errors are counted", || {
        stat(&control)["guests"][0]["ring_errors"].as_u64() >= Some(2)
    });
    // Malformed requests are answered, counted, and mostly not logged.
    for _ in 0..200 {
        let answer = guest.request(0, &[0xff; 64], 32);
        assert_eq!(answer.status(), Status::Unsupported);
    }
    assert_eq!(stat(&control)["guests"][0]["malformed"], 200);
    assert_eq!(guest.create_pool(1, 0), Status::Ok);
    drop(guest);
    daemon.wait_for("disconnected");
    let mut guest = Guest::connect(&place.path("guest.sock"));
    guest.create_pool(0, 0);
    let put = guest.put(DATA, 0, &[(key(1, 1, 1), 1)]);
    assert_eq!(put.results(), [PageResult::Stored]);
    daemon.signal(libc::SIGTERM);
    assert!(daemon.child.wait().unwrap().success());
    let log = daemon.whole_log();
    assert!(log.lines().count() < 15, "{log}");
}

#[test]
fn a_virtqueue_that_is_stopped_goes_on_where_it_was() {
    let place = Place::new();
    let _daemon = start(&place, &["-c", "8MiB"]);
    let mut guest = Guest::connect(&place.path("guest.sock"));
    guest.create_pool(0, pool_flags::PERSISTENT);
    for round in 0..5 {
        let put = guest.put(DATA, 0, &[(key(1, round, 1), 7)]);
        assert_eq!(put.results(), [PageResult::Stored]);
        assert_eq!(guest.stop_queue(DATA), round as u32 + 1);
        guest.start_queue(DATA);
    }
    let keys: Vec<_> = (0..5).map(|index| key(1, index, 1)).collect();
    assert_eq!(guest.get(DATA, 0, 0, &keys).results(), [PageResult::Hit; 5]);
}

#[test]
fn the_capacity_is_a_ceiling_of_what_the_process_takes() {
    const CAPACITY: u64 = 128 << 20;
    let place = Place::new();
    let daemon = start(&place, &["-c", "128MiB"]);
    // The pages are the worker's; the supervisor looks into no memory.
    let pid = daemon.worker();
    let resident = || {
        // What is anonymous, and the store's files; not the guest's memory, nor the program.
        let smaps = fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap();
        let mut store = false;
        let mut bytes = 0;
        for line in smaps.lines() {
            let kib = |line: &str| {
                line.split_whitespace()
                    .nth(1)
                    .unwrap()
                    .parse::<u64>()
                    .unwrap()
            };
            if line
                .split_whitespace()
                .next()
                .is_some_and(|word| word.contains('-'))
            {
                store = line.contains("/tmem-") && line.ends_with(" (deleted)");
            } else if line.starts_with("Rss:") && store || line.starts_with("Anonymous:") && !store
            {
                bytes += kib(line) * 1024;
            }
        }
        bytes
    };
    let mut guest = Guest::connect(&place.path("guest.sock"));
    guest.create_pool(0, pool_flags::PERSISTENT);
    let before = resident();
    // All frames under one object, then fewer and fewer of them, then an object for every page.
    let mut next = 0;
    let mut fill = |guest: &mut Guest, object: &dyn Fn(u64) -> u64| loop {
        let pages: Vec<_> = (next..next + 32)
            .map(|i| (key(object(i), i, 1), 9))
            .collect();
        next += 32;
        if guest
            .put(DATA, 0, &pages)
            .results()
            .contains(&PageResult::OverQuota)
        {
            break;
        }
    };
    fill(&mut guest, &|_| 0);
    let full = resident() - before;
    assert!(full > CAPACITY * 9 / 10, "{full}");
    for first in (0..32768).step_by(256) {
        let keys = (first..first + 256)
            .filter(|i| i % 16 != 0)
            .map(|i| key(0, i, 1));
        guest.flush(DATA, 0, &keys.collect::<Vec<_>>());
    }
    fill(&mut guest, &|i| i);
    // Threads' stacks and the allocator's odds and ends.
    let full = resident() - before;
    assert!(full < CAPACITY + (1 << 20), "{full}");
    let stat = stat(&place.path("control.sock"));
    assert!(stat["used_bytes"].as_u64() <= Some(CAPACITY));
    assert!(stat["objects"].as_u64() > Some(20000), "{stat}");
}

#[test]
fn the_program_stays_in_memory_where_that_is_allowed() {
    let place = Place::new();
    let mut daemon = start(&place, &["-c", "16MiB"]);
    let says = |pid, file, name| {
        let text = fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap();
        let said = text.lines().find_map(|line| line.strip_prefix(name));
        said.unwrap().trim().to_owned()
    };
    let is_locked = |pid| says(pid, "status", "VmLck:") != "0 kB";
    wait_until("the supervisor is locked", || {
        is_locked(daemon.child.id() as i32)
    });
    // A worker has no privileges, and depends on what the supervisor may.
    let worker = daemon.worker();
    if says(worker, "limits", "Max locked memory").starts_with("unlimited") {
        wait_until("the worker is locked", || is_locked(worker));
    } else if !daemon.seen.contains("raise the limit of locked memory") {
        daemon.wait_for("raise the limit of locked memory");
    }
    daemon.stop();
    // Where that is not allowed it goes on all the same.
    let (guest, control) = (place.arg("guest.sock"), place.arg("control.sock"));
    let mut command = Daemon::command(&["-c", "16MiB", "-s", &guest, "--control-path", &control]);
    // SAFETY: Between fork and exec this makes two system calls, and nothing else.
    unsafe {
        command.pre_exec(|| {
            let none = libc::rlimit {
                rlim_cur: 0,
                rlim_max: 0,
            };
            if libc::setrlimit(libc::RLIMIT_MEMLOCK, &none) < 0 {
                return Err(std::io::Error::last_os_error());
            }
            // Who is privileged is not bound by the limit.
            match libc::prctl(libc::PR_CAPBSET_DROP, CAP_IPC_LOCK, 0, 0, 0) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        });
    }
    let mut daemon = Daemon::spawn(command);
    daemon.wait_for("raise the limit of locked memory");
    daemon.wait_for("waiting for operators");
    daemon.stop();
}

#[test]
fn an_event_waits_for_a_buffer() {
    let place = Place::new();
    let _daemon = start(&place, &["-c", "1MiB"]);
    let mut guest = Guest::connect(&place.path("guest.sock"));
    guest.create_pool(0, pool_flags::PERSISTENT);
    let mut index = 0;
    loop {
        let put = guest.put(DATA, 0, &[(key(1, index, 1), 1)]);
        if put.results() != [PageResult::Stored] {
            break;
        }
        index += 1;
    }
    let range = (0..index).map(|index| key(1, index, 1)).collect::<Vec<_>>();
    guest.flush(DATA, 0, &range);
    // Too short: it comes back empty, and the event stays due.
    guest.submit(1, 0x70000, &[], 31);
    assert_eq!(guest.wait(1), 0);
    guest.offer_event();
    let event = guest.wait_event();
    assert!(event.persistent_credits.get() > 200);
    // No event is due any more.
    guest.offer_event();
    assert_eq!(guest.create_pool(1, 0), Status::Ok);
    assert_eq!(guest.poll(1), None);
}

#[test]
fn an_operator_who_talks_nonsense_is_told_so() {
    let place = Place::new();
    let _daemon = start(&place, &["-c", "4MiB"]);
    let ask = |lines: &str| {
        let stream = UnixStream::connect(place.path("control.sock")).unwrap();
        (&stream).write_all(lines.as_bytes()).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let replies = BufReader::new(stream).lines();
        replies
            .map(|line| serde_json::from_str::<serde_json::Value>(&line.unwrap()).unwrap())
            .collect::<Vec<_>>()
    };
    let replies = ask(
        "nonsense\n{\"version\":2,\"command\":\"stat\"}\n{\"version\":1}\n\
                       {\"version\":1,\"command\":\"stat\"}\n",
    );
    assert_eq!(replies.len(), 4);
    for reply in &replies[..3] {
        assert_eq!(reply["reply"], "error");
    }
    assert!(replies[1]["message"]
        .as_str()
        .unwrap()
        .contains("version 1 and not 2"));
    assert_eq!(replies[3]["capacity_bytes"], 4 << 20);
    assert_eq!(replies[3]["guests"][0]["connected"], false);
    // A line without end is not waited for, and nobody else waits for it.
    let endless = UnixStream::connect(place.path("control.sock")).unwrap();
    assert!((&endless).write_all(&vec![b'x'; 8 << 20]).is_err());
    assert_eq!(stat(&place.path("control.sock"))["version"], 1);
}

#[test]
fn the_configuration_space_can_be_read_in_any_way() {
    let place = Place::new();
    let _daemon = start(&place, &["-c", "4MiB", "--data-queues", "3"]);
    let mut guest = Guest::connect(&place.path("guest.sock"));
    assert_eq!(guest.config.data_queues.get(), 3);
    let whole = guest.read_config(0, 64);
    assert_eq!(whole[..4], *b"TMEM");
    for (offset, len) in [
        (0, 1),
        (3, 7),
        (32, 8),
        (63, 1),
        (0, 256),
        (60, 8),
        (64, 1),
        (200, 56),
    ] {
        let mut expected = whole.clone();
        expected.resize(256, 0);
        let read = guest.read_config(offset, len);
        assert_eq!(read, expected[offset as usize..(offset + len) as usize]);
    }
}

#[test]
fn interrupts_come_when_they_are_wanted() {
    let place = Place::new();
    let _daemon = start(&place, &["-c", "4MiB"]);
    let calls = || {
        let stat = stat(&place.path("control.sock"));
        stat["guests"][0]["calls"].as_u64().unwrap()
    };
    let mut guest = Guest::connect(&place.path("guest.sock"));
    guest.create_pool(0, 0);
    for (none, expected) in [(true, 0), (false, 3)] {
        guest.queues[DATA].want_interrupts(!none);
        for index in 0..3 {
            guest.put(DATA, 0, &[(key(1, index, 1), 1)]);
        }
        // When the virtqueue has stopped, no interrupt is on its way.
        guest.stop_queue(DATA);
        assert_eq!(guest.interrupts(DATA), expected);
        guest.start_queue(DATA);
    }
    drop(guest);

    let mut guest = Guest::connect_without(&place.path("guest.sock"), 0);
    guest.create_pool(0, 0);
    wait_until("the new guest is listed", || calls() <= 1);
    guest.queues[DATA].set_used_event(4);
    for index in 0..10 {
        guest.put(DATA, 0, &[(key(1, index, 1), 1)]);
        guest.wait_avail_event(DATA);
    }
    guest.stop_queue(DATA);
    assert_eq!(guest.interrupts(DATA), 1);
}

/// Memory that is plugged in later can be used at once.
#[test]
fn memory_can_be_replaced_while_virtqueues_run() {
    let place = Place::new();
    let _daemon = start(&place, &["-c", "4MiB"]);
    let mut guest = Guest::connect(&place.path("guest.sock"));
    guest.create_pool(0, 0);
    for round in 0..20 {
        guest.tell_memory();
        let put = guest.put(DATA, 0, &[(key(1, round, 1), round as u8)]);
        assert_eq!(put.results(), [PageResult::Stored]);
        let get = guest.get(DATA + 1, 0, 0, &[key(1, round, 1)]);
        assert_eq!(get.page(0), [round as u8; 4096]);
    }
}

#[test]
fn ephemeral_pages_go_where_a_driver_does_not_come_back() {
    let place = Place::new();
    let mut daemon = start(&place, &["-c", "8MiB", "--abandoned-after", "1"]);
    let mut guest = Guest::connect(&place.path("guest.sock"));
    for (pool, flags) in [(0, pool_flags::PERSISTENT), (1, 0)] {
        assert_eq!(guest.create_pool(pool, flags), Status::Ok);
        let put = guest.put(DATA, pool, &[(key(1, 1, 1), 7)]);
        assert_eq!(put.results(), [PageResult::Stored]);
    }
    guest.stop();
    daemon.wait_for("its ephemeral pages are dropped");
    let control = place.path("control.sock");
    wait_until("they are gone", || stat(&control)["ephemeral_pages"] == 0);
    // It may have been a pause: then nothing that matters is missing.
    guest.start_anew();
    let got = guest.get(DATA, 0, 0, &[key(1, 1, 1)]);
    assert_eq!(got.page(0), [7; 4096]);
    let got = guest.get(DATA, 1, 0, &[key(1, 1, 1)]);
    assert_eq!(got.results(), [PageResult::Miss]);
}
