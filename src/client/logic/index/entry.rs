// SPDX-License-Identifier: GPL-2.0

//! What the index knows of one page: above all, where it is.

/// The number of bits of a version.
pub const VERSION_BITS: u32 = 29;

/// The highest version that a page has. The one above is for [`Older::ANY`].
pub const VERSION_MAX: u32 = VERSION_MASK - 1;

const VERSION_MASK: u32 = (1 << VERSION_BITS) - 1;

const STATE_SHIFT: u32 = 61;
const VERSION_SHIFT: u32 = 32;

// The order is of use: see `is_live()`, `is_pending()` and `is_stale()`.
const STATE_PENDING: u64 = 0b010;
const STATE_MOVING: u64 = 0b011;
const STATE_REMOTE: u64 = 0b100;
const STATE_WINDOW: u64 = 0b101;
const STATE_STALE: u64 = 0b110;

/// The highest 64 bits of a page in the window of which the store has no older one.
const ONLY_WINDOW: u64 = (STATE_WINDOW << STATE_SHIFT) | u32::MAX as u64;

/// The 64 bits of some page that can be had, for a place that is about to be given another one.
pub(super) const SOME_LIVE: u64 = STATE_PENDING << STATE_SHIFT;

/// An older page that the store may have under the key of one in the window, and need not keep.
///
/// It is no more than the bits that an entry has for it, so that entries without it pay nothing for
/// it: the version of that page, zero if there is none, or one that no page has if it may be any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Older(u32);

impl Older {
    /// There is none.
    pub const NOTHING: Self = Self(0);

    /// There may be one, of whatever version.
    pub const ANY: Self = Self(VERSION_MASK);

    /// There may be one of this version.
    #[inline]
    pub const fn version(version: u32) -> Self {
        Self(version)
    }

    /// Returns what there may be below a page that has been copied to the window, in place of what
    /// the index had.
    ///
    /// Of a put without an outcome that will be told when it has one.
    #[inline]
    pub(super) const fn below(replaced: Option<Entry>) -> Self {
        match replaced {
            Some(Entry::Remote { version, .. } | Entry::Stale { version }) => {
                Self::of_mark(version)
            }
            Some(Entry::Window { older, .. }) => older,
            None | Some(Entry::Lost | Entry::Pending { .. } | Entry::Moving { .. }) => {
                Self::NOTHING
            }
        }
    }

    /// Returns what a stale mark says.
    #[inline]
    pub(super) const fn of_mark(version: u32) -> Self {
        match version {
            0 => Self::ANY,
            version => Self(version),
        }
    }

    /// Returns the version that a stale mark has to name; of nothing, zero as well.
    #[inline]
    pub(super) const fn mark(self) -> u32 {
        match self {
            Self::ANY => 0,
            Self(version) => version,
        }
    }

    /// Returns what there may be after a put of a version that the store has.
    #[inline]
    pub(super) const fn or_newer(self, version: u32) -> Self {
        match self {
            // A mark for any version supersedes this one, too.
            Self::ANY => self,
            Self(known) if known != 0 && !is_newer(version, known) => self,
            _ => Self(version),
        }
    }

    /// Returns what there may be where either may be.
    #[inline]
    pub(super) const fn or(self, other: Self) -> Self {
        match (self, other) {
            (Self::NOTHING, older) | (older, Self::NOTHING) => older,
            (Self(a), Self(b)) if a == b => self,
            _ => Self::ANY,
        }
    }
}

/// What the index knows of one page that is not vacant.
///
/// It is kept as 64 bits: the state in the upper three, a version in the next 29, and the rest in
/// the lower 32. A vacant place is zero. A lost page is a stored one of version zero, which no page
/// has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// The page is in the guest's staging memory, and perhaps on its way to the store.
    Pending {
        /// The version of the page.
        version: u32,
        /// The place in the staging memory; without a meaning here.
        slot: u32,
    },
    /// The page is in a slot of the window, and on its way from there to somewhere else.
    Moving {
        /// The version that it has been given to be known by where it goes.
        version: u32,
        /// The slot, which stays in use until the move is over, whatever becomes of the entry.
        slot: u32,
    },
    /// The store has the page.
    Remote {
        /// The version of the page.
        version: u32,
        /// What the caller gave with the completion of the put; without a meaning here.
        crc: u32,
    },
    /// The page is in a slot of the window.
    Window {
        /// What the store may have of the same key.
        older: Older,
        /// The slot, which is this entry's alone.
        slot: u32,
    },
    /// Somebody has the right to the page, but the device does not have it any more.
    Lost,
    /// The page is gone, and the device has still to be told.
    Stale {
        /// The version that the store may have; zero for whatever version it has.
        version: u32,
    },
}

impl Entry {
    /// Returns the 64 bits for the entry. Bits of a version beyond 29 are cut off.
    #[inline]
    pub const fn pack(self) -> u64 {
        let (state, version, rest) = match self {
            Self::Pending { version, slot } => (STATE_PENDING, version, slot),
            Self::Moving { version, slot } => (STATE_MOVING, version, slot),
            Self::Remote { version, crc } => (STATE_REMOTE, version, crc),
            Self::Window { older, slot } => (STATE_WINDOW, older.0, slot),
            Self::Lost => (STATE_REMOTE, 0, 0),
            Self::Stale { version } => (STATE_STALE, version, 0),
        };
        // CAST: To more bits; `From` is not for constant functions.
        (state << STATE_SHIFT) | (((version & VERSION_MASK) as u64) << VERSION_SHIFT) | rest as u64
    }

