// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Operators: their socket, their signals, their log, and what the daemon lets them do.

mod support;

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    os::unix::{fs::PermissionsExt, net::UnixStream, process::CommandExt},
    process::{Command, Stdio},
    sync::{
        atomic::{AtomicBool, Ordering},
        Arc,
    },
};

use nix::unistd::Group;
use support::{key, stat, tmemctl, wait_until, Daemon, Guest, Place};
use virtio_tmem_abi::{pool_flags, PageResult};

const DATA: usize = 2;
const STAT: &str = "{\"version\":1,\"command\":\"stat\"}\n";

fn start(place: &Place, more: &[&str]) -> Daemon {
    let (guest, control) = (place.arg("guest.sock"), place.arg("control.sock"));
    let args = ["-s", &guest, "-c", "8MiB", "--control-path", &control];
    let mut daemon = Daemon::start(&[&args, more].concat());
    daemon.wait_for("waiting for operators");
    daemon
}

/// Waits for the daemon to end by itself, and panics if it fails.
fn ends(daemon: &mut Daemon) {
    let mut status = None;
    wait_until("the daemon ends", || {
        status = daemon.child.try_wait().unwrap();
        status.is_some()
    });
    assert!(status.unwrap().success(), "{status:?}");
}

/// A guest that has put so many persistent pages.
fn guest_with_pages(place: &Place, pages: u64) -> Guest {
    let mut guest = Guest::connect(&place.path("guest.sock"));
    guest.create_pool(0, pool_flags::PERSISTENT);
    for index in 0..pages {
        let put = guest.put(DATA, 0, &[(key(1, index, 1), 7)]);
        assert_eq!(put.results(), [PageResult::Stored]);
    }
    guest
}

#[test]
fn it_stops_without_the_path_of_its_socket() {
    let place = Place::new();
    for path in ["control.sock", "guest.sock"] {
        let mut daemon = start(&place, &[]);
        fs::rename(place.path(path), place.path("elsewhere")).unwrap();
        daemon.signal(libc::SIGTERM);
        ends(&mut daemon);
        fs::remove_file(place.path("elsewhere")).unwrap();
    }
    // Nor does it matter how many operators wait to be served.
    let mut daemon = start(&place, &[]);
    let waiting: Vec<_> = (0..100)
        .map(|_| UnixStream::connect(place.path("control.sock")).unwrap())
        .collect();
    daemon.signal(libc::SIGTERM);
    ends(&mut daemon);
    drop(waiting);
}

#[test]
fn no_operator_waits_for_another() {
    let place = Place::new();
    let _daemon = start(&place, &[]);
    let control = place.path("control.sock");
    // One who says nothing, one who says a part of something, one who does not listen.
    let _silent = UnixStream::connect(&control).unwrap();
    let mut slow = UnixStream::connect(&control).unwrap();
    slow.write_all(b"{\"version\"").unwrap();
    let deaf = UnixStream::connect(&control).unwrap();
    deaf.set_nonblocking(true).unwrap();
    while (&deaf).write_all(STAT.as_bytes()).is_ok() {}
    // One who is served all the time.
    let served = Arc::new(AtomicBool::new(false));
    let busy = {
        let (served, control) = (Arc::clone(&served), control.clone());
        std::thread::spawn(move || {
            let mut stream = BufReader::new(UnixStream::connect(control).unwrap());
            let mut line = String::new();
            while !served.load(Ordering::SeqCst) {
                stream.get_mut().write_all(STAT.as_bytes()).unwrap();
                stream.read_line(&mut line).unwrap();
            }
        })
    };
    assert_eq!(stat(&control)["version"], 1);
    served.store(true, Ordering::SeqCst);
    busy.join().unwrap();
    // More of the silent ones than there is room for.
    let _crowd: Vec<_> = (0..200)
        .map(|_| UnixStream::connect(&control).unwrap())
        .collect();
    assert_eq!(stat(&control)["version"], 1);
}

