// SPDX-License-Identifier: GPL-2.0-only OR MIT OR Apache-2.0

//! The device-writable part of a request.

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
    wire::wire_enum,
    Le32,
    Le64, //
};

wire_enum! {
    /// What became of a request as a whole: [`ResponseHeader::status`].
    pub enum Status: u32 {
        /// The request was carried out; each page has its [`PageResult`].
        Ok = 1,
        /// The request breaks a rule and nothing of it was carried out;
        /// [`ResponseHeader::detail`] says which rule, as a [`Malformed`].
        Malformed = 2,
        /// The device does not have this operation, on this virtqueue or at all.
        Unsupported = 3,
        /// There is no such pool.
        NoPool = 4,
        /// The pool is there already, and is of another kind.
        PoolExists = 5,
        /// The operator does not allow this pool, or the device has no pools of its kind.
        NotAllowed = 6,
        /// [`RequestHeader::epoch`](crate::RequestHeader::epoch) is not the device's.
        StaleEpoch = 7,
        /// The device cannot hold another pool, or has no memory for the window.
        NoMemory = 8,
        /// The driver has not opened the window.
        NoWindow = 9,
    }
}

wire_enum! {
    /// Which rule a malformed request breaks: [`ResponseHeader::detail`].
    pub enum Malformed: u32 {
        /// The device-readable part is shorter than its header and table.
        Short = 1,
        /// A reserved field is not zero.
        Reserved = 2,
        /// A flag is not known, or not allowed with this operation or pool.
        Flags = 3,
        /// The count is not within the bounds for the operation.
        Count = 4,
        /// The device-readable part is not exactly header, table and pages long.
        ReadableLength = 5,
        /// The device-writable part is not exactly response, results and pages long.
        WritableLength = 6,
        /// A range ends before it begins.
        Range = 7,
        /// The number of the pool is not below the device's limit.
        Pool = 8,
        /// The page size of the pool is not the device's.
        PageShift = 9,
        /// The kind of a chunk is not known, or its number or the number of chunks is not within
        /// the bounds.
        Chunk = 10,
    }
}

wire_enum! {
    /// What became of one page, range or object of a request: one byte of the result table.
    pub enum PageResult: u8 {
        /// Put: the page is stored; an earlier one under the key is gone.
        Stored = 1,
        /// Get: the page's place in the payload holds it.
        Hit = 2,
        /// Get: the device does not have this version; the page's place in the payload holds
        /// nothing of meaning.
        Miss = 3,
        /// Flush: the device had it, and does no more.
        Flushed = 4,
        /// Flush: the device did not have it.
        Absent = 5,
        /// Put: refused, the driver has its share. An earlier page under the key is gone.
        OverQuota = 16,
        /// Put: refused, the operator froze the driver's pools. An earlier page under the key is
        /// gone.
        Frozen = 17,
        /// Put: refused, the device is out of memory. An earlier page under the key is gone.
        NoMemory = 18,
        /// Get: the device stored this version and cannot read it back.
        Damaged = 32,
    }
}

impl PageResult {
    /// Returns whether the device has refused a put.
    pub const fn is_refusal(self) -> bool {
        matches!(self, Self::OverQuota | Self::Frozen | Self::NoMemory)
    }
}

/// The number of credits that stands for "without limit".
pub const CREDITS_UNLIMITED: u32 = u32::MAX;

/// The first bytes of every response.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct ResponseHeader {
    /// A [`Status`].
    pub status: Le32,
    /// A [`Malformed`] where the status is [`Status::Malformed`], otherwise zero.
    pub detail: Le32,
    /// The number of results that follow: the request's count where the status is
    /// [`Status::Ok`] and the operation has results, otherwise zero.
    pub count: Le32,
    /// Pages that the device would accept into persistent pools now.
    pub persistent_credits: Le32,
    /// Pages that the device would accept into ephemeral pools now.
    pub ephemeral_credits: Le32,
    /// Zero.
    pub reserved: Le32,
    /// The device's epoch.
    pub epoch: Le64,
}

const_assert_eq!(size_of::<ResponseHeader>(), 32);
assert_eq_align!(ResponseHeader, u8);
