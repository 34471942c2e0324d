// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Guests that come, go and change while the daemon runs, and its configuration file.

mod support;

use std::{
    fs,
    os::unix::net::{UnixListener, UnixStream},
};

use support::{key, kill, stat, tmemctl, wait_until, Daemon, Guest, Place};
use virtio_tmem_abi::{pool_flags, PageResult, Status};

const DATA: usize = 2;

/// A daemon with a file in which there are these guests.
struct Running {
    place: Place,
    daemon: Daemon,
}

impl Running {
    fn start(guests: &[&str], more: &[&str]) -> Self {
        let place = Place::new();
        write(&place, guests, "");
        let (file, dir) = (place.arg("tmem.toml"), place.arg(""));
        let args = ["--config", &file, "--socket-dir", dir.trim_end_matches('/')];
        let mut daemon = Daemon::start(&[&args, more].concat());
        daemon.wait_for("waiting for operators");
        Self { place, daemon }
    }

    /// Writes the file anew.
    fn write(&self, guests: &[&str], more: &str) {
        write(&self.place, guests, more);
    }

    fn tmemctl(&self, args: &[&str]) -> (bool, String) {
        let control = self.place.arg("control.sock");
        tmemctl(&[&["--control-path", &control], args].concat())
    }

    fn ok(&self, args: &[&str]) -> String {
        let (success, said) = self.tmemctl(args);
        assert!(success, "{args:?}: {said}");
        said
    }

    fn refused(&self, args: &[&str], words: &[&str]) {
        let before = self.names();
        let (success, said) = self.tmemctl(args);
        assert!(!success, "{args:?}: {said}");
        for word in words {
            assert!(said.contains(word), "{word}: {said}");
        }
        assert_eq!(self.names(), before);
    }

    fn stat(&self) -> serde_json::Value {
        stat(&self.place.path("control.sock"))
    }

    fn names(&self) -> Vec<String> {
        let stat = self.stat();
        let guests = stat["guests"].as_array().unwrap().iter();
        guests
            .map(|guest| guest["name"].as_str().unwrap().to_owned())
            .collect()
    }

    fn connect(&self, name: &str) -> Guest {
        Guest::connect(&self.place.path(&format!("{name}.sock")))
    }

    fn kill_worker(&mut self) {
        kill(self.daemon.worker(), libc::SIGKILL);
        self.daemon.wait_for("a new worker has taken over");
    }
}

fn write(place: &Place, guests: &[&str], more: &str) {
    let control = place.arg("control.sock");
    let mut text = format!("capacity = \"8MiB\"\ncontrol-path = {control:?}\n{more}\n");
    for name in guests {
        let socket = place.arg(&format!("{name}.sock"));
        text += &format!("[guests.{name}]\nsocket = {socket:?}\n");
    }
    // As editors do.
    fs::write(place.path("new"), text).unwrap();
    fs::rename(place.path("new"), place.path("tmem.toml")).unwrap();
}

/// Puts pages, and checks that they are there.
fn put(guest: &mut Guest, pages: u64) {
    assert_eq!(guest.create_pool(0, pool_flags::PERSISTENT), Status::Ok);
    for index in 0..pages {
        let put = guest.put(DATA, 0, &[(key(1, index, 1), index as u8)]);
        assert_eq!(put.results(), [PageResult::Stored]);
    }
    check(guest, pages);
}

fn check(guest: &mut Guest, pages: u64) {
    for index in 0..pages {
        let got = guest.get(DATA, 0, 0, &[key(1, index, 1)]);
        assert_eq!(got.results(), [PageResult::Hit]);
        assert_eq!(got.page(0), [index as u8; 4096]);
    }
}

