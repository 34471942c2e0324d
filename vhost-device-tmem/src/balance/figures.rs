// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What is known of a guest's memory, and what of it can be believed.
//!
//! A guest tells what it likes, QEMU says -1 (or 2⁶⁴-1) of what it was not told, and either may be of
//! another version. So every number is looked at before anything is made of it.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::terms::MOST;
use crate::{
    control::{GuestStat, Usage},
    policy::MAX_WEIGHT,
};

/// Bytes of a page.
const PAGE: u64 = 4096;

/// The most pages that can come and go in a second: 64 GiB of them.
const MOST_PAGES: f64 = (1u64 << 24) as f64;

/// What the balloon's driver in a guest tells, as QEMU passes it on (`guest-stats`).
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct GuestStats {
    /// Numbers by their names.
    pub stats: BTreeMap<String, Value>,
    /// When it told them, in seconds since 1970; 0 if it never did.
    #[serde(default)]
    pub last_update: Value,
}

impl GuestStats {
    /// Returns whether the driver has told anything yet.
    pub fn is_there(&self) -> bool {
        self.last_update.as_u64().is_some_and(|at| at > 0)
    }
}

/// What the daemon counts of a guest, of all its pools and its window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TmemCounters {
    /// Pages looked for and found: what came back from the host.
    pub hits: u64,
    /// Pages looked for and not found: what came back from the disk though it was put.
    pub missed: u64,
    /// Pages put that were refused: what went to the disk.
    pub refused: u64,
    /// Persistent pages that there are.
    pub swapped: u64,
}

impl TmemCounters {
    /// Returns those of a guest of the daemon.
    pub fn of(guest: &GuestStat) -> Self {
        let usage = Usage::of(guest);
        let part = guest.part.unwrap_or_default();
        Self {
            hits: usage.hits,
            missed: usage.gets.saturating_sub(usage.hits),
            refused: usage.refused,
            swapped: part.persistent.used_bytes / PAGE,
        }
    }
}

/// What was seen of a guest at one look.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observation {
    /// The bytes that its balloon leaves it.
    pub actual: u64,
    /// The bytes that its machine was made with, which no balloon leaves it more than; if they are known.
    pub ram: Option<u64>,
    /// What the balloon's driver tells.
    pub stats: GuestStats,
    /// What the daemon counts, if the guest has tmem.
    pub tmem: Option<TmemCounters>,
    /// How much it counts beside others, from 1 to [`MAX_WEIGHT`].
    pub weight: u32,
}

/// What is said of what cannot be used, and so is not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Doubt {
    /// The guest's name.
    pub guest: String,
    /// What is wrong, and what becomes of it.
    pub what: String,
}

impl fmt::Display for Doubt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "guest {:?}: {}", self.guest, self.what)
    }
}

/// What can be believed of a look at a guest.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Figures {
    /// The bytes that the balloon leaves it.
    pub(super) actual: u64,
    pub(super) ram: Option<u64>,
    pub(super) weight: u32,
    /// When the guest told.
    pub(super) updated: u64,
    /// Bytes that processes could have without swapping.
    pub(super) available: Option<u64>,
    pub(super) free: Option<u64>,
    /// Counters, of pages.
    pub(super) major_faults: Option<u64>,
    pub(super) swapped_in: Option<u64>,
    pub(super) swapped_out: Option<u64>,
    /// Processes killed for want of memory.
    pub(super) killed: Option<u64>,
    pub(super) tmem: Option<TmemCounters>,
}

