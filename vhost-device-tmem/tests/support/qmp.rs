// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Monitors of machines that there are not, some of which do not mean well.

use std::{
    io::{self, BufRead, BufReader, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    sync::{Arc, Mutex, MutexGuard},
    thread,
    time::{Duration, Instant},
};

use serde_json::{json, Value};

pub(crate) const GREETING: &str =
    r#"{"QMP": {"version": {"qemu": {"micro": 3, "minor": 1, "major": 11}}, "capabilities": []}}"#;

/// A machine with a balloon.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) ram: u64,
    pub(crate) actual: u64,
    pub(crate) has_balloon: bool,
    /// What the guest tells, besides its faults.
    pub(crate) stats: Value,
    /// How many faults there are in a second.
    pub(crate) faults: f64,
    pub(crate) polling: u64,
    /// What it was told of the balloon.
    pub(crate) told: Vec<u64>,
    /// What is answered to other commands than those of the monitor itself, if it is to be another.
    pub(crate) instead: Option<Value>,
    pub(crate) since: Instant,
}

impl Machine {
    pub(crate) fn new(mib: u64) -> Self {
        Self {
            ram: mib << 20,
            actual: mib << 20,
            has_balloon: true,
            stats: json!({}),
            faults: 0.0,
            polling: 0,
            told: Vec::new(),
            instead: None,
            since: Instant::now(),
        }
    }

    /// Answers a command, with an event before.
    fn answer(&mut self, said: &Value) -> String {
        let id = &said["id"];
        let done = |answer: Value| json!({"return": answer, "id": id});
        let refused =
            |why: &str| json!({"error": {"class": "GenericError", "desc": why}, "id": id});
        let arguments = &said["arguments"];
        let command = said["execute"].as_str().unwrap_or_default();
        let reply = match (command, arguments["property"].as_str()) {
            ("qmp_capabilities", _) => done(json!({})),
            _ if self.instead.is_some() => done(self.instead.clone().unwrap()),
            ("query-memory-size-summary", _) => done(json!({"base-memory": self.ram})),
            ("qom-list", _) => done(match arguments["path"].as_str() {
                Some("/machine/peripheral") => json!([
                    {"name": "type", "type": "string"},
                    {"name": "disk", "type": "child<virtio-blk-pci>"},
                ]),
                Some("/machine/peripheral-anon") if self.has_balloon => {
                    json!([{"name": "device[3]", "type": "child<virtio-balloon-pci>"}])
                }
                _ => json!([]),
            }),
            ("qom-get", Some("guest-stats-polling-interval")) => done(json!(self.polling)),
            ("qom-set", Some("guest-stats-polling-interval")) => {
                self.polling = arguments["value"].as_u64().unwrap();
                done(json!({}))
            }
            ("qom-get", Some("guest-stats")) => done(self.guest_stats()),
            ("query-balloon", _) => done(json!({"actual": self.actual})),
            ("balloon", _) => match arguments["value"].as_u64() {
                Some(bytes) if bytes <= self.ram => {
                    self.told.push(bytes);
                    self.actual = bytes;
                    done(json!({}))
                }
                _ => refused("Parameter 'target' expects a size"),
            },
            _ => refused("The command has not been found"),
        };
        let event = json!({"event": "BALLOON_CHANGE", "data": {"actual": self.actual}});
        format!("{event}\n{reply}\n")
    }

    fn guest_stats(&self) -> Value {
        let age = self.since.elapsed();
        let mut stats = self.stats.clone();
        if self.faults > 0.0 {
            stats["stat-major-faults"] = json!((age.as_secs_f64() * self.faults) as u64);
        }
        // Whoever asks again is told something new.
        let at = 1 + age.as_millis() as u64;
        let at = if self.polling == 0 { 0 } else { at };
        json!({"stats": stats, "last-update": at})
    }
}

/// A monitor of a [`Machine`].
pub(crate) struct Monitor(Arc<Mutex<Machine>>);

impl Monitor {
    pub(crate) fn start(path: &Path, machine: Machine) -> Self {
        let machine = Arc::new(Mutex::new(machine));
        let of = Arc::clone(&machine);
        serve(path, move |stream| {
            let mut stream = stream;
            writeln!(stream, "{GREETING}")?;
            for line in BufReader::new(stream.try_clone()?).lines() {
                let answer = of.lock().unwrap().answer(&serde_json::from_str(&line?)?);
                stream.write_all(answer.as_bytes())?;
            }
            Ok(())
        });
        Self(machine)
    }

    pub(crate) fn machine(&self) -> MutexGuard<'_, Machine> {
        self.0.lock().unwrap()
    }
}

/// Has something else than a monitor listen there. It gets each connection, one after the other.
pub(crate) fn serve(
    path: &Path,
    mut with: impl FnMut(UnixStream) -> io::Result<()> + Send + 'static,
) {
    let listener = UnixListener::bind(path).unwrap();
    // It ends with the process.
    thread::spawn(move || {
        for stream in listener.incoming() {
            // Whoever has heard enough goes.
            let _ = with(stream.unwrap());
        }
    });
}

/// Reads until the other side goes.
pub(crate) fn hear(stream: &UnixStream) -> io::Result<()> {
    io::copy(&mut &*stream, &mut io::sink()).map(drop)
}

/// Greets, and answers the first command as a monitor does.
pub(crate) fn greet(stream: &mut UnixStream) -> io::Result<()> {
    writeln!(stream, "{GREETING}")?;
    BufReader::new(&*stream).read_line(&mut String::new())?;
    writeln!(stream, r#"{{"return": {{}}, "id": 1}}"#)
}

/// Says something again and again, until nobody listens any more.
pub(crate) fn repeat(stream: &mut UnixStream, what: &str, each: Duration) -> io::Result<()> {
    loop {
        stream.write_all(what.as_bytes())?;
        thread::sleep(each);
    }
}