#[test]
fn a_file_says_what_guests_there_are_and_is_read_again() {
    let mut it = Running::start(&["a", "b"], &[]);
    assert_eq!(it.names(), ["a", "b"]);
    let mut a = it.connect("a");
    put(&mut a, 20);
    it.write(&["a", "c"], "abandoned-after = 60");
    let said = it.ok(&["reload"]);
    for words in ["\"b\" removed", "\"c\" added on", "abandoned-after changed"] {
        assert!(said.contains(words), "{said}");
    }
    wait_until("b is gone", || it.names() == ["a", "c"]);
    assert!(!it.place.path("b.sock").exists() && !it.place.path("b.sock.lock").exists());
    // The new one is served, and the old one knows of nothing.
    let mut c = it.connect("c");
    put(&mut c, 20);
    check(&mut a, 20);
    it.kill_worker();
    assert_eq!(it.names(), ["a", "c"]);
    check(&mut c, 20);
    check(&mut a, 20);
    assert!(it.ok(&["reload"]).contains("nothing has changed"));
    // By a signal, too.
    it.write(&["a", "b", "c"], "");
    it.daemon.signal(libc::SIGHUP);
    it.daemon.wait_for("guest \"b\" added");
    put(&mut it.connect("b"), 5);
    it.daemon.signal(libc::SIGUSR2);
    it.daemon.wait_for("upgraded");
    check(&mut c, 20);
    assert_eq!(it.names().len(), 3);
}

#[test]
fn what_is_wrong_changes_nothing() {
    let mut it = Running::start(&["a"], &[]);
    let mut a = it.connect("a");
    put(&mut a, 5);
    let file = it.place.arg("tmem.toml");
    it.write(&["a", "b"], "threads = 7\ncapasity = 1");
    it.refused(&["reload"], &[&format!("{file}:4: capasity"), "capacity?"]);
    it.write(&["a", "b"], "threads = 7");
    let line = format!("{file}:3: threads is another one");
    it.refused(&["reload"], &[&line, "start the daemon anew"]);
    it.write(&[], "");
    let words = [
        "guests.a.socket is gone from there",
        "is connected",
        "--force",
    ];
    it.refused(&["reload"], &words);
    // One of two cannot be listened on.
    let _other = UnixListener::bind(it.place.path("c.sock")).unwrap();
    it.write(&["a", "b", "c"], "");
    it.refused(
        &["reload"],
        &["guest \"c\":", "another daemon is listening"],
    );
    assert!(!it.place.path("b.sock").exists());
    fs::write(it.place.path("tmem.toml"), "[guests.a]\n[guests.a]\n").unwrap();
    it.refused(&["reload"], &[&format!("{file}:2: this is no TOML")]);
    it.daemon.signal(libc::SIGHUP);
    it.daemon.wait_for("nothing has changed, for this is wrong");
    fs::remove_file(it.place.path("tmem.toml")).unwrap();
    it.refused(&["reload"], &[&file, "cannot be read"]);
    check(&mut a, 5);
    assert_eq!(it.names(), ["a"]);
}

#[test]
fn tmemctl_adds_removes_and_renames() {
    let mut it = Running::start(&["a"], &[]);
    let socket = it.place.arg("b.sock");
    it.ok(&["guest", "add", "b", "--socket", &socket]);
    let mut b = it.connect("b");
    put(&mut b, 30);
    it.kill_worker();
    check(&mut b, 30);
    // Not what there is, nor elsewhere.
    it.refused(&["guest", "add", "b", "--socket", "/x"], &["already"]);
    it.refused(
        &["guest", "add", "c", "--socket", &socket],
        &["guest \"b\" as well"],
    );
    let elsewhere = ["guest", "add", "c", "--socket", "/elsewhere/c"];
    it.refused(&elsewhere, &["in none of the directories", "--socket-dir"]);
    it.refused(&["guest", "remove", "c"], &["none of that name", "a, b"]);
    it.refused(&["guest", "remove", "b"], &["is connected", "--force"]);
    let window = [
        "guest",
        "add",
        "c",
        "--socket",
        &it.place.arg("c"),
        "--window-size",
        "1",
    ];
    it.refused(&window, &["\"1\" is no size of a window"]);
    // It keeps its pages under another name.
    it.ok(&["guest", "rename", "b", "web"]);
    wait_until("it has another name", || it.names() == ["a", "web"]);
    check(&mut b, 30);
    it.kill_worker();
    assert_eq!(it.names(), ["a", "web"]);
    check(&mut b, 30);
    // A reload leaves it alone.
    it.ok(&["reload"]);
    let used = |it: &Running| it.stat()["used_pages"].as_u64().unwrap();
    assert_eq!(used(&it), 30);
    it.ok(&["guest", "remove", "web", "--force"]);
    wait_until("its pages are gone", || {
        used(&it) == 0 && it.names() == ["a"]
    });
    assert!(UnixStream::connect(&socket).is_err());
    it.kill_worker();
    assert_eq!((it.names(), used(&it)), (vec!["a".to_owned()], 0));
    // One of the file's stays off, until it is added again.
    it.ok(&["guest", "remove", "a"]);
    it.ok(&["reload"]);
    wait_until("there is none", || it.names().is_empty());
    it.ok(&["guest", "add", "a", "--socket", &it.place.arg("a.sock")]);
    put(&mut it.connect("a"), 3);
}

