// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A daemon whose guests an operator does something to.

use std::{path::PathBuf, process::Command};

use serde_json::Value;
use virtio_tmem_abi::{pool_flags, PageResult, Status};

use super::{key, kill, stat, tmemctl_command, window::WindowPlace, Daemon, Guest, Said, PAGE};

pub(crate) const DATA: usize = 2;
pub(crate) const SWAP: u32 = 0;
pub(crate) const FILES: u32 = 1;

/// A daemon with two guests, `web` and `db`, each with a window.
pub(crate) struct Operated {
    pub(crate) place: WindowPlace,
    pub(crate) daemon: Daemon,
}

impl Operated {
    pub(crate) fn new() -> Self {
        let place = WindowPlace::new();
        let (web, db) = (place.sockets.arg("web.sock"), place.sockets.arg("db.sock"));
        let control = place.sockets.arg("control.sock");
        let args = ["-s", &web, "-s", &db, "--control-path", &control];
        let windows = place.directory().to_str().unwrap();
        let windows = ["--window-dir", windows, "--window-size", "32MiB"];
        let mut daemon = Daemon::start(&[&["-c", "64MiB"][..], &args, &windows].concat());
        daemon.wait_for("waiting for operators");
        Self { place, daemon }
    }

    pub(crate) fn connect(&self, name: &str) -> Guest {
        let mut guest = Guest::connect(&self.path(&format!("{name}.sock")));
        create_pools(&mut guest);
        guest
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = tmemctl_command(args);
        command.env("TMEMCTL_CONTROL_PATH", self.path("control.sock"));
        command
    }

    /// Does what is done, and returns what was said of it.
    pub(crate) fn ok(&self, args: &[&str]) -> String {
        let said = Said::by(&mut self.command(args));
        assert_eq!((said.code, &*said.err), (0, ""), "{args:?}: {said:?}");
        said.out
    }

    pub(crate) fn refused(&self, args: &[&str], code: i32, words: &[&str]) {
        let said = Said::by(&mut self.command(args));
        assert_eq!((said.code, &*said.out), (code, ""), "{args:?}: {said:?}");
        for word in words {
            assert!(said.err.contains(word), "{word}: {said:?}");
        }
    }

    pub(crate) fn stat(&self, guest: usize) -> Value {
        stat(&self.path("control.sock"))["guests"][guest].clone()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.place.sockets.path(name)
    }

    pub(crate) fn kill_worker(&mut self) {
        kill(self.daemon.worker(), libc::SIGKILL);
        self.daemon.wait_for("a new worker has taken over");
    }
}

pub(crate) fn create_pools(guest: &mut Guest) {
    assert_eq!(guest.create_pool(SWAP, pool_flags::PERSISTENT), Status::Ok);
    assert_eq!(guest.create_pool(FILES, 0), Status::Ok);
}

pub(crate) fn put(guest: &mut Guest, pool: u32, index: u64, fill: u8) -> PageResult {
    let put = guest.put(DATA, pool, &[(key(1, index, 1), fill)]);
    put.results()[0]
}

/// Returns what a page is filled with.
pub(crate) fn get(guest: &mut Guest, pool: u32, index: u64) -> Option<u8> {
    let got = guest.get(DATA, pool, 0, &[key(1, index, 1)]);
    (got.results() == [PageResult::Hit]).then(|| {
        let fill = got.page(0)[0];
        assert_eq!(got.page(0), [fill; PAGE]);
        fill
    })
}
