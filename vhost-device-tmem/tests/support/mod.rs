// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A daemon to test, and a guest that talks vhost-user to it.

#![allow(dead_code, reason = "each test uses what it needs")]
#![allow(missing_docs, reason = "tests")]

pub(crate) mod operated;
pub(crate) mod qmp;
pub(crate) mod systemd;
pub(crate) mod window;

use std::{
    io::{BufRead, BufReader},
    ops::{Deref, DerefMut},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::{atomic::Ordering, PoisonError, RwLock, RwLockReadGuard},
    time::{Duration, Instant},
};

use tmem_driver::{Connection, Part, Queue, Response, TmemDevice, EVENT_IDX, FEATURES};
use uuid::Uuid;
use virtio_tmem_abi::{pool_flags, Event, Key, ObjectId, Opcode, PoolStats, Status, QUEUE_EVENT};
use vm_memory::{Bytes, GuestAddress};
use zerocopy::{FromBytes, IntoBytes};

pub(crate) const PAGE: usize = 4096;
const QUEUE_SIZE: u16 = 64;
pub(crate) const MEMORY: usize = 16 << 20;
pub(crate) const BUFFERS: u64 = 1 << 20;
const PATIENCE: Duration = Duration::from_secs(60);

/// Held by whoever starts a process. Until that is another program it has all descriptors of this
/// one, so that a socket which is closed here meanwhile is not closed for the other side.
static STARTING: RwLock<()> = RwLock::new(());

/// Has no daemon started by another test as long as the guard lives.
pub(crate) fn nobody_starts() -> RwLockReadGuard<'static, ()> {
    STARTING.read().unwrap_or_else(PoisonError::into_inner)
}

/// Waits until `done`, and panics if that takes a minute.
pub(crate) fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < PATIENCE, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A running daemon, killed when dropped.
pub(crate) struct Daemon {
    pub(crate) child: Child,
    pub(crate) log: BufReader<std::process::ChildStderr>,
    /// What was read of the log.
    pub(crate) seen: String,
}

impl Daemon {
    pub(crate) fn command(args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vhost-device-tmem"));
        command.args(args).stderr(Stdio::piped());
        if !args.contains(&"--pressure") {
            // What the host of the tests is short of is nothing to them.
            command.args(["--pressure", "off"]);
        }
        command
    }

    pub(crate) fn start(args: &[&str]) -> Self {
        Self::spawn(Self::command(args))
    }

    /// Starts a daemon that is another file.
    pub(crate) fn start_program(program: &Path, args: &[&str]) -> Self {
        let mut command = Command::new(program);
        command.args(args).stderr(Stdio::piped());
        Self::spawn(command)
    }

    /// Starts what [`Self::command`] returned.
    pub(crate) fn spawn(mut command: Command) -> Self {
        let starting = STARTING.write().unwrap_or_else(PoisonError::into_inner);
        let mut child = command.spawn().unwrap();
        drop(starting);
        let log = BufReader::new(child.stderr.take().unwrap());
        Self {
            child,
            log,
            seen: String::new(),
        }
    }

    /// Reads the log up to a line with `text`, and returns that line.
    pub(crate) fn wait_for(&mut self, text: &str) -> String {
        loop {
            let line = self.read_line();
            assert!(
                !line.is_empty(),
                "the daemon ended without {text:?}: {}",
                self.seen
            );
            if line.contains(text) {
                return line;
            }
        }
    }

    /// Reads the log to its end, and returns all of it.
    pub(crate) fn whole_log(&mut self) -> &str {
        while !self.read_line().is_empty() {}
        &self.seen
    }

    fn read_line(&mut self) -> String {
        let mut line = String::new();
        self.log.read_line(&mut line).unwrap();
        self.seen += &line;
        line
    }

    /// Returns the process of its worker.
    pub(crate) fn worker(&self) -> i32 {
        let id = self.child.id();
        let children = format!("/proc/{id}/task/{id}/children");
        let children = std::fs::read_to_string(children).unwrap();
        let last = children.split_whitespace().next_back();
        last.expect("there is a worker").parse().unwrap()
    }

    /// Stops it, whatever is lost by that.
    pub(crate) fn stop(&mut self) {
        wait_until("the daemon stops", || {
            self.signal(libc::SIGTERM);
            self.child.try_wait().unwrap().is_some()
        });
    }

    pub(crate) fn signal(&self, signal: i32) {
        // SAFETY: The child was not waited for yet, so the number is its.
        unsafe { libc::kill(self.child.id() as i32, signal) };
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends a signal to a process that the daemon has started.
pub(crate) fn kill(process: i32, signal: i32) {
    // SAFETY: A plain system call.
    assert_eq!(unsafe { libc::kill(process, signal) }, 0);
}

/// The statistics that `tmemctl stat --json` prints.
pub(crate) fn stat(control: &Path) -> serde_json::Value {
    let args = ["--control-path", control.to_str().unwrap()];
    let (success, said) = tmemctl(&[&args[..], &["stat", "--json"]].concat());
    assert!(success, "{said}");
    serde_json::from_str(&said).unwrap()
}

/// Runs tmemctl, and returns whether it succeeded, and what it said.
pub(crate) fn tmemctl(args: &[&str]) -> (bool, String) {
    let output = tmemctl_command(args).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(said).unwrap())
}

pub(crate) fn tmemctl_command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tmemctl"));
    command.args(args).env_remove("TMEMCTL_CONTROL_PATH");
    command
}

