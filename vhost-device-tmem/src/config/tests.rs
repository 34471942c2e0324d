// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::path::Path;

use clap::Parser;
use proptest::prelude::*;

use super::*;
use crate::{
    args::{Args, Config, GuestConfig},
    limits::{Memory, MemoryOf},
    store::Compression,
    window::WindowSource,
};

mod plans;
mod shared;
mod terms;

const MEMORY: u64 = 8 << 30;

fn memory() -> Memory {
    Memory {
        bytes: MEMORY,
        of: MemoryOf::Host,
    }
}

fn sources(args: &[&str], file: Option<&str>) -> Sources {
    let args = [&["vhost-device-tmem"], args].concat();
    let file = file.map(|text| File::parse(Path::new("t.toml"), text).unwrap());
    Sources {
        args: Args::try_parse_from(args).unwrap(),
        file,
        ..Sources::default()
    }
}

fn config(args: &[&str]) -> Result<Config, String> {
    let config = sources(args, None).config(&memory());
    config.map_err(|problems| problems.to_string())
}

fn of_file(args: &[&str], text: &str) -> Result<Config, String> {
    let config = sources(args, Some(text)).config(&memory());
    config.map_err(|problems| problems.to_string())
}

fn wrong(text: &str) -> String {
    match File::parse(Path::new("t.toml"), text) {
        Ok(_) => of_file(&[], text).unwrap_err(),
        Err(problems) => problems.to_string(),
    }
}

fn guest(name: &str, path: &str, window: Option<u64>) -> GuestConfig {
    GuestConfig {
        name: name.to_owned(),
        path: path.into(),
        window,
        terms: GivenTerms::default(),
    }
}

#[test]
fn the_capacity_is_what_the_host_can_give() {
    let with = |capacity| config(&["-s", "/run/a.sock", "-c", capacity]);
    assert_eq!(with("8GiB").unwrap().capacity, MEMORY);
    assert_eq!(with("1.5GiB").unwrap().capacity, 3 << 29);
    for (capacity, words) in [
        ("0", "--capacity \"0\" is too small; give at least 1MiB"),
        ("1023KiB", "too small"),
        ("many", "--capacity \"many\" is no size"),
        (
            "8589934593",
            "is 8589934593 bytes, more than this host's memory of 8589934592 bytes",
        ),
    ] {
        let problem = with(capacity).unwrap_err();
        assert!(problem.contains(words), "{problem}");
    }
    let of = MemoryOf::ControlGroup("/sys/memory.max".into());
    let memory = Memory { bytes: MEMORY, of };
    let sources = sources(&["-s", "a", "-c", "9GiB"], None);
    let problem = sources.config(&memory).unwrap_err().to_string();
    let words = "8589934592 bytes that /sys/memory.max lets";
    assert!(problem.contains(words), "{problem}");
    let problem = config(&["-s", "a"]).unwrap_err();
    assert!(problem.starts_with("--capacity is missing"), "{problem}");
}

#[test]
fn a_socket_is_open_to_its_group_where_there_is_one() {
    let mode = |more: &[&str]| {
        let args = [&["-s", "a", "-c", "1GiB"], more].concat();
        config(&args).unwrap().socket_mode
    };
    assert_eq!(mode(&[]), 0o600);
    assert_eq!(mode(&["--socket-group", "kvm"]), 0o660);
    assert_eq!(
        mode(&["--socket-group", "kvm", "--socket-mode", "666"]),
        0o666
    );
}

#[test]
fn guests_have_names_and_sockets_of_their_own() {
    let with = |paths: &[&str]| {
        let mut args = vec!["-c", "1GiB", "--control-path", "/run/control.sock"];
        args.extend(paths.iter().flat_map(|path| ["--socket-path", path]));
        config(&args).map(|config| config.guests)
    };
    assert_eq!(
        with(&["/run/a.sock", "web=/run/b=c.sock", "/run/x=y/d.sock", "e"]),
        Ok(vec![
            guest("a", "/run/a.sock", None),
            guest("web", "/run/b=c.sock", None),
            guest("d", "/run/x=y/d.sock", None),
            guest("e", "e", None),
        ])
    );
    let refused: [(&[&str], &str); 7] = [
        (
            &["we/b=/run/b"],
            "--socket-path \"we/b=/run/b\" gives the guest the name \"we/b\"",
        ),
        (&["a="], "--socket-path \"a=\" has no path"),
        (&[""], "has no path"),
        (&["=/run/a"], "gives no name for the guest"),
        (
            &["/run/a", "/tmp/a"],
            "--socket-path \"/tmp/a\" names a guest \"a\", and so does another",
        ),
        (
            &["a=/run/a", "b=/run/a"],
            "--socket-path \"b=/run/a\" is /run/a, which is the socket of guest \"a\" as well",
        ),
        (&["/run/control.sock"], "the socket of operators as well"),
    ];
    for (paths, words) in refused {
        let problem = with(paths).unwrap_err();
        assert!(problem.contains(words), "{problem}");
    }
    // There may be none where some can come.
    assert!(config(&["-c", "1G"])
        .unwrap_err()
        .contains("there is no guest"));
    config(&["-c", "1G", "--socket-dir", "/run"]).unwrap();
    of_file(&["-c", "1G"], "").unwrap();
}

