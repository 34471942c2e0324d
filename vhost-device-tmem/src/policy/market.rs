// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Moving ephemeral memory from where a little less costs least to where a little more gains most.
//!
//! 1. Whoever has less than its floor, and be it by a grain, gets up to that, from whoever is above
//!    its own.
//! 2. Whoever gains by more than others would lose gets up to its ceiling. What others have above
//!    theirs counts for nothing then.
//! 3. Beyond its ceiling a guest gets only what is idle.
//!
//! At one step a guest either gives or takes.

/// What a gain has to be above a loss for memory to move.
const HYSTERESIS: f64 = 1.1;

/// A guest, and what it gives or takes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Trader {
    pub(crate) share: u64,
    /// What others' figures do not take from it.
    pub(crate) floor: u64,
    /// What its figures do not get it beyond, unless it is idle memory.
    pub(crate) ceiling: u64,
    pub(crate) cap: u64,
    /// The most that moves for the sake of figures.
    pub(crate) stride: u64,
    /// What it gains by more, and loses by less, weighted.
    pub(crate) gain: f64,
    pub(crate) loss: f64,
    pub(crate) is_idle: bool,
    pub(crate) given: u64,
    pub(crate) taken: u64,
}

/// Memory that somebody may have.
struct Offer {
    from: usize,
    bytes: u64,
    price: f64,
}

/// Moves memory, `budget` bytes at most. A floor that is missed by less than `grain` bytes is none:
/// floors follow figures, and would have shares tremble. Returns how many bytes that were.
pub(crate) fn trade(traders: &mut [Trader], budget: u64, grain: u64) -> u64 {
    let mut left = budget;
    let is_short = |trader: &Trader| trader.share.saturating_add(grain) <= trader.floor;
    let mut rights: Vec<_> = (0..traders.len()).collect();
    rights.retain(|at| is_short(&traders[*at]));
    let offers = offers(traders, |_| true);
    let up_to_floor = |trader: &Trader| trader.floor.saturating_sub(trader.share);
    settle(traders, &rights, offers, &mut left, up_to_floor, |_, _| {
        true
    });

    let mut takers: Vec<_> = (0..traders.len()).collect();
    takers.retain(|at| traders[*at].gain > 0.0 && !is_short(&traders[*at]));
    takers.sort_by(|a, b| traders[*b].gain.total_cmp(&traders[*a].gain).then(a.cmp(b)));
    let gains = |trader: &Trader, price: f64| trader.gain > price * HYSTERESIS;
    let up_to = |limit: u64, trader: &Trader| {
        let more = limit.min(trader.cap).saturating_sub(trader.share);
        more.min(trader.stride.saturating_sub(trader.taken))
    };
    let offers_of_all = self::offers(traders, |_| true);
    let up_to_ceiling = |trader: &Trader| up_to(trader.ceiling, trader);
    settle(
        traders,
        &takers,
        offers_of_all,
        &mut left,
        up_to_ceiling,
        gains,
    );

    let idle = self::offers(traders, |trader| trader.is_idle);
    let up_to_cap = |trader: &Trader| up_to(trader.cap, trader);
    settle(traders, &takers, idle, &mut left, up_to_cap, gains);
    budget - left
}

/// Returns what guests can give, the cheapest first.
fn offers(traders: &[Trader], of: impl Fn(&Trader) -> bool) -> Vec<Offer> {
    let mut offers = Vec::new();
    for (from, trader) in traders.iter().enumerate().filter(|(_, trader)| of(trader)) {
        let most = if trader.is_idle {
            u64::MAX
        } else {
            trader.stride.saturating_sub(trader.given)
        };
        let beyond = trader
            .share
            .saturating_sub(trader.ceiling.max(trader.floor));
        let beyond = beyond.min(most);
        let below = (trader.share - beyond).saturating_sub(trader.floor);
        for (bytes, price) in [(beyond, 0.0), (below.min(most - beyond), trader.loss)] {
            if bytes > 0 {
                offers.push(Offer { from, bytes, price });
            }
        }
    }
    offers.sort_by(|a, b| a.price.total_cmp(&b.price).then(a.from.cmp(&b.from)));
    offers
}

