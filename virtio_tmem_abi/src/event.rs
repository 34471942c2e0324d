// SPDX-License-Identifier: GPL-2.0-only OR MIT OR Apache-2.0

//! What the device tells the driver without being asked.

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
    Le16,
    Le32,
    Le64, //
};

wire_enum! {
    /// What an [`Event`] is about: [`Event::kind`].
    pub enum EventKind: u16 {
        /// The credits changed.
        Credits = 1,
        /// The operator asks for [`Event::pages`] persistent pages back.
        Shrink = 2,
        /// The epoch changed.
        Epoch = 3,
        /// The device asks for persistent chunks of the window back, which have [`Event::pages`]
        /// slots.
        Recall = 4,
    }
}

/// What the device writes into a buffer of the event virtqueue.
///
/// Credits and epoch are filled in whatever the kind.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Event {
    /// An [`EventKind`]; a driver ignores an event of a kind that it does not know.
    pub kind: Le16,
    /// Zero.
    pub reserved: [u8; 6],
    /// As in [`ResponseHeader`](crate::ResponseHeader).
    pub persistent_credits: Le32,
    /// As in [`ResponseHeader`](crate::ResponseHeader).
    pub ephemeral_credits: Le32,
    /// The device's epoch.
    pub epoch: Le64,
    /// Pages asked for by [`EventKind::Shrink`], or slots by [`EventKind::Recall`], otherwise zero.
    pub pages: Le64,
}

const_assert_eq!(size_of::<Event>(), 32);
assert_eq_align!(Event, u8);