#[test]
fn requests_may_come_all_at_once() {
    let place = Place::new();
    let _daemon = start(&place, &[]);
    let stream = UnixStream::connect(place.path("control.sock")).unwrap();
    (&stream).write_all(STAT.repeat(100).as_bytes()).unwrap();
    let replies = BufReader::new(&stream).lines().take(100);
    assert_eq!(replies.map(Result::unwrap).count(), 100);
    // One that is too long is answered, too.
    let writing = stream.try_clone().unwrap();
    let long = std::thread::spawn(move || (&writing).write_all(&vec![b'x'; 1 << 20]));
    let mut reply = String::new();
    BufReader::new(&stream).read_line(&mut reply).unwrap();
    assert!(reply.contains("at most"), "{reply}");
    long.join().unwrap().unwrap_err();
}

#[test]
fn signals_do_what_they_are_for() {
    let place = Place::new();
    let mut daemon = start(&place, &[]);
    let said = [
        (libc::SIGHUP, "SIGHUP: there is nothing to read again"),
        (libc::SIGUSR1, "0 of 1 guests connected"),
        (libc::SIGUSR2, "upgraded"),
    ];
    for (signal, words) in said {
        daemon.signal(signal);
        daemon.wait_for(words);
    }
    daemon.signal(libc::SIGPIPE);
    let (success, said) = tmemctl(&["upgrade", "--control-path", &place.arg("control.sock")]);
    assert!(success && said.contains("upgrading"), "{said}");
    daemon.wait_for("upgraded");
    daemon.signal(libc::SIGINT);
    ends(&mut daemon);
}

#[test]
fn pages_are_lost_when_asked_twice() {
    let place = Place::new();
    let mut daemon = start(&place, &[]);
    let mut guest = guest_with_pages(&place, 3);
    daemon.signal(libc::SIGTERM);
    let line = daemon.wait_for("not stopping on SIGTERM");
    assert!(
        line.contains("3 persistent pages") && line.contains("again"),
        "{line}"
    );
    let get = guest.get(DATA, 0, 0, &[key(1, 2, 1)]);
    assert_eq!(get.results(), [PageResult::Hit]);
    daemon.signal(libc::SIGTERM);
    ends(&mut daemon);
    assert!(daemon.whole_log().contains("3 persistent pages are lost"));
}

#[test]
fn pages_are_lost_by_force() {
    let place = Place::new();
    let control = place.arg("control.sock");
    let mut daemon = start(&place, &[]);
    let _guest = guest_with_pages(&place, 3);
    let (success, said) = tmemctl(&["--control-path", &control, "stop"]);
    assert!(
        !success && said.contains("3 persistent") && said.contains("--force"),
        "{said}"
    );
    let (success, said) = tmemctl(&["--control-path", &control, "stop", "--force"]);
    assert!(success, "{said}");
    ends(&mut daemon);
    let mut daemon = start(&place, &["--stop-loses-pages"]);
    let _guest = guest_with_pages(&place, 3);
    daemon.signal(libc::SIGTERM);
    ends(&mut daemon);
    // Without such pages nobody is asked.
    let mut daemon = start(&place, &[]);
    let (success, said) = tmemctl(&["--control-path", &control, "stop"]);
    assert!(success, "{said}");
    ends(&mut daemon);
}

#[test]
fn nobody_waits_for_who_reads_the_log() {
    let place = Place::new();
    let mut daemon = start(&place, &["--log-level", "debug"]);
    // Much more than a pipe holds, and than the daemon keeps.
    let stream = UnixStream::connect(place.path("control.sock")).unwrap();
    let writing = stream.try_clone().unwrap();
    let asking = std::thread::spawn(move || {
        for _ in 0..100 {
            (&writing).write_all(STAT.repeat(100).as_bytes()).unwrap();
        }
    });
    let replies = BufReader::new(&stream).lines().take(10_000);
    assert_eq!(replies.map(Result::unwrap).count(), 10_000);
    asking.join().unwrap();
    // Guests are served all the same.
    guest_with_pages(&place, 1);
    // What was dropped is said as soon as somebody reads again.
    let line = daemon.wait_for("lines of the log were dropped");
    assert!(
        line.split(' ').next().unwrap().parse::<u32>().unwrap() > 100,
        "{line}"
    );
    drop(stream);

    // Nor does the end.
    let mut daemon = {
        drop(daemon);
        start(&place, &["--log-level", "debug"])
    };
    let stream = UnixStream::connect(place.path("control.sock")).unwrap();
    (&stream).write_all(STAT.repeat(1000).as_bytes()).unwrap();
    let replies = BufReader::new(&stream).lines().take(1000);
    assert_eq!(replies.map(Result::unwrap).count(), 1000);
    daemon.signal(libc::SIGTERM);
    ends(&mut daemon);
    // Nobody may be there at all.
    let mut daemon = start(&place, &["--log-level", "debug"]);
    drop(std::mem::replace(&mut daemon.log, BufReader::new(closed())));
    assert_eq!(stat(&place.path("control.sock"))["version"], 1);
    daemon.signal(libc::SIGTERM);
    ends(&mut daemon);
}

