// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What tmemctl prints, and how it ends.

mod support;

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixListener,
    process::{Command, Stdio},
};

use clap::{CommandFactory, ValueEnum};
use serde_json::Value;
use support::{key, tmemctl_command, Daemon, Guest, Place, Said};
use vhost_device_tmem::args::Args;
use virtio_tmem_abi::pool_flags;

const DATA: usize = 2;

/// Two guests, of which one is there with three persistent pages, two of which it got back.
struct Operated {
    place: Place,
    _daemon: Daemon,
    _guest: Guest,
}

impl Operated {
    fn new() -> Self {
        let place = Place::new();
        let (web, db) = (place.arg("web.sock"), place.arg("db.sock"));
        let control = place.arg("control.sock");
        let sockets = ["-s", &web, "-s", &db, "--control-path", &control];
        let mut daemon = Daemon::start(&[&["-c", "8MiB"][..], &sockets].concat());
        daemon.wait_for("waiting for operators");
        let mut guest = Guest::connect(&place.path("web.sock"));
        guest.create_pool(0, pool_flags::PERSISTENT);
        let keys = [0, 1, 2].map(|index| key(1, index, 1));
        guest.put(DATA, 0, &keys.map(|key| (key, 7)));
        guest.get(DATA, 0, 0, &keys[..2]);
        Self {
            place,
            _daemon: daemon,
            _guest: guest,
        }
    }

    fn run(&self, args: &[&str]) -> Said {
        Said::by(tmemctl_command(args).env("TMEMCTL_CONTROL_PATH", self.place.path("control.sock")))
    }
}

#[test]
fn guests_are_listed_one_a_line() {
    let operated = Operated::new();
    let said = operated.run(&["list"]);
    assert_eq!(said.code, 0, "{said:?}");
    // Memory, share, pages of swap and of files, put, refused, got, hit.
    let web = said.words("web");
    assert_eq!(web[1], "connected");
    assert_eq!(web[3..], ["100.0", "3", "0", "3", "0.0", "2", "100.0"]);
    let db = said.words("db");
    assert_eq!(
        db[1..],
        [
            "never",
            "connected",
            "0.0",
            "0.0",
            "0",
            "0",
            "0",
            "-",
            "0",
            "-"
        ]
    );
    // Heads, units, guests.
    assert_eq!(said.out.lines().count(), 4, "{}", said.out);

    let listed = operated.run(&["list", "--json"]).json();
    assert_eq!(listed[0]["name"], "web");
    assert_eq!(listed[0]["state"], "connected");
    assert_eq!(listed[0]["puts"], 3);
    assert_eq!(listed[0]["hit_rate"], 1.0);
    assert_eq!(listed[1]["state"], "never-connected");
    assert_eq!(listed[1]["hit_rate"], Value::Null);
}

