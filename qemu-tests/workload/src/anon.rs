// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Anonymous memory, more of it than the guest has.

use std::{
    path::PathBuf,
    thread::{self, sleep},
    time::Duration,
};

use anyhow::{anyhow, Result};
use memmap2::{Advice, MmapMut};
use serde::Serialize;

use crate::{
    page::{Found, Tag, PAGE_SIZE},
    report::{Finding, Findings},
};

/// Every so many pages, one is written again in each pass.
const REWRITTEN: u64 = 3;

/// Pages that follow each other where the order is shuffled: as many as the kernel reads ahead of
/// a fault, lest most of what it reads be thrown away again.
const RUN: u64 = 8;

/// What is to be done.
#[derive(Clone, Debug)]
pub struct Anon {
    /// Pages in all jobs together.
    pub pages: u64,
    /// Times that a part is written again and everything verified.
    pub passes: u32,
    /// Threads, each with memory of its own.
    pub jobs: u32,
    /// What the content depends on.
    pub seed: u64,
    /// Ask for huge pages.
    pub huge: bool,
    /// Once everything is written, wait until this file exists.
    pub wait_for: Option<PathBuf>,
}

/// What was found.
#[derive(Debug, Default, Serialize)]
pub struct Outcome {
    /// Pages that the jobs had.
    pub pages: u64,
    /// Pages that were read and compared.
    pub compared: u64,
    /// Pages that were not as expected.
    #[serde(flatten)]
    pub findings: Findings,
}

impl Anon {
    /// Does it.
    ///
    /// `filled` is called once by the first job, when its memory is written for the first time.
    pub fn run(&self, filled: &(dyn Fn() + Sync)) -> Result<Outcome> {
        let mut all = Outcome::default();
        thread::scope(|scope| {
            let jobs: Vec<_> = (0..self.jobs)
                .map(|job| scope.spawn(move || self.job(job, filled)))
                .collect();
            for job in jobs {
                let outcome = job.join().map_err(|_| anyhow!("a job panicked"))??;
                all.pages += outcome.pages;
                all.compared += outcome.compared;
                all.findings.merge(outcome.findings);
            }
            Ok(all)
        })
    }

    fn job(&self, job: u32, filled: &(dyn Fn() + Sync)) -> Result<Outcome> {
        let mut memory = Memory::new(self, job, self.pages / u64::from(self.jobs))?;
        memory.write(|_| true);
        if job == 0 {
            filled();
        }
        if let Some(path) = &self.wait_for {
            while !path.exists() {
                sleep(Duration::from_millis(50));
            }
        }
        memory.verify(Order::Forward);
        for pass in 1..=self.passes {
            memory.next_pass();
            memory.verify(match pass % 3 {
                1 => Order::Shuffled,
                2 => Order::Backward,
                _ => Order::Forward,
            });
        }
        Ok(memory.outcome)
    }
}

#[derive(Clone, Copy)]
enum Order {
    Forward,
    Backward,
    Shuffled,
}

impl Order {
    fn place(self, step: u64, pages: u64) -> u64 {
        match self {
            Self::Forward => step,
            Self::Backward => pages - 1 - step,
            Self::Shuffled => {
                let runs = pages / RUN;
                if step >= runs * RUN {
                    return step;
                }
                // A prime above any number of runs steps through all of them.
                (step / RUN * 1_000_000_007 + 17) % runs * RUN + step % RUN
            }
        }
    }
}

struct Memory {
    map: MmapMut,
    job: u32,
    seed: u64,
    pass: u32,
    outcome: Outcome,
}

impl Memory {
    fn new(anon: &Anon, job: u32, pages: u64) -> Result<Self> {
        let map = MmapMut::map_anon(usize::try_from(pages)? * PAGE_SIZE)?;
        if anon.huge {
            map.advise(Advice::HugePage)?;
        }
        Ok(Self {
            map,
            job,
            seed: anon.seed,
            pass: 0,
            outcome: Outcome {
                pages,
                ..Outcome::default()
            },
        })
    }

    fn tag(&self, page: u64) -> Tag {
        let rewritten = (1..=self.pass).filter(|&pass| page % REWRITTEN == turn(pass));
        Tag {
            seed: self.seed,
            owner: self.job,
            page,
            generation: 1 + u32::try_from(rewritten.count()).unwrap_or(0),
        }
    }

    fn slot(&mut self, page: u64) -> &mut [u8] {
        let start = usize::try_from(page).unwrap_or(0) * PAGE_SIZE;
        &mut self.map[start..start + PAGE_SIZE]
    }

    fn write(&mut self, which: impl Fn(u64) -> bool) {
        for page in (0..self.outcome.pages).filter(|&page| which(page)) {
            let tag = self.tag(page);
            tag.fill(self.slot(page));
        }
    }

    fn next_pass(&mut self) {
        self.pass += 1;
        let turn = turn(self.pass);
        self.write(|page| page % REWRITTEN == turn);
    }

    fn verify(&mut self, order: Order) {
        let pages = self.outcome.pages;
        for step in 0..pages {
            let page = order.place(step, pages);
            let tag = self.tag(page);
            let found = tag.diagnose(self.slot(page));
            self.outcome.compared += 1;
            if found != Found::Right {
                let place = format!("memory of job {}", self.job);
                self.outcome.findings.add(|| Finding {
                    place,
                    offset: page * PAGE_SIZE as u64,
                    expected: tag.to_string(),
                    found: found.to_string(),
                    history: Vec::new(),
                });
            }
        }
    }
}

fn turn(pass: u32) -> u64 {
    u64::from(pass) % REWRITTEN
}

#[cfg(test)]
mod tests {
    use super::*;

    fn anon() -> Anon {
        Anon {
            pages: 100,
            passes: 4,
            jobs: 2,
            seed: 5,
            huge: false,
            wait_for: None,
        }
    }

    #[test]
    fn memory_keeps_what_was_written() {
        let outcome = anon().run(&|| {}).unwrap();
        assert!(outcome.findings.is_empty());
        assert_eq!(outcome.pages, 100);
        assert_eq!(outcome.compared, 500);
    }

    #[test]
    fn every_order_reaches_every_page() {
        for order in [Order::Forward, Order::Backward, Order::Shuffled] {
            let mut places: Vec<_> = (0..100).map(|step| order.place(step, 100)).collect();
            places.sort_unstable();
            assert_eq!(places, (0..100).collect::<Vec<_>>());
        }
    }

    #[test]
    fn pages_that_got_lost_stale_or_swapped_are_named() {
        let mut memory = Memory::new(&anon(), 0, 50).unwrap();
        memory.write(|_| true);
        memory.slot(1).fill(0);
        let other = memory.slot(3).to_vec();
        memory.slot(2).copy_from_slice(&other);
        let old = memory.slot(4).to_vec();
        memory.pass = 1;
        memory.write(|page| page % REWRITTEN == 1);
        memory.slot(1).fill(0);
        memory.slot(4).copy_from_slice(&old);
        memory.verify(Order::Forward);
        let found: Vec<_> = memory
            .outcome
            .findings
            .findings
            .iter()
            .map(|finding| (finding.offset / 4096, finding.found.as_str()))
            .collect();
        assert_eq!(
            found,
            [
                (1, "a zero page"),
                (2, "another page: page 3 of 0, generation 1, seed 5"),
                (4, "generation 1 of it"),
            ]
        );
    }
}
