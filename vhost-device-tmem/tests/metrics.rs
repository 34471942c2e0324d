// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Metrics: who asks for them, what they get, and what is documented.

mod support;

use std::{
    io::{self, Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    os::unix::{fs::PermissionsExt, net::UnixStream},
    path::Path,
    time::Duration,
};

use support::{
    key, kill, stat, tmemctl, wait_until,
    window::{WindowPlace, CHUNK},
    Daemon, Guest, Place,
};
use vhost_device_tmem::metrics::{names, reference};
use virtio_tmem_abi::{pool_flags, Status, WindowReport};
use zerocopy::{FromZeros, IntoBytes};

const PATIENCE: Option<Duration> = Some(Duration::from_secs(60));
const GET: &str = "GET /metrics HTTP/1.1\r\nHost: tmem\r\n\r\n";

/// A daemon that serves metrics on some port.
struct Served {
    place: Place,
    daemon: Daemon,
    address: String,
}

impl Served {
    fn new() -> Self {
        let place = Place::new();
        let web = place.arg("web.sock");
        let args = ["-s", &web, "-c", "8MiB", "--metrics-listen", "127.0.0.1:0"];
        let mut daemon = Daemon::start(&args);
        let line = daemon.wait_for("serving metrics on ");
        let (_, address) = line.trim_end().rsplit_once(' ').unwrap();
        let address = address.to_owned();
        Self {
            place,
            daemon,
            address,
        }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(PATIENCE).unwrap();
        stream
    }

    /// Sends a request, and returns what comes until the connection ends.
    fn ask(&self, request: &[u8]) -> String {
        answer(self.connect(), request)
    }

    /// The value of a sample that begins so.
    fn value(&self, sample: &str) -> Option<u64> {
        let text = self.ask(GET.as_bytes());
        let line = text.lines().find_map(|line| line.strip_prefix(sample))?;
        Some(line.trim().parse().unwrap())
    }
}

fn answer(mut stream: impl Read + Write, request: &[u8]) -> String {
    stream.write_all(request).unwrap();
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Ok(_) => {}
        // What was not read of the request ends the connection so.
        Err(error) => assert_eq!(error.kind(), io::ErrorKind::ConnectionReset),
    }
    String::from_utf8(answer).unwrap()
}

#[test]
fn metrics_are_served_over_the_network() {
    let served = Served::new();
    let mut guest = Guest::connect(&served.place.path("web.sock"));
    guest.create_pool(0, pool_flags::PERSISTENT);
    guest.put(2, 0, &[(key(1, 1, 1), 7), (key(1, 2, 1), 8)]);
    let put = r#"tmem_guest_put_pages_total{guest="web",kind="persistent"}"#;
    // What was counted a moment ago is good enough for those who ask.
    wait_until("both pages are counted", || served.value(put) == Some(2));
    let text = served.ask(GET.as_bytes());
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    assert!(head.contains("application/openmetrics-text; version=1.0.0"));
    assert!(head.contains(&format!("Content-Length: {}\r\n", body.len())));
    assert!(body.ends_with("# EOF\n"));
    for line in [
        r#"tmem_guest_connected{guest="web"} 1"#,
        r#"tmem_guest_stored_pages{guest="web",kind="persistent"} 2"#,
        "tmem_worker_starts_total 1",
        "tmem_capacity_bytes 8388608",
    ] {
        assert!(body.lines().any(|of| of == line), "no {line}: {body}");
    }
    let head = served.ask(b"HEAD /metrics HTTP/1.1\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 200 ") && head.ends_with("\r\n\r\n"));
}

#[test]
fn metrics_are_served_on_a_path() {
    let place = Place::new();
    let (web, path) = (place.arg("web.sock"), place.path("metrics.sock"));
    let metrics = place.arg("metrics.sock");
    let mut daemon = Daemon::start(&["-s", &web, "-c", "8MiB", "--metrics-listen", &metrics]);
    daemon.wait_for("serving metrics on ");
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let text = answer(UnixStream::connect(&path).unwrap(), GET.as_bytes());
    assert!(text.ends_with("# EOF\n"), "{text}");
    // Who takes it for the operator's is told so.
    let (_, said) = tmemctl(&["list", "--control-path", &metrics]);
    assert!(said.contains("is the socket of metrics"), "{said}");
    daemon.stop();
    assert!(!path.exists());
}

