// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The live view: on a terminal, which it gives back, and as text.

mod support;

use std::{
    fs::File,
    io::{Read, Write},
    os::fd::{AsFd, OwnedFd},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use nix::{
    poll::{PollFd, PollFlags},
    pty::{openpty, OpenptyResult, Winsize},
    sys::termios::{tcgetattr, LocalFlags, Termios},
};
use serde_json::Value;
use support::{key, kill, wait_until, Daemon, Guest, Place};
use vhost_device_tmem::stop::wait_ready;
use virtio_tmem_abi::pool_flags;

const PATIENCE: Duration = Duration::from_secs(60);

/// What leaves the screen on which the view is drawn.
const LEAVES: &str = "\x1b[?1049l";

fn daemon(place: &Place) -> Daemon {
    let (web, control) = (place.arg("web.sock"), place.arg("control.sock"));
    let mut daemon = Daemon::start(&["-s", &web, "-c", "8MiB", "--control-path", &control]);
    daemon.wait_for("waiting for operators");
    daemon
}

fn top(place: &Place, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tmemctl"));
    command
        .args(["top", "--interval", "1", "--control-path"])
        .arg(place.path("control.sock"))
        .args(more);
    command
}

/// The view on a terminal of 80 columns.
struct OnTerminal {
    child: Child,
    master: File,
    slave: OwnedFd,
    before: Termios,
    seen: String,
}

impl OnTerminal {
    fn start(mut command: Command) -> Self {
        let size = Winsize {
            ws_row: 24,
            ws_col: 80,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        let OpenptyResult { master, slave } = openpty(&size, None).unwrap();
        let copy = || Stdio::from(slave.try_clone().unwrap());
        command.stdin(copy()).stdout(copy()).stderr(copy());
        Self {
            before: tcgetattr(&slave).unwrap(),
            child: command.env("TERM", "xterm-256color").spawn().unwrap(),
            master: master.into(),
            slave,
            seen: String::new(),
        }
    }

    fn modes(&self) -> LocalFlags {
        tcgetattr(&self.slave).unwrap().local_flags
    }

    /// Reads what is drawn for as long as something comes at once.
    fn read(&mut self, until: Instant) {
        let mut bytes = [0; 4096];
        let mut fds = [PollFd::new(self.master.as_fd(), PollFlags::POLLIN)];
        if wait_ready(&mut fds, Some(until)).unwrap() > 0 {
            let count = self.master.read(&mut bytes).unwrap();
            self.seen += &String::from_utf8_lossy(&bytes[..count]);
        }
    }

    fn wait_for(&mut self, text: &str) {
        let until = Instant::now() + PATIENCE;
        while !self.seen.contains(text) {
            assert!(Instant::now() < until, "no {text:?}: {:?}", self.seen);
            self.read(until);
        }
    }

    fn ends(&mut self) -> ExitStatus {
        let mut status = None;
        wait_until("the view ends", || {
            // Whoever does not read keeps it from writing.
            self.read(Instant::now());
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        self.wait_for(LEAVES);
        assert_eq!(tcgetattr(&self.slave).unwrap(), self.before);
        status.unwrap()
    }
}

impl Drop for OnTerminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn the_terminal_is_given_back() {
    let place = Place::new();
    let _daemon = daemon(&place);
    let shown = |more: &[&str]| {
        let mut view = OnTerminal::start(top(&place, more));
        view.wait_for("web");
        view
    };
    let mut view = shown(&[]);
    assert!(!view.modes().contains(LocalFlags::ICANON));
    view.master.write_all(b"q").unwrap();
    assert!(view.ends().success());
    for signal in [libc::SIGTERM, libc::SIGHUP] {
        let mut view = shown(&[]);
        kill(view.child.id() as i32, signal);
        assert_eq!(view.ends().code(), Some(128 + signal));
    }
    // The key, as the terminal makes no signal of it.
    let mut view = shown(&[]);
    view.master.write_all(b"\x03").unwrap();
    assert!(view.ends().success());
    let mut view = shown(&["--fault-panic"]);
    assert!(!view.ends().success());
    view.wait_for("on purpose");
}

#[test]
fn the_view_outlives_the_daemon() {
    let place = Place::new();
    let mut daemon = daemon(&place);
    let mut view = OnTerminal::start(top(&place, &[]));
    view.wait_for("web");
    daemon.stop();
    view.wait_for("there is no socket");
    view.master.write_all(b"q").unwrap();
    assert!(view.ends().success());
}

#[test]
fn colours_are_as_the_environment_wants_them() {
    let place = Place::new();
    let _daemon = daemon(&place);
    // By number.
    let colour = |seen: &str| seen.contains("\x1b[38;5;");
    for (no_color, coloured) in [("", true), ("1", false)] {
        let mut command = top(&place, &[]);
        command.env("NO_COLOR", no_color);
        let mut view = OnTerminal::start(command);
        // The last word of a frame.
        view.wait_for("miss");
        view.master.write_all(b"q").unwrap();
        view.ends();
        assert_eq!(colour(&view.seen), coloured, "{:?}", view.seen);
    }
}

#[test]
fn a_frame_is_printed_as_text() {
    let place = Place::new();
    let _daemon = daemon(&place);
    let mut guest = Guest::connect(&place.path("web.sock"));
    guest.create_pool(0, pool_flags::PERSISTENT);
    guest.put(2, 0, &[(key(1, 1, 1), 7)]);
    let output = top(&place, &["--once"]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("\nweb ") && !text.contains('\x1b'), "{text}");
    assert!(
        text.lines().all(|line| line.chars().count() <= 80),
        "{text}"
    );
    let output = top(&place, &["--once", "--json"]).output().unwrap();
    let figures: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(figures["guests"][0]["name"], "web");
    assert_eq!(figures["guests"][0]["persistent_pages"], 1);
    assert_eq!(figures["guests"][0]["hit_rate"], Value::Null);
    assert_eq!(figures["host"]["capacity_bytes"], 8 << 20);
    // Nobody could press a key.
    let output = top(&place, &[]).stdin(Stdio::null()).output().unwrap();
    assert_eq!(output.status.code(), Some(6), "{output:?}");
}