/// Has takers, in their order, take of the offers as much as `wants` says, where `deal` says that
/// the price is right. What is too dear for one is so for those after it.
fn settle(
    traders: &mut [Trader],
    takers: &[usize],
    offers: Vec<Offer>,
    left: &mut u64,
    wants: impl Fn(&Trader) -> u64,
    deal: impl Fn(&Trader, f64) -> bool,
) {
    let mut offers = offers.into_iter().peekable();
    for &to in takers {
        while let Some(offer) = offers.peek_mut() {
            let taker = &traders[to];
            let bytes = wants(taker).min(*left);
            if bytes == 0 || taker.given > 0 || offer.from == to {
                break;
            }
            if traders[offer.from].taken > 0 || offer.bytes == 0 {
                offers.next();
                continue;
            }
            if !deal(taker, offer.price) {
                break;
            }
            let bytes = bytes.min(offer.bytes);
            offer.bytes -= bytes;
            *left -= bytes;
            let giver = &mut traders[offer.from];
            giver.share -= bytes;
            giver.given += bytes;
            let taker = &mut traders[to];
            taker.share += bytes;
            taker.taken += bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trader(share: u64, gain: f64, loss: f64) -> Trader {
        Trader {
            share,
            floor: 10,
            ceiling: 400,
            cap: u64::MAX,
            stride: 20,
            gain,
            loss,
            is_idle: false,
            given: 0,
            taken: 0,
        }
    }

    fn shares(traders: &[Trader]) -> Vec<u64> {
        traders.iter().map(|trader| trader.share).collect()
    }

    #[test]
    fn from_where_it_costs_least_to_where_it_gains_most() {
        let mut traders = [
            trader(100, 0.0, 1.0),
            trader(100, 5.0, 5.0),
            trader(100, 4.0, 4.0),
            trader(100, 0.0, 2.0),
        ];
        assert_eq!(trade(&mut traders, 1000, 1), 40);
        assert_eq!(shares(&traders), [80, 120, 120, 80]);
        // Within a budget, and with hysteresis.
        let mut traders = [trader(100, 0.0, 1.0), trader(100, 5.0, 5.0)];
        assert_eq!(trade(&mut traders, 7, 1), 7);
        let mut traders = [trader(100, 1.0, 1.0), trader(100, 1.05, 1.05)];
        assert_eq!(trade(&mut traders, 1000, 1), 0);
    }

    #[test]
    fn nobody_gives_below_its_floor_or_gets_beyond_its_cap() {
        let mut traders = [trader(15, 0.0, 0.0), trader(100, 9.0, 9.0)];
        assert_eq!(trade(&mut traders, 1000, 1), 5);
        traders[1].cap = 106;
        traders[0] = trader(50, 0.0, 0.0);
        assert_eq!(trade(&mut traders, 1000, 1), 1);
    }

    #[test]
    fn a_floor_is_a_right() {
        let mut traders = [trader(0, 0.0, 0.0), trader(100, 9.0, 9.0)];
        assert_eq!(trade(&mut traders, 1000, 1), 10);
        assert_eq!(shares(&traders), [10, 90]);
        // Not for a trifle.
        let mut traders = [trader(6, 0.0, 0.0), trader(100, 9.0, 9.0)];
        assert_eq!(trade(&mut traders, 1000, 5), 0);
        assert_eq!(trade(&mut traders, 1000, 4), 4);
    }

    #[test]
    fn beyond_the_ceiling_there_is_only_what_is_idle() {
        let greedy = trader(400, 9.0, 9.0);
        let mut traders = [greedy, trader(100, 0.0, 1.0)];
        assert_eq!(trade(&mut traders, 1000, 1), 0);
        traders[1].is_idle = true;
        assert_eq!(trade(&mut traders, 1000, 1), 20);
        // And what is beyond it is for anybody who gains.
        let mut traders = [trader(430, 9.0, 9.0), trader(100, 0.1, 0.1)];
        assert_eq!(trade(&mut traders, 1000, 1), 20);
        assert_eq!(shares(&traders), [410, 120]);
    }
}