#[test]
fn the_log_says_more_when_it_is_told_to() {
    let mut it = Running::start(&["a"], &[]);
    it.write(&["a"], "log-level = \"debug\"");
    assert!(it.ok(&["reload"]).contains("log-level changed"));
    // The worker that there is, the supervisor, and the next worker.
    it.stat();
    it.daemon.wait_for("an operator says");
    kill(it.daemon.worker(), libc::SIGKILL);
    it.daemon.wait_for("worker 2 serves");
    it.stat();
    it.daemon.wait_for("an operator says");
    it.write(&["a"], "");
    it.ok(&["reload"]);
    // What the worker is told after that it does after that.
    it.daemon.signal(libc::SIGUSR1);
    it.daemon.wait_for("0 of 1 guests connected");
    it.stat();
    it.daemon.stop();
    let told = it.daemon.whole_log();
    let after = told.rsplit("guests connected").next().unwrap();
    assert!(!after.contains("DEBUG"), "{after}");
}

#[test]
fn guests_may_change_places() {
    let it = Running::start(&["a", "b"], &[]);
    let mut a = it.connect("a");
    put(&mut a, 3);
    let control = it.place.arg("control.sock");
    let (one, other) = (it.place.arg("a.sock"), it.place.arg("b.sock"));
    let text = format!(
        "capacity = \"8MiB\"\ncontrol-path = {control:?}\n\
         guests.a.socket = {other:?}\nguests.c.socket = {one:?}"
    );
    fs::write(it.place.path("tmem.toml"), text).unwrap();
    it.ok(&["reload"]);
    // Who is connected stays so, and who comes is somebody else.
    check(&mut a, 3);
    let mut c = it.connect("a");
    put(&mut c, 4);
    wait_until("b is gone", || it.names() == ["a", "c"]);
    let stat = it.stat();
    assert_eq!(stat["guests"][1]["pools"][0]["pages"], 4, "{stat}");
    let (_, said) = it.tmemctl(&["stat", "--control-path", &one]);
    assert!(said.contains("is the socket of guest \"c\""), "{said}");
}

#[test]
fn reloads_come_while_workers_die() {
    let mut it = Running::start(&["a"], &[]);
    let mut a = it.connect("a");
    put(&mut a, 20);
    for round in 0..12 {
        let guests: &[&str] = if round % 2 == 0 { &["a", "b"] } else { &["a"] };
        it.write(guests, "");
        it.daemon.signal(libc::SIGHUP);
        kill(it.daemon.worker(), libc::SIGKILL);
        it.daemon.wait_for("a new worker has taken over");
        let names = guests.iter().map(|name| (*name).to_owned());
        let names: Vec<_> = names.collect();
        wait_until("it is as the file says", || it.names() == names);
        check(&mut a, 20);
        if round % 2 == 0 {
            put(&mut it.connect("b"), 2);
        }
        wait_until("the memory is back", || it.stat()["used_pages"] == 20);
    }
    for round in 0..100 {
        it.write(if round % 2 == 0 { &["a"] } else { &["a", "b"] }, "");
        it.daemon.signal(libc::SIGHUP);
    }
    it.ok(&["reload"]);
    wait_until("both are there", || it.names() == ["a", "b"]);
    put(&mut it.connect("b"), 2);
    check(&mut a, 20);
}

#[test]
fn without_a_file_there_is_nothing_to_read_again() {
    let place = Place::new();
    let (socket, control) = (place.arg("a.sock"), place.arg("control.sock"));
    let args = ["-s", &socket, "-c", "8MiB", "--control-path", &control];
    let mut daemon = Daemon::start(&args);
    daemon.wait_for("waiting for operators");
    let it = Running { place, daemon };
    it.refused(&["reload"], &["nothing to read again", "--config"]);
    it.ok(&["guest", "add", "b", "--socket", &it.place.arg("b.sock")]);
    put(&mut it.connect("b"), 3);
}

