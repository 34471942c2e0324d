// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What could be had by somebody who knows all curves: the shares with the most hits for the guests'
//! weights, as if they had always been so.

use crate::guest::{Guest, PAGE};

/// The parts of what a guest could use that are looked at.
const PARTS: usize = 64;

/// A straight piece of the upper hull of a guest's curve.
struct Piece {
    guest: usize,
    pages: f64,
    /// Weighted hits a second and page.
    slope: f64,
}

/// Returns the pages of each guest at this time, `pages` in all at most. Those who gain most by a
/// page come first (greedily). Of a curve that is not concave it is the hull that counts: only one
/// guest ends up within a straight piece of it, and is thought to get so much of its hits.
#[must_use]
pub fn optimum(guests: &[Guest], second: usize, pages: u64) -> (Vec<f64>, f64) {
    let mut pieces: Vec<_> = guests
        .iter()
        .enumerate()
        .flat_map(|(n, guest)| hull(n, guest, second))
        .collect();
    pieces.sort_by(|a, b| b.slope.total_cmp(&a.slope));
    let mut left = pages as f64;
    let mut shares = vec![0.0; guests.len()];
    let mut hits = 0.0;
    for piece in pieces {
        let part = piece.pages.min(left);
        left -= part;
        shares[piece.guest] += part;
        hits += part * piece.slope / f64::from(guests[piece.guest].likeness().weight);
    }
    (shares, hits)
}

/// Returns the bytes of shares.
#[must_use]
pub fn bytes(pages: &[f64]) -> Vec<u64> {
    pages.iter().map(|pages| (pages * PAGE) as u64).collect()
}

fn hull(n: usize, guest: &Guest, second: usize) -> Vec<Piece> {
    let step = guest.wanted(second) / PARTS as f64;
    let weight = f64::from(guest.likeness().weight);
    let mut corners = vec![(0.0, 0.0)];
    for part in 1..=PARTS {
        let pages = step * part as f64;
        let corner = (pages, guest.worth(second, pages) * weight);
        while let [.., a, b] = corners[..] {
            if slope(a, b) > slope(b, corner) {
                break;
            }
            corners.pop();
        }
        corners.push(corner);
    }
    let pieces = corners.windows(2).map(|two| Piece {
        guest: n,
        pages: two[1].0 - two[0].0,
        slope: slope(two[0], two[1]),
    });
    pieces.filter(|piece| piece.slope > 0.0).collect()
}

fn slope(from: (f64, f64), to: (f64, f64)) -> f64 {
    (to.1 - from.1) / (to.0 - from.0).max(f64::MIN_POSITIVE)
}
