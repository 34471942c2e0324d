// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What operators say of a guest's part of the memory: its weight, minima and caps.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::problem::Key;
use crate::{
    args::{Args, GuestConfig, GuestTable},
    policy::{Bounds, Minima, Policy, Terms, TermsError},
    size,
    tier::choice::TierUse,
};

/// The weight of guests of which nothing else is said.
pub(super) const DEFAULT_WEIGHT: u32 = 100;

/// The key of a weight.
const WEIGHT: &str = "weight";

/// The key of what may be in the tier.
const TIER: &str = "tier";

/// The keys of sizes.
const SIZES: [&str; 4] = [
    "persistent-min",
    "persistent-max",
    "ephemeral-min",
    "ephemeral-max",
];

/// Returns whether a key is of a guest's part of the memory.
pub(super) fn is_term(key: &str) -> bool {
    key == WEIGHT || key == TIER || SIZES.contains(&key)
}

/// The value by which something that was said is taken back.
pub(super) const DEFAULT: &str = "default";

/// What may be said of a guest. What is not said is as for all guests, and what is not said of those
/// either has no bound, and a weight of 100.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct GivenTerms {
    /// How much it counts beside others.
    pub weight: Option<u32>,
    /// The bytes of persistent memory that it can always have.
    pub persistent_min: Option<u64>,
    /// The bytes of persistent memory that it never has more of.
    pub persistent_max: Option<u64>,
    /// The bytes of ephemeral memory that it can always have.
    pub ephemeral_min: Option<u64>,
    /// The bytes of ephemeral memory that it never has more of.
    pub ephemeral_max: Option<u64>,
    /// Which of its pages may be in the tier below the store.
    pub tier: Option<TierUse>,
}

