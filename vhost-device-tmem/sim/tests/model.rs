// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A guest as it is simulated does what one does that looks for each page.

use std::collections::BTreeMap;

use rand::{rngs::SmallRng, SeedableRng};
use rand_distr::{Distribution, Zipf};
use tmem_sim::{
    guest::{Guest, Likeness, Told},
    reuse::{Curve, Distances},
    workload::Workload,
};
use vhost_device_tmem::policy::AGES;

const OBJECTS: f64 = 1000.0;
// Ages are right to a second: pages stay for many.
const RATE: usize = 20;
const SECONDS: usize = 3000;
const CACHE: usize = 100;

/// Pages in the order of their use, by the time of that: a page cache, or ephemeral memory.
#[derive(Default)]
struct Pages {
    by_time: BTreeMap<usize, u64>,
    times: BTreeMap<u64, usize>,
}

impl Pages {
    fn take(&mut self, page: u64) -> Option<usize> {
        let time = self.times.remove(&page)?;
        self.by_time.remove(&time);
        Some(time)
    }

    fn put(&mut self, page: u64, time: usize) {
        self.by_time.insert(time, page);
        self.times.insert(page, time);
    }

    /// Drops the page that was used first, if there are more than so many.
    fn beyond(&mut self, most: usize) -> Option<u64> {
        let page = (self.times.len() > most)
            .then(|| self.by_time.pop_first())??
            .1;
        self.times.remove(&page);
        Some(page)
    }
}

/// Returns hits, and hits by age, of the last half.
fn page_by_page(trace: &[u64], share: usize) -> (usize, [usize; AGES]) {
    let (mut cache, mut memory) = (Pages::default(), Pages::default());
    let (mut hits, mut by_age) = (0, [0; AGES]);
    for (now, page) in trace.iter().enumerate() {
        if cache.take(*page).is_none() {
            if let Some(put) = memory.take(*page) {
                let seconds = (now - put) / RATE;
                if now >= trace.len() / 2 {
                    hits += 1;
                    by_age[(usize::BITS - seconds.leading_zeros()) as usize] += 1;
                }
            }
        }
        cache.put(*page, now);
        if let Some(page) = cache.beyond(CACHE) {
            memory.put(page, now);
            memory.beyond(share);
        }
    }
    (hits, by_age)
}

#[test]
fn hits_and_their_ages_are_those_of_pages() {
    let zipf = Zipf::new(OBJECTS, 0.8).unwrap();
    let mut random = SmallRng::seed_from_u64(1);
    let trace: Vec<_> = (0..RATE * SECONDS)
        .map(|_| zipf.sample(&mut random) as u64)
        .collect();
    let mut distances = Distances::new(trace.len());
    let found: Vec<_> = trace.iter().map(|page| distances.access(*page)).collect();
    let curve = Curve::new(&found[trace.len() / 2..]);

    for share in [100, 200, 500] {
        let mut guest = Guest::new(Likeness {
            workload: Workload::steady(RATE as f64, curve.clone()),
            pages: 1.0,
            ahead: 0.0,
            cache: CACHE as f64,
            weight: 100,
            lie: None,
            told: Told::default(),
        });
        let (mut hits, mut by_age) = (0.0, [0u64; AGES]);
        for second in 0..SECONDS {
            let seen = guest.run(second, &mut random);
            guest.shrink(second, share as f64);
            if second >= SECONDS / 2 {
                hits += seen.hits;
                for (sum, hits) in by_age.iter_mut().zip(seen.by_age) {
                    *sum += hits;
                }
            }
        }
        let (real, real_by_age) = page_by_page(&trace, share);
        let close = |a: f64, b: f64, part: f64| (a - b).abs() <= part * a.max(b);
        assert!(close(hits, real as f64, 0.03), "{share}: {hits} {real}");
        // What the policy makes of ages: pages that paid. Powers of two are coarse.
        let paid = |by_age: &mut dyn Iterator<Item = f64>| -> f64 {
            let each = by_age.enumerate();
            each.map(|(n, hits)| hits * 1.5 * f64::from(1u32 << n))
                .sum()
        };
        let simulated = paid(&mut by_age.iter().map(|hits| *hits as f64));
        let real = paid(&mut real_by_age.iter().map(|hits| *hits as f64));
        assert!(close(simulated, real, 0.25), "{share}: {simulated} {real}");
    }
}
