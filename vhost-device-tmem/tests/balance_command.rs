// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `tmemctl balance`, with a daemon, and monitors of machines that there are not.

mod support;

use std::{
    io::{BufRead, BufReader},
    process::Stdio,
};

use serde_json::{json, Value};
use support::{
    kill,
    qmp::{greet, hear, serve, Machine, Monitor},
    tmemctl_command, wait_until, Daemon, Place, Said,
};

const MIB: u64 = 1 << 20;

/// A daemon with two guests, of which `web` works and `db` idles.
struct Balanced {
    place: Place,
    _daemon: Daemon,
    web: Monitor,
    db: Monitor,
}

impl Balanced {
    fn new() -> Self {
        let place = Place::new();
        let control = place.arg("control.sock");
        let sockets = [place.arg("web.sock"), place.arg("db.sock")];
        let mut daemon = Daemon::start(&[
            "-c",
            "8MiB",
            "-s",
            &sockets[0],
            "-s",
            &sockets[1],
            "--control-path",
            &control,
        ]);
        daemon.wait_for("waiting for operators");
        let web = Machine {
            actual: 512 * MIB,
            faults: 5000.0,
            stats: json!({"stat-available-memory": 0, "stat-free-memory": 0}),
            ..Machine::new(1024)
        };
        let db = Machine {
            actual: 512 * MIB,
            stats: json!({
                "stat-available-memory": 400 * MIB,
                "stat-free-memory": 400 * MIB,
                "stat-swap-in": -1,
                "stat-swap-out": u64::MAX,
                "stat-major-faults": 7,
            }),
            ..Machine::new(1024)
        };
        Self {
            web: Monitor::start(&place.path("web.qmp"), web),
            db: Monitor::start(&place.path("db.qmp"), db),
            _daemon: daemon,
            place,
        }
    }

    fn guest(&self, name: &str, terms: &str) -> String {
        let path = self.place.arg(&format!("{name}.qmp"));
        format!("{name}={path},{terms}")
    }

    fn args(&self, more: &[&str]) -> Vec<String> {
        let (web, db) = (
            self.guest("web", "min=128MiB,max=1GiB"),
            self.guest("db", "min=128MiB,max=1GiB"),
        );
        let args = [
            "balance", "--total", "1GiB", "--guest", &web, "--guest", &db,
        ];
        args.iter()
            .chain(more)
            .map(|arg| (*arg).to_owned())
            .collect()
    }

    fn run(&self, args: &[String]) -> Said {
        let args: Vec<_> = args.iter().map(String::as_str).collect();
        let mut command = tmemctl_command(&args);
        Said::by(command.env("TMEMCTL_CONTROL_PATH", self.place.path("control.sock")))
    }

    fn told(&self) -> [Vec<u64>; 2] {
        [&self.web, &self.db].map(|of| of.machine().told.clone())
    }
}

#[test]
fn a_proposal_is_a_table_and_changes_nothing() {
    let balanced = Balanced::new();
    let said = balanced.run(&balanced.args(&["--sample", "2"]));
    assert_eq!((said.code, &*said.err), (0, ""), "{said:?}");
    let (web, db) = (said.words("web"), said.words("db"));
    assert_eq!(web[1..4], ["128.0", "1024.0", "512.0"]);
    let target = |words: &[&str]| words[4].parse::<f64>().unwrap();
    assert!(target(&web) > 512.0 && target(&db) < 512.0, "{}", said.out);
    assert_eq!(target(&web) + target(&db), 1024.0);
    assert!(
        said.out.contains("pages/s") && said.out.contains("needs more"),
        "{}",
        said.out
    );
    // Heads, units, guests.
    assert_eq!(said.out.lines().count(), 4);
    assert_eq!(balanced.told(), [[0; 0]; 2]);
}

#[test]
fn what_is_applied_is_taken_before_it_is_given() {
    let balanced = Balanced::new();
    let said = balanced.run(&balanced.args(&["--sample", "2", "--apply", "--json"]));
    assert_eq!((said.code, &*said.err), (0, ""), "{said:?}");
    let json = said.json();
    let [web, db] = balanced.told();
    let (web, db) = (web[0], db[0]);
    assert!(
        (128 * MIB..512 * MIB).contains(&db) && web + db == 1024 * MIB,
        "{web} {db}"
    );
    assert_eq!(json["version"], 1);
    assert_eq!(json["total_bytes"], 1024 * MIB);
    let guest = &json["guests"][1];
    assert_eq!(guest["name"], "db");
    assert_eq!(guest["reason"], "gives");
    assert_eq!(guest["told_bytes"], db);
    assert_eq!(guest["target_bytes"], db);
    assert_eq!(json["doubts"], json!([]));
}