impl GivenTerms {
    /// Returns what is said in either, and in `self` where it is in both.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            weight: self.weight.or(other.weight),
            persistent_min: self.persistent_min.or(other.persistent_min),
            persistent_max: self.persistent_max.or(other.persistent_max),
            ephemeral_min: self.ephemeral_min.or(other.ephemeral_min),
            ephemeral_max: self.ephemeral_max.or(other.ephemeral_max),
            tier: self.tier.or(other.tier),
        }
    }

    /// Returns the terms of the guest of this number and name.
    pub fn of(self, guest: u32, name: &str) -> Terms {
        let bounds = |min: Option<u64>, cap: Option<u64>| Bounds {
            min: min.unwrap_or(Bounds::NONE.min),
            cap: cap.unwrap_or(Bounds::NONE.cap),
        };
        Terms {
            guest,
            name: name.to_owned(),
            weight: self.weight.unwrap_or(DEFAULT_WEIGHT),
            persistent: bounds(self.persistent_min, self.persistent_max),
            ephemeral: bounds(self.ephemeral_min, self.ephemeral_max),
            tier: self.tier.unwrap_or_default(),
        }
    }

    /// Says something else for each of these keys; `default` takes back what was said.
    ///
    /// # Errors
    ///
    /// What is wrong with one of them, with its key.
    pub fn set(&mut self, values: &BTreeMap<String, String>) -> Result<(), String> {
        for (key, value) in values {
            let given = Some(value.as_str()).filter(|value| *value != DEFAULT);
            if key == WEIGHT {
                let weight = given.map(|given| given.parse());
                self.weight = weight.transpose().map_err(|_| {
                    format!("weight {value:?} is no whole number; give one, or {DEFAULT}")
                })?;
                continue;
            }
            if key == TIER {
                let tier = given.map(|given| TierUse::parse(given).ok_or(given));
                self.tier = tier.transpose().map_err(|given| {
                    format!("tier {given:?} is not off, ephemeral or all; give one, or {DEFAULT}")
                })?;
                continue;
            }
            let places = [
                &mut self.persistent_min,
                &mut self.persistent_max,
                &mut self.ephemeral_min,
                &mut self.ephemeral_max,
            ];
            let mut places = SIZES.into_iter().zip(places);
            let Some((_, place)) = places.find(|(of, _)| of == key) else {
                let [first @ .., last] = SIZES;
                return Err(format!(
                    "{key:?} is no key; the keys are {WEIGHT}, {TIER}, {} and {last}",
                    first.join(", ")
                ));
            };
            let bytes = given.map(|given| size::parse(given).ok_or(given));
            *place = bytes
                .transpose()
                .map_err(|given| format!("{key} {given:?} {NO_SIZE}, or {DEFAULT}"))?;
        }
        Ok(())
    }

    /// Reads what a file says, the sizes in the order of [`SIZES`]. What is wrong with it is handed to
    /// `wrong`, with its key.
    fn read(
        weight: Option<u32>,
        tier: Option<TierUse>,
        sizes: [&Option<String>; 4],
        wrong: &mut impl FnMut(&'static str, String),
    ) -> Self {
        let mut keys = SIZES.into_iter();
        let [persistent_min, persistent_max, ephemeral_min, ephemeral_max] = sizes.map(|size| {
            let key = keys.next()?;
            let size = size.as_ref()?;
            let bytes = size::parse(size);
            if bytes.is_none() {
                wrong(key, format!("{size:?} {NO_SIZE}"));
            }
            bytes
        });
        Self {
            weight,
            persistent_min,
            persistent_max,
            ephemeral_min,
            ephemeral_max,
            tier,
        }
    }

    /// Reads what the file says of all guests.
    pub(super) fn of_all(args: &Args, wrong: &mut impl FnMut(&'static str, String)) -> Self {
        let sizes = [
            &args.persistent_min,
            &args.persistent_max,
            &args.ephemeral_min,
            &args.ephemeral_max,
        ];
        Self::read(args.weight, args.tier, sizes, wrong)
    }

    /// Reads what a file says of one guest.
    pub(super) fn of_table(
        table: &GuestTable,
        wrong: &mut impl FnMut(&'static str, String),
    ) -> Self {
        let sizes = [
            &table.persistent_min,
            &table.persistent_max,
            &table.ephemeral_min,
            &table.ephemeral_max,
        ];
        Self::read(table.weight, table.tier, sizes, wrong)
    }
}

/// What is said of a text that is no size.
pub(super) const NO_SIZE: &str = "is no size; give a number with a unit, such as 512MiB or 1.5GiB";

/// Looks whether all that is said of guests can be kept with so many bytes.
///
/// # Errors
///
/// What is wrong first, and what that is about.
pub(super) fn check(
    guests: &[GuestConfig],
    defaults: GivenTerms,
    capacity: u64,
) -> Result<(), (Key, String)> {
    let terms = (0..).zip(guests);
    let terms: Vec<_> = terms
        .map(|(number, guest)| guest.terms.or(defaults).of(number, &guest.name))
        .collect();
    Policy::default()
        .set_terms(&terms, capacity)
        .map_err(|error| (about(&error, &terms), format!("cannot be so: {error}")))
}

fn about(error: &TermsError, terms: &[Terms]) -> Key {
    let guest = |name: &str, key| Key::Guest(name.to_owned(), key);
    match error {
        TermsError::BadWeight { name, .. } => guest(name, "weight"),
        TermsError::MinAboveCap { name, kind, .. } if *kind == "persistent" => {
            guest(name, "persistent-min")
        }
        TermsError::MinAboveCap { name, .. } => guest(name, "ephemeral-min"),
        TermsError::MinimaDoNotFit { guests, .. } => {
            // The one that is guaranteed most.
            let first = guests.0.first();
            let of = |Minima { name, .. }: &Minima| terms.iter().find(|it| it.name == *name);
            match first.and_then(of) {
                Some(it) if it.persistent.min >= it.ephemeral.min => {
                    guest(&it.name, "persistent-min")
                }
                Some(it) => guest(&it.name, "ephemeral-min"),
                None => Key::Option("capacity"),
            }
        }
        // They were numbered here.
        TermsError::SameNumber(_) => Key::Option("capacity"),
    }
}