#[test]
fn pages_are_compressed_where_there_are_windows_or_it_is_asked_for() {
    let compression = |more: &[&str]| {
        let args = [&["-c", "1GiB", "-s", "a=/run/a"], more].concat();
        config(&args).map(|config| config.compression)
    };
    let windows = ["--window-dir", "/dev/shm", "--window-size", "8MiB"];
    assert_eq!(compression(&[]), Ok(Compression::None));
    assert_eq!(compression(&windows), Ok(Compression::Lz4));
    let asked = ["--compression", "none"];
    assert_eq!(
        compression(&[&windows[..], &asked].concat()),
        Ok(Compression::None)
    );
    assert_eq!(
        compression(&["--compression", "zstd"]),
        Ok(Compression::Zstd)
    );
}

#[test]
fn a_window_is_that_of_its_guest_or_of_all_that_are_not_named() {
    let with = |sizes: &[&str]| {
        let mut args = vec!["-c", "1GiB", "-s", "a=/run/a", "-s", "b=/run/b"];
        args.extend(["--window-dir", "/dev/shm"]);
        args.extend(sizes.iter().flat_map(|size| ["--window-size", size]));
        let guests = config(&args)?.guests;
        Ok::<_, String>(guests.iter().map(|guest| guest.window).collect::<Vec<_>>())
    };
    assert_eq!(with(&["b=8MiB"]), Ok(vec![None, Some(8 << 20)]));
    assert_eq!(with(&["4GiB"]), Ok(vec![Some(4 << 30); 2]));
    assert_eq!(
        with(&["a=16MiB", "4GiB"]),
        Ok(vec![Some(16 << 20), Some(4 << 30)])
    );
    for size in ["3MiB", "12MiB", "4MiB", "512GiB", "", "b=", "much"] {
        let problem = with(&[size]).unwrap_err();
        assert!(problem.contains("is no size of a window"), "{problem}");
    }
    let problem = with(&["c=8MiB"]).unwrap_err();
    assert!(problem.contains("names no guest"), "{problem}");
    for again in ["16MiB", "a=16MiB"] {
        let problem = with(&[&again.replace("16", "8"), again]).unwrap_err();
        assert!(problem.contains("given already"), "{problem}");
    }
    let problem = config(&["-c", "1G", "-s", "a", "--window-size", "8MiB"]).unwrap_err();
    assert!(problem.contains("without --window-dir"), "{problem}");
}

#[test]
fn numbers_out_of_range_are_refused() {
    let bad = [
        ["--data-queues", "0"],
        ["--data-queues", "63"],
        ["--fault-refuse-percent", "101"],
        ["--fault-forget-percent", "-1"],
        ["--poll-us", "-1"],
        ["--log-level", "loud"],
        ["--compression", "lzo"],
        ["--huge-pages", "maybe"],
        ["--socket-mode", "0680"],
        ["--socket-mode", "1777"],
        ["--oom-score-adj", "-1001"],
        ["--sandbox", "off"],
    ];
    for [option, value] in bad {
        let args = ["vhost-device-tmem", "-s", "a", "-c", "1G", option, value];
        assert!(Args::try_parse_from(args).is_err(), "{option} {value}");
        // As a number, and as text.
        for value in [value.to_owned(), format!("{value:?}")] {
            let text = format!("\ncapacity = \"1G\"\n{} = {value}\n", &option[2..]);
            let problem = wrong(&text);
            let place = format!("t.toml:3: {} ", &option[2..]);
            let none = problem.starts_with("t.toml:3: this is no TOML");
            assert!(problem.starts_with(&place) || none, "{problem}");
        }
    }
}