/// What a program printed, and how it ended.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Said {
    pub(crate) fn by(command: &mut Command) -> Self {
        let Output {
            status,
            stdout,
            stderr,
        } = command.output().unwrap();
        Self {
            code: status.code().expect("it exits"),
            out: String::from_utf8(stdout).unwrap(),
            err: String::from_utf8(stderr).unwrap(),
        }
    }

    /// What was printed, one line of JSON.
    pub(crate) fn json(&self) -> serde_json::Value {
        assert_eq!(
            (self.code, &*self.err, self.out.matches('\n').count()),
            (0, "", 1),
            "{self:?}"
        );
        serde_json::from_str(&self.out).unwrap()
    }

    /// The words of the line that begins with one.
    pub(crate) fn words(&self, first: &str) -> Vec<&str> {
        let mut lines = self.out.lines();
        let line = lines.find(|line| line.split_whitespace().next() == Some(first));
        let line = line.unwrap_or_else(|| panic!("no line of {first}: {self:?}"));
        line.split_whitespace().collect()
    }
}

/// A guest whose memory is a memfd, connected to the daemon.
pub(crate) struct Guest(TmemDevice);

impl Deref for Guest {
    type Target = TmemDevice;

    fn deref(&self) -> &TmemDevice {
        &self.0
    }
}

impl DerefMut for Guest {
    fn deref_mut(&mut self) -> &mut TmemDevice {
        &mut self.0
    }
}

impl Guest {
    /// Connects as a driver without the event index.
    pub(crate) fn connect(socket: &Path) -> Self {
        Self::connect_without(socket, EVENT_IDX)
    }

    /// Connects as a driver that leaves out some features.
    pub(crate) fn connect_without(socket: &Path, left_out: u64) -> Self {
        let mem = tmem_driver::memory(MEMORY).unwrap();
        let known = FEATURES & !left_out;
        Self(TmemDevice::connect(socket, &mem, known, QUEUE_SIZE, 0).unwrap())
    }

    /// Connects by a front-end that can be asked to map the window, on the other end of `channel`.
    pub(crate) fn connect_sharing(socket: &Path, channel: &UnixStream) -> Self {
        let mem = tmem_driver::memory(MEMORY).unwrap();
        let known = FEATURES & !EVENT_IDX;
        let connection = Connection::open_sharing(socket, &mem, known, channel).unwrap();
        Self(TmemDevice::start(connection, QUEUE_SIZE, 0).unwrap())
    }

    /// Tells the device where the memory is.
    pub(crate) fn tell_memory(&mut self) {
        self.connection.tell_memory().unwrap();
    }

    /// Sets a virtqueue up and enables it.
    pub(crate) fn start_queue(&mut self, queue: usize) {
        let device = &mut self.0;
        device.connection.start(&device.queues[queue]).unwrap();
    }

    /// Stops a virtqueue, and returns how many chains were taken from it.
    pub(crate) fn stop_queue(&mut self, queue: usize) -> u32 {
        let device = &mut self.0;
        device.connection.stop(&device.queues[queue]).unwrap()
    }

    /// Stops all virtqueues, as when the machine is paused.
    pub(crate) fn stop(&mut self) {
        for queue in 0..self.queues.len() {
            self.stop_queue(queue);
        }
    }

    /// Resets the device.
    pub(crate) fn reset(&mut self) {
        self.stop();
        self.connection.reset().unwrap();
    }

    /// Sets up all virtqueues as after a reset.
    pub(crate) fn start_anew(&mut self) {
        for number in 0..self.queues.len() {
            let base = number as u64 * Queue::bytes(QUEUE_SIZE);
            let queue = Queue::new(&self.connection, number, QUEUE_SIZE, base).unwrap();
            self.queues[number] = queue;
            self.start_queue(number);
        }
    }

    /// Sends a request with pieces that lie anywhere, its readable part at `BUFFERS`, and returns
    /// the used length.
    pub(crate) fn send_parts(&mut self, queue: usize, readable: &[u8], parts: &[Part]) -> u32 {
        let mem = self.connection.mem();
        mem.write_slice(readable, GuestAddress(BUFFERS)).unwrap();
        self.queues[queue].add(parts).unwrap();
        self.queues[queue].kick_now();
        self.wait(queue)
    }

    /// Reads guest memory.
    pub(crate) fn read(&self, addr: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        let mem = self.connection.mem();
        mem.read_slice(&mut bytes, GuestAddress(addr)).unwrap();
        bytes
    }

