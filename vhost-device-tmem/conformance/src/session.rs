// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A connection for one check, and the requests that checks are made of.

use std::{
    fmt::Display,
    io,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use tmem_driver::{Connection, Part, Queue, TmemDevice, EVENT_IDX, FEATURES};
use virtio_tmem_abi::{
    cap, pool_flags, Config, Event, Key, Malformed, ObjectId, Opcode, PageResult, PoolCreate,
    PoolStats, RequestHeader, ResponseHeader, Status, FIRST_DATA_QUEUE, QUEUE_CONTROL, QUEUE_EVENT,
};
use vm_memory::{Bytes, GuestAddress};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

const QUEUE_SIZE: u16 = 64;
const MEMORY: usize = 32 << 20;
/// Where requests are. The rings are below.
pub(crate) const BUFFERS: u64 = 8 << 20;
/// Where events are written.
const EVENTS: u64 = 4 << 20;
/// Where what was not written yet is told apart from what was.
pub(crate) const UNWRITTEN: u8 = 0xa5;
/// No memory is there.
pub(crate) const UNREACHABLE: u64 = 1 << 38;
pub(crate) const HEADER: usize = size_of::<ResponseHeader>();
pub(crate) const CONTROL: usize = QUEUE_CONTROL as usize;
pub(crate) const DATA: usize = FIRST_DATA_QUEUE as usize;

/// Why a check ends before its end.
#[derive(Debug)]
pub enum Stop {
    /// The device does not do what the clause demands.
    Fail(String),
    /// This device, or what the program was told, does not let it be tested.
    Untestable(String),
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::Fail(error.to_string())
    }
}

/// What a check comes to.
pub type Outcome<T = ()> = Result<T, Stop>;

pub(crate) fn fail<T>(why: impl Display) -> Outcome<T> {
    Err(Stop::Fail(why.to_string()))
}

pub(crate) fn untestable<T>(why: impl Display) -> Outcome<T> {
    Err(Stop::Untestable(why.to_string()))
}

pub(crate) fn demand(holds: bool, why: impl Display) -> Outcome {
    if holds {
        Ok(())
    } else {
        fail(why)
    }
}

/// Fails unless `found` is what is `wanted`.
pub(crate) fn equal<T: PartialEq + std::fmt::Debug>(what: &str, found: T, wanted: T) -> Outcome {
    let why = format!("{what}: {found:?} instead of {wanted:?}");
    demand(found == wanted, why)
}

/// The device that is tested, and what the program was told of it.
#[derive(Clone, Debug)]
pub struct Target {
    /// Its socket.
    pub socket: PathBuf,
    /// The socket at which the same implementation serves another driver.
    pub other: Option<PathBuf>,
    /// How long it may take to answer.
    pub patience: Duration,
    /// The most pages with which a check may try to fill it.
    pub fill: usize,
}

impl Target {
    pub(crate) fn connect(&self) -> Outcome<Session> {
        self.connect_to(&self.socket, |_| true)
    }

    /// Connects as the other driver.
    pub(crate) fn connect_other(&self) -> Outcome<Session> {
        match &self.other {
            Some(socket) => self.connect_to(socket, |_| true),
            None => untestable("it takes another driver: --other-socket"),
        }
    }

    /// Connects, and leaves the data virtqueues disabled that are not `wanted`.
    pub(crate) fn connect_with(&self, wanted: impl Fn(usize) -> bool) -> Outcome<Session> {
        self.connect_to(&self.socket, wanted)
    }

    /// Connects without a virtqueue.
    pub(crate) fn bare(&self, socket: &std::path::Path) -> Outcome<Connection> {
        let mem = tmem_driver::memory(MEMORY)?;
        let start = Instant::now();
        loop {
            // A device that has not done with the connection before may refuse the next.
            match Connection::open(socket, &mem, FEATURES & !EVENT_IDX) {
                Ok(connection) => return Ok(connection),
                Err(error) if start.elapsed() > self.patience => {
                    return fail(format_args!("cannot connect: {error}"))
                }
                Err(_) => thread::sleep(Duration::from_millis(10)),
            }
        }
    }

