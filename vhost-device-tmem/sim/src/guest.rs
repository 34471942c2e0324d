// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A guest: a page cache that drops what was used least recently, and behind it ephemeral memory that
//! keeps what was dropped.
//!
//! Together they are one stack of pages, last used first. What is on top is in the page cache. A page
//! that is found in ephemeral memory moves to the top (gets are exclusive), and for each page that was
//! not in the page cache another one is put. So the curve of the trace says how many accesses find
//! what they look for at each depth. How long ago pages were put is kept with them, by and large.

use rand::Rng;
use rand_distr::{Distribution, Poisson};
use vhost_device_tmem::policy::{EphemeralFigures, AGES};

use crate::workload::Workload;

/// Bytes of a page.
pub const PAGE: f64 = 4096.0;

/// The seconds that evictions are counted for what [`EphemeralFigures::reach`] says.
const REACH_SECONDS: usize = 30;

/// Layers of about the same age are one where they differ by less than this part of it.
const ALIKE: f64 = 0.125;

/// What the policy is told of misses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Told {
    /// Those that a quarter more of memory would have had
    #[default]
    Near,
    /// All, and nothing of their reach
    All,
    /// All, and what was evicted in half a minute as their reach
    Evicted,
}

/// What a guest is like.
#[derive(Clone, Debug)]
pub struct Likeness {
    /// What it does.
    pub workload: Workload,
    /// Pages of an object of its trace.
    pub pages: f64,
    /// Seconds of its workload that were over when the simulation began.
    pub ahead: f64,
    /// Pages of its page cache.
    pub cache: f64,
    /// How much it counts.
    pub weight: u32,
    /// What it says instead of what happened.
    pub lie: Option<EphemeralFigures>,
    /// What else it, or the daemon, says of misses.
    pub told: Told,
}

/// What happened to a guest in a second. All are pages.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Second {
    /// Asked for that were not in the page cache.
    pub reads: f64,
    /// Of these, found.
    pub hits: f64,
    /// Found by how long ago they were put, as the policy is told.
    pub by_age: [u64; AGES],
    /// Not found, though they had been put once, as the policy is told.
    pub missed: u64,
    /// The same, all of them.
    pub again: f64,
}

/// Pages that were put at about the same time.
#[derive(Clone, Copy, Debug)]
struct Layer {
    /// Seconds since the simulation began.
    put: f64,
    pages: f64,
}

/// A guest, and what it has put.
#[derive(Clone, Debug)]
pub struct Guest {
    likeness: Likeness,
    /// The oldest first.
    layers: Vec<Layer>,
    /// Pages of all layers.
    used: f64,
    /// Pages that were evicted in each of the last seconds.
    evicted: [f64; REACH_SECONDS],
}

impl Guest {
    /// One that has put nothing yet.
    #[must_use]
    pub fn new(likeness: Likeness) -> Self {
        Self {
            likeness,
            layers: Vec::new(),
            used: 0.0,
            evicted: [0.0; REACH_SECONDS],
        }
    }

    /// Returns what it is like.
    #[must_use]
    pub fn likeness(&self) -> &Likeness {
        &self.likeness
    }

    /// Returns the pages of ephemeral memory that it has.
    #[must_use]
    pub fn used(&self) -> f64 {
        self.used
    }

    /// Returns when the oldest of its pages were put.
    #[must_use]
    pub fn oldest(&self) -> Option<f64> {
        self.layers.first().map(|layer| layer.put)
    }

    /// Returns the reads a second that would hit at this time with so many pages, had they been there
    /// for long.
    #[must_use]
    pub fn worth(&self, second: usize, pages: f64) -> f64 {
        let Likeness {
            cache, pages: of, ..
        } = self.likeness;
        let piece = self.piece(second);
        let hits = |pages: f64| piece.curve.hits(pages / of);
        piece.rate * of * (hits(cache + pages) - hits(cache))
    }

    /// Returns the pages up to which more of them are worth something at this time.
    #[must_use]
    pub fn wanted(&self, second: usize) -> f64 {
        let Likeness { cache, pages, .. } = self.likeness;
        (self.piece(second).curve.objects() * pages - cache).max(0.0)
    }

    fn piece(&self, second: usize) -> &crate::workload::Piece {
        let Likeness {
            workload, ahead, ..
        } = &self.likeness;
        workload.at(second as f64 + ahead)
    }

