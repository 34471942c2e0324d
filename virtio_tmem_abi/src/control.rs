// SPDX-License-Identifier: GPL-2.0-only OR MIT OR Apache-2.0

//! Requests about pools.

use static_assertions::{
    assert_eq_align,
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
    Le32,
    Le64, //
};

/// Bits of [`PoolCreate::flags`].
pub mod pool_flags {
    /// The pool never loses a page that it stored. Without this bit it is ephemeral: the device
    /// may forget any page at any time.
    pub const PERSISTENT: u32 = 1 << 0;
    /// The pool is the one that all drivers share who name the same UUID and are authorised to.
    /// Not together with [`PERSISTENT`]: what others may flush cannot be promised.
    pub const SHARED: u32 = 1 << 1;
    /// A device reset that was not announced with a
    /// [`PoolKeep`](crate::Opcode::PoolKeep) request releases the pool: the device frees it.
    /// Without this bit a pool stays until the driver destroys it or its connection ends. Only for
    /// devices that have [`KEEP`](crate::cap::KEEP), and not together with [`SHARED`].
    pub const RELEASED_BY_RESET: u32 = 1 << 2;
}

/// What a pool-create request asks for.
///
/// The driver numbers its pools itself, in
/// [`RequestHeader::pool`](crate::RequestHeader::pool), so that creating a pool twice is the same
/// as creating it once.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct PoolCreate {
    /// Bits of [`pool_flags`]; all others are zero.
    pub flags: Le32,
    /// The binary logarithm of the page size in bytes.
    pub page_shift: u8,
    /// Zero.
    pub reserved: [u8; 11],
    /// The name of a shared pool; zero for a private one.
    pub uuid: [u8; 16],
}

const_assert_eq!(size_of::<PoolCreate>(), 32);
assert_eq_align!(PoolCreate, u8);

/// The counters of a pool, since it was created.
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
pub struct PoolStats {
    /// Pages that the pool holds now.
    pub pages: Le64,
    /// Bytes that those pages take, with what the device needs to find them.
    pub bytes: Le64,
    /// Pages put, stored or refused.
    pub puts: Le64,
    /// Pages put and stored.
    pub puts_stored: Le64,
    /// Pages asked for.
    pub gets: Le64,
    /// Pages asked for and returned.
    pub gets_hit: Le64,
    /// Pages, ranges and objects asked to be forgotten.
    pub flushes: Le64,
    /// Pages forgotten because of that.
    pub pages_flushed: Le64,
    /// Pages that the device forgot by itself.
    pub pages_evicted: Le64,
    /// Zero.
    pub reserved: [Le64; 7],
}

const_assert_eq!(size_of::<PoolStats>(), 128);
assert_eq_align!(PoolStats, u8);
