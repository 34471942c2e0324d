// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! From the bytes of a request to what it asks for.

use std::ops;

use virtio_tmem_abi::{
    pool_flags, request_flags, Chunk, ChunkGrant, Chunks, Key, Malformed, ObjectId, Opcode,
    PoolCreate, PoolStats, Range, RequestHeader, ResponseHeader, SlotKey, Status, WindowOpen,
    MAX_GRANT,
};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use super::{chain::Parts, Limits};
use crate::store::{PAGE_SHIFT, PAGE_SIZE};

/// The kinds of virtqueue that take requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum QueueKind {
    /// Requests about pools.
    Control,
    /// Requests about pages.
    Data,
}

/// Why a request is not carried out: what the response says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reject {
    /// It breaks a rule.
    Malformed(Malformed),
    /// Anything else than [`Status::Ok`] and [`Status::Malformed`].
    Status(Status),
    /// No response: memory is out of reach in which the request is, or its answer should be.
    OutOfReach,
}

impl From<Malformed> for Reject {
    fn from(rule: Malformed) -> Self {
        Self::Malformed(rule)
    }
}

/// What a well-formed request asks for. All of it was copied from guest memory and checked.
#[derive(Debug)]
pub(super) enum Command<'t> {
    Put(&'t [Key]),
    Get { keys: &'t [Key], take: bool },
    FlushPages(&'t [Key]),
    FlushRanges(&'t [Range]),
    FlushObjects(&'t [ObjectId]),
    FlushPool,
    PoolCreate(PoolCreate),
    PoolDestroy,
    PoolStats,
    PoolKeep,
    PutSlots(&'t [SlotKey]),
    WindowOpen(WindowOpen),
    WindowKeep,
    ChunkGrant(ChunkGrant),
    ChunkReturn(&'t [Chunk]),
}

/// What a guest's device has.
#[derive(Clone, Copy, Debug)]
pub(super) struct Offer<'l> {
    pub(super) limits: &'l Limits,
    pub(super) epoch: u64,
    /// It has a window.
    pub(super) window: bool,
}

/// The length of the header in the readable part.
pub(super) const REQUEST: usize = size_of::<RequestHeader>();
/// The length of the header in the writable part.
pub(super) const RESPONSE: usize = size_of::<ResponseHeader>();

/// The shape that an operation's requests have, lengths in bytes.
struct Shape {
    queue: QueueKind,
    flags: u16,
    /// Pools are below this number.
    pools: u32,
    min: u32,
    max: u32,
    entry: usize,
    payload: usize,
    answer: usize,
    /// What follows the response header, if that does not depend on the count.
    extra: usize,
    reply: usize,
}

/// Returns the shape of an operation's requests, [`None`] if the device does not have it.
fn shape(opcode: Opcode, offer: &Offer<'_>) -> Option<Shape> {
    let limits = offer.limits;
    let none = Shape {
        queue: QueueKind::Control,
        flags: 0,
        pools: limits.max_pools,
        min: 0,
        max: 0,
        entry: 0,
        payload: 0,
        answer: 0,
        extra: 0,
        reply: 0,
    };
    let data = |max, entry| Shape {
        queue: QueueKind::Data,
        min: 1,
        max,
        entry,
        answer: 1,
        ..none
    };
    // It is about no pool.
    let window = |min, max, entry| Shape {
        pools: 1,
        min,
        max,
        entry,
        ..none
    };
    Some(match opcode {
        Opcode::Put => Shape {
            payload: PAGE_SIZE,
            ..data(limits.max_pages, size_of::<Key>())
        },
        Opcode::Get => Shape {
            flags: request_flags::TAKE,
            reply: PAGE_SIZE,
            ..data(limits.max_pages, size_of::<Key>())
        },
        Opcode::FlushPage => data(limits.max_flushes, size_of::<Key>()),
        Opcode::FlushRange => data(limits.max_flushes, size_of::<Range>()),
        Opcode::FlushObject => data(limits.max_flushes, size_of::<ObjectId>()),
        Opcode::PoolCreate => Shape {
            min: 1,
            max: 1,
            entry: size_of::<PoolCreate>(),
            ..none
        },
        Opcode::PoolStats => Shape {
            extra: size_of::<PoolStats>(),
            ..none
        },
        Opcode::FlushPool | Opcode::PoolDestroy | Opcode::PoolKeep => none,
        Opcode::PutSlot
        | Opcode::WindowOpen
        | Opcode::WindowKeep
        | Opcode::ChunkGrant
        | Opcode::ChunkReturn
            if !offer.window =>
        {
            return None;
        }
        Opcode::PutSlot => data(limits.max_pages, size_of::<SlotKey>()),
        Opcode::WindowOpen => window(1, 1, size_of::<WindowOpen>()),
        Opcode::WindowKeep => window(0, 0, 0),
        Opcode::ChunkGrant => Shape {
            extra: size_of::<Chunks>(),
            ..window(1, 1, size_of::<ChunkGrant>())
        },
        Opcode::ChunkReturn => window(1, MAX_GRANT, size_of::<Chunk>()),
    })
}

/// A request of which header, lengths and table were checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Request {
    /// The number of its pool.
    pub(super) pool: u32,
    /// The entries of its table.
    pub(super) count: usize,
    opcode: Opcode,
    take: bool,
    /// Where its table is among those that were copied.
    table: ops::Range<usize>,
}

impl Request {
    /// Returns what it asks for. `tables` are those that were copied.
    ///
    /// # Errors
    ///
    /// [`Reject`], for a table that is none.
    pub(super) fn command<'t>(&self, tables: &'t [u8]) -> Result<Command<'t>, Reject> {
        let table = tables.get(self.table.clone()).ok_or(Malformed::Short)?;
        Ok(match self.opcode {
            Opcode::Put => Command::Put(entries(table)?),
            Opcode::Get => Command::Get {
                keys: entries(table)?,
                take: self.take,
            },
            Opcode::FlushPage => Command::FlushPages(entries(table)?),
            Opcode::FlushRange => Command::FlushRanges(entries(table)?),
            Opcode::FlushObject => Command::FlushObjects(entries(table)?),
            Opcode::FlushPool => Command::FlushPool,
            Opcode::PoolDestroy => Command::PoolDestroy,
            Opcode::PoolStats => Command::PoolStats,
            Opcode::PoolKeep => Command::PoolKeep,
            Opcode::PoolCreate => Command::PoolCreate(entry(table)?),
            Opcode::PutSlot => Command::PutSlots(entries(table)?),
            Opcode::WindowOpen => Command::WindowOpen(entry(table)?),
            Opcode::WindowKeep => Command::WindowKeep,
            Opcode::ChunkGrant => Command::ChunkGrant(entry(table)?),
            Opcode::ChunkReturn => Command::ChunkReturn(entries(table)?),
        })
    }

    /// Returns requests that follow each other with their tables alone, which may be taken out of
    /// `tables`; [`None`] if there is no request.
    pub(super) fn alone(requests: &[&Self], tables: &mut Vec<u8>) -> Option<(Vec<Self>, Vec<u8>)> {
        let (start, end) = (requests.first()?.table.start, requests.last()?.table.end);
        let alone = if start == 0 {
            // It is left several times, as a rule: then it is the first.
            tables.truncate(end);
            std::mem::take(tables)
        } else {
            tables.get(start..end).unwrap_or_default().to_vec()
        };
        let moved = requests.iter().map(|request| Self {
            table: request.table.start - start..request.table.end - start,
            ..(*request).clone()
        });
        Some((moved.collect(), alone))
    }

    /// Adds the table of the request that follows, if both are puts or both are gets of the same
    /// kind, of one pool, and of no more than `most` pages together. Returns whether it did.
    pub(super) fn join(&mut self, next: &Self, most: usize) -> bool {
        let joins = matches!(self.opcode, Opcode::Put | Opcode::Get)
            && (self.opcode, self.take, self.pool) == (next.opcode, next.take, next.pool)
            && self.table.end == next.table.start
            && self.count + next.count <= most;
        if joins {
            self.table.end = next.table.end;
            self.count += next.count;
        }
        joins
    }
}

/// Reads a request and makes checks 2 to 10 and the part of 12 that needs no pool, once it is known
/// that an answer can be given; what the pool
/// has to say is for whoever carries it out.
///
/// `tables` is the private memory into which the table is copied, behind those that are there.
///
/// # Errors
///
/// [`Reject`], the first check that failed.
pub(super) fn parse(
    parts: &Parts<'_>,
    queue: QueueKind,
    offer: &Offer<'_>,
    tables: &mut Vec<u8>,
) -> Result<Request, Reject> {
    let mut reader = parts.reader();
    let mut header = RequestHeader::new_zeroed();
    if parts.is_cut() {
        return Err(Reject::OutOfReach);
    }
    if parts.readable_len() < REQUEST {
        return Err(Malformed::Short.into());
    }
    if !reader.read(header.as_mut_bytes()) {
        return Err(Reject::OutOfReach);
    }
    let unsupported = Reject::Status(Status::Unsupported);
    let opcode = Opcode::from_wire(header.opcode.get()).ok_or(unsupported)?;
    let shape = shape(opcode, offer).ok_or(unsupported)?;
    if shape.queue != queue {
        return Err(unsupported);
    }
    if header.reserved.get() != 0 || header.reserved1.get() != 0 {
        return Err(Malformed::Reserved.into());
    }
    if header.flags.get() & !shape.flags != 0 {
        return Err(Malformed::Flags.into());
    }
    let count = header.count.get();
    if !(shape.min..=shape.max).contains(&count) {
        return Err(Malformed::Count.into());
    }
    let pool = header.pool.get();
    if pool >= shape.pools {
        return Err(Malformed::Pool.into());
    }
    // The limits keep these sums far from overflowing.
    let count = count as usize;
    let through_table = REQUEST + count * shape.entry;
    if parts.readable_len() < through_table {
        return Err(Malformed::Short.into());
    }
    if parts.readable_len() != through_table + count * shape.payload {
        return Err(Malformed::ReadableLength.into());
    }
    if parts.writable_len() != RESPONSE + shape.extra + count * (shape.answer + shape.reply) {
        return Err(Malformed::WritableLength.into());
    }
    if header.epoch.get() != offer.epoch {
        return Err(Reject::Status(Status::StaleEpoch));
    }
    let answer = RESPONSE + shape.extra + count * shape.answer;
    if !parts.writer().reaches(answer) {
        return Err(Reject::OutOfReach);
    }
    let start = tables.len();
    tables.resize(start + count * shape.entry, 0);
    if !reader.read(&mut tables[start..]) {
        tables.truncate(start);
        return Err(Reject::OutOfReach);
    }
    Ok(Request {
        pool,
        count,
        opcode,
        take: header.flags.get() & request_flags::TAKE != 0,
        table: start..tables.len(),
    })
}

/// Checks what a pool-create request asks for, as far as that does not depend on what there is.
///
/// # Errors
///
/// The rule that it breaks first.
pub(super) fn check_create(create: &PoolCreate) -> Result<(), Malformed> {
    let flags = create.flags.get();
    let private = pool_flags::PERSISTENT | pool_flags::RELEASED_BY_RESET;
    if create.reserved != [0; 11] {
        return Err(Malformed::Reserved);
    }
    if flags & !private != 0 && flags != pool_flags::SHARED {
        return Err(Malformed::Flags);
    }
    if flags & pool_flags::SHARED == 0 && create.uuid != [0; 16] {
        return Err(Malformed::Reserved);
    }
    if create.page_shift != PAGE_SHIFT {
        return Err(Malformed::PageShift);
    }
    Ok(())
}

fn entry<T: FromBytes>(table: &[u8]) -> Result<T, Malformed> {
    T::read_from_bytes(table).map_err(|_| Malformed::Short)
}

fn entries<T: FromBytes + Immutable + KnownLayout>(table: &[u8]) -> Result<&[T], Malformed> {
    <[T]>::ref_from_bytes(table).map_err(|_| Malformed::Short)
}
