// SPDX-License-Identifier: GPL-2.0-only OR MIT OR Apache-2.0

//! Device identity, virtqueue numbers and the device configuration space.

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
    Le16,
    Le32,
    Le64, //
};

/// The virtio device ID that a tmem device has by default.
///
/// The standard reserved 6 ("ioMemory") in its first draft and never specified it; no other driver
/// claims it. A driver must still check [`MAGIC`].
pub const DEVICE_ID: u32 = 6;

/// The value of [`Config::magic`]: the bytes `TMEM`.
pub const MAGIC: u32 = u32::from_le_bytes(*b"TMEM");

/// The major ABI version; a driver refuses any other.
pub const ABI_MAJOR: u16 = 1;

/// The minor ABI version; a driver accepts any.
pub const ABI_MINOR: u16 = 2;

/// No epoch: the value of [`Config::epoch`] where a driver reads past the end of what it was given.
pub const EPOCH_NONE: u64 = u64::MAX;

/// The virtqueue for requests about pools.
pub const QUEUE_CONTROL: u16 = 0;

/// The virtqueue on which the device tells the driver of [events](crate::Event).
pub const QUEUE_EVENT: u16 = 1;

/// The first of [`Config::data_queues`] virtqueues for requests about pages.
pub const FIRST_DATA_QUEUE: u16 = 2;

/// Bits of [`Config::capabilities`].
///
/// They are no virtio feature bits because some VMMs mask the device-specific ones.
pub mod cap {
    /// The device has ephemeral pools.
    pub const EPHEMERAL: u64 = 1 << 0;
    /// The device has persistent pools.
    pub const PERSISTENT: u64 = 1 << 1;
    /// The device has shared pools, for those that its operator authorised by UUID.
    pub const SHARED: u64 = 1 << 2;
    /// Persistent pages that the device stored outlive the process that serves it.
    pub const DURABLE: u64 = 1 << 3;
    /// The device knows [`Opcode::PoolKeep`](crate::Opcode::PoolKeep) and
    /// [`RELEASED_BY_RESET`](crate::pool_flags::RELEASED_BY_RESET).
    pub const KEEP: u64 = 1 << 4;
    /// The device has a window: [`Config::window`](crate::Config::window) says which.
    pub const WINDOW: u64 = 1 << 5;
    /// Every bit that has a meaning.
    pub const ALL: u64 = EPHEMERAL | PERSISTENT | SHARED | DURABLE | KEEP | WINDOW;
}

/// The device configuration space.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Config {
    /// [`MAGIC`].
    pub magic: Le32,
    /// [`ABI_MAJOR`] of the device.
    pub abi_major: Le16,
    /// [`ABI_MINOR`] of the device.
    pub abi_minor: Le16,
    /// Bits of [`cap`].
    pub capabilities: Le64,
    /// The binary logarithm of the page size in bytes.
    pub page_shift: u8,
    /// Zero.
    pub reserved0: u8,
    /// The number of data virtqueues, at least 1.
    pub data_queues: Le16,
    /// The most pages that a put or get request may carry, at least 1.
    pub max_pages: Le32,
    /// The most table entries that a flush request may carry, at least 1.
    pub max_flushes: Le32,
    /// The most pools that a driver may have, at least 1; pool numbers are below it.
    pub max_pools: Le32,
    /// The epoch: a changed one means that no page put before may be got. Never [`EPOCH_NONE`].
    pub epoch: Le64,
    /// What the window is known by, drawn at random; zero where there is none.
    pub window: [u8; 16],
    /// Zero.
    pub reserved1: [u8; 7],
    /// Zero in every version: it tells a driver that the space was not cut short, since some VMMs
    /// answer ones for what lies past its end.
    pub end: u8,
}

const_assert_eq!(size_of::<Config>(), 64);
assert_eq_align!(Config, u8);