#[test]
fn a_configuration_is_checked_without_being_used() {
    let place = Place::new();
    write(&place, &["a"], "");
    let file = place.arg("tmem.toml");
    let check = || {
        let output = Daemon::command(&["--config", &file, "--check-config"]).output();
        let output = output.unwrap();
        let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        (output.status.success(), said)
    };
    let (success, said) = check();
    assert!(success && said.contains("with 1 guests"), "{said}");
    assert!(!place.path("a.sock").exists());
    write(&place, &["a"], "thread = 1");
    let (success, said) = check();
    assert!(!success, "{said}");
    let words = format!("{file}:3: thread is no key; did you mean threads or shared?");
    assert!(said.contains(&words), "{said}");
}

#[test]
fn guests_come_and_go_with_their_files() {
    let place = Place::new();
    fs::create_dir(place.path("guests")).unwrap();
    let file = |name: &str| place.path(&format!("guests/{name}.toml"));
    let text = |name: &str| format!("socket = {:?}", place.arg(&format!("{name}.sock")));
    fs::write(file("a"), text("a")).unwrap();
    fs::write(file("bad"), "socket = ").unwrap();
    let (control, guests) = (place.arg("control.sock"), place.arg("guests"));
    let args = [
        "-c",
        "8MiB",
        "--control-path",
        &control,
        "--guests-dir",
        &guests,
    ];
    let mut daemon = Daemon::start(&args);
    let line = daemon.wait_for("until its file is mended");
    assert!(line.contains("bad.toml:1: this is no TOML"), "{line}");
    daemon.wait_for("waiting for operators");
    let mut a = Guest::connect(&place.path("a.sock"));
    put(&mut a, 5);
    fs::write(file("bad"), text("bad")).unwrap();
    daemon.wait_for("guest \"bad\" added");
    put(&mut Guest::connect(&place.path("bad.sock")), 5);
    // One that is wrong stays as it is, and the others do not.
    fs::write(file("a"), "socket = 5").unwrap();
    let line = daemon.wait_for("stays as it is");
    assert!(line.contains("a.toml:1: socket cannot be so"), "{line}");
    fs::write(file("c"), text("a")).unwrap();
    let line = daemon.wait_for("guest \"c\" stays as it is");
    assert!(line.contains("c.toml:1: socket is"), "{line}");
    fs::write(place.path("new"), text("c")).unwrap();
    fs::rename(place.path("new"), file("c")).unwrap();
    daemon.wait_for("guest \"c\" added");
    fs::remove_file(file("bad")).unwrap();
    daemon.wait_for("guest \"bad\" removed");
    fs::remove_file(file("a")).unwrap();
    let line = daemon.wait_for("guest \"a\" stays as it is");
    assert!(line.contains("is connected"), "{line}");
    check(&mut a, 5);
    kill(daemon.worker(), libc::SIGKILL);
    daemon.wait_for("a new worker has taken over");
    check(&mut a, 5);
    put(&mut Guest::connect(&place.path("c.sock")), 5);
}

#[test]
fn a_window_comes_and_goes_with_its_guest() {
    let windows = tempfile::tempdir_in("/dev/shm").unwrap();
    let dir = windows.path().to_str().unwrap();
    let mut it = Running::start(&["a"], &["--window-dir", dir]);
    let socket = it.place.arg("b.sock");
    let add = [
        "guest",
        "add",
        "b",
        "--socket",
        &socket,
        "--window-size",
        "8MiB",
    ];
    it.ok(&add);
    let window = |name: &str| windows.path().join(format!("{name}.window")).exists();
    assert!(window("b") && !window("a"));
    let mut b = it.connect("b");
    put(&mut b, 3);
    let has_window = |it: &Running| it.stat()["guests"][1]["window"]["bytes"] == 8 << 20;
    assert!(has_window(&it));
    it.kill_worker();
    wait_until("the next worker has it", || has_window(&it));
    it.ok(&["guest", "rename", "b", "c"]);
    assert!(window("c") && !window("b"));
    it.ok(&["guest", "remove", "c", "--force"]);
    wait_until("it is gone", || it.names() == ["a"]);
    assert!(!window("c"));
    it.ok(&add);
    put(&mut it.connect("b"), 3);
}
