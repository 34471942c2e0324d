// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Anonymous memory, swapped out and in.

use std::fs;

use anyhow::{ensure, Result};
use memmap2::{Advice, MmapMut, UncheckedAdvice};

use super::{Group, Kind, Phases};
use crate::{corpus::Corpus, page::PAGE_SIZE};

/// Says how many pages, as a power of two, are read together.
const CLUSTER: &str = "/proc/sys/vm/page-cluster";

/// What is to be done.
pub struct Swap {
    /// Pages.
    pub pages: u64,
    /// Where their content is from.
    pub corpus: Corpus,
}

impl Swap {
    /// Goes through all phases.
    pub fn run(&self, phases: &Phases) -> Result<()> {
        let group = Group::new()?;
        let mut memory = MmapMut::map_anon(usize::try_from(self.pages)? * PAGE_SIZE)?;
        memory.advise(Advice::NoHugePage)?;
        for (page, number) in memory.chunks_exact_mut(PAGE_SIZE).zip(0..) {
            self.corpus.fill(number, page)?;
        }
        self.corpus.forget()?;
        let out = || group.reclaim(self.pages, Kind::Anon);

        phases.run("swap put", self.pages, out)?;
        fs::write(CLUSTER, "0")?;
        phases.run("swap get", self.pages, || {
            self.touch(&memory, |n, of| (n * 1_000_003 + 17) % of)
        })?;
        out()?;
        fs::write(CLUSTER, "3")?;
        phases.run("swap get readahead", self.pages, || {
            self.touch(&memory, |n, _| n)
        })?;
        out()?;
        phases.run("swap free", self.pages, || {
            // SAFETY: Nothing refers to the memory, whose content is not needed any more.
            Ok(unsafe { memory.unchecked_advise(UncheckedAdvice::DontNeed) }?)
        })
    }

    /// Reads a word of each page, in the order that `place` says.
    fn touch(&self, memory: &[u8], place: impl Fn(u64, u64) -> u64) -> Result<()> {
        for n in 0..self.pages {
            let number = place(n, self.pages);
            let start = usize::try_from(number)? * PAGE_SIZE;
            let right = Corpus::is(number, &memory[start..]);
            ensure!(right, "page {number} is not what it was");
        }
        Ok(())
    }
}