    /// Waits until the device wants to be notified of the next buffer.
    pub(crate) fn wait_avail_event(&mut self, queue: usize) {
        let queue = &self.queues[queue];
        wait_until("the device waits for notifications", || {
            queue.avail_event() == queue.added()
        });
    }

    /// Returns how many interrupts came since the last call.
    pub(crate) fn interrupts(&mut self, queue: usize) -> u64 {
        self.queues[queue].call().read().unwrap_or(0)
    }

    /// Claims to have made so many chains available, and notifies.
    pub(crate) fn break_ring(&mut self, queue: usize, idx: u16) {
        let queue = &self.queues[queue];
        let at = GuestAddress(queue.avail_ring() + 2);
        let mem = self.connection.mem();
        mem.store(idx, at, Ordering::Release).unwrap();
        queue.kick_now();
    }

    /// Reads from the configuration space.
    pub(crate) fn read_config(&mut self, offset: u32, len: u32) -> Vec<u8> {
        self.connection.read_config(offset, len).unwrap()
    }

    /// Returns the used length of the next chain, if it is used.
    pub(crate) fn poll(&mut self, queue: usize) -> Option<u32> {
        self.queues[queue].next_used().map(|(_, len)| len)
    }

    /// Waits for the next chain to be used, and returns its used length.
    pub(crate) fn wait(&mut self, queue: usize) -> u32 {
        self.queues[queue].poll().unwrap().1
    }

    /// Sends one request and waits for the response.
    pub(crate) fn request(&mut self, queue: usize, readable: &[u8], writable: usize) -> Response {
        self.0.request(queue, BUFFERS, readable, writable).unwrap()
    }

    pub(crate) fn create_pool(&mut self, pool: u32, flags: u32) -> Status {
        self.0.create_pool(BUFFERS, pool, flags).unwrap()
    }

    /// Enters a shared pool.
    pub(crate) fn join_pool(&mut self, pool: u32, uuid: Uuid) -> Status {
        let created = self
            .0
            .create_pool_of(BUFFERS, pool, pool_flags::SHARED, uuid.into_bytes());
        created.unwrap()
    }

    pub(crate) fn control(&mut self, opcode: Opcode, pool: u32) -> Status {
        self.0.control(BUFFERS, opcode, pool).unwrap().status()
    }

    pub(crate) fn stats(&mut self, pool: u32) -> PoolStats {
        let response = self.0.control(BUFFERS, Opcode::PoolStats, pool).unwrap();
        assert_eq!((response.status(), response.len), (Status::Ok, 160));
        PoolStats::read_from_bytes(&response.rest).unwrap()
    }

    pub(crate) fn put(&mut self, queue: usize, pool: u32, pages: &[(Key, u8)]) -> Response {
        let mut bytes = self
            .header(Opcode::Put, pool, pages.len())
            .as_bytes()
            .to_vec();
        for (key, _) in pages {
            bytes.extend(key.as_bytes());
        }
        for (_, fill) in pages {
            bytes.extend([*fill; PAGE]);
        }
        self.request(queue, &bytes, 32 + pages.len())
    }

    pub(crate) fn get(&mut self, queue: usize, pool: u32, flags: u16, keys: &[Key]) -> Response {
        let mut header = self.header(Opcode::Get, pool, keys.len());
        header.flags = flags.into();
        let mut bytes = header.as_bytes().to_vec();
        bytes.extend(keys.as_bytes());
        self.request(queue, &bytes, 32 + keys.len() * (1 + PAGE))
    }

    pub(crate) fn flush(&mut self, queue: usize, pool: u32, keys: &[Key]) -> Response {
        let mut bytes = self
            .header(Opcode::FlushPage, pool, keys.len())
            .as_bytes()
            .to_vec();
        bytes.extend(keys.as_bytes());
        self.request(queue, &bytes, 32 + keys.len())
    }

    /// Gives the device a buffer for an event.
    pub(crate) fn offer_event(&mut self) {
        self.submit(
            usize::from(QUEUE_EVENT),
            BUFFERS / 2,
            &[],
            size_of::<Event>(),
        );
    }

    pub(crate) fn wait_event(&mut self) -> Event {
        assert_eq!(
            self.wait(usize::from(QUEUE_EVENT)),
            size_of::<Event>() as u32
        );
        let mut bytes = [0; size_of::<Event>()];
        let at = GuestAddress(BUFFERS / 2);
        self.connection.mem().read_slice(&mut bytes, at).unwrap();
        Event::read_from_bytes(&bytes).unwrap()
    }
}

pub(crate) fn key(object: u64, index: u64, version: u64) -> Key {
    Key {
        object: ObjectId([object.into(), 0.into(), 0.into()]),
        index: index.into(),
        version: version.into(),
    }
}

/// A directory for sockets, and paths in it as arguments.
pub(crate) struct Place(tempfile::TempDir);

impl Place {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn arg(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }
}