/// All that there is, with other values than those that are so anyway.
const ALL: &str = r#"
capacity = "2GiB"
compression = "zstd"
huge-pages = "off"
lock-memory = true
check-contents = true
window-dir = "/dev/shm"
window-source = "virtio"
guests-dir = "/etc/tmem/guests"
window-size = "8MiB"
tier-file = "/var/lib/tmem/spill"
tier-size = "64GiB"
control-path = "/run/control.sock"
metrics-listen = "127.0.0.1:9752"
socket-dir = ["/run/tmem", "/run/more"]
threads = 3
pressure = "host"
socket-mode = "0640"
socket-group = "kvm"
control-group = "wheel"
user = "tmem"
group = "tmem"
sandbox = "none"
oom-score-adj = -7
stop-loses-pages = true
abandoned-after = 60
data-queues = 4
poll-us = 7
log-level = "debug"
remove-connected = true
fault-refuse-percent = 1
fault-forget-percent = 2
fault-take-chunks = 3
fault-pressure = "/tmp"
fault-crash-guest = "x"
fault-hang-guest = "y"

[guests.web]
socket = "/run/tmem/web.sock"

[guests."data base"]
socket = "/run/tmem/db.sock"
window-size = "1GiB"
"#;

#[test]
fn a_file_can_say_all_that_the_command_line_can() {
    let config = of_file(&[], ALL).unwrap();
    assert_eq!(
        config.guests,
        [
            guest("data base", "/run/tmem/db.sock", Some(1 << 30)),
            guest("web", "/run/tmem/web.sock", Some(8 << 20)),
        ]
    );
    assert!(config.lock_memory && config.stop_loses_pages && config.remove_connected);
    assert_eq!((config.socket_mode, config.threads), (0o640, 3));
    assert_eq!(config.window_source, WindowSource::Virtio);
    let metrics = config.metrics_listen.map(|address| address.to_string());
    assert_eq!(metrics.as_deref(), Some("127.0.0.1:9752"));
    // Each option that the command line has is there, and no other.
    use clap::CommandFactory;
    let command = Args::command();
    let options = command.get_arguments().filter_map(|arg| arg.get_long());
    let of_command_line = ["config", "check-config", "socket-path", "help", "version"];
    for option in options.filter(|option| !of_command_line.contains(option)) {
        let line = format!("\n{option} = ");
        assert!(ALL.contains(&line), "{option} is missing");
    }
}

#[test]
fn metrics_have_a_socket_of_their_own() {
    let with = |address: &str| {
        let control = "control-path = \"/run/c.sock\"";
        let file = format!("capacity = \"1GiB\"\n{control}\nmetrics-listen = \"{address}\"\n");
        of_file(&[], &(file + "[guests.a]\nsocket = \"/run/a.sock\"\n"))
    };
    assert!(with("/run/m.sock").is_ok());
    let problem = with("/run/c.sock").unwrap_err();
    assert!(
        problem.contains(":3") && problem.contains("operators"),
        "{problem}"
    );
    let problem = with("/run/a.sock").unwrap_err();
    assert!(problem.contains("socket of metrics"), "{problem}");
}

#[test]
fn the_command_line_comes_first() {
    let args = ["-c", "1GiB", "--lock-memory=false", "-s", "web=/run/tmem/w"];
    let config = of_file(&args, ALL).unwrap();
    assert_eq!((config.capacity, config.lock_memory), (1 << 30, false));
    let web = guest("web", "/run/tmem/w", Some(8 << 20));
    assert!(config.guests.contains(&web), "{:?}", config.guests);
    assert_eq!(config.guests.len(), 2);
    // What is wrong is where it was said.
    let problem = of_file(&["-c", "0"], ALL).unwrap_err();
    assert!(problem.starts_with("--capacity \"0\""), "{problem}");
    let problem = of_file(&["-s", "web="], ALL).unwrap_err();
    assert!(problem.starts_with("--socket-path \"web=\""), "{problem}");
}