    /// Lets a second go by: reads, and puts as much as it reads. Whether that may stay is said later.
    pub fn run(&mut self, second: usize, random: &mut impl Rng) -> Second {
        self.evicted[second % REACH_SECONDS] = 0.0;
        let Likeness {
            cache, pages: of, ..
        } = self.likeness;
        let piece = self.piece(second).clone();
        let rate = piece.rate * of;
        if rate == 0.0 {
            return Second::default();
        }
        let now = second as f64;
        let hits = |pages: f64| rate * piece.curve.hits(pages / of);
        let mut found = Second {
            reads: rate - hits(cache),
            ..Second::default()
        };
        // From the top of the stack.
        let mut above = hits(cache);
        let mut depth = cache;
        let mut by_age = [0.0; AGES];
        for layer in self.layers.iter_mut().rev() {
            depth += layer.pages;
            let so_far = hits(depth);
            let of_layer = so_far - above;
            above = so_far;
            by_age[age(now - layer.put)] += of_layer;
            layer.pages = (layer.pages - of_layer).max(0.0);
        }
        found.hits = by_age.iter().sum();
        self.used = self.layers.iter().map(|layer| layer.pages).sum();
        self.put(now, found.reads);
        let most = match self.likeness.told {
            Told::Near => hits(depth + self.near()),
            Told::Evicted | Told::All => rate * piece.curve.most(),
        };
        let missed = most - above;
        found.again = (rate * piece.curve.most() - above).max(0.0);
        found.missed = drawn(missed, random);
        found.by_age = by_age.map(|mean| drawn(mean, random));
        found
    }

    fn put(&mut self, now: f64, pages: f64) {
        self.used += pages;
        self.layers.push(Layer { put: now, pages });
        // Each second there is one more, so that one less has to be looked for.
        let alike = self.layers.windows(2).position(|two| {
            let (old, young) = (now - two[0].put, now - two[1].put);
            two[1].pages <= 0.0 || old - young < ALIKE * young
        });
        if let Some(n) = alike {
            let young = self.layers.remove(n + 1);
            let old = &mut self.layers[n];
            let pages = old.pages + young.pages;
            if pages > 0.0 {
                old.put = (old.put * old.pages + young.put * young.pages) / pages;
            }
            old.pages = pages;
        }
    }

    /// Returns the pages of its page cache that it has no use for at this time.
    #[must_use]
    pub fn unused(&self, second: usize) -> f64 {
        let piece = self.piece(second);
        let used = if piece.rate > 0.0 {
            piece.curve.objects() * self.likeness.pages
        } else {
            0.0
        };
        (self.likeness.cache - used).max(0.0)
    }

    /// Makes its page cache as large as that. What has no room there any more is put; what has now is
    /// what was put last.
    pub fn set_cache(&mut self, second: usize, pages: f64) {
        let before = std::mem::replace(&mut self.likeness.cache, pages);
        if before > pages {
            self.put(second as f64, before - pages);
            return;
        }
        let mut more = pages - before;
        while let Some(layer) = self.layers.last_mut() {
            let part = layer.pages.min(more);
            layer.pages -= part;
            more -= part;
            self.used = (self.used - part).max(0.0);
            if layer.pages > 0.0 {
                break;
            }
            self.layers.pop();
        }
    }

    /// Drops the oldest pages until no more than so many are left.
    pub fn shrink(&mut self, second: usize, pages: f64) {
        let mut excess = self.used - pages.max(0.0);
        if excess <= 0.0 {
            return;
        }
        self.used -= excess;
        self.evicted[second % REACH_SECONDS] += excess;
        let mut gone = 0;
        for layer in &mut self.layers {
            let part = layer.pages.min(excess);
            layer.pages -= part;
            excess -= part;
            if layer.pages > 0.0 {
                break;
            }
            gone += 1;
        }
        self.layers.drain(..gone);
    }

    /// Drops the oldest pages, which were put at one time: at most so many. Returns how many.
    pub fn evict_oldest(&mut self, second: usize, pages: f64) -> f64 {
        let Some(layer) = self.layers.first_mut() else {
            return 0.0;
        };
        let part = layer.pages.min(pages);
        layer.pages -= part;
        // One may have nothing left, since all of it was hit.
        if layer.pages <= 0.0 {
            self.layers.remove(0);
        }
        self.used = (self.used - part).max(0.0);
        self.evicted[second % REACH_SECONDS] += part;
        part
    }

    /// Returns the pages that would be a quarter more.
    fn near(&self) -> f64 {
        (self.used / 4.0).max(256.0)
    }

    /// Returns what the daemon would tell the policy of that second.
    #[must_use]
    pub fn figures(&self, of: &Second) -> EphemeralFigures {
        let used = (self.used * PAGE) as u64;
        match self.likeness.lie {
            Some(lie) => EphemeralFigures { used, ..lie },
            None => EphemeralFigures {
                used,
                hits_by_age: of.by_age,
                missed: of.missed,
                reach: match self.likeness.told {
                    Told::Evicted => (self.evicted.iter().sum::<f64>() * PAGE) as u64,
                    Told::All => 0,
                    Told::Near => (self.near() * PAGE) as u64,
                },
            },
        }
    }
}

/// Returns which of the times of [`EphemeralFigures::hits_by_age`] it is.
fn age(seconds: f64) -> usize {
    let n = seconds.max(0.5).log2().floor() + 1.0;
    (n as usize).min(AGES - 1)
}

/// Returns how often something happened that does so often on average.
fn drawn(mean: f64, random: &mut impl Rng) -> u64 {
    match Poisson::new(mean) {
        Ok(poisson) => poisson.sample(random) as u64,
        // It never does.
        Err(_) => 0,
    }
}