#[test]
fn statistics_are_of_all_guests_or_of_one() {
    let operated = Operated::new();
    let all = operated.run(&["stat"]);
    assert_eq!(all.code, 0, "{all:?}");
    assert!(all.out.contains("CAPACITY") && all.out.contains("\ndb "));
    let one = operated.run(&["stat", "web"]);
    assert_eq!(one.code, 0, "{one:?}");
    assert!(!one.out.contains("\ndb ") && one.out.contains("\nweb "));
    let names = |args: &[&str]| {
        let stat = operated.run(args).json();
        assert_eq!(stat["version"], 1);
        let guests = stat["guests"].as_array().unwrap();
        let names = guests.iter().map(|guest| guest["name"].as_str().unwrap());
        names.map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(names(&["stat", "--json"]), ["web", "db"]);
    assert_eq!(names(&["stat", "db", "--json"]), ["db"]);
}

#[test]
fn the_exit_code_says_what_went_wrong() {
    let operated = Operated::new();
    let place = &operated.place;
    // The daemon refuses: guests would lose pages.
    let refused = operated.run(&["stop"]);
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(refused.err.contains("3 persistent pages"), "{refused:?}");
    let usage = operated.run(&["statt"]);
    assert_eq!(usage.code, 2, "{usage:?}");
    let missing = place.arg("missing.sock");
    let unreachable = operated.run(&["list", "--control-path", &missing]);
    assert_eq!(unreachable.code, 3, "{unreachable:?}");
    let unknown = operated.run(&["stat", "mail"]);
    assert_eq!(unknown.code, 5, "{unknown:?}");
    assert_eq!(
        unknown.err,
        "tmemctl: no guest is named \"mail\"; there are: web, db\n"
    );
    let full = File::options().write(true).open("/dev/full").unwrap();
    let mut command = tmemctl_command(&["--control-path", &place.arg("control.sock"), "list"]);
    let unprinted = command.stdout(full).stderr(Stdio::null()).status();
    assert_eq!(unprinted.unwrap().code(), Some(6));
}

#[test]
fn answers_that_are_none_are_told_apart() {
    let place = Place::new();
    let listener = UnixListener::bind(place.path("strange.sock")).unwrap();
    let answers = [
        "nonsense",
        r#"{"reply":"done","version":1,"message":"stopping"}"#,
    ];
    let answering = std::thread::spawn(move || {
        for answer in answers {
            let (mut stream, _) = listener.accept().unwrap();
            BufReader::new(&stream)
                .read_line(&mut String::new())
                .unwrap();
            writeln!(stream, "{answer}").unwrap();
        }
    });
    for _ in answers {
        let said = Said::by(&mut tmemctl_command(&[
            "list",
            "--control-path",
            &place.arg("strange.sock"),
        ]));
        assert_eq!(said.code, 4, "{said:?}");
    }
    answering.join().unwrap();
}

#[test]
fn errors_are_json_where_answers_would_be() {
    let operated = Operated::new();
    let codes = [(&["stop", "--json"][..], 1), (&["stat", "x", "--json"], 5)];
    for (args, code) in codes {
        let said = operated.run(args);
        assert_eq!((said.code, &*said.out), (code, ""), "{said:?}");
        let error: Value = serde_json::from_str(&said.err).unwrap();
        assert_eq!(error["error"]["code"], code);
        assert!(!error["error"]["message"].as_str().unwrap().is_empty());
    }
    let done = operated.run(&["upgrade", "--json"]).json();
    assert_eq!(
        (&done["reply"], &done["version"]),
        (&"done".into(), &1.into())
    );
}

#[test]
fn the_path_is_where_the_documentation_has_it() {
    let place = Place::new();
    let path = place.arg("nobody.sock");
    let said = Said::by(tmemctl_command(&["list"]).env("TMEMCTL_CONTROL_PATH", &path));
    assert!(said.err.contains(&path), "{said:?}");
    // What is given counts more than what is in the environment.
    let other = place.arg("other.sock");
    for args in [
        ["--control-path", &other, "list"],
        ["list", "--control-path", &other],
    ] {
        let said = Said::by(tmemctl_command(&args).env("TMEMCTL_CONTROL_PATH", &path));
        assert!(said.err.contains(&other), "{said:?}");
    }
    let help = Said::by(&mut tmemctl_command(&["--help"])).out;
    let readme = include_str!("../README.md");
    for text in [
        vhost_device_tmem::control::DEFAULT_PATH,
        "TMEMCTL_CONTROL_PATH",
    ] {
        assert!(help.contains(text), "{text}: {help}");
        assert!(readme.contains(text), "{text}");
    }
}

#[test]
fn exit_codes_are_documented() {
    let help = Said::by(&mut tmemctl_command(&["--help"])).out;
    let (_, codes) = help.split_once("Exit codes:\n").expect("they are in help");
    let readme = include_str!("../README.md");
    for line in codes.lines() {
        let (code, meaning) = line.trim().split_once("  ").unwrap();
        let row = format!("| {code} | {meaning} |");
        assert!(readme.contains(&row), "README.md has no {row:?}");
    }
    assert_eq!(codes.lines().count(), 9);
}

#[test]
fn shells_complete_what_there_is() {
    let said = |args: &[&str]| {
        let said = Said::by(&mut tmemctl_command(args));
        assert_eq!((said.code, &*said.err), (0, ""), "{args:?}");
        said.out
    };
    let programs = [
        ("tmemctl", "upgrade", "--control-path"),
        ("vhost-device-tmem", "--capacity", "--metrics-listen"),
    ];
    for shell in clap_complete::Shell::value_variants() {
        let shell = shell.to_string();
        for (program, one, other) in programs {
            let script = said(&["completions", &shell, "--of", program]);
            // One of them knows options without what they begin with.
            for word in [one, other].map(|word| word.trim_start_matches('-')) {
                assert!(script.contains(word), "{shell} does not know {word}");
            }
        }
    }
    // It is a script.
    let mut checked = Command::new("bash");
    let mut checked = checked.arg("-n").stdin(Stdio::piped()).spawn().unwrap();
    let script = said(&["completions", "bash"]);
    let mut stdin = checked.stdin.take().unwrap();
    stdin.write_all(script.as_bytes()).unwrap();
    drop(stdin);
    assert!(checked.wait().unwrap().success());
}

/// The options of a command that are meant to be known.
fn options(command: &clap::Command) -> Vec<String> {
    let known = command.get_arguments().filter(|arg| !arg.is_hide_set());
    let long = known.filter_map(|arg| arg.get_long());
    long.map(|name| format!("--{name}")).collect()
}

#[test]
fn the_manual_explains_every_option() {
    let place = Place::new();
    let said = Said::by(&mut tmemctl_command(&["man", &place.arg("man")]));
    assert_eq!((said.code, &*said.out, &*said.err), (0, "", ""));
    let read = |name: &str| {
        let page = fs::read_to_string(place.path("man").join(name)).unwrap();
        // Dashes are not what breaks a line.
        page.replace("\\-", "-")
    };
    let daemon = Args::command();
    let (page, readme) = (read("vhost-device-tmem.8"), include_str!("../README.md"));
    for option in options(&daemon) {
        assert!(page.contains(&option), "the page has no {option}");
        assert!(readme.contains(&option), "README.md has no {option}");
    }
    assert!(page.contains(vhost_device_tmem::control::DEFAULT_PATH));
    let page = read("tmemctl.8");
    assert!(page.contains("--control-path") && page.contains("the daemon refused"));
    for command in [
        "list",
        "stat",
        "top",
        "balance",
        "stop",
        "upgrade",
        "reload",
        "guest",
        "set",
        "freeze",
        "thaw",
        "flush",
        "freeable",
        "destroy",
        "epoch",
        "save",
        "restore",
        "completions",
        "man",
    ] {
        let own = read(&format!("tmemctl-{command}.8"));
        assert!(
            own.contains(&format!("tmemctl {command}"))
                || own.contains(&format!("tmemctl-{command}"))
        );
        assert!(page.contains(&format!("tmemctl-{command}(8)")), "{page}");
        assert!(readme.contains(&format!("| `{command}")), "{command}");
    }
    assert!(read("tmemctl-top.8").contains("--interval"));
    // Nobody is meant to know what is for tests.
    assert!(!read("tmemctl-top.8").contains("fault-panic"));
    let file = place.arg("man/tmemctl.8");
    let said = Said::by(&mut tmemctl_command(&["man", &file]));
    assert_eq!(said.code, 6, "{said:?}");
}