#[test]
fn what_makes_no_sense_is_said_with_the_guests_name() {
    let balanced = Balanced::new();
    balanced.db.machine().stats["stat-available-memory"] = json!("NaN");
    balanced.db.machine().stats["stat-free-memory"] = json!(-5);
    let said = balanced.run(&balanced.args(&["--sample", "2", "--apply"]));
    assert_eq!(said.code, 0, "{said:?}");
    for words in ["stat-available-memory is \"NaN\"", "stat-free-memory is -5"] {
        let line = format!("tmemctl: guest \"db\": {words}");
        assert!(said.err.contains(&line), "{line}: {}", said.err);
    }
    // Nothing is known to be spare.
    assert_eq!(balanced.told(), [[0; 0]; 2]);
}

#[test]
fn errors_name_the_guest_and_have_their_codes() {
    let balanced = Balanced::new();
    let failed = |args: &[String], code: i32, words: &str| {
        let said = balanced.run(args);
        assert_eq!((said.code, &*said.out), (code, ""), "{said:?}");
        assert!(said.err.contains(words), "{words}: {said:?}");
    };
    let with = |guest: String| {
        let mut args = balanced.args(&["--sample", "2", "--guest"]);
        args.push(guest);
        args
    };
    // Of the command line.
    failed(&with("mail=/x".to_owned()), 2, "min is missing");
    failed(
        &with(balanced.guest("web", "min=1G,max=2G")),
        2,
        "\"web\" is named twice",
    );
    failed(
        &with(balanced.guest("mail", "min=2G,max=2G")),
        2,
        "all minima together",
    );
    let mut small = balanced.args(&[]);
    small[2] = "255MiB".to_owned();
    failed(&small, 2, "the total is 255 MiB");
    // Of guests.
    let path = balanced.place.path("mail.qmp");
    failed(
        &with(balanced.guest("mail", "min=1MiB,max=2GiB")),
        8,
        "guest \"mail\": there is no socket",
    );
    serve(&path, |mut stream| {
        greet(&mut stream)?;
        stream.shutdown(std::net::Shutdown::Both)
    });
    failed(
        &with(balanced.guest("mail", "min=1MiB,max=2GiB")),
        8,
        "guest \"mail\": QEMU went away",
    );
    Monitor::start(&balanced.place.path("news.qmp"), Machine::new(64));
    failed(
        &with(balanced.guest("news", "min=1MiB,max=2GiB")),
        5,
        "no guest is named \"news\"",
    );
    failed(
        &with(balanced.guest("news", "min=128MiB,max=2GiB")),
        2,
        "guest \"news\": min is 128 MiB, and its machine was made with 64.0 MiB",
    );
    // What the daemon is not meant to know.
    let said = balanced.run(&with(balanced.guest("news", "min=1MiB,max=2GiB,tmem=off")));
    assert_eq!(said.code, 0, "{said:?}");
    assert!(said.out.contains("\nnews "), "{}", said.out);
    let mut args = balanced.args(&["--json"]);
    args[2] = "1MiB".to_owned();
    let said = balanced.run(&args);
    let error: Value = serde_json::from_str(&said.err).unwrap();
    assert_eq!(error["error"]["code"], 2);
}

