// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Reuse distances: how many other pages were used since a page was used last. A cache that drops
//! what was used least recently has a page exactly if that many fit it, so that one pass over a
//! trace says what caches of all sizes would do.

use std::collections::HashMap;

/// Finds reuse distances of a trace, access by access.
#[derive(Debug)]
pub struct Distances {
    /// When each page was used last.
    last: HashMap<u64, usize>,
    /// A Fenwick tree over the times at which some page was used last.
    marks: Vec<u32>,
    now: usize,
}

impl Distances {
    /// For a trace of so many accesses.
    #[must_use]
    pub fn new(accesses: usize) -> Self {
        Self {
            last: HashMap::new(),
            marks: vec![0; accesses + 1],
            now: 0,
        }
    }

    /// Takes the next access. Returns how many other pages were used since the last one to this page;
    /// none if there was no such access.
    ///
    /// # Panics
    ///
    /// If there are more accesses than were said.
    pub fn access(&mut self, page: u64) -> Option<usize> {
        self.now += 1;
        assert!(self.now < self.marks.len(), "more accesses than were said");
        let before = self.last.insert(page, self.now);
        let distance = before.map(|before| {
            let others = self.last.len() - self.up_to(before);
            self.mark(before, false);
            others
        });
        self.mark(self.now, true);
        distance
    }

    fn mark(&mut self, mut at: usize, is_last: bool) {
        while let Some(mark) = self.marks.get_mut(at) {
            *mark = if is_last { *mark + 1 } else { *mark - 1 };
            at += at & at.wrapping_neg();
        }
    }

    fn up_to(&self, mut at: usize) -> usize {
        let mut sum = 0;
        while at > 0 {
            sum += self.marks[at] as usize;
            at &= at - 1;
        }
        sum
    }
}

/// The part of all accesses that caches of all sizes have, as straight lines between points that are
/// equally far apart. Without units: [`Guest`](crate::guest::Guest) says how large an object is.
#[derive(Clone, Debug, PartialEq)]
pub struct Curve {
    step: f64,
    /// The part of all accesses that a cache of `n * step` objects has.
    hits: Vec<f32>,
}

/// Pieces of a curve.
const PIECES: usize = 512;

impl Curve {
    /// Of accesses with these distances; `None` are those that no cache has.
    #[must_use]
    pub fn new(distances: &[Option<usize>]) -> Self {
        let most = distances.iter().flatten().max().map_or(1, |most| most + 1);
        let step = most.div_ceil(PIECES) as f64;
        let mut counts = vec![0usize; PIECES + 1];
        for distance in distances.iter().flatten() {
            // A cache has it that is larger than the distance.
            counts[((distance + 1) as f64 / step).ceil() as usize] += 1;
        }
        let mut sum = 0;
        let all = distances.len().max(1) as f64;
        let hits = counts.iter().map(|count| {
            sum += count;
            (sum as f64 / all) as f32
        });
        Self {
            step,
            hits: hits.collect(),
        }
    }

    /// Returns the part of all accesses that a cache of so many objects has.
    #[must_use]
    pub fn hits(&self, objects: f64) -> f64 {
        let at = (objects / self.step).max(0.0);
        let n = at as usize;
        match self.hits.get(n..n + 2) {
            Some(&[low, high]) => f64::from(low) + f64::from(high - low) * (at - n as f64),
            _ => self.most(),
        }
    }

    /// Returns the objects of the smallest cache that has all that any has.
    #[must_use]
    pub fn objects(&self) -> f64 {
        let all = self
            .hits
            .iter()
            .take_while(|hits| f64::from(**hits) < self.most());
        all.count() as f64 * self.step
    }

    /// Returns the part of all accesses that the largest cache has.
    #[must_use]
    pub fn most(&self) -> f64 {
        self.hits.last().copied().map_or(0.0, f64::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_are_those_of_a_cache() {
        // Pages in the order of their use, the last one first, looked through one by one.
        let trace: Vec<u64> = (0..3000u64).map(|n| n * n % 97 + n % 7).collect();
        let mut distances = Distances::new(trace.len());
        let mut stack = Vec::new();
        for page in trace {
            let depth = stack.iter().position(|other| *other == page);
            assert_eq!(distances.access(page), depth);
            if let Some(depth) = depth {
                stack.remove(depth);
            }
            stack.insert(0, page);
        }
    }

    #[test]
    fn a_curve_has_what_caches_have() {
        // Half of all accesses go round 100 pages, the others to new ones: 200 pages in all.
        let mut distances = Distances::new(4000);
        let found: Vec<_> = (0..4000u64)
            .map(|n| distances.access(if n % 2 == 0 { n / 2 % 100 } else { 1000 + n }))
            .collect();
        let curve = Curve::new(&found[2000..]);
        assert_eq!(curve.hits(0.0), 0.0);
        assert_eq!(curve.hits(190.0), 0.0);
        assert!((curve.hits(201.0) - 0.5).abs() < 1e-6);
        assert_eq!(curve.hits(1e9), curve.most());
    }
}