    fn connect_to(
        &self,
        socket: &std::path::Path,
        wanted: impl Fn(usize) -> bool,
    ) -> Outcome<Session> {
        let mut connection = self.bare(socket)?;
        let bytes = connection.read_config(0, size_of::<Config>() as u32)?;
        let Ok(config) = Config::read_from_bytes(&bytes) else {
            return fail("the configuration space is short");
        };
        let most = (EVENTS / Queue::bytes(QUEUE_SIZE)) as u16;
        let sizes = 12..=16;
        if !(1..most).contains(&config.data_queues.get()) || !sizes.contains(&config.page_shift) {
            return untestable("it has no data virtqueue, too many, or pages of another size");
        }
        let mut session = Session {
            device: TmemDevice {
                connection,
                config,
                queues: Vec::new(),
            },
            patience: self.patience,
        };
        session.set_up(wanted)?;
        Ok(session)
    }
}

/// A response.
#[derive(Debug)]
pub(crate) struct Answer {
    /// The used length.
    pub(crate) used: usize,
    pub(crate) header: ResponseHeader,
    /// All of the device-writable part that follows the header.
    pub(crate) rest: Vec<u8>,
}

impl Answer {
    pub(crate) fn status(&self) -> Option<Status> {
        Status::from_wire(self.header.status.get()).filter(|_| self.used >= HEADER)
    }

    pub(crate) fn detail(&self) -> Option<Malformed> {
        Malformed::from_wire(self.header.detail.get()).filter(|_| self.used >= HEADER)
    }

    /// The results, where all of the request was carried out.
    pub(crate) fn results(&self, count: usize) -> Outcome<Vec<PageResult>> {
        equal("status", self.status(), Some(Status::Ok))?;
        equal("count", self.header.count.get() as usize, count)?;
        let why = format!("{} bytes used, for {count} results", self.used);
        demand(self.used >= HEADER + count, why)?;
        let bytes = self.rest[..count].iter();
        match bytes.map(|byte| PageResult::from_wire(*byte)).collect() {
            Some(results) => Ok(results),
            None => fail("a result has no meaning"),
        }
    }

    /// The place of page `n` of `count`.
    pub(crate) fn page(&self, n: usize, count: usize) -> &[u8] {
        let size = (self.rest.len() - count) / count;
        &self.rest[count + n * size..count + (n + 1) * size]
    }
}

/// A driver.
pub(crate) struct Session {
    pub(crate) device: TmemDevice,
    pub(crate) patience: Duration,
}

impl Session {
    fn set_up(&mut self, wanted: impl Fn(usize) -> bool) -> Outcome {
        let count = DATA + usize::from(self.device.config.data_queues.get());
        self.device.queues.clear();
        for number in 0..count {
            let base = number as u64 * Queue::bytes(QUEUE_SIZE);
            let queue = Queue::new(&self.device.connection, number, QUEUE_SIZE, base)?;
            if number < DATA || wanted(number) {
                self.device.connection.start(&queue)?;
            }
            self.device.queues.push(queue);
        }
        Ok(())
    }

    /// Resets the device, and sets it up again.
    pub(crate) fn reset(&mut self) -> Outcome {
        for queue in &self.device.queues {
            self.device.connection.stop(queue)?;
        }
        if let Err(error) = self.device.connection.reset() {
            return untestable(format_args!("it cannot be told of a reset: {error}"));
        }
        self.set_up(|_| true)
    }

    pub(crate) fn config(&self) -> &Config {
        &self.device.config
    }

    pub(crate) fn page_size(&self) -> usize {
        1 << self.config().page_shift
    }

    pub(crate) fn has(&self, capability: u64) -> bool {
        self.config().capabilities.get() & capability != 0
    }

    pub(crate) fn need(&self, capability: u64, name: &str) -> Outcome {
        if self.has(capability) {
            Ok(())
        } else {
            untestable(format_args!("the device has no {name}"))
        }
    }

    pub(crate) fn header(&self, opcode: Opcode, pool: u32, count: usize) -> RequestHeader {
        self.device.header(opcode, pool, count)
    }

    /// Waits for the next used chain, and returns its length.
    pub(crate) fn wait(&mut self, queue: usize) -> Outcome<usize> {
        let start = Instant::now();
        loop {
            if let Some((_, len)) = self.device.queues[queue].next_used() {
                return Ok(len as usize);
            }
            if start.elapsed() > self.patience {
                return fail("no answer in time");
            }
            thread::yield_now();
        }
    }

