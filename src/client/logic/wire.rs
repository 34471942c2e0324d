// SPDX-License-Identifier: GPL-2.0

//! What requests look like to the device, and what its answers mean.
//!
//! An answer is read once, out of memory that the device may still write, and checked as a whole
//! before anything of it is used. Each operation says which results it accepts: a result of
//! another operation is not one that failed, it is a device that [lies](Lie).

use virtio_tmem_abi::{
    Chunks,
    Key,
    Le16,
    Le32,
    Le64,
    ObjectId,
    Opcode,
    PageResult,
    Range,
    RequestHeader,
    ResponseHeader,
    SlotKey,
    Status, //
};
use zerocopy::FromBytes;

/// The most pages, or flushes, in one request.
pub const MAX_ENTRIES: usize = 32;

/// The bytes of a request's header.
pub const HEADER_BYTES: usize = size_of::<RequestHeader>();

/// The bytes of the longest request, pages apart.
pub const REQUEST_BYTES: usize = HEADER_BYTES + MAX_ENTRIES * size_of::<SlotKey>();

/// The bytes of a response without results.
pub const RESPONSE_BYTES: usize = size_of::<ResponseHeader>();

/// The bytes of the longest answer, pages apart.
pub const ANSWER_BYTES: usize = RESPONSE_BYTES + size_of::<Chunks>();

const _: () = assert!(MAX_ENTRIES <= size_of::<Chunks>());

const _: () = assert!(MAX_ENTRIES <= u32::BITS as usize);

/// What is asked for about pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// To store pages.
    Put,
    /// To store pages that are in the window.
    PutSlot,
    /// To return pages.
    Get,
    /// To forget pages in one version.
    FlushPage,
    /// To forget pages in any version.
    FlushRange,
    /// To forget objects.
    FlushObject,
}

impl Operation {
    /// Returns its number in requests.
    #[inline]
    pub const fn opcode(self) -> Opcode {
        match self {
            Self::Put => Opcode::Put,
            Self::PutSlot => Opcode::PutSlot,
            Self::Get => Opcode::Get,
            Self::FlushPage => Opcode::FlushPage,
            Self::FlushRange => Opcode::FlushRange,
            Self::FlushObject => Opcode::FlushObject,
        }
    }

    /// Returns whether it only tells the device what it need not keep.
    #[inline]
    pub const fn is_flush(self) -> bool {
        matches!(self, Self::FlushPage | Self::FlushRange | Self::FlushObject)
    }

    /// Returns the result that nearly all entries have.
    #[inline]
    const fn usual(self) -> PageResult {
        match self {
            Self::Put | Self::PutSlot => PageResult::Stored,
            Self::Get => PageResult::Hit,
            Self::FlushPage | Self::FlushRange | Self::FlushObject => PageResult::Flushed,
        }
    }

    /// Returns whether a result says that the device did what it was asked to, or [`None`] if it is
    /// no result of this operation.
    #[inline]
    pub const fn accepts(self, result: PageResult) -> Option<bool> {
        match (self, result) {
            (Self::Put | Self::PutSlot, PageResult::Stored) | (Self::Get, PageResult::Hit) => {
                Some(true)
            }
            (Self::Put | Self::PutSlot, _) if result.is_refusal() => Some(false),
            (Self::Get, PageResult::Miss | PageResult::Damaged) => Some(false),
            (Self::Put | Self::PutSlot | Self::Get, _) => None,
            (_, PageResult::Flushed | PageResult::Absent) => Some(true),
            _ => None,
        }
    }
}

/// Returns the header of a request.
pub fn header(opcode: Opcode, flags: u16, pool: u32, count: usize, epoch: u64) -> RequestHeader {
    RequestHeader {
        opcode: Le16::new(opcode.to_wire()),
        flags: Le16::new(flags),
        pool: Le32::new(pool),
        // CAST: At most `MAX_ENTRIES`.
        count: Le32::new(count as u32),
        reserved: Le32::new(0),
        epoch: Le64::new(epoch),
        reserved1: Le64::new(0),
    }
}

