// SPDX-License-Identifier: GPL-2.0

//! What the index knows of one page.

/// The number of bits of a version.
pub const VERSION_BITS: u32 = 30;

/// The highest version.
pub const VERSION_MAX: u32 = (1 << VERSION_BITS) - 1;

const STATE_SHIFT: u32 = 62;
const VERSION_SHIFT: u32 = 32;

const STATE_PENDING: u64 = 1;
const STATE_REMOTE: u64 = 2;
const STATE_STALE: u64 = 3;

/// The 64 bits of some page that can be had, for a place that is about to be given another one.
pub(super) const SOME_LIVE: u64 = STATE_PENDING << STATE_SHIFT;

/// What the index knows of one page that is not vacant.
///
/// It is kept as 64 bits: the state in the upper two, the version in the next 30, and the rest in
/// the lower 32. A vacant place is zero. A lost page is a stored one of version zero, which no page
/// has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// The page is in the guest's staging memory, and perhaps on its way to the device.
    Pending {
        /// The version of the page.
        version: u32,
        /// The place in the staging memory; without a meaning here.
        slot: u32,
    },
    /// The device has stored the page.
    Remote {
        /// The version of the page.
        version: u32,
        /// What the caller gave with the completion of the put; without a meaning here.
        crc: u32,
    },
    /// Somebody has the right to the page, but the device does not have it any more.
    Lost,
    /// The page is gone, and the device has still to be told.
    Stale {
        /// The version that the device may have; zero for whatever version it has.
        version: u32,
    },
}

impl Entry {
    /// Returns the 64 bits for the entry. Bits of a version beyond 30 are cut off.
    #[inline]
    pub const fn pack(self) -> u64 {
        let (state, version, rest) = match self {
            Self::Pending { version, slot } => (STATE_PENDING, version, slot),
            Self::Remote { version, crc } => (STATE_REMOTE, version, crc),
            Self::Lost => (STATE_REMOTE, 0, 0),
            Self::Stale { version } => (STATE_STALE, version, 0),
        };
        // CAST: To more bits; `From` is not for constant functions.
        (state << STATE_SHIFT) | (((version & VERSION_MAX) as u64) << VERSION_SHIFT) | rest as u64
    }

    /// Returns the entry for 64 bits, or [`None`] if the place is vacant.
    #[inline]
    pub const fn unpack(raw: u64) -> Option<Self> {
        // CAST: The upper bits are meant to be cut off.
        let version = (raw >> VERSION_SHIFT) as u32 & VERSION_MAX;
        let rest = raw as u32;
        match raw >> STATE_SHIFT {
            STATE_PENDING => Some(Self::Pending {
                version,
                slot: rest,
            }),
            STATE_REMOTE if version == 0 => Some(Self::Lost),
            STATE_REMOTE => Some(Self::Remote { version, crc: rest }),
            STATE_STALE => Some(Self::Stale { version }),
            _ => None,
        }
    }

    /// Returns the version; zero where there is none.
    #[inline]
    pub const fn version(self) -> u32 {
        match self {
            Self::Lost => 0,
            Self::Pending { version, .. }
            | Self::Remote { version, .. }
            | Self::Stale { version } => version,
        }
    }

    /// Returns whether somebody has the right to the page: it can be had, or is lost.
    #[inline]
    pub const fn is_live(self) -> bool {
        !matches!(self, Self::Stale { .. })
    }
}

/// Returns whether 64 bits stand for a page that can be had.
#[inline]
pub(super) const fn is_live(raw: u64) -> bool {
    matches!(raw >> STATE_SHIFT, STATE_PENDING | STATE_REMOTE)
}

/// Returns whether 64 bits stand for a page that is in the staging memory.
#[inline]
pub(super) const fn is_pending(raw: u64) -> bool {
    raw >> STATE_SHIFT == STATE_PENDING
}

/// Returns whether 64 bits stand for a page that the device has to be told about.
#[inline]
pub(super) const fn is_stale(raw: u64) -> bool {
    raw >> STATE_SHIFT == STATE_STALE
}

/// Returns whether version `a` was given out after version `b`.
///
/// Versions wrap, so this is true for the next half of all versions.
#[inline]
pub(super) const fn is_newer(a: u32, b: u32) -> bool {
    let ahead = a.wrapping_sub(b) & VERSION_MAX;
    ahead != 0 && ahead <= VERSION_MAX / 2
}
