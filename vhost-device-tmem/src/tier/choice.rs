// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What goes below, and when. This decides, and touches nothing.
//!
//! - Nothing goes there while there is room.
//! - An ephemeral page goes where it would be evicted soon, and its guest is known to come back for
//!   it: others are not worth a write.
//! - A persistent page goes where the operator lets it, and its guest has next to no credits left.
//! - Where the tier has little room, records are moved together if that makes room, and the ephemeral
//!   pages there that were used longest ago are dropped if not.

use serde::{Deserialize, Serialize};

use crate::store::PoolKind;

/// Which pages of a guest may be in the tier.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TierUse {
    /// None.
    Off,
    /// Those that may be forgotten.
    #[default]
    Ephemeral,
    /// All.
    All,
}

impl TierUse {
    /// All of them, by their names.
    pub const NAMES: [(&'static str, Self); 3] = [
        ("off", Self::Off),
        ("ephemeral", Self::Ephemeral),
        ("all", Self::All),
    ];

    /// Returns the one of this name.
    pub fn parse(name: &str) -> Option<Self> {
        let mut names = Self::NAMES.into_iter();
        names.find(|(of, _)| *of == name).map(|(_, this)| this)
    }

    /// Returns whether pages of such pools may be there.
    pub fn allows(self, kind: PoolKind) -> bool {
        match kind {
            PoolKind::Ephemeral => self != Self::Off,
            PoolKind::Persistent => self == Self::All,
        }
    }
}

/// The part of the capacity that is kept free for the next puts: one in so many.
const FREE_PART: u64 = 32;

/// The bounds of that in bytes.
const LEAST_FREE: u64 = 512 << 10;
const MOST_FREE: u64 = 256 << 20;

/// The part of the capacity that the entries of pages in the tier may take: one in so many.
const ENTRIES_PART: u64 = 4;

/// The part of the tier that is to be free before more is put there: one in so many.
const TIER_PART: u64 = 16;

/// What the decision depends on, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// What guests share.
    pub capacity: u64,
    /// What of it can be used before anything is evicted.
    pub free: u64,
    /// What the entries of pages in the tier take.
    pub entries: u64,
    /// Of those, what may be dropped.
    pub droppable: u64,
    /// Whether a guest is short of credits whose persistent pages may be there.
    pub wanting: bool,
    /// What can be written to the tier.
    pub tier_free: u64,
    /// What it may take.
    pub tier_size: u64,
    /// Whether moving records together would make room there.
    pub crowded: bool,
}

/// What is to be done next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing.
    Rest,
    /// Cold pages of a kind are to be moved to the tier.
    Move(PoolKind),
    /// Records are to be moved together.
    Clean,
    /// Ephemeral pages there are to be dropped.
    Drop,
}

/// Returns how much is to be free for the next puts.
pub fn spare(capacity: u64) -> u64 {
    let least = LEAST_FREE.min(capacity / 8);
    (capacity / FREE_PART).clamp(least, MOST_FREE)
}

/// Returns what is to be done next.
pub fn next(figures: &Figures) -> Step {
    let many = figures.entries > figures.capacity / ENTRIES_PART;
    let narrow = figures.tier_free < figures.tier_size / TIER_PART;
    if narrow && figures.crowded {
        return Step::Clean;
    }
    if many || narrow {
        // With persistent pages alone it is full.
        return if figures.droppable > 0 {
            Step::Drop
        } else {
            Step::Rest
        };
    }
    if figures.wanting {
        Step::Move(PoolKind::Persistent)
    } else if figures.free < spare(figures.capacity) {
        Step::Move(PoolKind::Ephemeral)
    } else {
        Step::Rest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    const PLENTY: Figures = Figures {
        capacity: 1024 * MIB,
        free: 500 * MIB,
        entries: 0,
        droppable: 0,
        wanting: false,
        tier_free: 1000 * MIB,
        tier_size: 1000 * MIB,
        crowded: false,
    };

    #[test]
    fn nothing_goes_below_while_there_is_room() {
        assert_eq!(next(&PLENTY), Step::Rest);
        let little = Figures {
            free: 31 * MIB,
            ..PLENTY
        };
        assert_eq!(next(&little), Step::Move(PoolKind::Ephemeral));
        // Who would be refused comes first.
        let wanting = Figures {
            wanting: true,
            ..little
        };
        assert_eq!(next(&wanting), Step::Move(PoolKind::Persistent));
    }

    #[test]
    fn a_full_tier_is_cleaned_before_anything_is_dropped() {
        let full = Figures {
            free: 0,
            tier_free: 62 * MIB,
            droppable: 1,
            wanting: true,
            ..PLENTY
        };
        assert_eq!(next(&full), Step::Drop);
        let crowded = Figures {
            crowded: true,
            ..full
        };
        assert_eq!(next(&crowded), Step::Clean);
        // Persistent pages are not dropped for others.
        let hopeless = Figures {
            droppable: 0,
            ..full
        };
        assert_eq!(next(&hopeless), Step::Rest);
    }

    #[test]
    fn what_finds_pages_below_takes_no_more_than_its_part() {
        let many = Figures {
            free: 0,
            entries: 257 * MIB,
            droppable: MIB,
            ..PLENTY
        };
        assert_eq!(next(&many), Step::Drop);
        let persistent = Figures {
            droppable: 0,
            wanting: true,
            ..many
        };
        assert_eq!(next(&persistent), Step::Rest);
    }

    #[test]
    fn a_small_store_is_not_emptied_for_the_sake_of_room() {
        assert_eq!(spare(MIB), 128 << 10);
        assert_eq!(spare(1024 * MIB), 32 * MIB);
        assert_eq!(spare(u64::MAX), MOST_FREE);
    }

    #[test]
    fn uses_have_names() {
        for (name, this) in TierUse::NAMES {
            assert_eq!(TierUse::parse(name), Some(this));
            assert_eq!(serde_json::to_value(this).unwrap(), name);
        }
        assert_eq!(TierUse::parse("some"), None);
        assert!(TierUse::default().allows(PoolKind::Ephemeral));
        assert!(!TierUse::default().allows(PoolKind::Persistent));
    }
}
