// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Which parts of the file are in use. This reckons, and touches no file.

use super::{
    super::{seal::MAX_SEALED, Place, PLACE_BITS},
    BLOCK,
};

/// The bytes that are free again together.
pub(super) const SEGMENT: u64 = 2 << 20;

/// The least file: some segments to write while others are emptied.
pub const MIN_SIZE: u64 = 16 << 20;

/// Places and lengths of records are multiples of this.
const UNIT: usize = 64;

/// Bits of a place that say how many units a record has. The others say where it is.
const LEN_BITS: u32 = 7;

const _: () = assert!(MAX_SEALED.div_ceil(UNIT) < 1 << LEN_BITS);

/// The largest file.
pub(super) const MAX_SIZE: u64 = (UNIT as u64) << (PLACE_BITS - LEN_BITS);

/// Segments that are kept for what is moved out of others: without one, no room can be made any more. A
/// process that ends leaves the one that it was writing to half empty.
const KEPT: u64 = 2;

/// The most that is in use of a segment that is worth emptying.
const SPARSE: u64 = SEGMENT / 4 * 3;

/// Returns the bytes that a record takes.
pub(super) fn padded(len: usize) -> usize {
    len.next_multiple_of(UNIT)
}

/// Returns the bytes that records of these lengths take, one after the other.
pub(super) fn batch_len(lens: impl Iterator<Item = usize>) -> usize {
    lens.map(padded).sum::<usize>().next_multiple_of(BLOCK)
}

/// Names a record.
///
/// # Panics
///
/// If it is not where, nor as long as, one can be.
pub(super) fn place(at: u64, len: usize) -> Place {
    let units = len.div_ceil(UNIT) as u64;
    assert!(at % UNIT as u64 == 0 && units < 1 << LEN_BITS);
    let place = Place::new(((at / UNIT as u64) << LEN_BITS) | units);
    place.expect("the file is not larger than places reach")
}

/// Returns where a record is, and how long at most.
pub(super) fn extent(place: Place) -> (u64, usize) {
    let units = place.number() & ((1 << LEN_BITS) - 1);
    let at = (place.number() >> LEN_BITS) * UNIT as u64;
    (at, units as usize * UNIT)
}

#[derive(Clone, Debug, Default)]
struct Segment {
    /// Bytes of records that are in use.
    live: u64,
    /// All records that were put there since it was free.
    records: Vec<(Place, u32)>,
    is_free: bool,
}

impl Segment {
    fn free() -> Self {
        Self {
            is_free: true,
            ..Self::default()
        }
    }
}

/// The segments.
///
/// # Invariants
///
/// - A segment is in `free`, which `is_free` says, or it is open, or it has records in use, or it is being written for the
///   first time.
/// - `live` is the sum of all segments' `live`, and each that of its records in use.
#[derive(Debug)]
pub(super) struct Log {
    segments: Vec<Segment>,
    free: Vec<u32>,
    /// The one that is written to, and how much of it is.
    open: Option<(u32, u64)>,
    live: u64,
}

impl Log {
    /// Begins with nothing in use of a file of so many bytes.
    pub(super) fn new(size: u64) -> Self {
        let count = size.saturating_sub(BLOCK as u64) / SEGMENT;
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        Self {
            segments: vec![Segment::free(); count as usize],
            // The first ones first.
            free: (0..count).rev().collect(),
            open: None,
            live: 0,
        }
    }

    fn start(segment: u32) -> u64 {
        BLOCK as u64 + u64::from(segment) * SEGMENT
    }

    fn segment_of(&self, place: Place) -> Option<u32> {
        let (at, _) = extent(place);
        let segment = at.checked_sub(BLOCK as u64)? / SEGMENT;
        let segment = u32::try_from(segment).ok()?;
        ((segment as usize) < self.segments.len()).then_some(segment)
    }

    /// Returns where the next so many bytes go, whole blocks and no more than a segment, if there is
    /// room.
    pub(super) fn reserve(&mut self, len: usize) -> Option<u64> {
        let len = len as u64;
        if len > SEGMENT {
            return None;
        }
        if self.open.is_none_or(|(_, used)| used + len > SEGMENT) {
            let next = self.free.pop()?;
            self.segments[next as usize].is_free = false;
            let before = self.open.replace((next, 0));
            if let Some((before, _)) = before {
                self.free_if_empty(before);
            }
        }
        let (segment, used) = self.open.as_mut()?;
        let at = Self::start(*segment) + *used;
        *used += len;
        Some(at)
    }

    /// Returns whether there can be a record at a place.
    pub(super) fn has(&self, place: Place) -> bool {
        let (at, len) = extent(place);
        self.segment_of(place).is_some_and(|segment| {
            let start = Self::start(segment);
            len > 0 && at + len as u64 <= start + SEGMENT
        })
    }

    /// A record is at a place.
    pub(super) fn add(&mut self, place: Place, owner: u32) {
        let Some(segment) = self.segment_of(place) else {
            return;
        };
        let (_, len) = extent(place);
        let it = &mut self.segments[segment as usize];
        // What a process before has written to is not written to until it is free.
        if std::mem::take(&mut it.is_free) {
            self.free.retain(|free| *free != segment);
        }
        it.live += len as u64;
        it.records.push((place, owner));
        self.live += len as u64;
    }

