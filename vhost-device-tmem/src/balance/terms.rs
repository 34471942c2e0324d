// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the operator says of the memory of guests, and whether all of it can be kept.

use std::collections::BTreeSet;

use crate::size::Bytes;

/// What balloons are told in: a MiB.
pub const UNIT: u64 = 1 << 20;

/// The most bytes of memory that anybody speaks of. What is more makes no sense.
pub(super) const MOST: u64 = 1 << 50;

/// What the operator says of a guest's own memory, the one that a balloon takes from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Terms {
    /// Its name.
    pub name: String,
    /// The bytes that it is always left.
    pub min: u64,
    /// The bytes that it never gets more of.
    pub max: u64,
}

impl Terms {
    /// Returns the minimum in [`UNIT`]s, rounded up.
    pub(super) fn min_units(&self) -> u64 {
        self.min.div_ceil(UNIT)
    }

    /// Returns the maximum in [`UNIT`]s, rounded down.
    pub(super) fn max_units(&self) -> u64 {
        self.max / UNIT
    }
}

/// Why what the operator says cannot be kept.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TermsError {
    /// There is nobody.
    #[error("there are no guests; name each with --guest")]
    Nobody,
    /// Two guests have one name.
    #[error("guest {0:?} is named twice; name it once")]
    Twice(String),
    /// A minimum of nothing.
    #[error("guest {0:?}: min is less than 1 MiB; a guest cannot run with that")]
    NoMinimum(String),
    /// A minimum above its maximum.
    #[error(
        "guest {name:?}: min is {}, which is more than max, {}, in whole MiB; make one of them fit the \
         other", Bytes(*.min), Bytes(*.max)
    )]
    MinAboveMax {
        /// The guest's name.
        name: String,
        /// Its minimum, in bytes.
        min: u64,
        /// Its maximum, in bytes.
        max: u64,
    },
    /// More than any host has.
    #[error("{what} is more than {}, which no host has", Bytes(MOST))]
    TooMuch {
        /// What it was said of.
        what: String,
    },
    /// The minima do not fit.
    #[error(
        "all minima together are {}, and the total is {}; raise the total, or lower minima",
        Bytes(*.minima), Bytes(*.total)
    )]
    DoNotFit {
        /// The sum, in bytes.
        minima: u64,
        /// The total, in bytes.
        total: u64,
    },
}

/// Looks whether all of it can be kept with so many bytes.
pub(super) fn check(total: u64, all: &[Terms]) -> Result<(), TermsError> {
    if all.is_empty() {
        return Err(TermsError::Nobody);
    }
    let too_much = |what: String| Err(TermsError::TooMuch { what });
    if total > MOST {
        return too_much("the total".to_owned());
    }
    let mut names = BTreeSet::new();
    for Terms { name, min, max } in all {
        if !names.insert(name) {
            return Err(TermsError::Twice(name.clone()));
        }
        if *min < UNIT {
            return Err(TermsError::NoMinimum(name.clone()));
        }
        if *max > MOST {
            return too_much(format!("guest {name:?}: max"));
        }
    }
    if let Some(of) = all.iter().find(|of| of.min_units() > of.max_units()) {
        let (name, min, max) = (of.name.clone(), of.min, of.max);
        return Err(TermsError::MinAboveMax { name, min, max });
    }
    let minima: u64 = all.iter().map(Terms::min_units).sum();
    if minima > total / UNIT {
        let minima = minima * UNIT;
        return Err(TermsError::DoNotFit { minima, total });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn terms(name: &str, min: u64, max: u64) -> Terms {
        let name = name.to_owned();
        let [min, max] = [min, max].map(|mib| mib * UNIT);
        Terms { name, min, max }
    }

    #[test]
    fn what_cannot_be_kept_is_refused_with_its_reason() {
        let (web, db) = (terms("web", 100, 200), terms("db", 100, 100));
        assert_eq!(check(200 * UNIT, &[web.clone(), db.clone()]), Ok(()));
        let wrong = [
            (200, vec![], "no guests"),
            (
                200,
                vec![web.clone(), web.clone()],
                "\"web\" is named twice",
            ),
            (200, vec![terms("web", 0, 9)], "less than 1 MiB"),
            (200, vec![terms("web", 9, 8)], "min is 9.00 MiB"),
            (200, vec![terms("web", 9, 1 << 31)], "\"web\": max"),
            (1 << 31, vec![web.clone()], "the total is more"),
            (199, vec![web, db], "all minima together are 200 MiB"),
        ];
        for (total, all, words) in wrong {
            let said = check(total * UNIT, &all).unwrap_err().to_string();
            assert!(said.contains(words), "{said}");
        }
        // In whole MiB there is nothing between them.
        let between = Terms {
            min: UNIT + 1,
            max: 2 * UNIT - 1,
            ..terms("web", 1, 1)
        };
        assert!(check(200 * UNIT, &[between]).is_err());
    }
}
