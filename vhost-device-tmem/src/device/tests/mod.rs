// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A device without a connection, and requests in guest memory for it.

mod engine;
mod framing;
mod groups;
mod memory;
mod rules;
mod saving;
mod steps;

use std::{
    convert::Infallible,
    os::fd::OwnedFd,
    sync::Arc,
    time::{Duration, Instant},
};

use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use virtio_queue::{
    desc::{split::Descriptor, RawDescriptor},
    Queue, QueueOwnedT, QueueT,
};
use virtio_tmem_abi::{
    pool_flags, request_flags, Key, Malformed, ObjectId, Opcode, PageResult, PoolCreate, PoolStats,
    Range, RequestHeader, ResponseHeader, Status, WindowOpen,
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::{
    chain::Parts,
    execute::{serve, Group, Pending, Scratch},
    fault::Watch,
    lender::Lender,
    loglimit::LogLimit,
    meter::Meter,
    request::QueueKind,
    session::Session,
    turns::{Allowance, Quantum},
    Limits,
};
use crate::{
    socket::Rights,
    store::{Config as StoreConfig, Store, PAGE_SIZE},
    window::{self, Window, WindowFiles},
};

const MEMORY: usize = 8 << 20;
const QUEUE_SIZE: u16 = 1024;
const DESCRIPTORS: u64 = 0x1_0000;
const AVAIL: u64 = 0x2_0000;
const READABLE: u64 = 1 << 20;
const WRITABLE: u64 = 4 << 20;
/// Not what the device writes, and not what the tests put.
const UNTOUCHED: u8 = 0xa5;

const EPOCH: u64 = 0x1234;

/// Enough for any request.
const PLENTY: Quantum = Quantum {
    pages: u32::MAX,
    time: Duration::from_secs(3600),
};

/// Enough for one step.
const LITTLE: Quantum = Quantum {
    pages: 1,
    time: Duration::from_secs(3600),
};

/// A descriptor: address, length, and whether it is writable.
type Piece = (u64, u32, bool);

struct Device {
    session: Arc<Session>,
    mem: GuestMemoryMmap,
    scratch: Scratch,
}

struct Response {
    len: u32,
    /// The whole writable part.
    bytes: Vec<u8>,
}

impl Response {
    fn header(&self) -> ResponseHeader {
        ResponseHeader::read_from_prefix(&self.bytes).unwrap().0
    }

    fn status(&self) -> Status {
        Status::from_wire(self.header().status.get()).unwrap()
    }

    fn results(&self) -> Vec<PageResult> {
        let count = self.header().count.get() as usize;
        let results = &self.bytes[32..32 + count];
        results
            .iter()
            .map(|r| PageResult::from_wire(*r).unwrap())
            .collect()
    }

    /// Asserts that it is nothing but this status, and nothing else was written.
    fn assert_status(&self, status: Status, detail: u32) {
        let header = self.header();
        assert_eq!((self.status(), header.detail.get()), (status, detail));
        assert_eq!(
            (self.len, header.count.get(), header.reserved.get()),
            (32, 0, 0)
        );
        assert!(header.persistent_credits.get() > 0);
        assert!(self.bytes[32..].iter().all(|byte| *byte == UNTOUCHED));
    }

    fn assert_malformed(&self, rule: Malformed) {
        self.assert_status(Status::Malformed, rule.to_wire());
    }
}

impl Device {
    /// A device with a persistent pool 0 and an ephemeral pool 1.
    fn new() -> Self {
        Self::build(4 << 20, false)
    }

    /// One that has a window, too, which is open.
    fn with_window() -> Self {
        let mut device = Self::build(16 << 20, true);
        let header = device.header(Opcode::WindowOpen, 0, 1);
        let bytes = [header.as_bytes(), WindowOpen::new_zeroed().as_bytes()].concat();
        let opened = device.send(QueueKind::Control, &bytes, 32);
        assert_eq!(opened.status(), Status::Ok);
        device
    }

    fn build(capacity: u64, window: bool) -> Self {
        let store = Arc::new(Store::new(&StoreConfig::new(capacity)).unwrap());
        let lender = window.then(|| {
            let window = open_window(&window_files());
            Arc::new(Lender::new(Arc::clone(&store), 0, window, None))
        });
        let mut device = Self {
            session: Session::new(
                0,
                "test",
                store,
                Limits::new(2),
                EPOCH,
                Arc::<LogLimit>::default(),
                lender,
            ),
            mem: GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap(),
            scratch: Scratch::default(),
        };
        let created = device.create(0, pool_flags::PERSISTENT);
        assert_eq!(created.status(), Status::Ok);
        assert_eq!(device.create(1, 0).status(), Status::Ok);
        device
    }

    /// Serves the chain that consists of `pieces`.
    fn chain(&mut self, kind: QueueKind, pieces: &[Piece]) -> u32 {
        let next = |n: usize| {
            if n + 1 < pieces.len() {
                VRING_DESC_F_NEXT as u16
            } else {
                0
            }
        };
        let descriptors: Vec<_> = pieces
            .iter()
            .enumerate()
            .map(|(n, (addr, len, writable))| {
                let write = if *writable { VRING_DESC_F_WRITE } else { 0 };
                Descriptor::new(*addr, *len, write as u16 | next(n), n as u16 + 1)
            })
            .collect();
        self.serve(kind, &descriptors)
    }

    /// Serves the chain that begins with the first of `descriptors`, which are a virtqueue's whole
    /// table.
    fn serve(&mut self, kind: QueueKind, descriptors: &[Descriptor]) -> u32 {
        let parts = collect(&self.mem, descriptors);
        serve_parts(&self.session, kind, &[parts], &mut self.scratch, PLENTY)[0]
    }

    /// Serves a request of two descriptors.
    fn send(&mut self, kind: QueueKind, readable: &[u8], writable: usize) -> Response {
        let pieces = [
            (READABLE, readable.len() as u32, false),
            (WRITABLE, writable as u32, true),
        ];
        self.send_pieces(kind, readable, writable, &pieces)
    }

    fn send_pieces(
        &mut self,
        kind: QueueKind,
        readable: &[u8],
        writable: usize,
        pieces: &[Piece],
    ) -> Response {
        self.mem
            .write_slice(readable, GuestAddress(READABLE))
            .unwrap();
        let mut bytes = vec![UNTOUCHED; writable];
        self.mem
            .write_slice(&bytes, GuestAddress(WRITABLE))
            .unwrap();
        let len = self.chain(kind, pieces);
        self.mem
            .read_slice(&mut bytes, GuestAddress(WRITABLE))
            .unwrap();
        Response { len, bytes }
    }

    fn header(&self, opcode: Opcode, pool: u32, count: u32) -> RequestHeader {
        RequestHeader {
            opcode: opcode.to_wire().into(),
            pool: pool.into(),
            count: count.into(),
            epoch: self.session.epoch().into(),
            ..RequestHeader::new_zeroed()
        }
    }

    fn create(&mut self, pool: u32, flags: u32) -> Response {
        self.create_as(pool, |create| create.flags = flags.into())
    }

    fn create_as(&mut self, pool: u32, change: impl Fn(&mut PoolCreate)) -> Response {
        let mut create = PoolCreate {
            page_shift: 12,
            ..PoolCreate::new_zeroed()
        };
        change(&mut create);
        let header = self.header(Opcode::PoolCreate, pool, 1);
        let bytes = [header.as_bytes(), create.as_bytes()].concat();
        self.send(QueueKind::Control, &bytes, 32)
    }

    fn put(&mut self, pool: u32, keys: &[Key], contents: u8) -> Response {
        let request = self.put_bytes(pool, keys, contents);
        self.send(QueueKind::Data, &request, 32 + keys.len())
    }

    fn put_bytes(&self, pool: u32, keys: &[Key], contents: u8) -> Vec<u8> {
        let header = self.header(Opcode::Put, pool, keys.len() as u32);
        let mut bytes = [header.as_bytes(), keys.as_bytes()].concat();
        for n in 0..keys.len() {
            bytes.extend([contents.wrapping_add(n as u8); PAGE_SIZE]);
        }
        bytes
    }

    fn get_bytes(&self, pool: u32, flags: u16, keys: &[Key]) -> Vec<u8> {
        let mut header = self.header(Opcode::Get, pool, keys.len() as u32);
        header.flags = flags.into();
        [header.as_bytes(), keys.as_bytes()].concat()
    }

    fn get(&mut self, pool: u32, flags: u16, keys: &[Key]) -> Response {
        let bytes = self.get_bytes(pool, flags, keys);
        self.send(QueueKind::Data, &bytes, 32 + keys.len() * (1 + PAGE_SIZE))
    }

    /// A valid operation works, whatever came before.
    fn assert_works(&mut self) {
        let keys = [key(99, 99)];
        assert_eq!(self.put(0, &keys, 0x77).results(), [PageResult::Stored]);
        let got = self.get(0, 0, &keys);
        assert_eq!(got.results(), [PageResult::Hit]);
        assert_eq!(got.bytes[33..], [0x77; PAGE_SIZE]);
    }
}

/// Returns the parts of the chain that begins with the first of `descriptors`.
fn collect<'m>(mem: &'m GuestMemoryMmap, descriptors: &[Descriptor]) -> Parts<'m> {
    for (n, descriptor) in descriptors.iter().enumerate() {
        let at = GuestAddress(DESCRIPTORS + 16 * n as u64);
        let descriptor = RawDescriptor::from(*descriptor);
        mem.write_obj(descriptor, at).unwrap();
    }
    // One buffer is available, the first one.
    mem.write_obj([0u16, 1, 0], GuestAddress(AVAIL)).unwrap();
    let mut queue = Queue::new(QUEUE_SIZE).unwrap();
    queue.set_desc_table_address(Some(DESCRIPTORS as u32), None);
    queue.set_avail_ring_address(Some(AVAIL as u32), None);
    queue.set_ready(true);
    let chain = queue.iter(mem).unwrap().next().unwrap();
    let mut parts = Parts::default();
    parts.collect(chain, mem);
    parts
}

