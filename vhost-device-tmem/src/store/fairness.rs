// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Who gets the memory where there is not enough for all: what guests are promised, and whose
//! ephemeral page goes first. This decides, and touches nothing.

use std::collections::BTreeMap;

use super::PoolKind;

/// What a guest holds, in bytes, with what is needed to find its pages, and what it is lent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Holding {
    /// Of pages that nobody takes from it.
    pub persistent: u64,
    /// Of pages that may be evicted.
    pub ephemeral: u64,
}

/// A guest's part of the memory, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// What it is promised of persistent memory: nobody else takes it.
    pub promised: u64,
    /// What it has no more of persistent memory than. What it has beyond that stays.
    pub limit: u64,
    /// What it may have of ephemeral memory; what is above that goes first. [`None`]: all have the
    /// same, so that who holds most gives first.
    pub ephemeral: Option<u64>,
}

impl Default for Part {
    /// Nothing is promised, and nothing limited.
    fn default() -> Self {
        Self {
            promised: 0,
            limit: u64::MAX,
            ephemeral: None,
        }
    }
}

impl Holding {
    pub(super) fn of(&mut self, kind: PoolKind) -> &mut u64 {
        match kind {
            PoolKind::Persistent => &mut self.persistent,
            PoolKind::Ephemeral => &mut self.ephemeral,
        }
    }

    /// Returns all of it.
    pub fn total(&self) -> u64 {
        self.persistent + self.ephemeral
    }

    /// Returns what a guest does not have yet of what it was promised.
    pub(super) fn unmet(&self, promised: u64) -> u64 {
        promised.saturating_sub(self.persistent)
    }
}

/// The parts of guests, by their numbers, also while they hold nothing. What is promised to nobody,
/// or asked for at the moment by ephemeral pages alone, is for whoever comes first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Parts(pub(super) BTreeMap<u32, Part>);

impl Parts {
    /// Promises so many bytes to each of these guests, and limits nothing.
    pub(super) fn alike(guests: impl IntoIterator<Item = u32>, promised: u64) -> Self {
        let part = Part {
            promised,
            ..Part::default()
        };
        Self(guests.into_iter().map(|guest| (guest, part)).collect())
    }

    /// Returns the part of a guest.
    pub(super) fn of(&self, guest: u32) -> Part {
        self.0.get(&guest).copied().unwrap_or_default()
    }

    /// Returns what all of them were promised together.
    pub(super) fn promised(&self) -> u64 {
        let promised = self.0.values().map(|part| part.promised);
        promised.fold(0, u64::saturating_add)
    }
}

/// Returns how much of `room`, which is what persistent pages could take if all ephemeral ones were
/// evicted, is for a guest: all but what others were promised and do not have yet, but at least what
/// it was promised itself.
pub(super) fn room_for(room: u64, unmet: u64, unmet_of_others: u64) -> u64 {
    room.saturating_sub(unmet_of_others).max(unmet.min(room))
}

/// Returns by how much a guest is above its share of ephemeral memory. Where shares are the same this
/// is all that it holds.
pub(super) fn excess(holding: Holding, share: Option<u64>) -> i128 {
    match share {
        Some(share) => i128::from(holding.ephemeral) - i128::from(share),
        None => i128::from(holding.total()),
    }
}

/// Returns the guest that an ephemeral page is to be taken from: the one that holds most above its
/// share, of those that have one.
pub(super) fn victim(guests: impl Iterator<Item = (usize, Holding, Option<u64>)>) -> Option<usize> {
    let with_some = guests.filter(|(_, holding, _)| holding.ephemeral > 0);
    with_some
        .max_by_key(|(guest, holding, share)| (excess(*holding, *share), std::cmp::Reverse(*guest)))
        .map(|(guest, ..)| guest)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn holding(persistent: u64, ephemeral: u64) -> Holding {
        Holding {
            persistent,
            ephemeral,
        }
    }

    #[test]
    fn the_one_that_holds_most_gives() {
        let of = |holdings: &[Holding]| {
            let holdings = holdings.iter().enumerate();
            victim(holdings.map(|(n, holding)| (n, *holding, None)))
        };
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[holding(9, 0)]), None);
        assert_eq!(of(&[holding(0, 5), holding(0, 9), holding(0, 7)]), Some(1));
        // What cannot be evicted counts as well, and is not taken.
        assert_eq!(of(&[holding(8, 2), holding(0, 9)]), Some(0));
        assert_eq!(of(&[holding(10, 0), holding(0, 9)]), Some(1));
        assert_eq!(of(&[holding(0, 9), holding(0, 9)]), Some(0));
    }

    #[test]
    fn only_guests_that_were_named_are_promised_anything() {
        let parts = Parts::alike([0, 1], 100);
        assert_eq!(parts.of(1).promised, 100);
        assert_eq!(parts.of(2), Part::default());
        assert_eq!(holding(30, 90).unmet(100), 70);
        assert_eq!(holding(130, 0).unmet(100), 0);
        assert_eq!(parts.promised(), 200);
    }

    #[test]
    fn the_one_that_is_most_above_its_share_gives() {
        let of = |held: &[(u64, u64)]| {
            let held = held.iter().enumerate();
            victim(held.map(|(n, (has, share))| (n, holding(9, *has), Some(*share))))
        };
        assert_eq!(of(&[(9, 9), (3, 1), (1, 0)]), Some(1));
        // Where all have less than they may, the one that lacks least.
        assert_eq!(of(&[(5, 9), (7, 9), (0, 0)]), Some(1));
        assert_eq!(of(&[(0, 0)]), None);
        assert_eq!(of(&[(1, u64::MAX), (1, u64::MAX)]), Some(0));
    }

    proptest! {
        /// Guests that take what they may, in any order, never come to where one of them does not
        /// get what it was promised.
        #[test]
        fn a_promise_is_kept(
            guests in 1..6u32,
            capacity in 100..1000u64,
            wants in prop::collection::vec((0..6u32, any::<bool>()), 0..3000),
        ) {
            let each = capacity / (2 * u64::from(guests));
            let parts = Parts::alike(0..guests, each);
            let mut held = [0; 6];
            for (guest, put) in wants {
                let unmet = |guest: u32| holding(held[guest as usize], 0).unmet(parts.of(guest).promised);
                let others: u64 = (0..6).filter(|other| *other != guest).map(unmet).sum();
                let room = capacity - held.iter().sum::<u64>();
                let may = room_for(room, unmet(guest), others);
                prop_assert!(may <= room && may >= unmet(guest));
                if !put {
                    held[guest as usize] /= 2;
                } else if may > 0 {
                    held[guest as usize] += 1;
                }
            }
        }
    }
}
