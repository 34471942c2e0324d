// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Who gets the memory where there is not enough for all: what guests are promised, and whose
//! ephemeral page goes first. This decides, and touches nothing.

use std::collections::BTreeSet;

use super::PoolKind;

/// What a guest holds, in bytes, with what is needed to find its pages, and what it is lent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Holding {
    /// Of pages that nobody takes from it.
    pub(super) persistent: u64,
    /// Of pages that may be evicted.
    pub(super) ephemeral: u64,
}

impl Holding {
    pub(super) fn of(&mut self, kind: PoolKind) -> &mut u64 {
        match kind {
            PoolKind::Persistent => &mut self.persistent,
            PoolKind::Ephemeral => &mut self.ephemeral,
        }
    }

    pub(super) fn total(&self) -> u64 {
        self.persistent + self.ephemeral
    }

    /// Returns what a guest does not have yet of what it was promised.
    pub(super) fn unmet(&self, promised: u64) -> u64 {
        promised.saturating_sub(self.persistent)
    }
}

/// What guests are promised for their persistent pages: so much each, whatever the others do. What
/// is above that, or not asked for at the moment by ephemeral pages, is for whoever comes first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Promise {
    /// The numbers of the guests that are promised something, also while they hold nothing.
    pub(super) guests: BTreeSet<u32>,
    /// Bytes for each of them.
    pub(super) each: u64,
}

impl Promise {
    /// Returns what a guest is promised.
    pub(super) fn to(&self, guest: u32) -> u64 {
        if self.guests.contains(&guest) {
            self.each
        } else {
            0
        }
    }

    /// Returns what all of them were promised together.
    pub(super) fn total(&self) -> u64 {
        self.each.saturating_mul(self.guests.len() as u64)
    }
}

/// Returns how much of `room`, which is what persistent pages could take if all ephemeral ones were
/// evicted, is for a guest: all but what others were promised and do not have yet, but at least what
/// it was promised itself.
pub(super) fn room_for(room: u64, unmet: u64, unmet_of_others: u64) -> u64 {
    room.saturating_sub(unmet_of_others).max(unmet.min(room))
}

/// Returns the guest that an ephemeral page is to be taken from: the one that holds most above its
/// share, of those that have one. All shares are the same, so that this is who holds most.
pub(super) fn victim(guests: impl Iterator<Item = (usize, Holding)>) -> Option<usize> {
    let with_some = guests.filter(|(_, holding)| holding.ephemeral > 0);
    with_some
        .max_by_key(|(guest, holding)| (holding.total(), std::cmp::Reverse(*guest)))
        .map(|(guest, _)| guest)
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
        let of = |holdings: &[Holding]| victim(holdings.iter().copied().enumerate());
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
        let promise = Promise {
            guests: [0, 1].into(),
            each: 100,
        };
        assert_eq!(promise.to(1), 100);
        assert_eq!(promise.to(2), 0);
        assert_eq!(holding(30, 90).unmet(100), 70);
        assert_eq!(holding(130, 0).unmet(100), 0);
        assert_eq!(promise.total(), 200);
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
            let promise = Promise {
                guests: (0..guests).collect(),
                each,
            };
            let mut held = [0; 6];
            for (guest, put) in wants {
                let unmet = |guest: u32| holding(held[guest as usize], 0).unmet(promise.to(guest));
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