/// The output of a process that says nothing.
fn closed() -> std::process::ChildStderr {
    let mut child = Command::new("true").stderr(Stdio::piped()).spawn().unwrap();
    child.wait().unwrap();
    child.stderr.take().unwrap()
}

/// Has the daemon start with limits of open descriptors.
fn limited(command: &mut Command, soft: u64, hard: u64) {
    let limit = libc::rlimit {
        rlim_cur: soft,
        rlim_max: hard,
    };
    let set = move || {
        // SAFETY: A plain system call.
        match unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    };
    // SAFETY: Nothing is done between fork and exec but that system call.
    unsafe { command.pre_exec(set) };
}

#[test]
fn descriptors_are_raised_and_reckoned_with() {
    let place = Place::new();
    let guests: Vec<_> = (0..8).map(|n| place.arg(&format!("{n}.sock"))).collect();
    let mut args = vec!["-c", "8MiB"];
    args.extend(guests.iter().flat_map(|path| ["-s", path]));
    let control = place.arg("control.sock");
    args.extend(["--control-path", &control]);

    let mut command = Daemon::command(&args);
    limited(&mut command, 64, 2000);
    let mut daemon = Daemon::spawn(command);
    daemon.wait_for("waiting for operators");
    assert!(!daemon.seen.contains("descriptors"), "{}", daemon.seen);
    let limits = fs::read_to_string(format!("/proc/{}/limits", daemon.child.id())).unwrap();
    let files = limits
        .lines()
        .find(|line| line.starts_with("Max open files"));
    assert_eq!(files.unwrap().split_whitespace().nth(3), Some("2000"));
    daemon.signal(libc::SIGTERM);
    ends(&mut daemon);

    let mut command = Daemon::command(&args);
    limited(&mut command, 63, 63);
    let output = command.output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    let last = said.lines().last().unwrap();
    assert!(
        last.contains("8 guests with 4 virtqueues") && last.contains("63"),
        "{said}"
    );
    assert!(!output.status.success());

    // Enough to begin with, and not for all.
    let mut command = Daemon::command(&args);
    limited(&mut command, 64, 64);
    let mut daemon = Daemon::spawn(command);
    daemon.wait_for("not all guests can be connected");
    daemon.wait_for("waiting for operators");
}

/// Has a daemon that runs open no more descriptors than it has, or as many as it likes.
fn use_up_descriptors(daemon: &Daemon, used_up: bool) {
    let pid = daemon.child.id();
    let free = (0..).find(|fd| fs::symlink_metadata(format!("/proc/{pid}/fd/{fd}")).is_err());
    let limit = libc::rlimit {
        rlim_cur: if used_up { free.unwrap() } else { 1000 },
        rlim_max: 1000,
    };
    // SAFETY: A plain system call, about a child that was not waited for yet.
    let result = unsafe {
        let (pid, old) = (pid as i32, std::ptr::null_mut());
        libc::prlimit(pid, libc::RLIMIT_NOFILE, &raw const limit, old)
    };
    assert_eq!(result, 0);
}

