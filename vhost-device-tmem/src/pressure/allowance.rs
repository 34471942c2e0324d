// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! From what was read to what guests may have together. It decides, and does nothing.

use std::time::Duration;

use super::read::{Readings, Room};

/// The part of the time, one in so many, that somebody waits for memory where there is too little.
const STALLED: u32 = 10;

/// The part of what guests have that goes at each reading that finds too little, at least.
const STEP: u64 = 16;
const LEAST_STEP: u64 = 1 << 20;

/// How long nobody waits before guests get more again.
const CALM: Duration = Duration::from_secs(10);

/// The part of all that they get then each second.
const GROWTH: u64 = 64;

/// The part of a control group's limit that is left free, and the most that is.
const MARGIN: u64 = 16;
const MOST_MARGIN: u64 = 256 << 20;

/// What guests may have together.
#[derive(Clone, Debug, Default)]
pub struct Allowance {
    allowed: Option<u64>,
    stalled: Vec<Option<u64>>,
    calm: Duration,
    short: bool,
}

impl Allowance {
    /// Follows what was read after `elapsed`, where guests hold so many bytes of `all` that they could
    /// have. Returns what they may have now.
    ///
    /// It falls at once: below what they hold while somebody waits for memory, and to what a control
    /// group has room for. It grows slowly, when nobody has waited for a while.
    pub fn follow(&mut self, now: &Readings, held: u64, all: u64, elapsed: Duration) -> u64 {
        let stalls = self.stalls(&now.stalled, elapsed);
        let mut allowed = self.allowed.unwrap_or(all).min(all);
        if stalls {
            self.calm = Duration::ZERO;
            let step = (held / STEP).max(LEAST_STEP);
            allowed = allowed.min(held).saturating_sub(step);
        } else {
            self.calm = self.calm.saturating_add(elapsed);
            if self.calm >= CALM {
                let millis = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
                let more = u128::from(all / GROWTH) * u128::from(millis) / 1000;
                let more = u64::try_from(more).unwrap_or(u64::MAX);
                allowed = allowed.saturating_add(more).min(all);
            }
        }
        let room = now.rooms.iter().map(|room| ceiling(room, held)).min();
        let room = room.unwrap_or(u64::MAX);
        self.short = stalls || room < held;
        allowed = allowed.min(room);
        self.allowed = Some(allowed);
        allowed
    }

    /// Returns whether there was too little at the last reading.
    pub fn is_short(&self) -> bool {
        self.short
    }

    /// Returns whether somebody waited for memory for a good part of the time.
    fn stalls(&mut self, now: &[Option<u64>], elapsed: Duration) -> bool {
        let before = std::mem::replace(&mut self.stalled, now.to_vec());
        let most = elapsed / STALLED;
        let mut waited = now.iter().zip(before).filter_map(|(now, before)| {
            let waited = (*now)?.checked_sub(before?)?;
            Some(Duration::from_micros(waited))
        });
        !elapsed.is_zero() && waited.any(|waited| waited >= most)
    }
}

/// Returns what guests that hold so much may have by this limit.
fn ceiling(room: &Room, held: u64) -> u64 {
    let margin = (room.limit / MARGIN).min(MOST_MARGIN);
    let most = room.limit - margin;
    held.saturating_add(most).saturating_sub(room.taken)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const MIB: u64 = 1 << 20;
    const ALL: u64 = 1024 * MIB;

    fn waited(micros: u64) -> Readings {
        Readings {
            stalled: vec![Some(micros), None],
            rooms: Vec::new(),
        }
    }

    fn room(limit: u64, taken: u64) -> Readings {
        Readings {
            stalled: Vec::new(),
            rooms: vec![Room { limit, taken }],
        }
    }

    #[test]
    fn guests_give_while_somebody_waits_and_get_it_back_slowly() {
        let mut it = Allowance::default();
        // What was before the first reading says nothing.
        assert_eq!(it.follow(&waited(9_000_000), 512 * MIB, ALL, SECOND), ALL);
        assert_eq!(it.follow(&waited(9_099_999), 512 * MIB, ALL, SECOND), ALL);
        let of = it.follow(&waited(9_200_000), 512 * MIB, ALL, SECOND);
        assert_eq!((of, it.is_short()), (480 * MIB, true));
        let of = it.follow(&waited(9_300_000), 480 * MIB, ALL, SECOND);
        assert_eq!(of, 450 * MIB);
        for _ in 0..9 {
            assert_eq!(it.follow(&waited(9_300_000), 450 * MIB, ALL, SECOND), of);
        }
        assert!(!it.is_short());
        let grown = it.follow(&waited(9_300_000), 450 * MIB, ALL, SECOND);
        assert_eq!(grown, of + 16 * MIB);
        for _ in 0..64 {
            it.follow(&waited(9_300_000), 450 * MIB, ALL, SECOND);
        }
        assert_eq!(it.follow(&waited(9_300_000), 450 * MIB, ALL, SECOND), ALL);
    }

    #[test]
    fn a_control_group_is_never_filled() {
        let mut it = Allowance::default();
        // 15 of 16 parts may be taken, of which others have 100 MiB.
        let of = it.follow(&room(160 * MIB, 110 * MIB), 10 * MIB, ALL, SECOND);
        assert_eq!((of, it.is_short()), (50 * MIB, false));
        let of = it.follow(&room(160 * MIB, 155 * MIB), 40 * MIB, ALL, SECOND);
        assert_eq!((of, it.is_short()), (35 * MIB, true));
        // There is nothing left at all.
        assert_eq!(
            it.follow(&room(16 * MIB, 99 * MIB), 40 * MIB, ALL, SECOND),
            0
        );
    }

    #[test]
    fn what_cannot_be_read_says_nothing() {
        let mut it = Allowance::default();
        it.follow(&waited(0), MIB, ALL, SECOND);
        assert_eq!(it.follow(&Readings::default(), MIB, ALL, SECOND), ALL);
        // A counter that was there again, and one that begins anew.
        assert_eq!(it.follow(&waited(900_000), MIB, ALL, SECOND), ALL);
        assert_eq!(it.follow(&waited(5), MIB, ALL, SECOND), ALL);
    }

    proptest! {
        #[test]
        fn it_is_never_more_than_there_is_and_grows_by_little(
            readings in prop::collection::vec(
                (0..3u64, any::<u64>(), any::<u64>(), 0..ALL, 0..3000u64), 1..50),
        ) {
            let mut it = Allowance::default();
            let (mut total, mut before) = (0, ALL);
            for (waits, limit, taken, held, millis) in readings {
                total += waits * 1_000_000;
                let now = Readings {
                    stalled: vec![Some(total)],
                    rooms: vec![Room { limit, taken }],
                };
                let allowed = it.follow(&now, held, ALL, Duration::from_millis(millis));
                prop_assert!(allowed <= ALL);
                prop_assert!(allowed <= before + ALL / GROWTH * 3);
                before = allowed;
            }
        }
    }
}
