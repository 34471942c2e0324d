// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the ranges of one request come to, so that each object is gone over once however many of
//! them name it.

use std::{cmp::Reverse, collections::BinaryHeap};

use virtio_tmem_abi::{ObjectId, Range};

/// Indices of an object, of which the first range of the request that names them is the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    /// The lowest index.
    pub(super) first: u64,
    /// The highest index.
    pub(super) last: u64,
    /// The range's place in the request: a page here was forgotten for it, had the ranges been
    /// gone over one after the other.
    pub(super) range: usize,
}

/// What a request names of one object.
///
/// # Invariants
///
/// There is a segment. They ascend, and no two overlap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) object: ObjectId,
    pub(super) segments: Vec<Segment>,
}

impl Target {
    /// Returns the segment that an index is in.
    pub(super) fn find(&self, index: u64) -> Option<Segment> {
        let at = self
            .segments
            .partition_point(|segment| segment.last < index);
        let segment = *self.segments.get(at)?;
        (segment.first <= index).then_some(segment)
    }

    /// Returns whether there are fewer indices than `pages`, so that looking for each is less work
    /// than looking at all pages.
    pub(super) fn is_narrower_than(&self, pages: u64) -> bool {
        let mut left = pages;
        self.segments.iter().all(|segment| {
            let less = left.checked_sub(segment.last - segment.first);
            left = less.and_then(|left| left.checked_sub(1)).unwrap_or(0);
            left > 0
        })
    }
}

/// Sorts ranges by their objects, and those of each object into segments. Ranges that end before
/// they begin name nothing.
pub(super) fn targets(ranges: &[Range]) -> Vec<Target> {
    let words = |n: usize| ranges[n].object.0.map(|word| word.get());
    let named = |n: &usize| ranges[*n].first.get() <= ranges[*n].last.get();
    let mut order: Vec<usize> = (0..ranges.len()).filter(named).collect();
    order.sort_unstable_by_key(|n| (words(*n), ranges[*n].first.get()));
    let groups = order.chunk_by(|a, b| words(*a) == words(*b));
    let target = |group: &[usize]| Target {
        object: ranges[group[0]].object,
        segments: segments(ranges, group),
    };
    groups.map(target).collect()
}

/// Cuts the ranges of one object, which ascend by their first index, into segments.
fn segments(ranges: &[Range], group: &[usize]) -> Vec<Segment> {
    let mut segments: Vec<Segment> = Vec::new();
    // Those that have begun, the first of the request on top; some may have ended.
    let mut open: BinaryHeap<Reverse<(usize, u64)>> = BinaryHeap::new();
    let mut coming = group.iter().copied().peekable();
    let mut at = 0;
    loop {
        while open.peek().is_some_and(|Reverse((_, last))| *last < at) {
            open.pop();
        }
        if open.is_empty() {
            match coming.peek() {
                Some(next) => at = at.max(ranges[*next].first.get()),
                None => return segments,
            }
        }
        while let Some(next) = coming.next_if(|next| ranges[*next].first.get() <= at) {
            open.push(Reverse((next, ranges[next].last.get())));
        }
        // What just began may have ended before this, if it lies within what is done.
        let Some(Reverse((range, end))) = open.peek().copied().filter(|top| top.0 .1 >= at) else {
            continue;
        };
        let next = coming.peek().map(|next| ranges[*next].first.get() - 1);
        let last = next.map_or(end, |next| next.min(end));
        match segments.last_mut() {
            Some(before) if before.range == range && before.last.checked_add(1) == Some(at) => {
                before.last = last;
            }
            _ => segments.push(Segment {
                first: at,
                last,
                range,
            }),
        }
        match last.checked_add(1) {
            Some(next) => at = next,
            None => return segments,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn range(object: u64, first: u64, last: u64) -> Range {
        Range {
            object: ObjectId([object.into(), 0.into(), 0.into()]),
            first: first.into(),
            last: last.into(),
        }
    }

    proptest! {
        #[test]
        fn every_index_is_in_the_segment_of_the_first_range_that_names_it(
            named in prop::collection::vec((0..3u64, 0..40u64, 0..40u64), 0..30)
        ) {
            // Some of them end before they begin, and some lie at the very end.
            let ranges: Vec<_> = named
                .iter()
                .map(|(object, first, last)| match object {
                    2 => range(*object, u64::MAX - first, u64::MAX - last),
                    _ => range(*object, *first, *last),
                })
                .collect();
            let targets = targets(&ranges);
            for object in 0..3 {
                let target = targets.iter().find(|t| t.object == range(object, 0, 0).object);
                for n in 0..45 {
                    let index = if object == 2 { u64::MAX - n } else { n };
                    let first = ranges.iter().position(|r| {
                        r.object == range(object, 0, 0).object
                            && (r.first.get()..=r.last.get()).contains(&index)
                    });
                    let found = target.and_then(|target| target.find(index));
                    prop_assert_eq!(found.map(|segment| segment.range), first);
                }
            }
            for target in &targets {
                let ascend = target.segments.windows(2).all(|w| w[0].last < w[1].first);
                prop_assert!(ascend && target.segments.len() <= 2 * ranges.len());
            }
        }
    }

    #[test]
    fn a_request_is_narrow_where_it_names_fewer_indices_than_there_are_pages() {
        let narrow = |ranges: &[Range], pages| targets(ranges)[0].is_narrower_than(pages);
        let ten = [range(1, 0, 3), range(1, 10, 15)];
        assert!(narrow(&ten, 11));
        assert!(!narrow(&ten, 10) && !narrow(&ten, 0));
        assert!(!narrow(&[range(1, 0, u64::MAX)], u64::MAX));
        assert!(!narrow(&[range(1, 0, u64::MAX), range(1, 1, 1)], 5));
    }

    #[test]
    fn neighbours_of_one_range_are_one_segment() {
        let targets = targets(&[range(1, 0, 99), range(1, 20, 30), range(1, 50, 50)]);
        let all = Segment {
            first: 0,
            last: 99,
            range: 0,
        };
        assert_eq!(targets[0].segments, [all]);
    }
}
