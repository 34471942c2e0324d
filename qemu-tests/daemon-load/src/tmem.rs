// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Requests to the daemon.

use std::{ops::Range, path::PathBuf};

use anyhow::{ensure, Context, Result};
use serde::Deserialize;
use tmem_driver::{Part, TmemDevice, FEATURES};
use virtio_tmem_abi::{
    pool_flags, request_flags, Key, ObjectId, Opcode, PageResult, RequestHeader, ResponseHeader,
    Status, FIRST_DATA_QUEUE,
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use zerocopy::{FromZeros, IntoBytes};

use crate::{
    layout::{Layout, MAX_QUEUES, PAGE, QUEUE_SIZE},
    load::{self, Outcome, Pace, Requests, Stream},
};

/// The most pages of a request.
const MAX_BATCH: usize = 32;

/// Pages of each object.
const OBJECT_PAGES: u32 = 1024;

const HEADER: usize = size_of::<RequestHeader>();
const KEY: usize = size_of::<Key>();
const RESPONSE: usize = size_of::<ResponseHeader>();

/// Where in the memory of a slot the response is.
const RESPONSE_OFFSET: u64 = 2048;

const _: () = assert!(HEADER + MAX_BATCH * KEY <= RESPONSE_OFFSET as usize);

/// The number of the pool of each kind.
const PERSISTENT: u32 = 0;
const EPHEMERAL: u32 = 1;

/// What is asked of the daemon.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Operation {
    /// Puts pages into the persistent pool.
    Put,
    /// Gets them, and leaves them there.
    Get,
    /// Forgets them.
    Flush,
    /// Puts pages into the ephemeral pool.
    Lend,
    /// Gets them, and takes them away.
    Take,
}

impl Operation {
    fn opcode(self) -> (Opcode, u32, u16, PageResult) {
        let (put, get) = (Opcode::Put, Opcode::Get);
        match self {
            Self::Put => (put, PERSISTENT, 0, PageResult::Stored),
            Self::Get => (get, PERSISTENT, 0, PageResult::Hit),
            Self::Flush => (Opcode::FlushPage, PERSISTENT, 0, PageResult::Flushed),
            Self::Lend => (put, EPHEMERAL, 0, PageResult::Stored),
            Self::Take => (get, EPHEMERAL, request_flags::TAKE, PageResult::Hit),
        }
    }
}

/// All guests of the daemon.
pub(crate) struct Guests<'a> {
    guests: Vec<TmemDevice>,
    layout: &'a Layout,
    mem: GuestMemoryMmap,
    cpu: usize,
}

impl<'a> Guests<'a> {
    /// Connects one guest to each socket.
    pub(crate) fn connect(
        sockets: &[PathBuf],
        mem: &GuestMemoryMmap,
        layout: &'a Layout,
        cpu: usize,
    ) -> Result<Self> {
        let connect = |(n, path): (usize, &PathBuf)| {
            let base = layout.guest(n);
            let device = TmemDevice::connect(path, mem, FEATURES, QUEUE_SIZE, base);
            let device = device.with_context(|| format!("{}", path.display()))?;
            ensure!(
                device.config.data_queues.get() <= MAX_QUEUES,
                "there is room for {MAX_QUEUES} data virtqueues"
            );
            Ok(device)
        };
        let mut this = Self {
            guests: sockets
                .iter()
                .enumerate()
                .map(connect)
                .collect::<Result<_>>()?,
            layout,
            mem: mem.clone(),
            cpu,
        };
        this.empty(0..sockets.len())?;
        Ok(this)
    }

    /// Makes the pools of guests anew, with nothing in them.
    pub(crate) fn empty(&mut self, guests: Range<usize>) -> Result<()> {
        for n in guests {
            let guest = self.guests.get_mut(n).context("no such guest")?;
            let at = self.layout.guest_requests(n, 0);
            for (pool, flags) in [(PERSISTENT, pool_flags::PERSISTENT), (EPHEMERAL, 0)] {
                let destroyed = guest.control(at, Opcode::PoolDestroy, pool)?.status();
                ensure!(
                    matches!(destroyed, Status::Ok | Status::NoPool),
                    "{destroyed:?}"
                );
                let created = guest.create_pool(at, pool, flags)?;
                ensure!(created == Status::Ok, "{created:?}");
            }
        }
        Ok(())
    }