    pub(crate) fn write(&self, at: u64, bytes: &[u8]) {
        let written = self.device.connection.mem();
        let written = written.write_slice(bytes, GuestAddress(at));
        written.expect("checks write to memory that there is");
    }

    pub(crate) fn read(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        let read = self.device.connection.mem();
        let read = read.read_slice(&mut bytes, GuestAddress(at));
        read.expect("checks read memory that there is");
        bytes
    }

    /// Makes a request available, with `writable` bytes for the answer right behind it.
    pub(crate) fn submit(&mut self, queue: usize, at: u64, readable: &[u8], writable: usize) {
        let answer = at + readable.len() as u64;
        self.write(answer, &vec![UNWRITTEN; writable]);
        self.device.submit(queue, at, readable, writable);
    }

    /// Reads the answer to a request that was used with a length.
    pub(crate) fn answer(&self, at: u64, used: usize, writable: usize) -> Answer {
        let mut bytes = self.read(at, writable.max(HEADER));
        let rest = bytes.split_off(HEADER);
        let header = ResponseHeader::read_from_bytes(&bytes).expect("it has that length");
        Answer { used, header, rest }
    }

    pub(crate) fn send(
        &mut self,
        queue: usize,
        readable: &[u8],
        writable: usize,
    ) -> Outcome<Answer> {
        self.submit(queue, BUFFERS, readable, writable);
        let used = self.wait(queue)?;
        demand(used <= writable, format!("{used} bytes used of {writable}"))?;
        Ok(self.answer(BUFFERS + readable.len() as u64, used, writable))
    }

    /// Sends a request in pieces, its readable bytes at [`BUFFERS`].
    pub(crate) fn send_parts(
        &mut self,
        queue: usize,
        readable: &[u8],
        parts: &[Part],
    ) -> Outcome<usize> {
        self.write(BUFFERS, readable);
        let added = self.device.queues[queue].add(parts);
        added.expect("checks use fewer descriptors than there are");
        self.device.queues[queue].kick_now();
        self.wait(queue)
    }

    pub(crate) fn create(&mut self, pool: u32, flags: u32, uuid: [u8; 16]) -> Outcome<Answer> {
        let create = PoolCreate {
            flags: flags.into(),
            page_shift: self.config().page_shift,
            uuid,
            ..PoolCreate::new_zeroed()
        };
        let header = self.header(Opcode::PoolCreate, pool, 1);
        let bytes = [header.as_bytes(), create.as_bytes()].concat();
        self.send(CONTROL, &bytes, HEADER)
    }

    /// Creates a private pool.
    pub(crate) fn pool(&mut self, pool: u32, flags: u32) -> Outcome {
        let (capability, name) = if flags & pool_flags::PERSISTENT != 0 {
            (cap::PERSISTENT, "persistent pools")
        } else {
            (cap::EPHEMERAL, "ephemeral pools")
        };
        self.need(capability, name)?;
        match self.create(pool, flags, [0; 16])?.status() {
            Some(Status::Ok) => Ok(()),
            Some(status @ (Status::NotAllowed | Status::NoMemory)) => untestable(format_args!(
                "the device lets no pool be created: {status:?}"
            )),
            status => fail(format_args!("PoolCreate: {status:?} instead of Ok")),
        }
    }

    /// Creates the persistent pool 0.
    pub(crate) fn persistent(&mut self) -> Outcome {
        self.pool(0, pool_flags::PERSISTENT)
    }

    /// Sends a request about a pool that has no table.
    pub(crate) fn control(&mut self, opcode: Opcode, pool: u32) -> Outcome<Answer> {
        let extra = match opcode {
            Opcode::PoolStats => size_of::<PoolStats>(),
            _ => 0,
        };
        let header = self.header(opcode, pool, 0);
        self.send(CONTROL, header.as_bytes(), HEADER + extra)
    }

    /// Whether there is such a pool.
    pub(crate) fn has_pool(&mut self, pool: u32) -> Outcome<bool> {
        match self.control(Opcode::PoolStats, pool)?.status() {
            Some(Status::Ok) => Ok(true),
            Some(Status::NoPool) => Ok(false),
            status => fail(format_args!("PoolStats: {status:?}")),
        }
    }

