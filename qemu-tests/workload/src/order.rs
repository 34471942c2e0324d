// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Orders in which a database might read its pieces.

use anyhow::{bail, Result};
use rand::{rngs::SmallRng, seq::SliceRandom, SeedableRng};
use rand_distr::{Distribution, Zipf};

/// Which pieces are read, and how often.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Order {
    /// Each at most once.
    Once,
    /// The n-th most popular one in proportion to n to the power of minus this.
    Zipf(f64),
}

impl Order {
    /// Returns the numbers of `reads` pieces out of `pieces`.
    ///
    /// Popular ones are not neighbours. Which they are depends on the number of pieces only;
    /// when each of them is read depends on `seed`.
    pub fn pieces(self, pieces: u64, reads: u64, seed: u64) -> Result<Vec<u64>> {
        let mut places: Vec<u64> = (0..pieces).collect();
        let mut random = SmallRng::seed_from_u64(pieces);
        places.shuffle(&mut random);

        let reads = usize::try_from(reads)?;
        match self {
            Self::Once if reads > places.len() => {
                bail!("there are only {pieces} pieces to read {reads} of, each once")
            }
            Self::Once => {
                places.shuffle(&mut SmallRng::seed_from_u64(seed));
                places.truncate(reads);
                Ok(places)
            }
            Self::Zipf(exponent) => {
                // CAST: There are by far fewer pieces than a double can count.
                let ranks = Zipf::new(pieces as f64, exponent)?;
                let read = ranks
                    .sample_iter(SmallRng::seed_from_u64(seed))
                    // CAST: Ranks are whole numbers from 1 to the number of pieces.
                    .map(|rank| places[rank as usize - 1]);
                Ok(read.take(reads).collect())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    fn counts(pages: &[u64]) -> HashMap<u64, u32> {
        let mut counts = HashMap::new();
        for &page in pages {
            *counts.entry(page).or_default() += 1;
        }
        counts
    }

    #[test]
    fn each_page_is_read_at_most_once() {
        let read = Order::Once.pieces(1000, 900, 7).unwrap();
        assert_eq!(read.len(), 900);
        assert_eq!(counts(&read).len(), 900);
        assert!(read.iter().all(|&page| page < 1000));
        assert!(!read.is_sorted());
        assert!(Order::Once.pieces(10, 11, 7).is_err());
    }

    #[test]
    fn popular_pages_stay_popular() {
        let most_read = |seed| {
            let counts = counts(&Order::Zipf(0.99).pieces(1000, 20_000, seed).unwrap());
            let mut pages: Vec<(u32, u64)> = counts.iter().map(|(&p, &n)| (n, p)).collect();
            pages.sort_unstable();
            pages.reverse();
            pages
        };
        let (first, second) = (most_read(1), most_read(2));
        assert_eq!(first[0].1, second[0].1);
        assert_ne!(first, second);
        // With an exponent near 1, the first of 1000 gets about 1 of 7.5 reads.
        assert!((2300..3000).contains(&first[0].0), "{:?}", first[0]);
        // The next is not its neighbour.
        assert!(first[0].1.abs_diff(first[1].1) > 1);
    }
}
