// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Dividing by weight.

/// Somebody who is to have a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Claim {
    pub(crate) weight: u32,
    /// The least of it.
    pub(crate) min: u64,
    /// The most of it, not less than `min`.
    pub(crate) max: u64,
}

/// Binary digits of a part of a byte.
const FRACTION: u32 = 16;

/// Divides `total` by weight, with nobody below its `min` or above its `max`. Less than a byte for
/// each claim is left over, or what is above all maxima. Where not even all minima can be had, these
/// are what is divided.
pub(crate) fn divide(total: u64, claims: &[Claim]) -> Vec<u64> {
    let minima: u128 = claims.iter().map(|claim| u128::from(claim.min)).sum();
    if minima > u128::from(total) {
        let least = claims.iter().map(|claim| Claim {
            min: 0,
            max: claim.min,
            ..*claim
        });
        return divide(total, &least.collect::<Vec<_>>());
    }
    let parts = |level: u128| {
        claims.iter().map(move |claim| {
            let part = (u128::from(claim.weight) * level) >> FRACTION;
            u64::try_from(part)
                .unwrap_or(u64::MAX)
                .clamp(claim.min, claim.max)
        })
    };
    let fits = |level| parts(level).map(u128::from).sum::<u128>() <= u128::from(total);
    // The highest level that fits; at the upper one even a weight of 1 has all.
    let (mut low, mut high) = (0, (u128::from(total) + 1) << FRACTION);
    while low < high {
        let middle = (low + high).div_ceil(2);
        if fits(middle) {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    parts(low).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn claim(weight: u32, min: u64, max: u64) -> Claim {
        Claim { weight, min, max }
    }

    #[test]
    fn weights_divide() {
        let even = |weight| claim(weight, 0, u64::MAX);
        assert_eq!(divide(600, &[even(1), even(2), even(3)]), [100, 200, 300]);
        assert_eq!(divide(100, &[even(1), claim(1, 80, 90)]), [20, 80]);
        assert_eq!(divide(100, &[even(1), claim(1, 0, 10)]), [90, 10]);
        assert_eq!(divide(100, &[claim(1, 0, 10)]), [10]);
        assert_eq!(divide(30, &[claim(1, 40, 50), claim(2, 40, 50)]), [10, 20]);
        assert_eq!(divide(5, &[]), [0u64; 0]);
        assert_eq!(divide(u64::MAX, &[even(1)]), [u64::MAX]);
    }

    proptest! {
        #[test]
        fn nothing_is_lost_and_bounds_hold(
            total in 0..1u64 << 40,
            claims in prop::collection::vec(
                (1..10_000u32, 0..1u64 << 36, 0..1u64 << 38)
                    .prop_map(|(weight, min, more)| claim(weight, min, min + more)),
                1..20,
            ),
        ) {
            let parts = divide(total, &claims);
            let sum: u64 = parts.iter().sum();
            prop_assert!(sum <= total);
            let minima: u64 = claims.iter().map(|claim| claim.min).sum();
            for (part, claim) in parts.iter().zip(&claims) {
                prop_assert!(*part <= claim.max);
                prop_assert!(*part >= claim.min || minima > total);
            }
            let most: u64 = claims.iter().map(|claim| claim.max).sum();
            let left = total - sum;
            prop_assert!(left <= claims.len() as u64 || sum == most);
        }
    }
}
