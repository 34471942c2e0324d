// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The daemon as a service of systemd, which keeps its descriptors over a restart.

mod support;

use std::{
    io::{IoSliceMut, Read, Write},
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::{
            net::{UnixDatagram, UnixStream},
            process::CommandExt,
        },
    },
    process::{Command, Stdio},
    sync::{
        atomic::{AtomicBool, AtomicU64, Ordering},
        Arc, Mutex,
    },
    thread,
};

use nix::{
    cmsg_space,
    sys::socket::{recvmsg, ControlMessageOwned, MsgFlags},
};
use support::{key, wait_until, Daemon, Guest, Place};
use virtio_tmem_abi::{cap, pool_flags, PageResult, Status};

const DATA: usize = 2;
const FIRST: RawFd = 3;

/// What systemd does for a service with `Type=notify` and `FileDescriptorStoreMax=`.
struct Systemd {
    path: String,
    kept: Arc<Mutex<Vec<(String, OwnedFd)>>>,
    ready: Arc<AtomicU64>,
}

impl Systemd {
    fn new(place: &Place) -> Self {
        let path = place.arg("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        let this = Self {
            path,
            kept: Arc::default(),
            ready: Arc::default(),
        };
        let (kept, ready) = (Arc::clone(&this.kept), Arc::clone(&this.ready));
        thread::spawn(move || loop {
            let mut bytes = [0; 4096];
            let mut control = cmsg_space!([RawFd; 8]);
            let mut data = [IoSliceMut::new(&mut bytes)];
            let flags = MsgFlags::MSG_CMSG_CLOEXEC;
            let received = recvmsg::<()>(socket.as_raw_fd(), &mut data, Some(&mut control), flags);
            let received = received.unwrap();
            let mut files = Vec::new();
            for message in received.cmsgs().unwrap() {
                if let ControlMessageOwned::ScmRights(fds) = message {
                    // SAFETY: The kernel has just made them for us.
                    files.extend(fds.iter().map(|fd| unsafe { OwnedFd::from_raw_fd(*fd) }));
                }
            }
            let len = received.bytes;
            let text = std::str::from_utf8(&bytes[..len]).unwrap().to_owned();
            let value = |name: &str| {
                let line = text.lines().find_map(|line| line.strip_prefix(name));
                line.map(str::to_owned)
            };
            let name = value("FDNAME=");
            let mut kept = kept.lock().unwrap();
            if value("FDSTORE=1").is_some() {
                let name = name.clone().unwrap();
                kept.extend(files.into_iter().map(|file| (name.clone(), file)));
            }
            if value("FDSTOREREMOVE=1").is_some() {
                kept.retain(|(of, _)| Some(of) != name.as_ref());
            }
            if value("READY=1").is_some() {
                ready.fetch_add(1, Ordering::SeqCst);
            }
        });
        this
    }

    fn names(&self) -> Vec<String> {
        self.kept
            .lock()
            .unwrap()
            .iter()
            .map(|(name, _)| name.clone())
            .collect()
    }

    /// Starts the service, with what it left here before.
    fn start(&self, args: &[&str]) -> Daemon {
        let before = self.ready.load(Ordering::SeqCst);
        let kept = self.kept.lock().unwrap();
        let names: Vec<_> = kept.iter().map(|(name, _)| name.as_str()).collect();
        let fds: Vec<_> = kept.iter().map(|(_, file)| file.as_raw_fd()).collect();
        let mut command = Command::new("/bin/sh");
        // The number of its process is known to the process alone.
        command.args(["-c", "export LISTEN_PID=$$; exec \"$@\"", "sh"]);
        command
            .arg(env!("CARGO_BIN_EXE_vhost-device-tmem"))
            .args(args)
            .stderr(Stdio::piped());
        command
            .env("NOTIFY_SOCKET", &self.path)
            .env("FDSTORE", "1000");
        if !fds.is_empty() {
            command
                .env("LISTEN_FDS", fds.len().to_string())
                .env("LISTEN_FDNAMES", names.join(":"));
        }
        // SAFETY: System calls alone are made between fork and exec.
        unsafe {
            command.pre_exec(move || {
                let above = FIRST + fds.len() as RawFd;
                for (n, fd) in fds.iter().enumerate() {
                    // Out of the way of those that come first.
                    let high = libc::fcntl(*fd, libc::F_DUPFD_CLOEXEC, above + 1000);
                    let to = above + 10_000 + n as RawFd;
                    if libc::dup2(high, to) < 0 {
                        return Err(std::io::Error::last_os_error());
                    }
                }
                for n in 0..fds.len() as RawFd {
                    libc::dup2(above + 10_000 + n, FIRST + n);
                    libc::close(above + 10_000 + n);
                }
                Ok(())
            });
        }
        let daemon = Daemon::spawn(command);
        drop(kept);
        let ready = || self.ready.load(Ordering::SeqCst) > before;
        wait_until("the service is ready", ready);
        daemon
    }
}

