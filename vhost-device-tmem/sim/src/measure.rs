// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Figures of a simulation.

/// The seconds that hits are averages over.
const MEAN: usize = 30;

/// Returns how evenly something is spread (Jain's index): 1 where all have the same, 1/n where one of
/// n has all of it.
#[must_use]
pub fn jain(values: &[f64]) -> f64 {
    let sum: f64 = values.iter().sum();
    let squares: f64 = values.iter().map(|value| value * value).sum();
    if squares > 0.0 {
        sum * sum / (values.len() as f64 * squares)
    } else {
        1.0
    }
}

/// Returns the second from which on no average over half a minute is more than `margin` (a part of
/// it) below `mark`; none where the last one is.
#[must_use]
pub fn converged(values: &[f64], mark: f64, margin: f64) -> Option<usize> {
    let means: Vec<_> = values.windows(MEAN).map(mean).collect();
    let least = mark * (1.0 - margin);
    match means.iter().rposition(|mean| *mean < least) {
        None => Some(0),
        Some(last) if last + 1 < means.len() => Some(last + 1),
        Some(_) => None,
    }
}

/// Returns the average.
#[must_use]
pub fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

/// Returns how often values turned, up or down, by more than `least` since the turn before.
#[must_use]
pub fn turns(values: &[f64], least: f64) -> usize {
    let Some(first) = values.first() else {
        return 0;
    };
    let (mut low, mut high, mut is_up) = (*first, *first, None);
    let mut turns = 0;
    for value in values {
        if is_up != Some(false) {
            high = high.max(*value);
        }
        if is_up != Some(true) {
            low = low.min(*value);
        }
        if is_up != Some(false) && high - value > least {
            turns += usize::from(is_up.is_some());
            (is_up, low) = (Some(false), *value);
        } else if is_up != Some(true) && value - low > least {
            turns += usize::from(is_up.is_some());
            (is_up, high) = (Some(true), *value);
        }
    }
    turns
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jain_is_of_spread() {
        assert_eq!(jain(&[3.0; 7]), 1.0);
        assert_eq!(jain(&[1.0, 0.0, 0.0, 0.0]), 0.25);
        assert_eq!(jain(&[0.0; 3]), 1.0);
    }

    #[test]
    fn who_falls_back_has_not_converged() {
        let steps = |levels: &[f64]| {
            let each = levels.iter().flat_map(|level| [*level; 100]);
            each.collect::<Vec<_>>()
        };
        assert_eq!(converged(&steps(&[1.0, 1.0]), 1.0, 0.1), Some(0));
        let up = converged(&steps(&[0.0, 1.0]), 1.0, 0.1).unwrap();
        assert!((70..=100).contains(&up), "{up}");
        assert!(converged(&steps(&[1.0, 0.0, 1.0]), 1.0, 0.1).unwrap() > 100);
        assert_eq!(converged(&steps(&[1.0, 0.0]), 1.0, 0.1), None);
    }

    #[test]
    fn turns_are_counted_and_trifles_are_not() {
        assert_eq!(turns(&[0.0, 5.0, 9.0, 4.0, 0.0, 9.0], 2.0), 2);
        assert_eq!(turns(&[0.0, 1.0, 0.0, 1.0, 0.0], 2.0), 0);
        assert_eq!(turns(&[0.0, 3.0, 2.0, 5.0, 4.0, 9.0], 2.0), 0);
        assert_eq!(turns(&[], 2.0), 0);
    }
}