impl Figures {
    /// Looks at what was seen, and hands to `doubt` what cannot be used of it. Nothing can, if the
    /// balloon itself makes no sense.
    pub(super) fn of(seen: &Observation, mut doubt: impl FnMut(String)) -> Option<Self> {
        let Observation {
            actual,
            ram,
            stats,
            tmem,
            weight,
        } = seen;
        if *actual == 0 || *actual > MOST {
            doubt(format!(
                "its balloon is said to leave it {actual} bytes, which cannot be; the guest is left as \
                 it is"
            ));
            return None;
        }
        let mut told = |name: &str, most: u64| {
            let value = stats.stats.get(name)?;
            let number = number(value);
            if let Some(number) = number.filter(|number| *number <= most) {
                return Some(number);
            }
            if !is_unknown(value) {
                doubt(format!(
                    "{name} is {}, which cannot be; it is not used",
                    shown(value)
                ));
            }
            None
        };
        let total = told("stat-total-memory", MOST);
        // Nobody has more than all, and what a balloon took lately may not be told yet.
        let most = total.unwrap_or(*actual).max(*actual);
        let free = told("stat-free-memory", most);
        let caches = told("stat-disk-caches", most);
        let available = told("stat-available-memory", most);
        let major_faults = told("stat-major-faults", u64::MAX / 2);
        let swapped_in = told("stat-swap-in", u64::MAX / 2);
        let swapped_out = told("stat-swap-out", u64::MAX / 2);
        let killed = told("stat-oom-kills", u64::MAX / 2);
        Some(Self {
            actual: *actual,
            ram: *ram,
            weight: (*weight).clamp(1, MAX_WEIGHT),
            updated: number(&stats.last_update).unwrap_or(0),
            // Half of the page cache, as the kernel reckons itself, where the guest is too old to say.
            available: available.or_else(|| Some(free? + caches? / 2)).or(free),
            free,
            major_faults,
            swapped_in: swapped_in.map(|bytes| bytes / PAGE),
            swapped_out: swapped_out.map(|bytes| bytes / PAGE),
            killed,
            tmem: *tmem,
        })
    }

    /// Returns whether the guest is known to have somewhere to swap to.
    pub(super) fn swaps(&self) -> bool {
        let tmem = self.tmem.unwrap_or_default();
        self.swapped_out.is_some_and(|pages| pages > 0) || tmem.swapped > 0
    }
}

/// What came back in a second, in pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Rates {
    /// From disks.
    pub from_disk: f64,
    /// From tmem.
    pub from_tmem: f64,
    /// Put to tmem, and refused.
    pub refused: f64,
}

impl Rates {
    /// Returns what happened between two looks. What began anew meanwhile, or cannot be, is handed to
    /// `doubt`: nothing is known then.
    pub(super) fn between(
        before: &Figures,
        after: &Figures,
        seconds: f64,
        mut doubt: impl FnMut(String),
    ) -> Option<Self> {
        if !(seconds.is_finite() && seconds > 0.0) {
            return None;
        }
        let mut is_sure = true;
        let mut rate = |name: &str, before: Option<u64>, after: Option<u64>| {
            let (Some(before), Some(after)) = (before, after) else {
                return 0.0;
            };
            let Some(pages) = after.checked_sub(before) else {
                is_sure = false;
                doubt(format!(
                    "{name} fell from {before} to {after}, as after a reboot; the next look counts"
                ));
                return 0.0;
            };
            let rate = pages as f64 / seconds;
            if rate > MOST_PAGES {
                is_sure = false;
                doubt(format!(
                    "{name} grew by {pages} in {seconds:.1} s, which cannot be; it is not used"
                ));
            }
            rate
        };
        let of_tmem = |of: fn(&TmemCounters) -> u64| {
            let of = move |figures: &Figures| figures.tmem.as_ref().map(of);
            (of(before), of(after))
        };
        let major = rate("stat-major-faults", before.major_faults, after.major_faults);
        let swapped = rate("stat-swap-in", before.swapped_in, after.swapped_in);
        let mut tmem = |name, of: fn(&TmemCounters) -> u64| {
            let (before, after) = of_tmem(of);
            rate(name, before, after)
        };
        let from_tmem = tmem("the number of pages found by tmem", |tmem| tmem.hits);
        let missed = tmem("the number of pages that tmem missed", |tmem| tmem.missed);
        let refused = tmem("the number of pages refused by tmem", |tmem| tmem.refused);
        is_sure.then(|| Self {
            // Who swaps in faults as well, be it from tmem; and a file that is read does not.
            from_disk: (major.max(swapped) - from_tmem).max(missed),
            from_tmem,
            refused,
        })
    }
}

/// Returns a number of JSON, if it is a whole one and not negative.
fn number(value: &Value) -> Option<u64> {
    value.as_u64().or_else(|| {
        let float = value.as_f64()?;
        // Beyond that, floats are not exact.
        let is_whole = float.fract() == 0.0 && (0.0..9e15).contains(&float);
        is_whole.then_some(float as u64)
    })
}

/// Returns whether QEMU means by it that it was not told.
fn is_unknown(value: &Value) -> bool {
    value.is_null() || value.as_i64() == Some(-1) || value.as_u64() == Some(u64::MAX)
}

