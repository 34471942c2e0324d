// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Units, examples and manuals say what the programs take.

#![allow(missing_docs, reason = "tests")]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use clap::Parser;
use vhost_device_tmem::args::Args;

const DAEMON: &str = env!("CARGO_BIN_EXE_vhost-device-tmem");
const TMEMCTL: &str = env!("CARGO_BIN_EXE_tmemctl");

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    let text = fs::read_to_string(root().join(path));
    text.unwrap_or_else(|error| panic!("{path}: {error}"))
}

const MANUALS: [&str; 3] = ["README.md", "OPERATING.md", "METRICS.md"];

fn units() -> Vec<(PathBuf, String)> {
    let files = fs::read_dir(root().join("dist/systemd")).unwrap();
    let paths = files.map(|file| file.unwrap().path());
    let units = paths.map(|path| {
        let text = fs::read_to_string(&path).unwrap();
        (path, text)
    });
    units.collect()
}

/// Returns the values of a key of a unit.
fn values<'u>(unit: &'u str, key: &str) -> Vec<&'u str> {
    let values = unit.lines().filter_map(|line| line.split_once('='));
    let values = values.filter(|(of, _)| *of == key);
    values.map(|(_, value)| value).collect()
}

/// Returns the command lines of one of the programs that are in units, and in examples of manuals.
fn commands(program: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let texts = MANUALS.iter().map(|path| read(path));
    let units = units().into_iter().map(|(_, text)| text);
    for text in texts.chain(units) {
        let text = text.replace("\\\n", " ");
        for line in text.lines() {
            let line = match line.split_once('=') {
                Some((key, value)) if key.trim_start().starts_with("Exec") => value,
                _ if line.starts_with("    ") => line,
                _ => continue,
            };
            let line = line.trim().trim_start_matches("$ ");
            let line = line.trim_start_matches("/usr/bin/");
            // A synopsis is none.
            let given = line.strip_prefix(program).filter(|rest| {
                rest.starts_with(' ') && !rest.contains(['…', '[', '|']) && !rest.contains("FILE")
            });
            found.extend(given.map(|given| given.trim_end_matches('&').trim().to_owned()));
        }
    }
    found
}

fn run(program: &str, args: &[&str]) -> Output {
    Command::new(program).args(args).output().unwrap()
}

#[test]
fn command_lines_of_the_daemon_are_understood() {
    let commands = commands("vhost-device-tmem");
    assert!(commands.len() >= 4, "{commands:?}");
    for command in commands {
        let words = ["vhost-device-tmem"].into_iter();
        let parsed = Args::try_parse_from(words.chain(command.split_whitespace()));
        assert!(parsed.is_ok(), "{command}: {parsed:?}");
    }
}

#[test]
fn command_lines_of_tmemctl_are_understood() {
    let commands = commands("tmemctl");
    assert!(commands.len() >= 5, "{commands:?}");
    for command in commands {
        // Help comes in place of what is asked for, if all before it is understood.
        let words: Vec<_> = command.split_whitespace().chain(["--help"]).collect();
        let output = run(TMEMCTL, &words);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{command}: {said}");
    }
}

#[test]
fn options_that_manuals_name_are_there() {
    let scripts = ["tmemctl", "vhost-device-tmem"].map(|of| {
        let output = run(TMEMCTL, &["completions", "bash", "--of", of]);
        String::from_utf8(output.stdout).unwrap()
    });
    let scripts = scripts.concat();
    let known: BTreeSet<_> = scripts.split([' ', '"', ')', '\n']).collect();
    assert!(known.contains("--capacity") && known.contains("--watch"));
    let mut named = 0;
    for path in MANUALS {
        let text = read(path);
        // What is between two of these signs, every other one.
        for code in text.split('`').skip(1).step_by(2) {
            let Some(option) = code.split([' ', '=']).next() else {
                continue;
            };
            if option.starts_with("--") && option.len() > 2 {
                named += 1;
                assert!(known.contains(option), "{path}: {code}");
            }
        }
    }
    assert!(named > 20);
}

/// Puts the example where its directories are, and returns its path.
fn example(place: &Path, edit: impl FnOnce(String) -> String) -> String {
    let text = read("dist/config.toml");
    let place_of = |text: String| text.replace("/etc/vhost-device-tmem", place.to_str().unwrap());
    fs::create_dir_all(place.join("guests")).unwrap();
    let path = place.join("config.toml");
    fs::write(&path, edit(place_of(text))).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn the_example_of_a_configuration_is_accepted() {
    let place = tempfile::tempdir().unwrap();
    let check = |path: &str| run(DAEMON, &["--config", path, "--check-config"]);
    let output = check(&example(place.path(), |text| text));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    let wrong = example(place.path(), |text| text.replace("capacity", "capacities"));
    assert!(!check(&wrong).status.success());
}

#[test]
fn units_fit_the_example() {
    let example: toml::Table = read("dist/config.toml").parse().unwrap();
    let text = |key: &str| example[key].as_str().unwrap();
    let windows = read("dist/systemd/run-tmem-windows.mount");
    assert_eq!(values(&windows, "Where"), [text("window-dir")]);
    let control = read("dist/systemd/vhost-device-tmem.socket");
    assert_eq!(values(&control, "ListenStream"), [text("control-path")]);
    assert_eq!(values(&control, "SocketGroup"), [text("control-group")]);
    assert_eq!(values(&control, "FileDescriptorName"), ["socket-control"]);
    let guest = read("dist/systemd/vhost-device-tmem-guest@.socket");
    let web = example["guests"]["web"]["socket"].as_str().unwrap();
    let listens = values(&guest, "ListenStream").concat();
    assert_eq!(listens.replace("%I", "web"), web);
    assert_eq!(values(&guest, "SocketGroup"), [text("socket-group")]);
    assert_eq!(values(&guest, "FileDescriptorName"), ["socket-guest-%I"]);
    let service = read("dist/systemd/vhost-device-tmem.service");
    let written = values(&service, "ReadWritePaths").concat();
    let tmpfiles = read("dist/systemd/tmpfiles.conf");
    let made: Vec<_> = tmpfiles
        .lines()
        .filter(|line| line.starts_with("d "))
        .collect();
    assert_eq!(made.len(), 2);
    for line in made {
        let path = line.split(' ').nth(1).unwrap();
        assert!(written.split(' ').any(|written| written == path), "{line}");
        assert!(web.starts_with(path) || text("control-path").starts_with(path));
    }
}

/// Where systemd is installed, it looks at the units as well.
#[test]
fn systemd_finds_nothing_wrong_with_the_units() {
    let place = tempfile::tempdir().unwrap();
    let mut paths = Vec::new();
    for (path, text) in units() {
        let name = path.file_name().unwrap().to_str().unwrap();
        if name.ends_with(".conf") {
            continue;
        }
        // It looks for the programs, which are not installed.
        let text = text.replace("/usr/bin/vhost-device-tmem", DAEMON);
        let text = text.replace("/usr/bin/tmemctl", TMEMCTL);
        fs::write(place.path().join(name), text).unwrap();
        paths.push(place.path().join(name.replace("@.", "@web.")));
    }
    assert_eq!(paths.len(), 4);
    let mut command = Command::new("systemd-analyze");
    command.args(["verify", "--man=no"]).args(paths);
    let Ok(output) = command.output() else {
        return;
    };
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && !said.contains("cycle"), "{said}");
}
