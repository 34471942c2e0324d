// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Whose chunks go where memory is short. This decides, and touches nothing.

/// The most chunks that one decision takes: each takes a while.
const MOST: u32 = 16;

/// What a guest has of its window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Holding {
    /// By how many chunks it is above its share of ephemeral memory; where all have the same, all that
    /// it has.
    pub(super) above: i64,
    /// Chunks that can be had back at any time.
    pub(super) spare: u32,
    /// Chunks that only the guest returns.
    pub(super) persistent: u32,
    /// Persistent chunks that it asked for in vain.
    pub(super) unserved: u32,
    /// It has less than it was promised.
    pub(super) may_have_more: bool,
}

/// What is to be done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// Chunks to take back, by the guests' places.
    pub(super) take: Vec<(usize, u32)>,
    /// Persistent chunks to ask for.
    pub(super) recall: Option<(usize, u32)>,
}

/// Decides where so many chunks are wanted back, besides those that guests asked for in vain: who
/// is most above its share gives first of those that can be had. Where these are not enough for guests
/// who have less than they were promised, who has most of the others, and all that it was promised, is
/// asked.
pub(super) fn plan(holdings: &[Holding], wanted: u32) -> Plan {
    let unserved = holdings.iter().map(|holding| holding.unserved);
    let wanted = unserved.fold(wanted, u32::saturating_add).min(MOST);
    let mut spare: Vec<_> = holdings.iter().map(|holding| holding.spare).collect();
    let mut above: Vec<_> = holdings.iter().map(|holding| holding.above).collect();
    let mut taken = vec![0; holdings.len()];
    let mut left = wanted;
    while left > 0 {
        let most = (0..spare.len()).filter(|at| spare[*at] > 0);
        let Some(most) = most.max_by_key(|at| (above[*at], std::cmp::Reverse(*at))) else {
            break;
        };
        spare[most] -= 1;
        above[most] -= 1;
        taken[most] += 1;
        left -= 1;
    }
    let owed = holdings.iter().filter(|holding| holding.may_have_more);
    let owed = owed.map(|holding| holding.unserved).sum::<u32>().min(left);
    let asked = holdings
        .iter()
        .enumerate()
        .filter(|(_, holding)| !holding.may_have_more && holding.persistent > 0)
        .max_by_key(|(at, holding)| (holding.persistent, std::cmp::Reverse(*at)));
    Plan {
        take: taken
            .into_iter()
            .enumerate()
            .filter(|(_, taken)| *taken > 0)
            .collect(),
        recall: asked
            .filter(|_| owed > 0)
            .map(|(at, holding)| (at, owed.min(holding.persistent))),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn holding(spare: u32, persistent: u32, unserved: u32, may_have_more: bool) -> Holding {
        Holding {
            above: spare.into(),
            spare,
            persistent,
            unserved,
            may_have_more,
        }
    }

    #[test]
    fn who_has_most_gives_first() {
        let holdings = [
            holding(3, 0, 0, false),
            holding(5, 9, 0, false),
            holding(0, 0, 0, true),
        ];
        let take = |wanted| plan(&holdings, wanted).take;
        assert_eq!(take(0), []);
        assert_eq!(take(2), [(1, 2)]);
        assert_eq!(take(4), [(0, 1), (1, 3)]);
        assert_eq!(take(100), [(0, 3), (1, 5)]);
        // Nobody asked in vain who was promised more.
        assert_eq!(plan(&holdings, 100).recall, None);
    }

    #[test]
    fn who_is_most_above_its_share_gives_first() {
        let with = |above, spare| Holding {
            above,
            ..holding(spare, 0, 0, false)
        };
        let holdings = [with(-3, 9), with(2, 1), with(1, 9)];
        let take = |wanted| plan(&holdings, wanted).take;
        assert_eq!(take(1), [(1, 1)]);
        assert_eq!(take(6), [(0, 1), (1, 1), (2, 4)]);
    }

    #[test]
    fn persistent_chunks_are_asked_for_on_behalf_of_who_was_promised_more() {
        let poor = holding(0, 1, 4, true);
        let rich = holding(1, 9, 0, false);
        let plan = |holdings: &[Holding]| super::plan(holdings, 0);
        let both = plan(&[poor, rich]);
        assert_eq!((both.take, both.recall), (vec![(1, 1)], Some((1, 3))));
        let greedy = holding(0, 20, 4, false);
        assert_eq!(plan(&[greedy, rich]).recall, None);
        assert_eq!(plan(&[poor, greedy]).recall, Some((1, 4)));
        assert_eq!(plan(&[poor]).recall, None);
    }

    proptest! {
        #[test]
        fn nobody_gives_more_than_it_has(
            holdings in prop::collection::vec(
                (0..20u32, 0..20u32, 0..20u32, any::<bool>())
                    .prop_map(|(a, b, c, d)| holding(a, b, c, d)),
                0..6,
            ),
            wanted: u32,
        ) {
            let plan = plan(&holdings, wanted);
            let sum: u32 = plan.take.iter().map(|(_, taken)| taken).sum();
            prop_assert!(sum <= MOST);
            for (at, taken) in &plan.take {
                prop_assert!(*taken > 0 && *taken <= holdings[*at].spare);
            }
            if let Some((at, count)) = plan.recall {
                prop_assert!(count > 0 && count <= holdings[at].persistent);
                prop_assert!(!holdings[at].may_have_more);
                // First goes what costs nobody anything.
                let spare: u32 = holdings.iter().map(|holding| holding.spare).sum();
                prop_assert_eq!(sum, spare);
            }
        }
    }
}
