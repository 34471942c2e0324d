// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How much of a guest's share moves at a step: more and more while it goes one way, little as soon
//! as it turns.

use std::cmp::Ordering;

/// A guest's pace.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pace {
    stride: u64,
    last: Option<Ordering>,
}

impl Pace {
    /// Returns the most that moves now.
    pub(super) fn stride(&self, grain: u64, most: u64) -> u64 {
        self.stride.min(most).max(grain)
    }

    /// Takes note of what moved: whether the share grew, stayed, or shrank.
    pub(super) fn moved(&mut self, way: Ordering, grain: u64, most: u64) {
        let stride = self.stride(grain, most);
        if way == Ordering::Equal {
            return;
        }
        self.stride = match self.last.replace(way) {
            Some(last) if last != way => stride / 4,
            _ => stride.saturating_mul(2),
        }
        .clamp(grain, most.max(grain));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_grows_one_way_and_shrinks_at_a_turn() {
        let mut pace = Pace::default();
        let mut strides = Vec::new();
        use Ordering::{Equal, Greater, Less};
        for way in [
            Greater, Greater, Equal, Greater, Greater, Less, Less, Greater,
        ] {
            strides.push(pace.stride(1, 10));
            pace.moved(way, 1, 10);
        }
        assert_eq!(strides, [1, 2, 4, 4, 8, 10, 2, 4]);
        assert_eq!(pace.stride(1, 10), 1);
    }
}