#[test]
fn a_guest_may_tell_anything_of_its_window() {
    let place = WindowPlace::new();
    let at = |name: &str| place.sockets.arg(name);
    let (web, control, metrics) = (at("web.sock"), at("control.sock"), at("metrics.sock"));
    let directory = place.directory().to_str().unwrap();
    let sockets = ["-s", &web, "--control-path", &control];
    let window = ["--window-dir", directory, "--window-size", "8MiB"];
    let rest = ["-c", "64MiB", "--metrics-listen", &metrics];
    let mut daemon = Daemon::start(&[sockets, window, rest].concat());
    daemon.wait_for("serving metrics on ");
    let mut guest = Guest::connect(Path::new(&web));
    assert_eq!(guest.open_window(0), Status::Ok);
    let window = place.window("web");
    let told = || stat(Path::new(&control))["guests"][0]["window"].clone();
    let text = || answer(UnixStream::connect(&metrics).unwrap(), GET.as_bytes());

    let mut report = WindowReport::new_zeroed();
    report.puts = 1.into();
    report.refused = 2.into();
    report.gets = 4.into();
    report.hits = 3.into();
    report.replaced = 5.into();
    report.moved = 6.into();
    window.write(CHUNK, report.as_bytes());
    let names = ["puts", "no_slot", "gets", "hits", "replaced", "moved"];
    let counts = [1, 2, 4, 3, 5, 6];
    let stat = told();
    assert_eq!(names.map(|name| stat[name].as_u64().unwrap()), counts);
    let names = ["put", "no_room", "looked_for", "hit", "replaced", "moved"];
    let samples = names.map(|name| format!("tmem_window_{name}_pages_total{{guest=\"web\"}}"));
    let shown = |counts: [u64; 6]| {
        let text = text();
        let mut lines = samples.iter().zip(counts);
        lines.all(|(sample, count)| text.contains(&format!("{sample} {count}\n")))
    };
    wait_until("what it told is served", || shown(counts));

    window.write(CHUNK, &[0xff; size_of::<WindowReport>()]);
    wait_until("nonsense is served", || shown([u64::MAX; 6]));
    assert_eq!(told()["hits"], u64::MAX);
    let (success, listed) = tmemctl(&["list", "--control-path", &control]);
    assert!(success, "{listed}");
    let web = listed.lines().last().unwrap();
    assert!(web.ends_with("18446744073709551615  100.0"), "{listed}");
}

#[test]
fn another_worker_goes_on_with_the_socket() {
    let served = Served::new();
    let starts = || served.value("tmem_worker_starts_total");
    assert_eq!(starts(), Some(1));
    kill(served.daemon.worker(), libc::SIGKILL);
    wait_until("another worker serves metrics", || starts() == Some(2));
    served.daemon.signal(libc::SIGUSR2);
    wait_until("a worker of an upgrade serves them", || starts() == Some(3));
}

