// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a guest writes, made up by a fuzzer.

use std::{convert::Infallible, sync::Arc, time::Instant};

use uuid::Uuid;
use virtio_bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use virtio_queue::{
    desc::{split::Descriptor, RawDescriptor},
    Queue, QueueOwnedT, QueueT,
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::{
    chain::Parts,
    execute::{serve, Group, Pending, Scratch},
    fault::Watch,
    loglimit::LogLimit,
    meter::Meter,
    request::QueueKind,
    session::Session,
    turns::{Allowance, SHARED},
    Limits,
};
use crate::store::{Compression, Config, HugePages, SharedPool, Store, FIRST_SHARED};

/// Descriptors of a virtqueue.
const SIZE: u16 = 16;
const DESCRIPTORS: u64 = 0;
const AVAIL: u64 = 0x1000;
const USED: u64 = 0x2000;
const READABLE: u64 = 0x4000;
const WRITABLE: u64 = 0x4_0000;
const MEMORY: usize = 1 << 20;

/// Chains that are taken of one input.
const CHAINS: usize = 64;

/// The epoch.
const NUMBER: u64 = 0x1122_3344_5566_7788;

/// The pool that the guest may share.
const UUID: Uuid = Uuid::from_bytes([7; 16]);

/// Where the epoch is in a request.
const EPOCH: std::ops::Range<usize> = 16..24;

/// A device without a connection.
struct Device {
    session: Arc<Session>,
    mem: GuestMemoryMmap,
    queue: Queue,
    scratch: Scratch,
}

impl Device {
    fn new() -> Option<Self> {
        let store = Store::new(&Config {
            compression: Compression::Lz4,
            huge_pages: HugePages::Off,
            ..Config::new(1 << 20)
        });
        let store = Arc::new(store.ok()?);
        // It may share a small pool.
        store.set_shared([SharedPool {
            number: FIRST_SHARED,
            uuid: UUID,
            guests: [0].into(),
            max: Some(32 << 10),
        }]);
        let log = Arc::<LogLimit>::default();
        let mut queue = Queue::new(SIZE).ok()?;
        queue.set_desc_table_address(Some(DESCRIPTORS as u32), None);
        queue.set_avail_ring_address(Some(AVAIL as u32), None);
        queue.set_used_ring_address(Some(USED as u32), None);
        queue.set_ready(true);
        Some(Self {
            session: Session::new(0, "fuzz", store, Limits::new(1), NUMBER, log, None),
            mem: GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).ok()?,
            queue,
            scratch: Scratch::default(),
        })
    }

    fn write(&self, bytes: &[u8], at: u64) {
        let written = self.mem.write(bytes, GuestAddress(at));
        written.expect("the address is in guest memory");
    }

    /// Serves what is on the virtqueue, until the guest breaks it.
    fn serve(&mut self, kind: QueueKind) {
        for _ in 0..CHAINS {
            let Ok(mut chains) = self.queue.iter(&self.mem) else {
                return;
            };
            let Some(chain) = chains.next() else {
                return;
            };
            let head = chain.head_index();
            let mut parts = Parts::default();
            parts.collect(chain, &self.mem);
            let writable = parts.writable_len();
            let mut len = 0;
            let mut pending: Option<Box<Pending>> = None;
            let mut done = false;
            // It takes as many turns as it takes.
            while !done {
                let mut left = Allowance::default();
                left.top_up(SHARED);
                let mut meter = Meter::new(Instant::now());
                meter.begin(left);
                let group = Group {
                    queue: kind,
                    requests: std::slice::from_ref(&parts),
                    watch: &Watch::default(),
                    wake: None,
                };
                let (session, scratch) = (&self.session, &mut self.scratch);
                let served = serve(session, group, &mut pending, scratch, &mut meter, |lens| {
                    if let Some(&first) = lens.first() {
                        (len, done) = (first, true);
                    }
                    Ok::<_, Infallible>(())
                });
                let Ok(_) = served;
            }
            assert!(len as usize <= writable, "more was written than there is");
            if self.queue.add_used(&self.mem, head, len).is_err() {
                return;
            }
        }
    }
}

/// Serves virtqueues in guest memory that consists of the input.
///
/// # Panics
///
/// Where more is said to be written than there is room for.
pub fn rings(data: &[u8]) {
    let (Some((&kind, data)), Some(mut device)) = (data.split_first(), Device::new()) else {
        return;
    };
    device.write(&data[..data.len().min(MEMORY)], 0);
    device.serve(match kind & 1 {
        0 => QueueKind::Control,
        _ => QueueKind::Data,
    });
}

/// Serves requests that consist of pieces of the input, one after the other, on a virtqueue that is
/// as it should be.
///
/// # Panics
///
/// As [`rings`].
pub fn requests(mut data: &[u8]) {
    let Some(mut device) = Device::new() else {
        return;
    };
    // How it is sent, and how long its parts are.
    while let Some((head, rest)) = data.split_first_chunk::<5>() {
        let [how, readable, high, writable, pages] = *head;
        let readable = usize::from(u16::from_le_bytes([readable, high])).min(0x8000);
        let (bytes, rest) = rest.split_at(rest.len().min(readable));
        data = rest;
        let mut bytes = bytes.to_vec();
        // Most of what a guest sends has the right epoch, which the fuzzer cannot know.
        if how & 1 == 0 && bytes.len() >= EPOCH.end {
            bytes[EPOCH].copy_from_slice(&device.session.epoch().to_le_bytes());
        }
        let writable = usize::from(writable) + 4096 * usize::from(pages % 64);
        device.request(how, &bytes, writable);
        device.serve(match how & 2 {
            0 => QueueKind::Control,
            _ => QueueKind::Data,
        });
    }
}

impl Device {
    /// Makes a chain available whose two parts are split where `how` says.
    fn request(&mut self, how: u8, readable: &[u8], writable: usize) {
        self.write(readable, READABLE);
        let split = |len: usize| len.min(usize::from(how >> 2) * 8);
        let mut pieces = Vec::new();
        for (at, len, write) in [
            (READABLE, readable.len(), 0),
            (WRITABLE, writable, VRING_DESC_F_WRITE),
        ] {
            let first = split(len);
            for (at, len) in [(at, first), (at + first as u64, len - first)] {
                if len > 0 {
                    pieces.push((at, len as u32, write as u16));
                }
            }
        }
        let count = pieces.len() as u16;
        for (n, (at, len, flags)) in (0..).zip(pieces) {
            let next = if n + 1 < count { VRING_DESC_F_NEXT } else { 0 };
            let descriptor =
                RawDescriptor::from(Descriptor::new(at, len, flags | next as u16, n + 1));
            let at = GuestAddress(DESCRIPTORS + u64::from(n) * 16);
            let written = self.mem.write_obj(descriptor, at);
            written.expect("the address is in guest memory");
        }
        let index = self.queue.next_avail().wrapping_add(u16::from(count > 0));
        // All of the ring says descriptor 0.
        self.write(&index.to_le_bytes(), AVAIL + 2);
    }
}