/// Shows a value, however long it is.
fn shown(value: &Value) -> String {
    const MOST_SHOWN: usize = 40;
    let text = value.to_string();
    match text.char_indices().nth(MOST_SHOWN) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn seen(stats: Value) -> Observation {
        Observation {
            actual: 512 * MIB,
            ram: None,
            stats: serde_json::from_value(json!({"stats": stats, "last-update": 1})).unwrap(),
            tmem: None,
            weight: 100,
        }
    }

    fn figures(stats: Value) -> (Figures, Vec<String>) {
        let mut doubts = Vec::new();
        let figures = Figures::of(&seen(stats), |what| doubts.push(what));
        (figures.unwrap(), doubts)
    }

    #[test]
    fn what_qemu_was_not_told_is_unknown_and_no_news() {
        for unknown in [json!(-1), json!(u64::MAX), json!(null)] {
            let (figures, doubts) = figures(json!({"stat-available-memory": unknown}));
            assert_eq!((figures.available, doubts), (None, vec![]));
        }
    }

    #[test]
    fn absurd_figures_are_named_and_not_used() {
        let absurd = [
            json!(-2),
            json!(1.5),
            json!(1e300),
            json!("NaN"),
            json!("x".repeat(1000)),
            json!({}),
            json!([1]),
            json!(true),
            json!(1u64 << 63),
            json!(600 * MIB),
        ];
        for value in absurd {
            let (figures, doubts) = figures(json!({"stat-available-memory": value}));
            assert_eq!(figures.available, None, "{value}");
            assert_eq!(doubts.len(), 1, "{value}");
            assert!(doubts[0].contains("stat-available-memory"), "{doubts:?}");
            assert!(doubts[0].len() < 150, "{doubts:?}");
        }
        for actual in [0, 1 << 51, u64::MAX] {
            let mut doubts = 0;
            let seen = Observation {
                actual,
                ..seen(json!({}))
            };
            assert_eq!(Figures::of(&seen, |_| doubts += 1), None);
            assert_eq!(doubts, 1);
        }
    }

    #[test]
    fn an_old_guest_is_estimated() {
        let (free, caches) = (100 * MIB, 60 * MIB);
        let (of, _) = figures(json!({"stat-free-memory": free, "stat-disk-caches": caches}));
        assert_eq!(of.available, Some(130 * MIB));
        let (of, _) = figures(json!({"stat-free-memory": free}));
        assert_eq!(of.available, Some(100 * MIB));
    }

    fn between(before: Value, after: Value, tmem: TmemCounters) -> (Option<Rates>, Vec<String>) {
        let (before, after) = (figures(before).0, figures(after).0);
        let (before, after) = (
            Figures {
                tmem: Some(TmemCounters::default()),
                ..before
            },
            Figures {
                tmem: Some(tmem),
                ..after
            },
        );
        let mut doubts = Vec::new();
        let rates = Rates::between(&before, &after, 2.0, |what| doubts.push(what));
        (rates, doubts)
    }

    #[test]
    fn no_page_counts_twice() {
        let tmem = TmemCounters {
            hits: 600,
            missed: 100,
            refused: 50,
            swapped: 0,
        };
        let stats = |faults: u64, pages: u64| json!({"stat-major-faults": faults, "stat-swap-in": pages * PAGE});
        let (rates, doubts) = between(stats(5, 7), stats(1005, 807), tmem);
        assert_eq!(doubts, Vec::<String>::new());
        let rates = rates.unwrap();
        assert_eq!(
            (rates.from_disk, rates.from_tmem, rates.refused),
            (200.0, 300.0, 25.0)
        );
        // What was missed was read from the disk, and not faulted for.
        let (rates, _) = between(stats(5, 7), stats(5, 7), tmem);
        assert_eq!(rates.unwrap().from_disk, 50.0);
    }

    #[test]
    fn what_began_anew_says_nothing() {
        let faults = |count: u64| json!({"stat-major-faults": count});
        let none = TmemCounters::default();
        let (rates, doubts) = between(faults(1000), faults(5), none);
        assert_eq!((rates, doubts.len()), (None, 1));
        let (rates, doubts) = between(faults(0), faults(1 << 50), none);
        assert_eq!((rates, doubts.len()), (None, 1));
        assert!(doubts[0].contains("cannot be"), "{doubts:?}");
        for seconds in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            let of = figures(faults(1)).0;
            assert_eq!(Rates::between(&of, &of, seconds, |_| ()), None);
        }
    }
}