#[test]
fn what_is_no_request_is_answered_so() {
    let served = Served::new();
    let statuses: [(&[u8], &str); 6] = [
        (b"GET / HTTP/1.1\r\n\r\n", "404 Not Found"),
        (b"POST /metrics HTTP/1.1\r\n\r\n", "405 Method Not Allowed"),
        (b"{\"version\":1,\"command\":\"stop\"}\n", "400 Bad Request"),
        (
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
            "400 Bad Request",
        ),
        (b"GET /metrics HTTP/9.9\r\n\r\n", "400 Bad Request"),
        // One request is all, and what comes behind it is nothing.
        (
            b"GET /x HTTP/1.1\r\n\r\nGET /y HTTP/1.1\r\n\r\n",
            "404 Not Found",
        ),
    ];
    for (request, status) in statuses {
        let text = served.ask(request);
        let first = text.lines().next();
        assert_eq!(first, Some(&*format!("HTTP/1.1 {status}")), "{request:?}");
        assert_eq!(text.matches("HTTP/1.1 ").count(), 1, "{text}");
    }
    // Fields without end.
    let mut stream = served.connect();
    stream.write_all(b"GET /metrics HTTP/1.1\r\n").unwrap();
    let mut sent = 0;
    while stream.write_all(b"X-Long: 0123456789abcdef\r\n").is_ok() {
        sent += 1;
        assert!(sent < 1 << 20, "it reads on and on");
    }
    // Somebody who sends nothing at all.
    let stream = served.connect();
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(answer(&stream, b""), "");
    assert_eq!(served.value("tmem_worker_starts_total"), Some(1));
}

#[test]
fn nobody_waits_for_clients_that_are_slow_or_many() {
    let mut served = Served::new();
    let open = format!("/proc/{}/fd", served.daemon.worker());
    // Others than root may not look.
    let open = || std::fs::read_dir(&open).map_or(0, Iterator::count);
    let before = open();
    // Many more than there is room for, who say nothing, or a part of something.
    let mut crowd: Vec<_> = (0..200).map(|_| served.connect()).collect();
    for stream in &mut crowd {
        // Those who were silent longest are gone already.
        let _ = stream.write_all(b"GET /metr");
    }
    assert_eq!(served.value("tmem_worker_starts_total"), Some(1));
    // Those 16 that there is room for, and one to spare.
    assert!(open() <= before + 17, "{} descriptors", open());
    // Guests are served meanwhile.
    let mut guest = Guest::connect(&served.place.path("web.sock"));
    guest.create_pool(0, pool_flags::PERSISTENT);
    // Those who only ever begin do not stay.
    let mut slow = crowd.pop().unwrap();
    let mut rest = Vec::new();
    let _ = slow.read_to_end(&mut rest);
    assert!(rest.is_empty());
    // Nor does anybody keep the daemon from ending.
    let _crowd: Vec<_> = (0..100).map(|_| served.connect()).collect();
    served.daemon.signal(libc::SIGTERM);
    let ended = || served.daemon.child.try_wait().unwrap().is_some();
    wait_until("the daemon ends", ended);
}

#[test]
fn an_address_that_cannot_be_is_refused() {
    let place = Place::new();
    let web = place.arg("web.sock");
    let said = |address: &str| {
        let args = ["-s", &web, "-c", "8MiB", "--metrics-listen", address];
        let output = Daemon::command(&args).output().unwrap();
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    let text = said("localhost");
    assert!(text.contains("such as 127.0.0.1:9752"), "{text}");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let text = said(&taken.local_addr().unwrap().to_string());
    assert!(text.contains("choose another port"), "{text}");
    let text = said(&web);
    assert!(text.contains("the socket of metrics as well"), "{text}");
}

#[test]
fn all_metrics_are_documented() {
    let reference = reference();
    assert!(
        include_str!("../METRICS.md").contains(&reference),
        "METRICS.md should have\n{reference}"
    );
}

/// The names of metrics in a text.
fn named(text: &str) -> Vec<&str> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("tmem_")).collect()
}

#[test]
fn what_is_watched_exists() {
    let dist = Path::new(env!("CARGO_MANIFEST_DIR")).join("dist");
    let names = names();
    let read = |file: &str| std::fs::read_to_string(dist.join(file)).unwrap();
    let dashboard = read("grafana-dashboard.json");
    serde_json::from_str::<serde_json::Value>(&dashboard).expect("the dashboard is JSON");
    let alerts = read("prometheus-alerts.yml");
    for (file, text) in [("dashboard", &dashboard), ("alerts", &alerts)] {
        let named = named(text);
        assert!(named.len() > 5, "the {file} watches nothing");
        for name in named {
            assert!(
                names.iter().any(|of| of == name),
                "{file}: there is no {name}"
            );
        }
    }
}
