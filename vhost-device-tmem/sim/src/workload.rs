// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a guest does over time: pieces of a trace, each with its rate and its curve.

use std::sync::Arc;

use crate::{
    reuse::{Curve, Distances},
    trace::Access,
};

/// A piece of a trace.
#[derive(Clone, Debug)]
pub struct Piece {
    /// Accesses to objects a second.
    pub rate: f64,
    /// What caches have of them.
    pub curve: Arc<Curve>,
}

/// A trace, in pieces of equal length. It begins anew at its end.
#[derive(Clone, Debug)]
pub struct Workload {
    seconds: f64,
    pieces: Vec<Piece>,
}

impl Workload {
    /// One whose accesses are alike for all time.
    #[must_use]
    pub fn steady(rate: f64, curve: Curve) -> Self {
        let curve = Arc::new(curve);
        Self {
            seconds: f64::INFINITY,
            pieces: vec![Piece { rate, curve }],
        }
    }

    /// One that does nothing.
    #[must_use]
    pub fn idle() -> Self {
        Self::steady(0.0, Curve::new(&[]))
    }

    /// The trace in pieces of so many seconds. Distances are as if it had been run once before where
    /// `is_cyclic`; otherwise pages that are used for the first time are in no cache.
    #[must_use]
    pub fn recorded(trace: &[Access], seconds: f64, is_cyclic: bool) -> Self {
        let mut distances = Distances::new(2 * trace.len() + 1);
        if is_cyclic {
            for access in trace {
                distances.access(access.page);
            }
        }
        let mut pieces: Vec<Vec<_>> = vec![Vec::new()];
        for access in trace {
            let n = (access.seconds / seconds) as usize;
            if n >= pieces.len() {
                pieces.resize(n + 1, Vec::new());
            }
            pieces[n].push(distances.access(access.page));
        }
        let pieces = pieces.iter().map(|piece| Piece {
            rate: piece.len() as f64 / seconds,
            curve: Arc::new(Curve::new(piece)),
        });
        Self {
            seconds,
            pieces: pieces.collect(),
        }
    }

    /// Says when it begins anew, with nothing done until then.
    pub fn lasts(&mut self, seconds: f64) {
        let pieces = (seconds / self.seconds).ceil() as usize;
        let idle = Piece {
            rate: 0.0,
            curve: Arc::new(Curve::new(&[])),
        };
        self.pieces.resize(pieces.max(1), idle);
    }

    /// Returns what is done at this time.
    #[must_use]
    pub fn at(&self, second: f64) -> &Piece {
        &self.pieces[(second / self.seconds) as usize % self.pieces.len()]
    }

    /// Returns how many seconds nothing changes for.
    #[must_use]
    pub fn seconds(&self) -> f64 {
        self.seconds
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_come_one_by_one_and_anew() {
        // A page again and again for ten seconds, then new ones at half the rate.
        let trace: Vec<_> = (0..150u64)
            .map(|n| Access {
                seconds: if n < 100 {
                    n as f64 / 10.0
                } else {
                    10.0 + (n - 100) as f64 / 5.0
                },
                page: if n < 100 { 0 } else { n },
            })
            .collect();
        let workload = Workload::recorded(&trace, 10.0, false);
        for (second, rate, hits) in [(0.0, 10.0, 0.99), (19.0, 5.0, 0.0), (20.0, 10.0, 0.99)] {
            let piece = workload.at(second);
            assert_eq!(piece.rate, rate);
            assert!((piece.curve.most() - hits).abs() < 1e-6);
        }
        let again = Workload::recorded(&trace, 10.0, true);
        assert_eq!(again.at(10.0).curve.most(), 1.0);
    }
}
