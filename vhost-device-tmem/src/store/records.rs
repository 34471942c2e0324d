// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What describes pools to the next process.

use serde::{Deserialize, Serialize};
use zerocopy::FromZeros;

use super::{entry::store_last, inner::PoolSlot, PoolKind};

/// The most pools of all guests together, accesses to shared pools included.
pub(super) const MAX_POOLS: usize = 1 << 16;

/// What a reset of the device does to a pool. The store only keeps it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Hold {
    /// Nothing.
    #[default]
    Stays,
    /// It releases the pool: the driver is there.
    Held,
    /// It would release the pool, but the driver means to come back for it.
    Kept,
}

/// What is known of a pool that is in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Known {
    pub(super) guest: u32,
    pub(super) number: u32,
    pub(super) kind: PoolKind,
    pub(super) hold: Hold,
    /// It is being emptied, and no number leads to it.
    pub(super) ending: bool,
    /// It is no pool, but the guest's access to the shared pool that is described at this place.
    pub(super) access: Option<PoolSlot>,
    /// What no other pool of these numbers has, before and after it. Whoever describes it says so.
    pub(super) life: u64,
}

/// The description of a pool.
#[derive(Clone, Copy, Debug, FromZeros)]
#[repr(C)]
pub(super) struct PoolRecord {
    guest: u32,
    number: u32,
    life: u64,
    /// What it is, and in the upper half a check of all of it; zero where there is no pool.
    word: u64,
}

const THERE: u64 = 1;
const PERSISTENT: u64 = 1 << 1;
const ENDING: u64 = 1 << 2;
const ACCESS: u64 = 1 << 3;
const HOLD: u32 = 8;
const PLACE: u32 = 16;

const _: () = assert!(MAX_POOLS <= 1 << (u32::BITS - PLACE));

impl PoolRecord {
    /// Describes a pool. One store makes it be in force.
    pub(super) fn set(&mut self, known: Known) {
        self.guest = known.guest;
        self.number = known.number;
        self.life = known.life;
        let hold = match known.hold {
            Hold::Stays => 0,
            Hold::Held => 1,
            Hold::Kept => 2,
        };
        let word = THERE
            | if known.kind == PoolKind::Persistent {
                PERSISTENT
            } else {
                0
            }
            | if known.ending { ENDING } else { 0 }
            | known
                .access
                .map_or(0, |place| ACCESS | (u64::from(place) << PLACE))
            | (hold << HOLD);
        let word = word | (u64::from(self.computed_check(word)) << 32);
        store_last(&mut self.word, word);
    }

    /// Says that there is no pool.
    pub(super) fn clear(&mut self) {
        store_last(&mut self.word, 0);
    }

    /// Returns what is known of the pool, [`None`] if there is none.
    ///
    /// # Errors
    ///
    /// [`Broken`] where there is one or was one, and this cannot be said.
    pub(super) fn known(&self) -> Result<Option<Known>, Broken> {
        if self.word == 0 {
            return Ok(None);
        }
        let word = self.word & u64::from(u32::MAX);
        if self.word >> 32 != u64::from(self.computed_check(word)) {
            return Err(Broken);
        }
        Ok(Some(Known {
            guest: self.guest,
            number: self.number,
            life: self.life,
            kind: if word & PERSISTENT == 0 {
                PoolKind::Ephemeral
            } else {
                PoolKind::Persistent
            },
            hold: match (word >> HOLD) & 3 {
                0 => Hold::Stays,
                1 => Hold::Held,
                2 => Hold::Kept,
                _ => return Err(Broken),
            },
            ending: word & ENDING != 0,
            access: (word & ACCESS != 0).then_some((word >> PLACE) as PoolSlot),
        }))
    }

    fn computed_check(&self, word: u64) -> u32 {
        let mut bytes = [0; 24];
        bytes[..4].copy_from_slice(&self.guest.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.number.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.life.to_le_bytes());
        bytes[16..].copy_from_slice(&word.to_le_bytes());
        crc32c::crc32c(&bytes)
    }
}

/// A description that is damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Broken;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_says_what_it_was_told_or_that_it_is_broken() {
        let mut record = PoolRecord::new_zeroed();
        assert_eq!(record.known(), Ok(None));
        for kind in PoolKind::ALL {
            for hold in [Hold::Stays, Hold::Held, Hold::Kept] {
                for (ending, access) in [
                    (false, None),
                    (true, None),
                    (false, Some(0)),
                    (false, Some(MAX_POOLS as PoolSlot - 1)),
                ] {
                    let known = Known {
                        guest: 3,
                        number: 9,
                        kind,
                        hold,
                        ending,
                        access,
                        life: 11,
                    };
                    record.set(known);
                    assert_eq!(record.known(), Ok(Some(known)));
                    for bit in 0..64 {
                        let mut damaged = record;
                        damaged.word ^= 1 << bit;
                        assert_eq!(damaged.known(), Err(Broken), "{bit}");
                        let mut damaged = record;
                        damaged.guest ^= 1 << (bit % 32);
                        assert_eq!(damaged.known(), Err(Broken));
                        let mut damaged = record;
                        damaged.life ^= 1 << bit;
                        assert_eq!(damaged.known(), Err(Broken));
                    }
                }
            }
        }
        record.clear();
        assert_eq!(record.known(), Ok(None));
    }
}
