// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How readily a guest's share moves.
//!
//! How much moves at a step is more and more while it goes one way, and little as soon as it turns, or
//! after a rest.
//! Figures are averages, and say late what a move has done: so a share may go to and fro about the
//! place where it should rest. Whoever has turned lately needs better reasons to move again.

use std::cmp::Ordering;

/// The part of its stride that a guest loses at a step at which nothing moves.
const REST: u64 = 8;

/// The part of its turns that a guest forgets at each step.
const FORGOTTEN: f64 = 1.0 / 256.0;

/// By how much a turn has it need better reasons, and the most that it needs.
const WARIER: f64 = 0.125;
const MOST_WARY: f64 = 2.0;

/// A guest's pace.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Pace {
    stride: u64,
    last: Option<Ordering>,
    turns: f64,
}

impl Pace {
    /// Returns the most that moves now.
    pub(crate) fn stride(&self, grain: u64, most: u64) -> u64 {
        self.stride.min(most).max(grain)
    }

    /// Returns how many times better reasons to move have to be than those of a guest that has not
    /// turned.
    pub(crate) fn wariness(&self) -> f64 {
        (1.0 + WARIER * self.turns).min(MOST_WARY)
    }

    /// Takes note of what moved: whether the share grew, stayed, or shrank.
    pub(crate) fn moved(&mut self, way: Ordering, grain: u64, most: u64) {
        let stride = self.stride(grain, most);
        self.turns -= self.turns * FORGOTTEN;
        let stride = if way == Ordering::Equal {
            stride - stride / REST
        } else {
            match self.last.replace(way) {
                Some(last) if last != way => {
                    self.turns += 1.0;
                    stride / 4
                }
                _ => stride.saturating_mul(2),
            }
        };
        self.stride = stride.clamp(grain, most.max(grain));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use Ordering::{Equal, Greater, Less};

    #[test]
    fn it_grows_one_way_and_shrinks_at_a_turn() {
        let mut pace = Pace::default();
        let mut strides = Vec::new();
        for way in [
            Greater, Greater, Greater, Equal, Greater, Greater, Less, Less, Greater,
        ] {
            strides.push(pace.stride(1, 20));
            pace.moved(way, 1, 20);
        }
        assert_eq!(strides, [1, 2, 4, 8, 7, 14, 20, 5, 10]);
        assert_eq!(pace.stride(1, 20), 2);
        pace.moved(Less, 1, 2000);
        for _ in 0..100 {
            pace.moved(Equal, 1, 2000);
        }
        assert!(pace.stride(1, 2000) < 8);
    }

    #[test]
    fn who_turns_is_wary_for_a_while() {
        let mut pace = Pace::default();
        pace.moved(Greater, 1, 10);
        pace.moved(Greater, 1, 10);
        assert_eq!(pace.wariness(), 1.0);
        pace.moved(Less, 1, 10);
        assert_eq!(pace.wariness(), 1.125);
        for _ in 0..100 {
            pace.moved(Greater, 1, 10);
            pace.moved(Less, 1, 10);
        }
        assert_eq!(pace.wariness(), 2.0);
        for _ in 0..2000 {
            pace.moved(Equal, 1, 10);
        }
        assert!(pace.wariness() < 1.01);
    }
}
