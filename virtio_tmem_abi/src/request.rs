// SPDX-License-Identifier: GPL-2.0-only OR MIT OR Apache-2.0

//! The device-readable part of a request.

use static_assertions::{
    assert_eq_align,
    assert_eq_size,
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
    Le16,
    Le32,
    Le64, //
};

wire_enum! {
    /// What a request asks for: [`RequestHeader::opcode`].
    pub enum Opcode: u16 {
        /// Store pages. Table of [`Key`]; the pages follow it. Data virtqueues.
        Put = 1,
        /// Read pages back. Table of [`Key`]. Data virtqueues.
        Get = 2,
        /// Forget pages. Table of [`Key`]. Data virtqueues.
        FlushPage = 3,
        /// Forget ranges of pages of objects. Table of [`Range`]. Data virtqueues.
        FlushRange = 4,
        /// Forget whole objects. Table of [`ObjectId`]. Data virtqueues.
        FlushObject = 5,
        /// Forget all pages of a pool. No table. Control virtqueue.
        FlushPool = 6,
        /// Store pages that are in the window. Table of [`SlotKey`](crate::SlotKey). Data
        /// virtqueues.
        PutSlot = 7,
        /// Create a pool. Table of one [`PoolCreate`](crate::PoolCreate). Control virtqueue.
        PoolCreate = 16,
        /// Forget all pages of a pool, and the pool. No table. Control virtqueue.
        PoolDestroy = 17,
        /// Read a pool's counters. No table; answered by a [`PoolStats`](crate::PoolStats).
        /// Control virtqueue.
        PoolStats = 18,
        /// Keep a pool over device resets, until it is created again. No table. Control virtqueue.
        PoolKeep = 19,
        /// Begin to use the window. Table of one [`WindowOpen`](crate::WindowOpen). Control
        /// virtqueue.
        WindowOpen = 32,
        /// Keep what was granted over device resets, until the window is opened again. No table.
        /// Control virtqueue.
        WindowKeep = 33,
        /// Ask for chunks. Table of one [`ChunkGrant`](crate::ChunkGrant); answered by a
        /// [`Chunks`](crate::Chunks). Control virtqueue.
        ChunkGrant = 34,
        /// Give chunks back. Table of [`Chunk`](crate::Chunk). Control virtqueue.
        ChunkReturn = 35,
    }
}

/// Bits of [`RequestHeader::flags`].
pub mod request_flags {
    /// A get removes what it returns. Only for get requests on private ephemeral pools.
    pub const TAKE: u16 = 1 << 0;
}

/// The first bytes of every request.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct RequestHeader {
    /// An [`Opcode`].
    pub opcode: Le16,
    /// Bits of [`request_flags`]; all others are zero.
    pub flags: Le16,
    /// The pool that the request is about, numbered by the driver.
    pub pool: Le32,
    /// The number of entries in the table that follows.
    pub count: Le32,
    /// Zero.
    pub reserved: Le32,
    /// The epoch that the driver believes in.
    pub epoch: Le64,
    /// Zero.
    pub reserved1: Le64,
}

const_assert_eq!(size_of::<RequestHeader>(), 32);
assert_eq_align!(RequestHeader, u8);

/// The name of an object within a pool: 192 bits to which the device gives no meaning.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Unaligned,
)]
#[repr(C)]
pub struct ObjectId(pub [Le64; 3]);

const_assert_eq!(size_of::<ObjectId>(), 24);

/// One page of a put, get or flush request.
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
pub struct Key {
    /// The object that the page belongs to.
    pub object: ObjectId,
    /// The page's place in the object.
    pub index: Le64,
    /// The page's version, chosen by the driver at the put.
    ///
    /// A get hits, and a flush removes, only the version that it names. This is what makes late,
    /// reordered and lost flushes harmless.
    pub version: Le64,
}

const_assert_eq!(size_of::<Key>(), 40);
assert_eq_align!(Key, u8);

/// One range of a range-flush request: all versions of the pages `first..=last` of an object.
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
pub struct Range {
    /// The object that the pages belong to.
    pub object: ObjectId,
    /// The first index.
    pub first: Le64,
    /// The last index, not below the first.
    pub last: Le64,
}

assert_eq_size!(Range, Key);
assert_eq_align!(Range, u8);
