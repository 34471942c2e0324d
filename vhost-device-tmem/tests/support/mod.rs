// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A daemon to test, and a guest that talks vhost-user to it.

#![allow(dead_code, reason = "each test uses what it needs")]
#![allow(missing_docs, reason = "tests")]

use std::{
    fs::File,
    io::{BufRead, BufReader},
    os::fd::FromRawFd,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use vhost::{
    vhost_user::{
        message::{VhostUserConfigFlags, VhostUserProtocolFeatures},
        Frontend, VhostUserFrontend,
    },
    VhostBackend, VhostUserMemoryRegionInfo, VringConfigData,
};
use virtio_queue::desc::{split::Descriptor, RawDescriptor};
use virtio_tmem_abi::{
    Config, Event, Key, ObjectId, Opcode, PageResult, PoolCreate, PoolStats, RequestHeader,
    ResponseHeader, Status, QUEUE_CONTROL, QUEUE_EVENT,
};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;
use zerocopy::{FromBytes, FromZeros, IntoBytes};

pub(crate) const PAGE: usize = 4096;
const QUEUE_SIZE: u16 = 64;
const MEMORY: usize = 16 << 20;
const BUFFERS: u64 = 1 << 20;
/// The feature bit of the event index.
const EVENT_IDX: u64 = 1 << 29;
const PATIENCE: Duration = Duration::from_secs(60);

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
        command
    }

    pub(crate) fn start(args: &[&str]) -> Self {
        let mut child = Self::command(args).spawn().unwrap();
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

/// The statistics that `tmemctl stat --json` prints.
pub(crate) fn stat(control: &Path) -> serde_json::Value {
    let output = Command::new(env!("CARGO_BIN_EXE_tmemctl"))
        .args([
            "--control-path",
            control.to_str().unwrap(),
            "stat",
            "--json",
        ])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// A virtqueue, seen from the driver.
struct Ring {
    base: u64,
    kick: EventFd,
    call: EventFd,
    avail: u16,
    used: u16,
}

impl Ring {
    fn desc(&self) -> u64 {
        self.base
    }
    fn avail_ring(&self) -> u64 {
        self.base + 0x2000
    }
    fn used_ring(&self) -> u64 {
        self.base + 0x4000
    }
}

/// A response: its length, header and what follows.
#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) len: u32,
    pub(crate) header: ResponseHeader,
    pub(crate) rest: Vec<u8>,
}

impl Response {
    pub(crate) fn status(&self) -> Status {
        Status::from_wire(self.header.status.get()).unwrap()
    }

    pub(crate) fn results(&self) -> Vec<PageResult> {
        let results = &self.rest[..self.header.count.get() as usize];
        results
            .iter()
            .map(|result| PageResult::from_wire(*result).unwrap())
            .collect()
    }

    pub(crate) fn page(&self, n: usize) -> &[u8] {
        let start = self.header.count.get() as usize + n * PAGE;
        &self.rest[start..start + PAGE]
    }
}

/// A guest whose memory is a memfd, connected to the daemon.
pub(crate) struct Guest {
    pub(crate) frontend: Frontend,
    pub(crate) mem: GuestMemoryMmap,
    pub(crate) config: Config,
    rings: Vec<Ring>,
}

impl Guest {
    /// Connects as a driver without the event index.
    pub(crate) fn connect(socket: &Path) -> Self {
        Self::connect_without(socket, EVENT_IDX)
    }

    /// Connects as a driver that leaves out some features.
    pub(crate) fn connect_without(socket: &Path, left_out: u64) -> Self {
        // SAFETY: A plain system call; the descriptor is new.
        let file = unsafe {
            let fd = libc::memfd_create(c"guest".as_ptr(), libc::MFD_CLOEXEC);
            assert!(fd >= 0);
            File::from_raw_fd(fd)
        };
        file.set_len(MEMORY as u64).unwrap();
        let range = (GuestAddress(0), MEMORY, Some(FileOffset::new(file, 0)));
        let mem = GuestMemoryMmap::from_ranges_with_files([range]).unwrap();

        let mut frontend = Frontend::connect(socket, 64).unwrap();
        frontend.set_owner().unwrap();
        let features = frontend.get_features().unwrap();
        let protocol = frontend.get_protocol_features().unwrap();
        assert!(protocol.contains(VhostUserProtocolFeatures::CONFIG));
        // Memory slots would change how memory is told.
        let wanted = VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK;
        frontend.set_protocol_features(wanted).unwrap();
        frontend.set_features(features & !left_out).unwrap();
        let buffer = [0; size_of::<Config>()];
        let (_, config) = frontend
            .get_config(
                0,
                buffer.len() as u32,
                VhostUserConfigFlags::empty(),
                &buffer,
            )
            .unwrap();
        let config = Config::read_from_bytes(&config).unwrap();
        let queues = 2 + u64::from(config.data_queues.get());
        let mut guest = Self {
            frontend,
            mem,
            config,
            rings: Vec::new(),
        };
        guest.tell_memory();
        for queue in 0..queues {
            guest.rings.push(Ring {
                base: queue * 0x8000,
                kick: EventFd::new(0).unwrap(),
                call: EventFd::new(libc::EFD_NONBLOCK).unwrap(),
                avail: 0,
                used: 0,
            });
            guest.start_queue(queue as usize);
        }
        guest
    }

    /// Tells the device where the memory is.
    pub(crate) fn tell_memory(&mut self) {
        let region = self.mem.iter().next().unwrap();
        let region = VhostUserMemoryRegionInfo::from_guest_region(region).unwrap();
        self.frontend.set_mem_table(&[region]).unwrap();
    }

    /// Sets a virtqueue up and enables it.
    pub(crate) fn start_queue(&mut self, queue: usize) {
        let ring = &self.rings[queue];
        let host = |addr| self.mem.get_host_address(GuestAddress(addr)).unwrap() as u64;
        let data = VringConfigData {
            queue_max_size: QUEUE_SIZE,
            queue_size: QUEUE_SIZE,
            flags: 0,
            desc_table_addr: host(ring.desc()),
            used_ring_addr: host(ring.used_ring()),
            avail_ring_addr: host(ring.avail_ring()),
            log_addr: None,
        };
        let frontend = &mut self.frontend;
        frontend.set_vring_num(queue, QUEUE_SIZE).unwrap();
        frontend.set_vring_addr(queue, &data).unwrap();
        frontend.set_vring_base(queue, ring.avail).unwrap();
        frontend.set_vring_call(queue, &ring.call).unwrap();
        frontend.set_vring_kick(queue, &ring.kick).unwrap();
        frontend.set_vring_enable(queue, true).unwrap();
    }

    /// Stops a virtqueue, and returns how many chains were taken from it.
    pub(crate) fn stop_queue(&mut self, queue: usize) -> u32 {
        self.frontend.get_vring_base(queue).unwrap()
    }

    /// Says when the driver wants the next interrupt: the used index before it.
    pub(crate) fn set_used_event(&mut self, queue: usize, event: u16) {
        let at = self.rings[queue].avail_ring() + 4 + 2 * u64::from(QUEUE_SIZE);
        self.mem.write_obj(event, GuestAddress(at)).unwrap();
    }

    /// Says whether the driver wants interrupts, where there is no event index.
    pub(crate) fn set_no_interrupt(&mut self, queue: usize, none: bool) {
        let at = GuestAddress(self.rings[queue].avail_ring());
        self.mem.write_obj(u16::from(none), at).unwrap();
    }

    /// Waits until the device wants to be notified of the next buffer.
    pub(crate) fn wait_avail_event(&mut self, queue: usize) {
        let ring = &self.rings[queue];
        let at = GuestAddress(ring.used_ring() + 4 + 8 * u64::from(QUEUE_SIZE));
        wait_until("the device waits for notifications", || {
            self.mem.load::<u16>(at, Ordering::SeqCst).unwrap() == ring.avail
        });
    }

    /// Returns how many interrupts came since the last call.
    pub(crate) fn interrupts(&mut self, queue: usize) -> u64 {
        self.rings[queue].call.read().unwrap_or(0)
    }

    /// Claims to have made so many chains available, and notifies.
    pub(crate) fn break_ring(&mut self, queue: usize, idx: u16) {
        let ring = &self.rings[queue];
        let at = GuestAddress(ring.avail_ring() + 2);
        self.mem.store(idx, at, Ordering::Release).unwrap();
        ring.kick.write(1).unwrap();
    }

    /// Reads from the configuration space.
    pub(crate) fn read_config(&mut self, offset: u32, len: u32) -> Vec<u8> {
        let buffer = vec![0; len as usize];
        let flags = VhostUserConfigFlags::empty();
        self.frontend
            .get_config(offset, len, flags, &buffer)
            .unwrap()
            .1
    }

    pub(crate) fn epoch(&self) -> u64 {
        self.config.epoch.get()
    }

    /// Makes one chain available, without waiting; `writable` bytes follow `readable`.
    pub(crate) fn submit(&mut self, queue: usize, addr: u64, readable: &[u8], writable: usize) {
        self.mem.write_slice(readable, GuestAddress(addr)).unwrap();
        let mut parts = vec![(addr, readable.len(), 0)];
        parts.push((addr + readable.len() as u64, writable, 2));
        parts.retain(|(_, len, _)| *len > 0);
        self.submit_chain(queue, &parts);
    }

    /// Makes a chain of (address, length, flags) available, from the first descriptor on.
    pub(crate) fn submit_chain(&mut self, queue: usize, parts: &[(u64, usize, u16)]) {
        let ring = &mut self.rings[queue];
        for (n, (addr, len, flags)) in parts.iter().enumerate() {
            let next = u16::from(n + 1 < parts.len());
            let desc = Descriptor::new(*addr, *len as u32, flags | next, n as u16 + 1);
            let at = GuestAddress(ring.desc() + 16 * n as u64);
            self.mem.write_obj(RawDescriptor::from(desc), at).unwrap();
        }
        let slot = ring.avail_ring() + 4 + 2 * u64::from(ring.avail % QUEUE_SIZE);
        self.mem.write_obj(0u16, GuestAddress(slot)).unwrap();
        ring.avail = ring.avail.wrapping_add(1);
        let idx = GuestAddress(ring.avail_ring() + 2);
        self.mem.store(ring.avail, idx, Ordering::Release).unwrap();
        ring.kick.write(1).unwrap();
    }

    /// Returns the used length of the next chain, if it is used.
    pub(crate) fn poll(&mut self, queue: usize) -> Option<u32> {
        let ring = &mut self.rings[queue];
        let idx = GuestAddress(ring.used_ring() + 2);
        let idx: u16 = self.mem.load(idx, Ordering::Acquire).unwrap();
        if idx == ring.used {
            return None;
        }
        let slot = ring.used_ring() + 4 + 8 * u64::from(ring.used % QUEUE_SIZE);
        ring.used = ring.used.wrapping_add(1);
        Some(self.mem.read_obj(GuestAddress(slot + 4)).unwrap())
    }

    pub(crate) fn wait(&mut self, queue: usize) -> u32 {
        let mut len = None;
        wait_until("a used buffer", || {
            len = self.poll(queue);
            len.is_some()
        });
        len.unwrap()
    }

    /// Sends one request and waits for the response.
    pub(crate) fn request(&mut self, queue: usize, readable: &[u8], writable: usize) -> Response {
        self.submit(queue, BUFFERS, readable, writable);
        let len = self.wait(queue);
        let mut answer = vec![0; writable];
        let at = GuestAddress(BUFFERS + readable.len() as u64);
        self.mem.read_slice(&mut answer, at).unwrap();
        let header = ResponseHeader::read_from_prefix(&answer).unwrap().0;
        Response {
            len,
            header,
            rest: answer.split_off(size_of::<ResponseHeader>()),
        }
    }

    pub(crate) fn header(&self, opcode: Opcode, pool: u32, count: usize) -> RequestHeader {
        RequestHeader {
            opcode: opcode.to_wire().into(),
            pool: pool.into(),
            count: (count as u32).into(),
            epoch: self.epoch().into(),
            ..RequestHeader::new_zeroed()
        }
    }

    pub(crate) fn create_pool(&mut self, pool: u32, flags: u32) -> Status {
        let mut bytes = self.header(Opcode::PoolCreate, pool, 1).as_bytes().to_vec();
        let create = PoolCreate {
            flags: flags.into(),
            page_shift: 12,
            ..PoolCreate::new_zeroed()
        };
        bytes.extend(create.as_bytes());
        self.request(usize::from(QUEUE_CONTROL), &bytes, 32)
            .status()
    }

    pub(crate) fn control(&mut self, opcode: Opcode, pool: u32) -> Status {
        let bytes = self.header(opcode, pool, 0).as_bytes().to_vec();
        self.request(usize::from(QUEUE_CONTROL), &bytes, 32)
            .status()
    }

    pub(crate) fn stats(&mut self, pool: u32) -> PoolStats {
        let bytes = self.header(Opcode::PoolStats, pool, 0).as_bytes().to_vec();
        let response = self.request(usize::from(QUEUE_CONTROL), &bytes, 32 + 128);
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
        self.mem
            .read_slice(&mut bytes, GuestAddress(BUFFERS / 2))
            .unwrap();
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
