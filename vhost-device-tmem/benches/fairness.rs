// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What guests get of the daemon beside others: many of them together, beside one alone; and one
//! that asks for little beside one that floods the daemon with what takes longest.
//!
//! The daemon, a process of its own, has one processor, and the driver another, so that nothing
//! else should run on the machine. All that is compared is measured in turns, and of each the best
//! round counts: what else the machine did meanwhile only ever makes it worse.
//!
//! With `many` or `flood` as argument, only that is measured; `TMEM_DAEMON` names another daemon.

use std::{
    io,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use tmem_driver::{Part, TmemDevice, FEATURES};
use virtio_tmem_abi::{pool_flags, Key, ObjectId, Opcode, Range, Status, FIRST_DATA_QUEUE};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use zerocopy::{FromZeros, IntoBytes};

const PAGE: usize = 4096;
const QUEUE_SIZE: u16 = 256;
const DATA_QUEUES: u16 = 4;
/// Where the requests of a guest are, a page for each.
const SLOTS: u64 = 1 << 20;
/// Where its pages are, and where they come back to.
const PAGES: u64 = 8 << 20;
/// Requests in flight of all guests together.
const IN_FLIGHT: usize = 64;
/// Pages of all guests together.
const ALL_PAGES: usize = 16384;
const TIME: Duration = Duration::from_millis(200);
const ROUNDS: usize = 5;

/// Keeps the calling thread, or what it becomes, on one processor.
fn pin(cpu: usize) -> io::Result<()> {
    // SAFETY: The set is plain data, for which zeros are valid, and `cpu` is within it.
    let done = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set)
    };
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// The daemon on one processor, killed when dropped.
struct Daemon {
    child: Child,
    place: tempfile::TempDir,
}

impl Daemon {
    fn start(guests: usize) -> Self {
        let place = tempfile::tempdir().unwrap();
        let program = std::env::var_os("TMEM_DAEMON")
            .unwrap_or_else(|| env!("CARGO_BIN_EXE_vhost-device-tmem").into());
        let mut command = Command::new(program);
        command.args(["--capacity", "768MiB", "--log-level", "error"]);
        command.args(["--data-queues", &DATA_QUEUES.to_string()]);
        for n in 0..guests {
            command.arg("--socket-path").arg(socket(place.path(), n));
        }
        // SAFETY: It makes one system call.
        unsafe { command.pre_exec(|| pin(0)) };
        let child = command.stdin(Stdio::null()).spawn().unwrap();
        let this = Self { child, place };
        let last = this.socket(guests - 1);
        while !last.exists() {
            thread::sleep(Duration::from_millis(1));
        }
        this
    }

    fn socket(&self, n: usize) -> PathBuf {
        socket(self.place.path(), n)
    }
}

