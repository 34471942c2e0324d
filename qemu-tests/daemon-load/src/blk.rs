// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Requests to a block device.

use std::path::Path;

use anyhow::{ensure, Result};
use tmem_driver::{Connection, Part, Queue, FEATURES};
use virtio_bindings::virtio_blk::{VIRTIO_BLK_S_OK, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::{
    layout::{Layout, PAGE, QUEUE_SIZE},
    load::{self, Outcome, Pace, Requests, Stream},
};

/// Where in the memory of a slot the status is.
const STATUS_OFFSET: u64 = 64;

/// Bytes of a sector, as requests count them.
const SECTOR: u64 = 512;

/// A block device with one virtqueue.
pub(crate) struct Disk<'a> {
    queue: Queue,
    slots: u64,
    layout: &'a Layout,
    mem: GuestMemoryMmap,
    cpu: usize,
    _connection: Connection,
}

impl<'a> Disk<'a> {
    /// Connects as the `n`th block device.
    pub(crate) fn connect(
        path: &Path,
        mem: &GuestMemoryMmap,
        layout: &'a Layout,
        n: usize,
        cpu: usize,
    ) -> Result<Self> {
        let mut connection = Connection::open(path, mem, FEATURES)?;
        let sectors = connection.read_config(0, 8)?;
        let sectors = sectors
            .iter()
            .rev()
            .fold(0, |all, byte| (all << 8) | u64::from(*byte));
        let needed = u64::from(layout.pages()) * PAGE as u64;
        ensure!(sectors * SECTOR >= needed, "it has only {sectors} sectors");
        let queue = Queue::new(&connection, 0, QUEUE_SIZE, layout.disk(n))?;
        connection.start(&queue)?;
        Ok(Self {
            queue,
            slots: layout.disk_requests(n),
            layout,
            mem: mem.clone(),
            cpu,
            _connection: connection,
        })
    }

    /// Writes or reads all pages.
    pub(crate) fn run(&mut self, write: bool, pace: &Pace) -> Result<Outcome> {
        let order = pace.order(self.layout.pages());
        let stream = Stream {
            guest: 0,
            queue: &mut self.queue,
            slots: self.slots,
            order,
            requests: Box::new(Sectors {
                write,
                batch: pace.batch,
                mem: &self.mem,
                layout: self.layout,
            }),
        };
        load::run(vec![stream], pace, self.cpu)
    }
}

/// Reads or writes.
struct Sectors<'a> {
    write: bool,
    batch: u32,
    mem: &'a GuestMemoryMmap,
    layout: &'a Layout,
}

impl Requests for Sectors<'_> {
    fn build(&mut self, n: u32, slot: u64, parts: &mut Vec<Part>) {
        let kind = if self.write {
            VIRTIO_BLK_T_OUT
        } else {
            VIRTIO_BLK_T_IN
        };
        let pages = n * self.batch..(n + 1) * self.batch;
        let sector = u64::from(pages.start) * PAGE as u64 / SECTOR;
        let mut header = [0; 16];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..].copy_from_slice(&sector.to_le_bytes());
        let written = self.mem.write_slice(&header, GuestAddress(slot));
        written.expect("slots are within the memory");
        parts.push(Part::readable(slot, header.len()));
        let page = |n| {
            if self.write {
                Part::readable(self.layout.source(n), PAGE)
            } else {
                Part::writable(self.layout.target(n), PAGE)
            }
        };
        parts.extend(pages.map(page));
        parts.push(Part::writable(slot + STATUS_OFFSET, 1));
    }

    fn finish(&mut self, _n: u32, slot: u64, _len: u32) -> Result<u32> {
        let status: u8 = self.mem.read_obj(GuestAddress(slot + STATUS_OFFSET))?;
        ensure!(
            u32::from(status) == VIRTIO_BLK_S_OK,
            "the block device says {status}"
        );
        Ok(self.batch)
    }
}