/// Returns the object that a wire id stands for.
pub fn object(wire: u64) -> ObjectId {
    ObjectId([Le64::new(wire), Le64::new(0), Le64::new(0)])
}

/// Returns the key of one version of a page.
pub fn key(wire: u64, index: u64, version: u32) -> Key {
    Key {
        object: object(wire),
        index: Le64::new(index),
        version: Le64::new(u64::from(version)),
    }
}

/// Returns the key of a page in a pool that several guests share.
///
/// Unlike [`key()`] it means the same to all of them: the file by its handle, and as the version the
/// stamp of what the volume has.
pub fn shared_key(inode: u64, generation: u32, index: u64, stamp: u64) -> Key {
    Key {
        object: ObjectId([
            Le64::new(inode),
            Le64::new(u64::from(generation)),
            Le64::new(0),
        ]),
        index: Le64::new(index),
        version: Le64::new(stamp),
    }
}

/// Returns the range that is one page.
pub fn one(wire: u64, index: u64) -> Range {
    Range {
        object: object(wire),
        first: Le64::new(index),
        last: Le64::new(index),
    }
}

/// What became of each entry of a request, in the order in which they were pushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcomes {
    /// A bit for each entry that was done.
    done: u32,
    count: usize,
}

impl Outcomes {
    /// Returns the outcomes of `count` entries none of which was done.
    #[inline]
    pub const fn failed(count: usize) -> Self {
        Self { done: 0, count }
    }

    /// Says that entry `n` was done.
    #[inline]
    pub fn set_done(&mut self, n: usize) {
        self.done |= bit(n);
    }

    /// Says that entry `n` was not done after all.
    #[inline]
    pub fn set_failed(&mut self, n: usize) {
        self.done &= !bit(n);
    }

    /// Returns whether entry `n` was done.
    #[inline]
    pub fn is_done(self, n: usize) -> bool {
        self.done & bit(n) != 0
    }

    /// Returns how many entries were done.
    #[inline]
    pub fn done(self) -> usize {
        self.done.count_ones() as usize
    }

    /// Returns whether all entries were done.
    #[inline]
    pub fn all_done(self) -> bool {
        self.done() == self.count
    }

    /// Returns how many entries there are.
    #[inline]
    pub fn count(self) -> usize {
        self.count
    }
}

#[inline]
fn bit(n: usize) -> u32 {
    // CAST: There are at most 32 entries.
    1u32.checked_shl(n as u32).unwrap_or(0)
}

/// What a response or an event says about the device as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceState {
    /// Pages that it would accept into persistent pools.
    pub persistent_credits: u32,
    /// Pages that it would accept into ephemeral pools.
    pub ephemeral_credits: u32,
    /// Its epoch.
    pub epoch: u64,
}

impl From<&ResponseHeader> for DeviceState {
    #[inline]
    fn from(header: &ResponseHeader) -> Self {
        Self {
            persistent_credits: header.persistent_credits.get(),
            ephemeral_credits: header.ephemeral_credits.get(),
            epoch: header.epoch.get(),
        }
    }
}

/// An answer that makes sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The device could not read the request, or had no room to answer: it did nothing of it.
    Unanswered,
    /// The device carried out nothing, and says why.
    Declined {
        /// Why: not [`Status::Ok`].
        status: Status,
        /// What it says of itself.
        state: DeviceState,
    },
    /// The device carried the request out.
    Done {
        /// What became of each entry.
        outcomes: Outcomes,
        /// What it says of itself.
        state: DeviceState,
    },
}

/// What no device says that keeps to the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lie {
    /// It claims to have written less than an answer has bytes.
    Short {
        /// The bytes that it claims to have written.
        written: usize,
    },
    /// It claims to have written more than there is room for.
    Long {
        /// The bytes that it claims to have written.
        written: usize,
        /// The bytes that it was given to write.
        room: usize,
    },
    /// It gives a status that there is none of.
    Status(u32),
    /// It answers about another number of entries than it was asked about.
    Count {
        /// How many it was asked about.
        asked: usize,
        /// How many it answers about.
        told: u32,
    },
    /// It gives a result that there is none of, or of another operation.
    Result {
        /// The operation.
        operation: Operation,
        /// The result.
        result: u8,
    },
    /// It grants more chunks of the window than were asked for, or one that it cannot grant.
    Chunk(u32),
    /// It goes back to an epoch that it had left, changes it time and again, or has none.
    Epoch(u64),
}