#[test]
fn a_restart_of_the_service_goes_unnoticed() {
    let place = Place::new();
    let systemd = Systemd::new(&place);
    let (a, b) = (place.arg("a.sock"), place.arg("b.sock"));
    let control = place.arg("control.sock");
    let metrics = place.arg("metrics.sock");
    let args = [
        "-s",
        &a,
        "-s",
        &b,
        "-c",
        "64MiB",
        "--control-path",
        &control,
        "--metrics-listen",
        &metrics,
    ];
    let mut daemon = systemd.start(&args);
    let stop = Arc::new(AtomicBool::new(false));
    let steps = Arc::new(AtomicU64::new(0));
    let mut guest = Guest::connect(&place.path("a.sock"));
    assert_ne!(guest.config.capabilities.get() & cap::DURABLE, 0);
    assert_eq!(guest.create_pool(0, pool_flags::PERSISTENT), Status::Ok);
    let load = {
        let (stop, steps) = (Arc::clone(&stop), Arc::clone(&steps));
        thread::spawn(move || {
            let mut index = 0;
            while !stop.load(Ordering::Relaxed) {
                let fill = index as u8;
                let put = guest.put(DATA, 0, &[(key(1, index, 1), fill)]);
                assert_eq!(put.results(), [PageResult::Stored]);
                let before = index / 2;
                let got = guest.get(DATA + 1, 0, 0, &[key(1, before, 1)]);
                assert_eq!(got.status(), Status::Ok);
                assert_eq!(got.results(), [PageResult::Hit]);
                assert_eq!(got.page(0), [before as u8; 4096]);
                index += 1;
                steps.fetch_add(1, Ordering::Relaxed);
            }
            for index in 0..index {
                let got = guest.get(DATA, 0, 0, &[key(1, index, 1)]);
                assert_eq!(got.page(0), [index as u8; 4096]);
            }
            // The connection is of use, too: what was said before is known.
            let epoch = guest.epoch();
            guest.tell_memory();
            assert_eq!(guest.read_config(32, 8), epoch.to_le_bytes());
            guest.stop();
            guest.start_anew();
            let got = guest.get(DATA, 0, 0, &[key(1, 0, 1)]);
            assert_eq!(got.page(0), [0; 4096]);
        })
    };
    for signal in [libc::SIGTERM, libc::SIGKILL, libc::SIGTERM, libc::SIGKILL] {
        let before = steps.load(Ordering::Relaxed);
        wait_until("the guest gets on", || {
            steps.load(Ordering::Relaxed) > before + 50
        });
        daemon.signal(signal);
        daemon.child.wait().unwrap();
        assert!(place.path("a.sock").exists());
        daemon = systemd.start(&args);
        daemon.wait_for("guest \"a\": going on with its connection");
    }
    stop.store(true, Ordering::Relaxed);
    load.join().unwrap();
    // Metrics are served where they were.
    let mut scraper = UnixStream::connect(&metrics).unwrap();
    scraper.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").unwrap();
    let mut text = String::new();
    scraper.read_to_string(&mut text).unwrap();
    assert!(text.ends_with("# EOF\n"), "{text}");
    // What tmemctl changed is so after a restart, too, and is forgotten when it is undone.
    let tmemctl = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tmemctl"));
        command.args(["--control-path", &control]).args(args);
        assert!(command.status().unwrap().success(), "{args:?}");
    };
    tmemctl(&["guest", "add", "late", "--socket", &place.arg("late.sock")]);
    let mut late = Guest::connect(&place.path("late.sock"));
    assert_eq!(late.create_pool(0, pool_flags::PERSISTENT), Status::Ok);
    let put = late.put(DATA, 0, &[(key(1, 1, 1), 7)]);
    assert_eq!(put.results(), [PageResult::Stored]);
    daemon.signal(libc::SIGKILL);
    daemon.child.wait().unwrap();
    daemon = systemd.start(&args);
    daemon.wait_for("guest \"late\": going on with its connection");
    let got = late.get(DATA, 0, 0, &[key(1, 1, 1)]);
    assert_eq!(got.page(0), [7; 4096]);
    tmemctl(&["guest", "remove", "late", "--force"]);
    let of_it = |name: &String| {
        let mut parts = name.split('.');
        parts.next() != Some("store") && parts.next() == Some("2")
    };
    wait_until("nothing of it is kept", || {
        !systemd.names().iter().any(of_it)
    });
    // A guest that comes later is kept, and one that went is not.
    let names = || systemd.names();
    let theirs = ["connection", "state", "memory", "kick", "call"];
    wait_until("the connection is forgotten", || {
        let of = |name: &String| theirs.iter().any(|kind| name.starts_with(kind));
        !names().iter().any(of)
    });
    let guest = Guest::connect(&place.path("b.sock"));
    wait_until("the other one is kept", || {
        names().contains(&"connection.1".to_owned())
    });
    drop(guest);

    // One that takes the place of another between two starts has nothing of it.
    let guest = Guest::connect(&place.path("b.sock"));
    let epoch = guest.epoch();
    daemon.signal(libc::SIGKILL);
    daemon.child.wait().unwrap();
    let c = place.arg("c.sock");
    let args = args.map(|arg| if arg == b { c.as_str() } else { arg });
    let _daemon = systemd.start(&args);
    wait_until("nothing of the other one is kept", || {
        !names()
            .iter()
            .any(|name| name.ends_with(".1") && !name.starts_with("store"))
    });
    assert_ne!(Guest::connect(&place.path("c.sock")).epoch(), epoch);
}