    /// Returns the entry for 64 bits, or [`None`] if the place is vacant.
    #[inline]
    pub const fn unpack(raw: u64) -> Option<Self> {
        // CAST: The upper bits are meant to be cut off.
        let version = (raw >> VERSION_SHIFT) as u32 & VERSION_MASK;
        let rest = raw as u32;
        match raw >> STATE_SHIFT {
            STATE_PENDING => Some(Self::Pending {
                version,
                slot: rest,
            }),
            STATE_MOVING => Some(Self::Moving {
                version,
                slot: rest,
            }),
            STATE_REMOTE if version == 0 => Some(Self::Lost),
            STATE_REMOTE => Some(Self::Remote { version, crc: rest }),
            STATE_WINDOW => Some(Self::Window {
                older: Older(version),
                slot: rest,
            }),
            STATE_STALE => Some(Self::Stale { version }),
            _ => None,
        }
    }

    /// Returns the version of the page itself; zero where it has none.
    #[inline]
    pub const fn version(self) -> u32 {
        match self {
            Self::Lost | Self::Window { .. } => 0,
            Self::Pending { version, .. }
            | Self::Moving { version, .. }
            | Self::Remote { version, .. }
            | Self::Stale { version } => version,
        }
    }

    /// Returns the slot of the window that is free once the entry is gone.
    #[inline]
    pub const fn slot(self) -> Option<u32> {
        match self {
            Self::Window { slot, .. } => Some(slot),
            _ => None,
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
    // Pending and moving are the one, remote and in the window the other.
    matches!(raw >> (STATE_SHIFT + 1), 1 | 2)
}

/// Returns whether 64 bits stand for a page that is on its way: a put or a move of it has no outcome
/// yet.
#[inline]
pub(super) const fn is_pending(raw: u64) -> bool {
    raw >> (STATE_SHIFT + 1) == 1
}

/// Returns whether 64 bits stand for a page that the device has to be told about.
///
/// That may be one that can be had, too: one in the window, with an older one in the store.
#[inline]
pub(super) const fn is_stale(raw: u64) -> bool {
    raw > ONLY_WINDOW
}

/// Returns whether 64 bits name a version: that of the page, or of an older one below it.
///
/// A put that replaces them must not have the same.
#[inline]
pub(super) const fn has_version(raw: u64, version: u32) -> bool {
    // CAST: The upper bits are meant to be cut off.
    (raw >> VERSION_SHIFT) as u32 & VERSION_MASK == version
}

/// Returns which version of a page the device has to be told about; zero for whatever it has.
#[inline]
pub(super) const fn outdated(raw: u64) -> u32 {
    match Entry::unpack(raw) {
        Some(Entry::Stale { version }) => version,
        Some(Entry::Window { older, .. }) => older.mark(),
        _ => 0,
    }
}

/// Returns the 64 bits of what follows when the device has been told.
#[inline]
pub(super) const fn told(raw: u64) -> u64 {
    match slot(raw) {
        Some(slot) => Entry::Window {
            older: Older::NOTHING,
            slot,
        }
        .pack(),
        None => 0,
    }
}

/// Returns the 64 bits of what is left of a page that is taken out of the index, and got by whoever
/// takes it.
#[inline]
pub(super) const fn taken(raw: u64) -> u64 {
    // All but one in the window leave nothing, and most have nothing below them.
    if !is_stale(raw) {
        return 0;
    }
    Entry::Stale {
        version: outdated(raw),
    }
    .pack()
}

/// Returns the 64 bits of what is left of a page that is erased.
#[inline]
pub(super) const fn erased(raw: u64) -> u64 {
    match Entry::unpack(raw) {
        Some(Entry::Remote { version, .. }) => Entry::Stale { version }.pack(),
        _ => taken(raw),
    }
}

/// Returns whether 64 bits stand for a page that is on its way in this version.
#[inline]
pub(super) const fn is_on_its_way(raw: u64, version: u32) -> bool {
    is_pending(raw) && has_version(raw, version)
}

/// Returns the slot of the window that is free once 64 bits are gone.
#[inline]
pub(super) const fn slot(raw: u64) -> Option<u32> {
    if raw >> STATE_SHIFT == STATE_WINDOW {
        // CAST: The upper bits are meant to be cut off.
        Some(raw as u32)
    } else {
        None
    }
}

/// Returns the slot of the window that a page can be copied from, whether it is moving or not.
#[inline]
pub(super) const fn slot_to_copy(raw: u64) -> Option<u32> {
    if matches!(raw >> STATE_SHIFT, STATE_WINDOW | STATE_MOVING) {
        // CAST: As above.
        Some(raw as u32)
    } else {
        None
    }
}

/// Returns the version after another one.
#[inline]
pub(super) const fn next_version(version: u32) -> u32 {
    if version >= VERSION_MAX {
        1
    } else {
        version.wrapping_add(1)
    }
}

/// Returns whether version `a` was given out after version `b`.
///
/// Versions wrap, so this is true for the next half of all versions.
#[inline]
pub(super) const fn is_newer(a: u32, b: u32) -> bool {
    let ahead = a.wrapping_sub(b) & VERSION_MASK;
    ahead != 0 && ahead <= VERSION_MASK / 2
}