    pub(crate) fn put_bytes(&self, pool: u32, pages: &[(Key, &[u8])]) -> Vec<u8> {
        let header = self.header(Opcode::Put, pool, pages.len());
        let mut bytes = header.as_bytes().to_vec();
        bytes.extend(pages.iter().flat_map(|(key, _)| key.as_bytes()));
        bytes.extend(pages.iter().flat_map(|(_, page)| *page));
        bytes
    }

    pub(crate) fn put(&mut self, pool: u32, pages: &[(Key, &[u8])]) -> Outcome<Vec<PageResult>> {
        let bytes = self.put_bytes(pool, pages);
        let answer = self.send(DATA, &bytes, HEADER + pages.len())?;
        answer.results(pages.len())
    }

    /// Puts one page all of whose bytes are `fill`.
    pub(crate) fn put_fill(&mut self, pool: u32, key: Key, fill: u8) -> Outcome<PageResult> {
        let page = vec![fill; self.page_size()];
        Ok(self.put(pool, &[(key, &page)])?[0])
    }

    /// As [`Self::put_fill`], where the device has to take it for the check to go on.
    pub(crate) fn store(&mut self, pool: u32, key: Key, fill: u8) -> Outcome {
        match self.put_fill(pool, key, fill)? {
            PageResult::Stored => Ok(()),
            refused if refused.is_refusal() => {
                untestable(format_args!("the device refuses a page: {refused:?}"))
            }
            other => fail(format_args!("{other:?} answers a put")),
        }
    }

    pub(crate) fn get_bytes(&self, pool: u32, flags: u16, keys: &[Key]) -> Vec<u8> {
        let mut header = self.header(Opcode::Get, pool, keys.len());
        header.flags = flags.into();
        [header.as_bytes(), keys.as_bytes()].concat()
    }

    pub(crate) fn get(&mut self, pool: u32, flags: u16, keys: &[Key]) -> Outcome<Answer> {
        let bytes = self.get_bytes(pool, flags, keys);
        let places = keys.len() * (1 + self.page_size());
        self.send(DATA, &bytes, HEADER + places)
    }

    /// Gets one page, and returns what came of it and what is at its place.
    pub(crate) fn get_one(&mut self, pool: u32, key: Key) -> Outcome<(PageResult, Vec<u8>)> {
        let answer = self.get(pool, 0, &[key])?;
        let result = answer.results(1)?[0];
        Ok((result, answer.page(0, 1).to_vec()))
    }

    /// Fails unless the page is there, and all of its bytes are `fill`.
    pub(crate) fn hit(&mut self, pool: u32, key: Key, fill: u8) -> Outcome {
        let (result, page) = self.get_one(pool, key)?;
        equal("get", result, PageResult::Hit)?;
        let why = "the page that was got is another than was put";
        demand(page.iter().all(|byte| *byte == fill), why)
    }

    /// Fails unless the page is not there.
    pub(crate) fn miss(&mut self, what: &str, pool: u32, key: Key) -> Outcome {
        equal(what, self.get_one(pool, key)?.0, PageResult::Miss)
    }

    /// Sends a flush, whose table is `table`.
    pub(crate) fn flush<T: IntoBytes + zerocopy::Immutable>(
        &mut self,
        opcode: Opcode,
        pool: u32,
        table: &[T],
    ) -> Outcome<Vec<PageResult>> {
        let header = self.header(opcode, pool, table.len());
        let bytes = [header.as_bytes(), table.as_bytes()].concat();
        let answer = self.send(DATA, &bytes, HEADER + table.len())?;
        answer.results(table.len())
    }

    /// Gives the device a buffer for an event, of `len` bytes.
    pub(crate) fn offer_event(&mut self, len: usize) {
        self.submit(usize::from(QUEUE_EVENT), EVENTS, &[], len);
    }

    /// Waits for an event, and returns its used length and its bytes.
    pub(crate) fn event(&mut self) -> Outcome<(usize, Event)> {
        let used = self.wait(usize::from(QUEUE_EVENT))?;
        let bytes = self.read(EVENTS, size_of::<Event>());
        let event = Event::read_from_bytes(&bytes).expect("it has that length");
        Ok((used, event))
    }
}

pub(crate) fn object(id: u64) -> ObjectId {
    ObjectId([id.into(), 0.into(), 0.into()])
}

pub(crate) fn key(index: u64, version: u64) -> Key {
    Key {
        object: object(1),
        index: index.into(),
        version: version.into(),
    }
}