#[test]
fn a_file_says_the_same_as_options() {
    let balanced = Balanced::new();
    let file = balanced.place.path("balance.toml");
    let run = |text: &str, more: &[&str]| {
        std::fs::write(&file, text).unwrap();
        let args = ["balance", "--sample", "2", "--json", "--config"];
        let path = file.to_str().unwrap();
        let args = args.iter().chain([&path]).chain(more);
        balanced.run(&args.map(|arg| (*arg).to_owned()).collect::<Vec<_>>())
    };
    let monitor = |name: &str| balanced.place.arg(&format!("{name}.qmp"));
    let table = |name: &str, more: &str| {
        let monitor = monitor(name);
        format!("[guests.{name}]\nmonitor = {monitor:?}\nmin = \"128MiB\"\nmax = \"1GiB\"\n{more}")
    };
    let guests = table("web", "") + &table("db", "tmem = true\n");
    let said = run(&format!("total = \"1GiB\"\n{guests}"), &[]).json();
    let names: Vec<_> = (0..2).map(|n| said["guests"][n]["name"].clone()).collect();
    assert_eq!(names, ["db", "web"]);
    assert_eq!(said["guests"][0]["reason"], "gives");
    // The command line comes first.
    let web = balanced.guest("web", "min=256MiB,max=512MiB");
    let said = run(&guests, &["--total", "2GiB", "--guest", &web]).json();
    assert_eq!(said["total_bytes"], 2048 * MIB);
    assert_eq!(said["guests"][0]["max_bytes"], 512 * MIB);
    assert_eq!(said["guests"].as_array().unwrap().len(), 2);
    let wrong = [
        (guests.clone(), "there is no total"),
        (format!("total = 5\n{guests}"), ":1: total cannot be so"),
        (
            format!("total = \"much\"\n{guests}"),
            "\\\"much\\\" is no size",
        ),
        (
            guests.replace("min", "least"),
            ":7: guests.db.least is no key",
        ),
        ("total = \"1GiB\"\n".to_owned(), "there are no guests"),
        ("total".to_owned(), "this is no TOML"),
    ];
    for (text, words) in wrong {
        let said = run(&text, &[]);
        assert_eq!(said.code, 2, "{text}: {said:?}");
        assert!(said.err.contains(words), "{words}: {said:?}");
    }
    let missing = balanced.place.arg("missing.toml");
    let args = ["balance", "--config", &missing].map(str::to_owned);
    let said = balanced.run(&args);
    assert_eq!(said.code, 2, "{said:?}");
    assert!(
        said.err.contains("missing.toml: cannot be read"),
        "{said:?}"
    );
}

#[test]
fn in_a_loop_a_machine_may_go_and_others_go_on() {
    let balanced = Balanced::new();
    // One that hangs from its second answer on is no monitor any more.
    let path = balanced.place.path("mail.qmp");
    let mut connections = 0;
    let honest = balanced.place.path("honest.qmp");
    let mail = Monitor::start(&honest, Machine::new(256));
    mail.machine().stats = json!({"stat-available-memory": 0});
    serve(&path, move |stream| {
        connections += 1;
        if connections > 1 {
            return hear(&stream);
        }
        // What is said goes on to a monitor, for three looks.
        forward(stream, &honest)
    });
    let mut args = balanced.args(&["--interval", "2", "--apply", "--json", "--guest"]);
    args.push(balanced.guest("mail", "min=64MiB,max=256MiB,tmem=off"));
    args[2] = "1280MiB".to_owned();
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    let mut command = tmemctl_command(&args);
    command.env("TMEMCTL_CONTROL_PATH", balanced.place.path("control.sock"));
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut looks = Vec::<Value>::new();
    wait_until("looks without one of the machines", || {
        looks.push(serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap());
        looks.last().unwrap()["guests"][2]["reason"] == "unknown"
    });
    looks.push(serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap());
    kill(child.id() as i32, libc::SIGTERM);
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("tmemctl: guest \"mail\": "), "{said}");
    assert_eq!(
        looks.last().unwrap()["guests"][2]["actual_bytes"],
        256 * MIB
    );
    let [web, db] = balanced.told();
    assert!(
        web.is_sorted() && *web.last().unwrap() > 512 * MIB,
        "{web:?}"
    );
    assert!(db.iter().all(|bytes| *bytes >= 128 * MIB), "{db:?}");
}

/// Passes on what a client says and a monitor answers, until that has answered so often.
fn forward(
    mut client: std::os::unix::net::UnixStream,
    monitor: &std::path::Path,
) -> std::io::Result<()> {
    use std::io::Write;
    const LINES: usize = 2 * 14;
    let mut monitor = std::os::unix::net::UnixStream::connect(monitor)?;
    let mut answers = BufReader::new(monitor.try_clone()?).lines();
    let mut requests = BufReader::new(client.try_clone()?).lines();
    let mut next = || {
        answers
            .next()
            .unwrap_or(Err(std::io::ErrorKind::UnexpectedEof.into()))
    };
    writeln!(client, "{}", next()?)?;
    for _ in 0..LINES / 2 {
        let Some(request) = requests.next() else {
            break;
        };
        writeln!(monitor, "{}", request?)?;
        writeln!(client, "{}", next()?)?;
        writeln!(client, "{}", next()?)?;
    }
    Ok(())
}