impl core::fmt::Display for Lie {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match *self {
            Self::Short { written } => write!(f, "an answer of {written} bytes"),
            Self::Long { written, room } => {
                write!(
                    f,
                    "an answer of {written} bytes, where there is room for {room}"
                )
            }
            Self::Status(status) => write!(f, "status {status}, which there is none of"),
            Self::Count { asked, told } => {
                write!(f, "results for {told} entries of {asked}")
            }
            Self::Result { operation, result } => {
                write!(f, "result {result} for a {operation:?}")
            }
            Self::Chunk(chunk) => write!(f, "chunk {chunk} of the window, which cannot be granted"),
            Self::Epoch(epoch) => write!(f, "epoch {epoch:#x} after another one"),
        }
    }
}

/// Reads the answer to a request about pages: `written` bytes, says the device, of `room`.
///
/// `answer` is what the device may have written, pages apart, and is read once.
#[inline]
pub fn decode(
    operation: Operation,
    count: usize,
    answer: &[u8],
    written: usize,
    room: usize,
) -> Result<Answer, Lie> {
    if written > room {
        return Err(Lie::Long { written, room });
    }
    let Some((status, header, results)) = decode_header(answer, written)? else {
        return Ok(Answer::Unanswered);
    };
    let state = DeviceState::from(&header);

    if status != Status::Ok {
        return Ok(Answer::Declined { status, state });
    }
    let told = header.count.get();
    if told as usize != count {
        return Err(Lie::Count { asked: count, told });
    }
    let Some(results) = results.get(..count) else {
        return Err(Lie::Short { written });
    };

    let mut outcomes = Outcomes::failed(count);
    let usual = operation.usual().to_wire();
    for (n, &result) in results.iter().enumerate() {
        // Looking it up costs several times as much.
        if result == usual {
            outcomes.set_done(n);
            continue;
        }
        let accepted = PageResult::from_wire(result).and_then(|result| operation.accepts(result));
        match accepted {
            Some(true) => outcomes.set_done(n),
            Some(false) => (),
            None => return Err(Lie::Result { operation, result }),
        }
    }
    Ok(Answer::Done { outcomes, state })
}

/// Reads the answer to a request about a pool, which has no results.
///
/// [`None`] if the device could not answer.
pub fn decode_control(answer: &[u8], written: usize) -> Result<Option<(Status, DeviceState)>, Lie> {
    let header = decode_header(answer, written)?;

    Ok(header.map(|(status, header, _)| (status, DeviceState::from(&header))))
}

/// Reads which chunks were granted, of at most `asked`, behind the header of an answer that is
/// [`Status::Ok`].
pub fn decode_chunks(answer: &[u8], written: usize, asked: u32) -> Result<Chunks, Lie> {
    let answer = answer.get(..written).unwrap_or(answer);
    let Ok((chunks, _)) = Chunks::read_from_prefix(answer.get(RESPONSE_BYTES..).unwrap_or(&[]))
    else {
        return Err(Lie::Short { written });
    };
    let count = chunks.count.get();

    if count > asked {
        return Err(Lie::Chunk(count));
    }
    Ok(chunks)
}

/// The parts of an answer: what became of the request as a whole, the header, and the results.
type Parts<'a> = (Status, ResponseHeader, &'a [u8]);

#[inline]
fn decode_header(answer: &[u8], written: usize) -> Result<Option<Parts<'_>>, Lie> {
    if written == 0 {
        return Ok(None);
    }
    let answer = answer.get(..written).unwrap_or(answer);
    let Ok((header, results)) = ResponseHeader::read_from_prefix(answer) else {
        return Err(Lie::Short { written });
    };
    let status = header.status.get();
    let Some(status) = Status::from_wire(status) else {
        return Err(Lie::Status(status));
    };

    Ok(Some((status, header, results)))
}
