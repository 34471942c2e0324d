// SPDX-License-Identifier: GPL-2.0-only OR MIT OR Apache-2.0

//! The window: host memory that the driver reaches by itself, and requests about it.
//!
//! ```text
//! chunk 0: WindowHeader │ 0 … │ at GENERATIONS:   Le32 × chunks          written by the device
//! chunk 1: WindowReport │ 0 … │ at CHUNK_REPORTS: ChunkReport × chunks   written by the driver
//! chunk 2 and up: 512 slots of a page each, while the chunk is granted
//! ```

use static_assertions::{
    assert_eq_align,
    const_assert,
    const_assert_eq, //
};
use zerocopy_derive::{
    FromBytes,
    Immutable,
    IntoBytes,
    KnownLayout,
    Unaligned, //
};

use crate::{
    wire::wire_enum,
    Key,
    Le16,
    Le32,
    Le64, //
};

/// The value of [`WindowHeader::magic`]: the bytes `TMEMWIND`.
pub const WINDOW_MAGIC: u64 = u64::from_le_bytes(*b"TMEMWIND");

/// The layout of a window; a driver leaves one of any other layout alone.
pub const WINDOW_VERSION: u16 = 1;

/// The binary logarithm of a chunk's size in bytes.
pub const CHUNK_SHIFT: u8 = 21;

/// The first chunk that can be granted: those before it are the header and the report.
pub const FIRST_CHUNK: u32 = 2;

/// The most chunks that a window has, the first two included.
pub const MAX_CHUNKS: u32 = 1 << 17;

/// The most chunks that one request grants, or returns.
pub const MAX_GRANT: u32 = 62;

/// Where the generations are in chunk 0, in bytes.
pub const GENERATIONS: u32 = 4096;

/// Where the [`ChunkReport`]s are in chunk 1, in bytes.
pub const CHUNK_REPORTS: u32 = 4096;

/// Bits of [`WindowOpen::flags`].
pub mod window_flags {
    /// The driver knows the chunks that it was granted before, and what is in them: they stay
    /// granted. Without this bit all chunks are taken back.
    pub const RESUME: u32 = 1 << 0;
}

/// What a window begins with.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct WindowHeader {
    /// [`WINDOW_MAGIC`].
    pub magic: Le64,
    /// [`WINDOW_VERSION`] of the device.
    pub version: Le16,
    /// The binary logarithm of a slot's size: that of the device's pages.
    pub page_shift: u8,
    /// [`CHUNK_SHIFT`].
    pub chunk_shift: u8,
    /// The chunks of the window, the first two included.
    pub chunks: Le32,
    /// As in [`Config::window`](crate::Config::window).
    pub identity: [u8; 16],
    /// The device's epoch when the window was opened.
    pub epoch: Le64,
    /// Zero.
    pub reserved: [u8; 24],
}

impl WindowHeader {
    /// Returns whether it is a header, of the layout that is described here, and for such pages.
    pub fn is_known(&self, page_shift: u8) -> bool {
        self.magic.get() == WINDOW_MAGIC
            && self.version.get() == WINDOW_VERSION
            && self.page_shift == page_shift
            && self.chunk_shift == CHUNK_SHIFT
    }
}

const_assert_eq!(size_of::<WindowHeader>(), 64);
assert_eq_align!(WindowHeader, u8);
const_assert!(GENERATIONS as u64 + 4 * MAX_CHUNKS as u64 <= 1 << CHUNK_SHIFT);

/// What the driver tells of the window as a whole, since it opened it.
///
/// The device believes nothing of it, and uses it to choose.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct WindowReport {
    /// Pages put into slots.
    pub puts: Le64,
    /// Puts for which there was no slot.
    pub refused: Le64,
    /// Pages looked for in the window.
    pub gets: Le64,
    /// Pages looked for and found.
    pub hits: Le64,
    /// Ephemeral pages that the driver replaced by others.
    pub replaced: Le64,
    /// Pages that went from slots to the store.
    pub moved: Le64,
    /// Free slots in ephemeral chunks.
    pub ephemeral_free: Le32,
    /// Free slots in persistent chunks.
    pub persistent_free: Le32,
    /// Ephemeral pages that were read from elsewhere, though they would have been in a slot if there
    /// were `near_reach` slots more.
    pub near_misses: Le64,
    /// How many slots more that is.
    pub near_reach: Le64,
    /// Zero.
    pub reserved: [u8; 56],
    /// Hits of pages that were put less than 2ⁿ seconds before, and not less than half of that.
    pub hits_by_age: [Le64; 16],
}

const_assert_eq!(size_of::<WindowReport>(), 256);
assert_eq_align!(WindowReport, u8);

/// What the driver tells of a chunk, since that was granted.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Unaligned,
)]
#[repr(C)]
pub struct ChunkReport {
    /// Slots in use.
    pub used: Le16,
    /// Zero.
    pub reserved: Le16,
    /// Pages that were got from it; it stays at the highest value.
    pub hits: Le32,
}

const_assert_eq!(size_of::<ChunkReport>(), 8);
assert_eq_align!(ChunkReport, u8);
const_assert!(CHUNK_REPORTS as u64 + 8 * MAX_CHUNKS as u64 <= 1 << CHUNK_SHIFT);

/// What a window-open request says.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct WindowOpen {
    /// Bits of [`window_flags`]; all others are zero.
    pub flags: Le32,
    /// Zero.
    pub reserved: [u8; 12],
}

const_assert_eq!(size_of::<WindowOpen>(), 16);
assert_eq_align!(WindowOpen, u8);

wire_enum! {
    /// What a chunk is for: [`ChunkGrant::kind`].
    pub enum ChunkKind: u32 {
        /// The device may take it back at any time.
        Ephemeral = 1,
        /// It stays the driver's until the driver returns it.
        Persistent = 2,
    }
}

/// What a chunk-grant request asks for.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct ChunkGrant {
    /// A [`ChunkKind`].
    pub kind: Le32,
    /// How many chunks are wanted, 1 to [`MAX_GRANT`].
    pub count: Le32,
    /// A number that the driver gives to this request, and to no other since it opened the window.
    /// A request that is carried out again is answered with the chunks of the first time.
    pub ticket: Le64,
}

const_assert_eq!(size_of::<ChunkGrant>(), 16);
assert_eq_align!(ChunkGrant, u8);

/// A chunk as it was granted.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Unaligned,
)]
#[repr(C)]
pub struct Chunk {
    /// Its number, from [`FIRST_CHUNK`] on.
    pub number: Le32,
    /// Its generation when it was granted: an even number, and never zero.
    pub generation: Le32,
}

const_assert_eq!(size_of::<Chunk>(), 8);
assert_eq_align!(Chunk, u8);

/// What answers a chunk-grant request, behind the response header.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Chunks {
    /// How many chunks were granted: as many as were wanted, fewer, or none.
    pub count: Le32,
    /// Zero.
    pub reserved: [u8; 12],
    /// Those chunks; the rest is zero.
    pub chunks: [Chunk; 62],
}

const_assert_eq!(size_of::<Chunks>(), 512);
const_assert_eq!(MAX_GRANT, 62);
assert_eq_align!(Chunks, u8);

/// One page of a put from the window.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Unaligned,
)]
#[repr(C)]
pub struct SlotKey {
    /// Where the page is to be stored.
    pub key: Key,
    /// The slot that it is in: its offset in the window in pages.
    pub slot: Le32,
    /// The generation with which the slot's chunk was granted.
    pub generation: Le32,
}

const_assert_eq!(size_of::<SlotKey>(), 48);
assert_eq_align!(SlotKey, u8);