/// Serves requests together, in turns of so much, and returns the used length of each.
fn serve_parts(
    session: &Arc<Session>,
    kind: QueueKind,
    requests: &[Parts<'_>],
    scratch: &mut Scratch,
    turn: Quantum,
) -> Vec<u32> {
    let mut used = Vec::new();
    let mut pending: Option<Box<Pending>> = None;
    while used.len() < requests.len() {
        let mut left = Allowance::default();
        left.top_up(turn);
        let mut meter = Meter::new(Instant::now());
        meter.begin(left);
        let first = used.len();
        let group = Group {
            queue: kind,
            requests: &requests[first..],
            watch: &Watch::default(),
            wake: None,
        };
        let served = serve(session, group, &mut pending, scratch, &mut meter, |lens| {
            used.extend(lens);
            Ok::<_, Infallible>(())
        });
        assert_eq!(served.unwrap(), used.len() - first);
        assert!(pending.is_none() || meter.is_spent());
    }
    used
}

/// Makes the files of a window of which two chunks can be granted.
fn window_files() -> WindowFiles {
    let directory = tempfile::tempdir_in("/dev/shm").unwrap();
    let rights = Rights::default();
    let made = window::create(directory.path(), "test", window::MIN_SIZE, rights);
    made.unwrap().0
}

fn descriptors(files: &WindowFiles) -> [OwnedFd; 2] {
    files
        .descriptors()
        .map(|fd| fd.try_clone_to_owned().unwrap())
}

fn open_window(files: &WindowFiles) -> Window {
    let [file, book] = descriptors(files);
    Window::open(file, book).unwrap()
}

fn key(index: u64, version: u64) -> Key {
    Key {
        object: ObjectId([1.into(), 2.into(), 3.into()]),
        index: index.into(),
        version: version.into(),
    }
}
