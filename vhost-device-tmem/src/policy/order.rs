// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The order in which ephemeral memory is given back.

/// The slices of memory that pays. Of each guest one goes before of any the next one does, so that
/// nobody gives all of it for being worth a little less.
const SLICES: u8 = 4;

/// Why memory goes before other memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rank {
    /// More than the guest's share.
    Excess,
    /// Memory that does not pay.
    Idle,
    /// Memory that pays, by slices from 0 on.
    Paying(u8),
    /// What the guest is guaranteed. It goes only where not all minima can be had.
    Guaranteed,
}

/// Memory that one guest gives back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tranche {
    /// The guest's number.
    pub guest: u32,
    /// How many bytes.
    pub bytes: u64,
    /// Why it is its turn.
    pub rank: Rank,
}

/// What a guest has, and what of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Held {
    pub(super) guest: u32,
    /// What it has.
    pub(super) bytes: u64,
    pub(super) share: u64,
    pub(super) min: u64,
    /// What is in use.
    pub(super) used: u64,
    /// What a little of it is worth, weighted.
    pub(super) price: f64,
}

impl Held {
    /// Returns what the guest gives, first to last.
    fn tranches(&self) -> impl Iterator<Item = Tranche> {
        let guaranteed = self.share.min(self.min);
        let paying = self.share.min(self.used).max(guaranteed);
        let part = paying - guaranteed;
        let slices = (0..SLICES).map(move |n| {
            let above = u128::from(part) * u128::from(SLICES - 1 - n) / u128::from(SLICES);
            (Rank::Paying(n), guaranteed + above as u64)
        });
        let levels = [(Rank::Excess, self.share), (Rank::Idle, paying)];
        let levels = levels.into_iter().chain(slices);
        let levels = levels.chain([(Rank::Guaranteed, 0)]);
        let (guest, mut from) = (self.guest, self.bytes);
        levels.filter_map(move |(rank, to)| {
            let bytes = from.saturating_sub(to);
            from -= bytes;
            (bytes > 0).then_some(Tranche { guest, bytes, rank })
        })
    }
}

/// Returns all that guests have, in the order in which it goes: by rank, then what is worth least,
/// then by the guests' numbers.
pub(super) fn order(guests: &[Held]) -> Vec<Tranche> {
    let tranches = guests
        .iter()
        .flat_map(|held| held.tranches().map(|tranche| (held.price, tranche)));
    let mut tranches: Vec<_> = tranches.collect();
    tranches.sort_by(|(a_price, a), (b_price, b)| {
        let by_price = a_price.total_cmp(b_price);
        a.rank
            .cmp(&b.rank)
            .then(by_price)
            .then(a.guest.cmp(&b.guest))
    });
    tranches.into_iter().map(|(_, tranche)| tranche).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(guest: u32, price: f64) -> Held {
        Held {
            guest,
            bytes: 110,
            share: 100,
            min: 20,
            used: 60,
            price,
        }
    }

    #[test]
    fn what_is_worth_least_goes_first() {
        let order = order(&[held(1, 2.0), held(2, 1.0), held(3, 1.0)]);
        let of = |rank| {
            let with = order.iter().filter(move |tranche| tranche.rank == rank);
            with.map(|tranche| (tranche.guest, tranche.bytes))
                .collect::<Vec<_>>()
        };
        assert_eq!(of(Rank::Excess), [(2, 10), (3, 10), (1, 10)]);
        assert_eq!(of(Rank::Idle), [(2, 40), (3, 40), (1, 40)]);
        for slice in 0..SLICES {
            assert_eq!(of(Rank::Paying(slice)), [(2, 10), (3, 10), (1, 10)]);
        }
        assert_eq!(of(Rank::Guaranteed), [(2, 20), (3, 20), (1, 20)]);
        assert!(order.is_sorted_by_key(|tranche| tranche.rank));
        let sum: u64 = order.iter().map(|tranche| tranche.bytes).sum();
        assert_eq!(sum, 330);
    }

    #[test]
    fn who_has_less_than_its_share_gives_only_that() {
        let mut poor = held(1, 1.0);
        poor.bytes = 30;
        let of: Vec<_> = poor.tranches().collect();
        let tranche = |bytes, rank| Tranche {
            guest: 1,
            bytes,
            rank,
        };
        assert_eq!(
            of,
            [tranche(10, Rank::Paying(3)), tranche(20, Rank::Guaranteed)]
        );
    }
}
