// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A tmem device, seen from its driver.

use std::{io, path::Path};

use virtio_tmem_abi::{
    Config, Opcode, PageResult, PoolCreate, PoolStats, RequestHeader, ResponseHeader, Status,
    FIRST_DATA_QUEUE, QUEUE_CONTROL,
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use crate::{
    connection::Connection,
    queue::{Part, Queue},
};

const PAGE: usize = 4096;
const RESPONSE: usize = size_of::<ResponseHeader>();

/// A response: its length, its header and what follows that.
#[derive(Debug)]
pub struct Response {
    /// The length that the device gave.
    pub len: u32,
    /// The header.
    pub header: ResponseHeader,
    /// All that follows it.
    pub rest: Vec<u8>,
}

impl Response {
    /// Returns what became of the request as a whole.
    ///
    /// # Panics
    ///
    /// If the device said something without meaning.
    pub fn status(&self) -> Status {
        Status::from_wire(self.header.status.get()).expect("a status has a meaning")
    }

    /// Returns what became of each entry.
    ///
    /// # Panics
    ///
    /// As [`Self::status`].
    pub fn results(&self) -> Vec<PageResult> {
        let results = &self.rest[..self.header.count.get() as usize];
        let meaning = |result: &u8| PageResult::from_wire(*result).expect("a result has a meaning");
        results.iter().map(meaning).collect()
    }

    /// Returns page `n` of a get.
    ///
    /// # Panics
    ///
    /// If there is none.
    pub fn page(&self, n: usize) -> &[u8] {
        let start = self.header.count.get() as usize + n * PAGE;
        &self.rest[start..start + PAGE]
    }
}

/// A device and all of its virtqueues, enabled.
pub struct TmemDevice {
    /// The connection to it.
    pub connection: Connection,
    /// Its configuration space.
    pub config: Config,
    /// Its virtqueues, by number.
    pub queues: Vec<Queue>,
}

impl TmemDevice {
    /// Connects, and sets up virtqueues of `size` descriptors from guest address `base` on.
    ///
    /// # Errors
    ///
    /// What the operating system or the protocol says.
    pub fn connect(
        socket: &Path,
        mem: &GuestMemoryMmap,
        known: u64,
        size: u16,
        base: u64,
    ) -> io::Result<Self> {
        Self::start(Connection::open(socket, mem, known)?, size, base)
    }

    /// As [`Self::connect`], with a connection that there is.
    ///
    /// # Errors
    ///
    /// As [`Self::connect`].
    pub fn start(mut connection: Connection, size: u16, base: u64) -> io::Result<Self> {
        let config = connection.read_config(0, size_of::<Config>() as u32)?;
        let config = Config::read_from_bytes(&config)
            .map_err(|_| io::Error::other("the configuration space is too short"))?;
        let count = FIRST_DATA_QUEUE + config.data_queues.get();
        let queues = (0..count).map(|number| {
            let base = base + u64::from(number) * Queue::bytes(size);
            let queue = Queue::new(&connection, usize::from(number), size, base)?;
            connection.start(&queue)?;
            Ok(queue)
        });
        let queues = queues.collect::<io::Result<_>>()?;
        Ok(Self {
            connection,
            config,
            queues,
        })
    }

    /// Returns how many bytes the virtqueues take.
    pub fn queue_bytes(data_queues: u16, size: u16) -> u64 {
        u64::from(FIRST_DATA_QUEUE + data_queues) * Queue::bytes(size)
    }

    /// Returns the device's epoch, as it was read.
    pub fn epoch(&self) -> u64 {
        self.config.epoch.get()
    }

    /// Returns the header of a request with `count` entries.
    pub fn header(&self, opcode: Opcode, pool: u32, count: usize) -> RequestHeader {
        RequestHeader {
            opcode: opcode.to_wire().into(),
            pool: pool.into(),
            count: (count as u32).into(),
            epoch: self.epoch().into(),
            ..RequestHeader::new_zeroed()
        }
    }

    /// Makes a chain available whose readable part is a copy of `readable` at guest address
    /// `addr`, with `writable` bytes behind it. The device is not notified yet.
    ///
    /// # Panics
    ///
    /// If there is no memory there, or no descriptor is free.
    pub fn add(&mut self, queue: usize, addr: u64, readable: &[u8], writable: usize) {
        let mem = self.connection.mem();
        let written = mem.write_slice(readable, GuestAddress(addr));
        written.expect("there is memory for the request");
        let mut parts = vec![Part::readable(addr, readable.len())];
        parts.push(Part::writable(addr + readable.len() as u64, writable));
        parts.retain(|part| part.len > 0);
        let added = self.queues[queue].add(&parts);
        added.expect("a descriptor is free");
    }

    /// As [`Self::add`], and notifies the device whether it wants that or not.
    ///
    /// # Panics
    ///
    /// As [`Self::add`].
    pub fn submit(&mut self, queue: usize, addr: u64, readable: &[u8], writable: usize) {
        self.add(queue, addr, readable, writable);
        self.queues[queue].kick_now();
    }

    /// Sends one request, which is copied to `addr`, and waits for the response without wanting
    /// interrupts.
    ///
    /// # Errors
    ///
    /// As [`Queue::poll`].
    ///
    /// # Panics
    ///
    /// As [`Self::submit`], and if there is no room for a response.
    pub fn request(
        &mut self,
        queue: usize,
        addr: u64,
        readable: &[u8],
        writable: usize,
    ) -> io::Result<Response> {
        self.submit(queue, addr, readable, writable);
        let (_, len) = self.queues[queue].poll()?;
        let mut answer = vec![0; writable];
        let at = GuestAddress(addr + readable.len() as u64);
        let read = self.connection.mem().read_slice(&mut answer, at);
        read.expect("there is memory for the response");
        let rest = answer.split_off(RESPONSE);
        let header = ResponseHeader::read_from_bytes(&answer).expect("it has that length");
        Ok(Response { len, header, rest })
    }

    /// Creates a pool; see [`virtio_tmem_abi::pool_flags`].
    ///
    /// # Errors
    ///
    /// As [`Self::request`].
    pub fn create_pool(&mut self, addr: u64, pool: u32, flags: u32) -> io::Result<Status> {
        self.create_pool_of(addr, pool, flags, [0; 16])
    }

    /// As [`Self::create_pool`], of a UUID.
    ///
    /// # Errors
    ///
    /// As [`Self::request`].
    pub fn create_pool_of(
        &mut self,
        addr: u64,
        pool: u32,
        flags: u32,
        uuid: [u8; 16],
    ) -> io::Result<Status> {
        let mut bytes = self.header(Opcode::PoolCreate, pool, 1).as_bytes().to_vec();
        let create = PoolCreate {
            flags: flags.into(),
            page_shift: self.config.page_shift,
            uuid,
            ..PoolCreate::new_zeroed()
        };
        bytes.extend(create.as_bytes());
        let response = self.request(usize::from(QUEUE_CONTROL), addr, &bytes, RESPONSE)?;
        Ok(response.status())
    }

    /// Sends a request about a pool that has no table.
    ///
    /// # Errors
    ///
    /// As [`Self::request`].
    pub fn control(&mut self, addr: u64, opcode: Opcode, pool: u32) -> io::Result<Response> {
        let bytes = self.header(opcode, pool, 0).as_bytes().to_vec();
        let extra = if opcode == Opcode::PoolStats {
            size_of::<PoolStats>()
        } else {
            0
        };
        self.request(usize::from(QUEUE_CONTROL), addr, &bytes, RESPONSE + extra)
    }
}