#[test]
fn descriptors_may_be_used_up() {
    let place = Place::new();
    let control = place.path("control.sock");
    let mut command = Daemon::command(&[
        "-s",
        &place.arg("guest.sock"),
        "-c",
        "8MiB",
        "--control-path",
        &place.arg("control.sock"),
    ]);
    limited(&mut command, 1000, 1000);
    let mut daemon = Daemon::spawn(command);
    daemon.wait_for("waiting for operators");
    // From then on the one that is kept for operators is there.
    stat(&control);
    use_up_descriptors(&daemon, true);
    let guest = UnixStream::connect(place.path("guest.sock")).unwrap();
    daemon.wait_for("cannot be served");
    let connected = || stat(&control)["guests"][0]["connected"] == true;
    for _ in 0..20 {
        assert!(!connected());
    }
    // Nor do those keep others out who are silent.
    let _crowd: Vec<_> = (0..20)
        .map(|_| UnixStream::connect(&control).unwrap())
        .collect();
    assert!(!connected());
    use_up_descriptors(&daemon, false);
    wait_until("the guest is connected", connected);
    drop(guest);
    daemon.signal(libc::SIGTERM);
    ends(&mut daemon);
    // It was tried many times.
    let failures = daemon.whole_log().matches("cannot be served").count();
    assert_eq!(failures, 1, "{}", daemon.seen);
}

#[test]
fn sockets_are_for_whom_they_are_meant() {
    let place = Place::new();
    let mode = |name: &str| {
        let metadata = fs::metadata(place.path(name)).unwrap();
        metadata.permissions().mode() & 0o777
    };
    let daemon = start(&place, &[]);
    assert_eq!((mode("guest.sock"), mode("control.sock")), (0o600, 0o600));
    drop(daemon);
    let own = nix::unistd::getegid().to_string();
    let daemon = start(&place, &["--socket-group", &own]);
    assert_eq!((mode("guest.sock"), mode("control.sock")), (0o660, 0o600));
    drop(daemon);
    let daemon = start(&place, &["--socket-mode", "640", "--control-group", &own]);
    assert_eq!((mode("guest.sock"), mode("control.sock")), (0o640, 0o660));
    drop(daemon);
    // By its name, of which a worker could not find out whose it is.
    let own = Group::from_gid(nix::unistd::getegid()).unwrap().unwrap();
    let daemon = start(&place, &["--control-group", &own.name]);
    assert_eq!(mode("control.sock"), 0o660);
    drop(daemon);
}

/// Needs root, to be somebody else.
#[test]
fn who_is_somebody_else_is_not_served() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let place = Place::new();
    let open = |name, mode| {
        fs::set_permissions(place.path(name), fs::Permissions::from_mode(mode)).unwrap();
    };
    open("", 0o755);
    let _daemon = start(&place, &["--control-group", "4000000002"]);
    let control = place.arg("control.sock");
    let ask = |gid: u32| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tmemctl"));
        command.args(["stat", "--control-path", &control]);
        command.uid(4_000_000_001).gid(gid);
        let output = command.output().unwrap();
        (
            output.status.success(),
            String::from_utf8(output.stderr).unwrap(),
        )
    };
    let (success, said) = ask(4_000_000_001);
    assert!(!success && said.contains("--control-group"), "{said}");
    // Even if somebody opened the socket by hand.
    open("control.sock", 0o666);
    let (success, said) = ask(4_000_000_001);
    assert!(
        !success && said.contains("may not operate the daemon"),
        "{said}"
    );
    let (success, said) = ask(4_000_000_002);
    assert!(success, "{said}");
}

