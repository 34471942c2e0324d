// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the operator says of each guest, and whether all of it can be kept.

use std::{collections::BTreeSet, fmt};

use serde::{Deserialize, Serialize};

use crate::{size::Bytes, tier::choice::TierUse};

/// The largest weight, as large as those of control groups.
pub const MAX_WEIGHT: u32 = 10_000;

/// How many guests an error names before it only counts them.
const NAMED: usize = 8;

/// The least and the most of a kind of memory, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bounds {
    /// What the guest can always have.
    pub min: u64,
    /// What it never has more of.
    pub cap: u64,
}

impl Bounds {
    /// No minimum, and no cap.
    pub const NONE: Self = Self {
        min: 0,
        cap: u64::MAX,
    };
}

/// What the operator says of a guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms {
    /// Its number, by which figures and shares name it.
    pub guest: u32,
    /// Its name, for errors.
    pub name: String,
    /// How much it counts beside others, from 1 to [`MAX_WEIGHT`].
    pub weight: u32,
    /// Of memory for persistent pages.
    pub persistent: Bounds,
    /// Of memory for ephemeral pages.
    pub ephemeral: Bounds,
    /// Which of its pages may be in the tier below the store.
    #[serde(default)]
    pub tier: TierUse,
}

/// A guest's minima, for an error that lists them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Minima {
    /// The guest's name.
    pub name: String,
    /// Both minima together, in bytes.
    pub bytes: u64,
}

/// Guests with their minima, the largest first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MinimaList(pub Vec<Minima>);

impl fmt::Display for MinimaList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, Minima { name, bytes }) in self.0.iter().take(NAMED).enumerate() {
            let comma = if n > 0 { ", " } else { "" };
            write!(f, "{comma}{name} {}", Bytes(*bytes))?;
        }
        match self.0.len().saturating_sub(NAMED) {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

/// Why terms are not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TermsError {
    /// A weight out of range.
    #[error("guest {name:?} has weight {weight}; give one from 1 to {MAX_WEIGHT}")]
    BadWeight {
        /// The guest's name.
        name: String,
        /// Its weight.
        weight: u32,
    },
    /// A minimum above the cap.
    #[error(
        "guest {name:?} is guaranteed {} of {kind} memory and may have no more than {}; raise the \
         cap or lower the minimum",
        Bytes(bounds.min), Bytes(bounds.cap)
    )]
    MinAboveCap {
        /// The guest's name.
        name: String,
        /// What kind of memory.
        kind: &'static str,
        /// The two.
        bounds: Bounds,
    },
    /// Two guests that cannot be told apart.
    #[error("two guests are number {0}")]
    SameNumber(u32),
    /// More is guaranteed than there is.
    #[error(
        "guests are guaranteed {} in all, and there are {}: {guests}; lower minima, or raise the \
         capacity",
        Bytes(*sum), Bytes(*capacity)
    )]
    MinimaDoNotFit {
        /// All minima together, in bytes.
        sum: u64,
        /// The capacity in bytes.
        capacity: u64,
        /// The guests that have minima.
        guests: MinimaList,
    },
}

/// Looks whether all that is said of guests can be kept with so many bytes.
///
/// # Errors
///
/// [`TermsError`].
pub(super) fn check(terms: &[Terms], capacity: u64) -> Result<(), TermsError> {
    let mut numbers = BTreeSet::new();
    let mut minima = Vec::new();
    for guest in terms {
        let name = || guest.name.clone();
        if !(1..=MAX_WEIGHT).contains(&guest.weight) {
            let weight = guest.weight;
            return Err(TermsError::BadWeight {
                name: name(),
                weight,
            });
        }
        for (kind, bounds) in [
            ("persistent", guest.persistent),
            ("ephemeral", guest.ephemeral),
        ] {
            if bounds.min > bounds.cap {
                return Err(TermsError::MinAboveCap {
                    name: name(),
                    kind,
                    bounds,
                });
            }
        }
        if !numbers.insert(guest.guest) {
            return Err(TermsError::SameNumber(guest.guest));
        }
        let bytes = guest.persistent.min.saturating_add(guest.ephemeral.min);
        if bytes > 0 {
            minima.push(Minima {
                name: name(),
                bytes,
            });
        }
    }
    let sum = minima.iter().map(|guest| guest.bytes);
    let sum = sum.fold(0, u64::saturating_add);
    if sum <= capacity {
        return Ok(());
    }
    minima.sort_by_key(|guest| std::cmp::Reverse(guest.bytes));
    Err(TermsError::MinimaDoNotFit {
        sum,
        capacity,
        guests: MinimaList(minima),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guest(number: u32, name: &str, min: u64) -> Terms {
        Terms {
            guest: number,
            name: name.to_owned(),
            weight: 100,
            persistent: Bounds { min, cap: u64::MAX },
            ephemeral: Bounds::NONE,
            tier: Default::default(),
        }
    }

    #[test]
    fn minima_that_do_not_fit_name_the_guests() {
        let terms = [
            guest(0, "web", 1 << 30),
            guest(1, "idle", 0),
            guest(2, "db", 3 << 30),
        ];
        assert_eq!(check(&terms, 4 << 30), Ok(()));
        let error = check(&terms, 2 << 30).unwrap_err();
        assert_eq!(
            error.to_string(),
            "guests are guaranteed 4.00 GiB in all, and there are 2.00 GiB: db 3.00 GiB, web 1.00 \
             GiB; lower minima, or raise the capacity"
        );
    }

    #[test]
    fn an_error_does_not_list_a_thousand_guests() {
        let terms: Vec<_> = (0..1000).map(|n| guest(n, "g", 1 << 20)).collect();
        let error = check(&terms, 1 << 20).unwrap_err().to_string();
        assert!(error.contains("g 1.00 MiB and 992 more"), "{error}");
    }

    #[test]
    fn nonsense_is_refused() {
        let mut zero = guest(0, "web", 0);
        zero.weight = 0;
        let error = check(&[zero], 1).unwrap_err();
        assert!(matches!(error, TermsError::BadWeight { weight: 0, .. }));
        let mut narrow = guest(0, "web", 2);
        narrow.persistent.cap = 1;
        let error = check(&[narrow], 9).unwrap_err();
        assert!(matches!(error, TermsError::MinAboveCap { .. }));
        let twins = [guest(7, "a", 0), guest(7, "b", 0)];
        assert_eq!(check(&twins, 1), Err(TermsError::SameNumber(7)));
        let huge = [guest(0, "a", u64::MAX), guest(1, "b", u64::MAX)];
        assert!(check(&huge, u64::MAX - 1).is_err());
    }
}