#[test]
fn what_is_wrong_with_a_file_has_a_line_and_a_key() {
    let cases = [
        ("capacity = ", "t.toml:1: this is no TOML: "),
        (
            "\n\ncapasity = \"1G\"",
            "t.toml:3: capasity is no key; did you mean capacity?",
        ),
        (
            "x = 1",
            "t.toml:1: x is no key; the keys here are guests-dir, guests, ",
        ),
        (
            "capacity = 5",
            "t.toml:1: capacity cannot be so: invalid type: integer `5`",
        ),
        ("capacity = \"0\"", "t.toml:1: capacity \"0\" is too small"),
        ("threads = -1", "t.toml:1: threads cannot be so: "),
        (
            "threads = 1025\ncapacity = \"1G\"",
            "t.toml:1: threads 1025 is not in 0 to 1024",
        ),
        (
            "[guests.web]\nsocket = \"/a\"\nwindowsize = \"8MiB\"",
            "t.toml:3: guests.web.windowsize is no key; did you mean window-size?",
        ),
        (
            "capacity = \"1G\"\n[guests.web]",
            "t.toml:2: guests.web.socket is missing; give the path",
        ),
        (
            "capacity = \"1G\"\nguests.\"a/b\".socket = \"/a\"",
            "t.toml:2: guests.a/b.socket is of a guest named \"a/b\"",
        ),
        (
            "capacity = \"1G\"\n[guests.a]\nsocket=\"/a\"\n[guests.b]\nsocket=\"/a\"",
            "t.toml:5: guests.b.socket is /a, which is the socket of guest \"a\" as well",
        ),
        (
            "capacity = \"1G\"\n[guests.a]\nsocket=\"/a\"\n[guests.a]\nsocket=\"/b\"",
            "t.toml:4: this is no TOML: ",
        ),
        (
            "capacity = \"1G\"\n[guests.a]\nsocket=\"/a\"\nwindow-size=\"3MiB\"",
            "t.toml:4: guests.a.window-size \"3MiB\" is no size of a window",
        ),
        (
            "capacity = \"1G\"\n[guests.a]\nsocket=\"/a\"\nwindow-size=\"8MiB\"",
            "t.toml:4: guests.a.window-size is of no use without --window-dir",
        ),
    ];
    for (text, words) in cases {
        let problem = wrong(text);
        assert!(problem.starts_with(words), "{text}: {problem}");
    }
    // All of it at once.
    let problem = wrong("capacity = \"1G\"\ndata-queues = 99\nthreads = 2000\n[guests.a]");
    assert_eq!(problem.lines().count(), 3, "{problem}");
}

/// What the manual shows works.
#[test]
fn the_examples_of_the_manual_can_be_read() {
    let manual = include_str!("../../README.md");
    let mut count = 0;
    for block in manual.split("```toml\n").skip(1) {
        let text = block.split("```").next().unwrap();
        if text.starts_with("# web.toml") {
            let file = GuestFile::parse(Path::new("/etc/tmem/guests/web.toml"), text).unwrap();
            assert_eq!(file.name, "web");
        } else {
            of_file(&[], text).unwrap();
        }
        count += 1;
    }
    assert!(count > 0);
}

/// Text that is much like a configuration.
fn scraps() -> impl Strategy<Value = String> {
    let scrap = prop_oneof![
        Just("capacity"),
        Just("guests"),
        Just("web"),
        Just("socket"),
        Just("window-size"),
        Just("log-level"),
        Just("threads"),
        Just("socket-mode"),
        Just(" = "),
        Just("\"8MiB\""),
        Just("\"0660\""),
        Just("12"),
        Just("["),
        Just("]"),
        Just("\n"),
        Just("."),
        Just("{"),
        Just("}"),
        Just("\""),
        Just("#"),
        Just("\u{1f600}"),
        Just("-1"),
        Just("true"),
        Just("1979-05-27"),
    ];
    prop::collection::vec(scrap, 0..40).prop_map(|scraps| scraps.concat())
}

proptest! {
    /// Whatever is in a file, it is a configuration or there are problems.
    #[test]
    fn no_text_does_harm(text in prop_oneof![scraps(), ".{0,200}", "(?s).{0,200}"]) {
        if let Ok(file) = File::parse(Path::new("t.toml"), &text) {
            let sources = Sources { file: Some(file), ..Sources::default() };
            let _ = sources.config(&memory());
        }
        let _ = GuestFile::parse(Path::new("g.toml"), &text);
    }

    /// A file that is cut off anywhere is one or has problems, each with a place.
    #[test]
    fn a_part_of_a_file_does_no_harm(end in 0..ALL.len()) {
        let text = ALL.get(..end).unwrap_or(ALL);
        if let Err(problems) = File::parse(Path::new("t.toml"), text) {
            prop_assert!(problems.to_string().starts_with("t.toml:"));
        }
    }
}