/// Needs root, to become somebody else.
#[test]
fn it_runs_as_the_user_that_it_is_told() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let place = Place::new();
    let user = 4_000_000_001;
    std::os::unix::fs::chown(place.path(""), Some(user), Some(user)).unwrap();
    let user = user.to_string();
    let more = ["--user", &user, "--socket-group", "4000000003"];
    let mut daemon = start(&place, &more);
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.child.id())).unwrap();
    let field = |name: &str| {
        let mut lines = status.lines().map(|line| line.split_whitespace());
        let line = lines.find_map(|mut line| (line.next() == Some(name)).then_some(line));
        line.unwrap().collect::<Vec<_>>()
    };
    assert_eq!(field("Uid:"), [&user; 4]);
    assert_eq!(field("Gid:"), [&user; 4]);
    assert_eq!(field("Groups:"), ["4000000003"]);
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"] {
        assert_eq!(field(set), ["0000000000000000"], "{set}");
    }
    assert_eq!(field("NoNewPrivs:"), ["1"]);
    assert_eq!(field("Seccomp:"), ["2"]);
    drop(guest_with_pages(&place, 1));
    daemon.wait_for("disconnected");
    daemon.signal(libc::SIGTERM);
    ends(&mut daemon);
    assert!(!place.path("guest.sock").exists());
    let output = Daemon::command(&["-s", "a", "-c", "8MiB", "--user", "no such user"]).output();
    let said = String::from_utf8(output.unwrap().stderr).unwrap();
    assert!(said.contains("there is no user \"no such user\""), "{said}");
}

#[test]
fn tmemctl_says_what_is_wrong_with_its_path() {
    let place = Place::new();
    let mut daemon = start(&place, &[]);
    let guest = place.arg("guest.sock");
    let (success, said) = tmemctl(&["stat", "--control-path", &guest]);
    assert!(
        !success && said.contains("is the socket of guest \"guest\""),
        "{said}"
    );
    // Nor did the daemon take it for the guest.
    assert_eq!(stat(&place.path("control.sock"))["guests"][0]["epoch"], 0);
    // Whoever may not read that connects, and can only guess.
    fs::remove_file(place.path("guest.sock.lock")).unwrap();
    let (success, said) = tmemctl(&["stat", "--control-path", &guest]);
    assert!(!success && said.contains("a guest's socket?"), "{said}");
    let missing = place.arg("missing.sock");
    let (success, said) = tmemctl(&["stat", "--control-path", &missing]);
    assert!(!success && said.contains("there is no socket"), "{said}");
    let control = place.arg("control.sock");
    for args in [
        ["--control-path", &control, "stat"],
        ["stat", "--control-path", &control],
    ] {
        let (success, said) = tmemctl(&args);
        assert!(success && said.contains("CAPACITY"), "{said}");
    }
    daemon.signal(libc::SIGTERM);
    ends(&mut daemon);
    let (success, said) = tmemctl(&["stat", "--control-path", &control]);
    assert!(
        !success && said.contains("is vhost-device-tmem running"),
        "{said}"
    );
}

#[test]
fn the_kernel_is_told_whom_to_kill_last() {
    let place = Place::new();
    let adj = |daemon: &Daemon| {
        let path = format!("/proc/{}/oom_score_adj", daemon.child.id());
        fs::read_to_string(path).unwrap().trim().to_owned()
    };
    let daemon = start(&place, &["--oom-score-adj", "300"]);
    assert_eq!(adj(&daemon), "300");
    drop(daemon);
    // Where that is not allowed, it is said.
    let daemon = start(&place, &[]);
    assert!(adj(&daemon) == "-500" || daemon.seen.contains("--oom-score-adj -500"));
}

#[test]
fn a_process_in_the_sandbox_cannot_be_looked_into() {
    let place = Place::new();
    let daemon = start(&place, &[]);
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.child.id())).unwrap();
    assert!(status.contains("Seccomp:\t2\n"), "{status}");
    // Even a program of root would get none again.
    if nix::unistd::geteuid().is_root() {
        assert!(status.contains("CapBnd:\t0000000000000000\n"), "{status}");
    }
    drop(daemon);
    let mut daemon = Daemon::start(&[
        "-s",
        &place.arg("guest.sock"),
        "-c",
        "8MiB",
        "--sandbox",
        "none",
    ]);
    daemon.wait_for("running without a sandbox");
    daemon.wait_for("waiting for guest");
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.child.id())).unwrap();
    assert!(status.contains("Seccomp:\t0\n"), "{status}");
    let mut rest = String::new();
    daemon.signal(libc::SIGTERM);
    daemon.log.read_to_string(&mut rest).unwrap();
    ends(&mut daemon);
}