    /// Runs an operation over the pages, which the guests divide among them.
    pub(crate) fn run(
        &mut self,
        operation: Operation,
        guests: Range<usize>,
        queues: usize,
        pace: &Pace,
    ) -> Result<Outcome> {
        ensure!(
            (1..=MAX_BATCH).contains(&(pace.batch as usize)),
            "no such batch"
        );
        let count = guests.len() as u32;
        let guests = self.guests.get_mut(guests.clone()).zip(Some(guests));
        let (guests, numbers) = guests.context("not so many guests")?;
        let (opcode, pool, flags, expected) = operation.opcode();
        let (mem, layout) = (self.mem.clone(), self.layout);
        let share = layout.pages() / count;
        let order = pace.order(share);
        if opcode == Opcode::Get {
            layout.spoil(&mem)?;
        }
        let mut streams = Vec::new();
        for ((n, number), guest) in numbers.enumerate().zip(guests) {
            let header = RequestHeader {
                flags: flags.into(),
                ..guest.header(opcode, pool, pace.batch as usize)
            };
            let data = &mut guest.queues[usize::from(FIRST_DATA_QUEUE)..];
            ensure!(queues <= data.len(), "not so many virtqueues");
            for (q, queue) in data.iter_mut().take(queues).enumerate() {
                streams.push(Stream {
                    guest: n,
                    queue,
                    slots: layout.guest_requests(number, q),
                    order: order.iter().copied().skip(q).step_by(queues).collect(),
                    requests: Box::new(Pages {
                        opcode,
                        header,
                        expected,
                        batch: pace.batch,
                        first: n as u32 * share,
                        mem: &mem,
                        layout,
                    }),
                });
            }
        }
        let outcome = load::run(streams, pace, self.cpu)?;
        if opcode == Opcode::Get && outcome.ok == outcome.pages && pace.seconds.is_none() {
            for first in (0..count).map(|n| n * share) {
                for batch in order.iter().map(|n| first + n * pace.batch) {
                    layout.check(&mem, batch..batch + pace.batch)?;
                }
            }
        }
        Ok(outcome)
    }
}

/// Requests about pages.
struct Pages<'a> {
    opcode: Opcode,
    header: RequestHeader,
    expected: PageResult,
    batch: u32,
    /// The first page of the guest.
    first: u32,
    mem: &'a GuestMemoryMmap,
    layout: &'a Layout,
}

impl Requests for Pages<'_> {
    fn build(&mut self, n: u32, slot: u64, parts: &mut Vec<Part>) {
        let mut bytes = [0; HEADER + MAX_BATCH * KEY];
        bytes[..HEADER].copy_from_slice(self.header.as_bytes());
        let pages = n * self.batch..(n + 1) * self.batch;
        for (page, key) in pages.clone().zip(bytes[HEADER..].chunks_exact_mut(KEY)) {
            key.copy_from_slice(key_of(page).as_bytes());
        }
        let len = HEADER + self.batch as usize * KEY;
        let written = self.mem.write_slice(&bytes[..len], GuestAddress(slot));
        written.expect("slots are within the memory");
        parts.push(Part::readable(slot, len));
        if self.opcode == Opcode::Put {
            let page = |n| Part::readable(self.layout.source(self.first + n), PAGE);
            parts.extend(pages.clone().map(page));
        }
        let response = RESPONSE + self.batch as usize;
        parts.push(Part::writable(slot + RESPONSE_OFFSET, response));
        if self.opcode == Opcode::Get {
            let page = |n| Part::writable(self.layout.target(self.first + n), PAGE);
            parts.extend(pages.map(page));
        }
    }

    fn finish(&mut self, _n: u32, slot: u64, len: u32) -> Result<u32> {
        let mut bytes = [0; RESPONSE + MAX_BATCH];
        let response = &mut bytes[..RESPONSE + self.batch as usize];
        ensure!(len as usize >= response.len(), "a response of {len} bytes");
        self.mem
            .read_slice(response, GuestAddress(slot + RESPONSE_OFFSET))?;
        let (header, results) = response.split_at(RESPONSE);
        let mut answer = ResponseHeader::new_zeroed();
        answer.as_mut_bytes().copy_from_slice(header);
        let status = Status::from_wire(answer.status.get());
        ensure!(status == Some(Status::Ok), "the daemon says {status:?}");
        let ok = results.iter().filter(|r| **r == self.expected.to_wire());
        Ok(ok.count() as u32)
    }
}

fn key_of(page: u32) -> Key {
    let object = u64::from(page / OBJECT_PAGES) + 1;
    Key {
        object: ObjectId([object.into(), 0.into(), 0.into()]),
        index: u64::from(page % OBJECT_PAGES).into(),
        version: 1.into(),
    }
}