    /// The record at a place is of no use any more.
    pub(super) fn remove(&mut self, place: Place) {
        let Some(segment) = self.segment_of(place) else {
            return;
        };
        let (_, len) = extent(place);
        let it = &mut self.segments[segment as usize];
        it.live = it.live.saturating_sub(len as u64);
        self.live = self.live.saturating_sub(len as u64);
        if self.open.is_none_or(|(open, _)| open != segment) {
            self.free_if_empty(segment);
        }
    }

    fn free_if_empty(&mut self, segment: u32) {
        let it = &mut self.segments[segment as usize];
        if it.live == 0 && !it.is_free {
            *it = Segment::free();
            self.free.push(segment);
        }
    }

    /// Returns the segment of which least is in use, if it is worth emptying.
    fn sparse(&self) -> Option<&Segment> {
        let open = self.open.map(|(open, _)| open);
        let all = (0..).zip(&self.segments);
        let used = all.filter(|(at, it)| it.live > 0 && Some(*at) != open);
        let (_, sparsest) = used.min_by_key(|(_, it)| it.live)?;
        (sparsest.live <= SPARSE).then_some(sparsest)
    }

    /// Returns whether there is a segment that is worth emptying.
    pub(super) fn is_sparse(&self) -> bool {
        self.sparse().is_some()
    }

    /// Returns the records of that segment, of which least is in use; nothing if there is none.
    pub(super) fn sparsest(&self) -> &[(Place, u32)] {
        self.sparse().map_or(&[], |segment| &segment.records)
    }

    /// Returns the bytes of all segments.
    pub(super) fn size(&self) -> u64 {
        self.segments.len() as u64 * SEGMENT
    }

    /// Returns the bytes of records in use.
    pub(super) fn live(&self) -> u64 {
        self.live
    }

    /// Returns the bytes that can be written before a segment has to become free, but for those that are
    /// kept for cleaning.
    pub(super) fn free(&self) -> u64 {
        let open = self.open.map_or(0, |(_, used)| SEGMENT - used);
        (self.free.len() as u64 * SEGMENT + open).saturating_sub(KEPT * SEGMENT)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn places_say_where_and_how_long() {
        for (at, len, padded) in [(4096, 1, 64), (4160, 64, 64), (1 << 40, MAX_SEALED, 4160)] {
            assert_eq!(extent(place(at, len)), (at, padded));
        }
        let last = MAX_SIZE - UNIT as u64;
        assert_eq!(extent(place(last, 64)), (last, 64));
    }

    #[test]
    fn what_cannot_be_is_nowhere() {
        let log = Log::new(MIN_SIZE);
        assert!(log.has(place(4096, 100)));
        // In the header, without length, past a segment's end, past the file's end.
        assert!(!log.has(place(0, 100)));
        assert!(!log.has(place(4096, 0)));
        assert!(!log.has(place(BLOCK as u64 + SEGMENT - 64, 100)));
        assert!(!log.has(place(MIN_SIZE, 100)));
    }

    #[test]
    fn what_was_there_before_is_not_written_over() {
        let mut log = Log::new(MIN_SIZE);
        let free = log.free();
        let there = place(BLOCK as u64 + SEGMENT + 640, 1000);
        log.add(there, 5);
        assert_eq!(log.free(), free - SEGMENT);
        while let Some(at) = log.reserve(BLOCK) {
            let segment = (at - BLOCK as u64) / SEGMENT;
            assert_ne!(segment, 1);
            log.add(place(at, 100), 6);
        }
        log.remove(there);
        assert_eq!(log.reserve(BLOCK), Some(BLOCK as u64 + SEGMENT));
    }

    proptest! {
        /// Whatever is put and removed, no two records in use overlap, and all room comes back.
        #[test]
        fn records_do_not_overlap(
            steps in prop::collection::vec((1..=MAX_SEALED, 1..200usize, any::<bool>()), 1..300),
        ) {
            let mut log = Log::new(MIN_SIZE);
            let all = log.free();
            let mut there = BTreeMap::new();
            for (len, count, put) in steps {
                if put {
                    let Some(at) = log.reserve(batch_len((0..count).map(|_| len))) else {
                        continue;
                    };
                    for n in 0..count {
                        let place = place(at + (n * padded(len)) as u64, len);
                        prop_assert!(log.has(place));
                        log.add(place, n as u32);
                        let (at, len) = extent(place);
                        let before = there.range(..at + len as u64).next_back();
                        let end = before.map(|(at, len): (&u64, &usize)| at + *len as u64);
                        prop_assert!(end.is_none_or(|end| end <= at));
                        there.insert(at, len);
                    }
                } else {
                    let gone: Vec<_> = there.iter().take(count).map(|(a, l)| (*a, *l)).collect();
                    for (at, len) in gone {
                        there.remove(&at);
                        log.remove(place(at, len));
                    }
                }
                let live: usize = there.values().sum();
                prop_assert_eq!(log.live(), live as u64);
                let records = log.sparsest();
                prop_assert_eq!(records.is_empty(), !log.is_sparse());
                if !records.is_empty() {
                    let (at, _) = extent(records[0].0);
                    let segment = (at - BLOCK as u64) / SEGMENT;
                    let mut of = records.iter().map(|(place, _)| extent(*place).0);
                    prop_assert!(of.all(|at| (at - BLOCK as u64) / SEGMENT == segment));
                }
            }
            for (at, len) in there {
                log.remove(place(at, len));
            }
            prop_assert_eq!(log.live(), 0);
            let open = log.open.map_or(0, |(_, used)| used);
            prop_assert_eq!(log.free(), (all - open).min(all));
        }
    }
}
