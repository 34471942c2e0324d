// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Orders in which a database might read its pages.

use anyhow::{bail, Result};
use rand::{rngs::SmallRng, seq::SliceRandom, SeedableRng};
use rand_distr::{Distribution, Zipf};

/// Which pages are read, and how often.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Order {
    /// Each page at most once.
    Once,
    /// The n-th most popular page in proportion to n to the power of minus this.
    Zipf(f64),
}

impl Order {
    /// Returns the numbers of `reads` pages out of `pages`.
    ///
    /// Popular pages are not neighbours. Which pages they are depends on the number of pages only;
    /// when each of them is read depends on `seed`.
    pub fn pages(self, pages: u64, reads: u64, seed: u64) -> Result<Vec<u64>> {
        let mut places: Vec<u64> = (0..pages).collect();
        let mut random = SmallRng::seed_from_u64(pages);
        places.shuffle(&mut random);

        let reads = usize::try_from(reads)?;
        match self {
            Self::Once if reads > places.len() => {
                bail!("there are only {pages} pages to read {reads} of, each once")
            }
            Self::Once => {
                places.shuffle(&mut SmallRng::seed_from_u64(seed));
                places.truncate(reads);
                Ok(places)
            }
            Self::Zipf(exponent) => {
                // CAST: There are by far fewer pages than a double can count.
                let ranks = Zipf::new(pages as f64, exponent)?;
                let read = ranks
                    .sample_iter(SmallRng::seed_from_u64(seed))
                    // CAST: Ranks are whole numbers from 1 to the number of pages.
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
        let read = Order::Once.pages(1000, 900, 7).unwrap();
        assert_eq!(read.len(), 900);
        assert_eq!(counts(&read).len(), 900);
        assert!(read.iter().all(|&page| page < 1000));
        assert!(!read.is_sorted());
        assert!(Order::Once.pages(10, 11, 7).is_err());
    }

    #[test]
    fn popular_pages_stay_popular() {
        let most_read = |seed| {
            let counts = counts(&Order::Zipf(0.99).pages(1000, 20_000, seed).unwrap());
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