fn socket(place: &Path, n: usize) -> PathBuf {
    place.join(format!("{n}.sock"))
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn key(object: u64, index: usize) -> Key {
    Key {
        object: ObjectId([object.into(), 0.into(), 0.into()]),
        index: (index as u64).into(),
        version: 1.into(),
    }
}

/// A guest that keeps requests in flight.
struct Guest {
    device: TmemDevice,
    pages: usize,
    next: usize,
    /// By virtqueue and first descriptor: the slot.
    flying: Vec<Vec<u64>>,
    free: Vec<Vec<u64>>,
}

/// A request, but for what the pages are.
struct Ask {
    head: Vec<u8>,
    pages: Vec<Part>,
    answer: usize,
}

impl Guest {
    fn connect(socket: &Path, pages: usize, depth: usize) -> Self {
        let bytes = PAGES as usize + 2 * pages.max(512) * PAGE;
        let mem = tmem_driver::memory(bytes).unwrap();
        fill(&mem, pages);
        let device = TmemDevice::connect(socket, &mem, FEATURES, QUEUE_SIZE, 0).unwrap();
        let queues = usize::from(DATA_QUEUES);
        let slot = |queue: usize, n: usize| SLOTS + ((queue * depth + n) * PAGE) as u64;
        let mut this = Self {
            device,
            pages,
            next: 0,
            flying: vec![vec![0; QUEUE_SIZE.into()]; queues],
            free: (0..queues)
                .map(|queue| (0..depth).map(|n| slot(queue, n)).collect())
                .collect(),
        };
        let created = this.device.create_pool(SLOTS, 0, pool_flags::PERSISTENT);
        assert_eq!(created.unwrap(), Status::Ok);
        for queue in &this.device.queues {
            queue.poll_only();
        }
        this
    }

    fn ask(&self, opcode: Opcode, first: usize, count: usize) -> Ask {
        let mut head = self.device.header(opcode, 0, count).as_bytes().to_vec();
        for n in first..first + count {
            head.extend(key(1, n).as_bytes());
        }
        let page = |n: usize| PAGES + (n * PAGE) as u64;
        let pages = match opcode {
            Opcode::Put => vec![Part::readable(page(first), count * PAGE)],
            _ => vec![Part::writable(page(self.pages + first), count * PAGE)],
        };
        Ask {
            head,
            pages,
            answer: 32 + count,
        }
    }

    /// Sends a request if a slot is free.
    fn send(&mut self, queue: usize, ask: &Ask) -> bool {
        let Some(slot) = self.free[queue].pop() else {
            return false;
        };
        let mem = self.device.connection.mem();
        mem.write_slice(&ask.head, GuestAddress(slot)).unwrap();
        let mut parts = vec![Part::readable(slot, ask.head.len())];
        parts.extend(ask.pages.iter().filter(|part| !part.writable));
        // Nobody looks at the answers: they are all in one place.
        parts.push(Part::writable(SLOTS - PAGE as u64, ask.answer));
        parts.extend(ask.pages.iter().filter(|part| part.writable));
        let vring = &mut self.device.queues[usize::from(FIRST_DATA_QUEUE) + queue];
        let head = vring.add(&parts).unwrap();
        self.flying[queue][usize::from(head)] = slot;
        vring.notify();
        true
    }

    /// Takes an answer, if there is one.
    fn take(&mut self, queue: usize) -> bool {
        let vring = &mut self.device.queues[usize::from(FIRST_DATA_QUEUE) + queue];
        let Some((head, len)) = vring.next_used() else {
            return false;
        };
        assert!(len >= 32);
        self.free[queue].push(self.flying[queue][usize::from(head)]);
        true
    }

    /// A get of one page, in an order in which no cache is of help.
    fn get(&mut self) -> Ask {
        self.next = (self.next + 7919) % self.pages;
        self.ask(Opcode::Get, self.next, 1)
    }

    /// Puts all pages.
    fn put_all(&mut self) {
        let mut step = self.pages.min(32);
        while self.pages % step != 0 {
            step -= 1;
        }
        for first in (0..self.pages).step_by(step) {
            let ask = self.ask(Opcode::Put, first, step);
            assert!(self.send(0, &ask));
            while !self.take(0) {}
        }
    }
}

fn fill(mem: &GuestMemoryMmap, pages: usize) {
    for n in 0..pages {
        let mut page = [0u8; PAGE];
        for (at, byte) in page.iter_mut().enumerate() {
            *byte = (at * n) as u8 ^ (at >> 5) as u8;
        }
        let at = GuestAddress(PAGES + (n * PAGE) as u64);
        mem.write_slice(&page, at).unwrap();
    }
}

/// Keeps requests in flight for a while: `depth` on each of `queues` virtqueues of each guest.
/// Returns pages a second.
fn rate(guests: &mut [Guest], queues: usize, depth: usize) -> f64 {
    for guest in &mut *guests {
        for queue in 0..queues {
            for _ in 0..depth {
                let ask = guest.get();
                assert!(guest.send(queue, &ask));
            }
        }
    }
    let (start, mut done) = (Instant::now(), 0u64);
    while start.elapsed() < TIME {
        for n in 0..guests.len() {
            // What is measured is the daemon.
            if let Some(ahead) = guests.get(n + 4) {
                ahead.device.queues[usize::from(FIRST_DATA_QUEUE)].foresee();
            }
            let guest = &mut guests[n];
            for queue in 0..queues {
                while guest.take(queue) {
                    done += 1;
                    let ask = guest.get();
                    guest.send(queue, &ask);
                }
            }
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    for guest in guests {
        for queue in 0..queues {
            for _ in 0..depth {
                while !guest.take(queue) {}
            }
        }
    }
    done as f64 / seconds
}

/// What a guest that asks for one page after the other waits for each, sorted.
fn wait(victim: &mut Guest, mut meanwhile: impl FnMut()) -> Vec<Duration> {
    let (begin, mut times) = (Instant::now(), Vec::new());
    while begin.elapsed() < TIME {
        meanwhile();
        let ask = victim.get();
        let start = Instant::now();
        assert!(victim.send(0, &ask));
        while !victim.take(0) {}
        times.push(start.elapsed());
    }
    times.sort_unstable();
    times
}

fn at(times: &[Duration], share: f64) -> f64 {
    times[((times.len() as f64 * share) as usize).min(times.len() - 1)].as_secs_f64() * 1e6
}

fn most(numbers: &[f64]) -> f64 {
    numbers.iter().copied().fold(0.0, f64::max)
}

fn least(numbers: &[f64]) -> f64 {
    numbers.iter().copied().fold(f64::INFINITY, f64::min)
}

fn many_to_one() {
    let daemon = Daemon::start(1 + IN_FLIGHT);
    let mut one = vec![Guest::connect(&daemon.socket(0), ALL_PAGES, IN_FLIGHT)];
    let mut many: Vec<_> = (1..=IN_FLIGHT)
        .map(|n| Guest::connect(&daemon.socket(n), ALL_PAGES / IN_FLIGHT, 32))
        .collect();
    one.iter_mut().chain(&mut many).for_each(Guest::put_all);
    let (mut alone, mut together) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        alone.push(rate(&mut one, 1, IN_FLIGHT));
        together.push(rate(&mut many, 1, 1));
    }
    let (alone, together) = (most(&alone), most(&together));
    println!(
        "{IN_FLIGHT} requests in flight: one guest gets {:.0} thousand pages a second, {IN_FLIGHT} \
         guests {:.0} together: {:.2} of it (mark: 0.8)",
        alone / 1e3,
        together / 1e3,
        together / alone
    );
}

/// Requests that keep a device busy for long, or cost next to nothing to send.
fn floods(guest: &Guest) -> Vec<(&'static str, Ask)> {
    let ranges = |ranges: Vec<Range>| {
        let header = guest.device.header(Opcode::FlushRange, 0, ranges.len());
        Ask {
            head: [header.as_bytes(), ranges.as_bytes()].concat(),
            pages: Vec::new(),
            answer: 32 + ranges.len(),
        }
    };
    let nothing = Range {
        object: key(1, 0).object,
        first: (1 << 40).into(),
        last: (1 << 50).into(),
    };
    let absent = |n: u64| Range {
        object: key(1000 + n, 0).object,
        ..Range::new_zeroed()
    };
    vec![
        ("puts of 256 pages", guest.ask(Opcode::Put, 0, 256)),
        ("gets of 256 pages", guest.ask(Opcode::Get, 0, 256)),
        ("puts of 1 page", guest.ask(Opcode::Put, 0, 1)),
        (
            "malformed requests",
            Ask {
                head: vec![0; 16],
                pages: Vec::new(),
                answer: 32,
            },
        ),
        (
            "flushes of 100 ranges of a large object",
            ranges(vec![nothing; 100]),
        ),
        (
            "flushes of 100 absent objects",
            ranges((0..100).map(absent).collect()),
        ),
    ]
}

fn victim_beside_a_flood() {
    let daemon = Daemon::start(2);
    let mut victim = Guest::connect(&daemon.socket(0), ALL_PAGES, 32);
    let mut other = Guest::connect(&daemon.socket(1), 4 * ALL_PAGES, 32);
    victim.put_all();
    other.put_all();
    for (name, ask) in floods(&other) {
        let (mut alone, mut beside) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let quiet = wait(&mut victim, || ());
            let loud = wait(&mut victim, || {
                for queue in 0..usize::from(DATA_QUEUES) {
                    while other.take(queue) {}
                    while other.send(queue, &ask) {}
                }
            });
            for queue in 0..usize::from(DATA_QUEUES) {
                while other.free[queue].len() < 32 {
                    other.take(queue);
                }
            }
            alone.push(at(&quiet, 0.99));
            beside.push(at(&loud, 0.99));
        }
        let (alone, beside) = (least(&alone), least(&beside));
        println!(
            "beside {name}: 1 % of a victim's gets take longer than {beside:.1} µs, alone \
             {alone:.1} µs: {:.1} times as long (mark: 10)",
            beside / alone
        );
    }
}

fn main() {
    // Where there is one processor only, both are on it.
    let cpus = thread::available_parallelism().unwrap().get();
    pin(cpus - 1).unwrap();
    // Cargo passes arguments of its own.
    let asked = |name: &str| std::env::args().any(|argument| argument == name);
    let all = !asked("many") && !asked("flood");
    if all || asked("many") {
        many_to_one();
    }
    if all || asked("flood") {
        victim_beside_a_flood();
    }
}
