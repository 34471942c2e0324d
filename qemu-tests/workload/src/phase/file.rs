// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Pages of a file, evicted and read again.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    path::PathBuf,
};

use anyhow::{ensure, Result};
use memmap2::{Advice, Mmap};

use super::{Group, Kind, Phases};
use crate::{corpus::Corpus, page::PAGE_SIZE};

/// Pages that are read with one call.
const CHUNK_PAGES: u64 = 32;

/// What is to be done.
pub struct Files {
    /// The file.
    pub path: PathBuf,
    /// Its pages.
    pub pages: u64,
}

impl Files {
    /// Writes the file, and waits until it is on the disk.
    pub fn create(&self, corpus: &Corpus) -> Result<()> {
        let file = File::create(&self.path)?;
        let mut page = vec![0; PAGE_SIZE];
        for number in 0..self.pages {
            corpus.fill(number, &mut page)?;
            file.write_all_at(&page, number * PAGE_SIZE as u64)?;
        }
        corpus.forget()?;
        Ok(file.sync_all()?)
    }

    /// Goes through all phases, with a file that is not in memory.
    pub fn run(&self, phases: &Phases) -> Result<()> {
        let group = Group::new()?;
        let file = File::options().read(true).write(true).open(&self.path)?;
        phases.run("file first read", self.pages, || self.read(&file))?;
        let out = || group.reclaim(self.pages, Kind::File);
        phases.run("file put", self.pages, out)?;
        phases.run("file get readahead", self.pages, || self.read(&file))?;
        out()?;
        phases.run("file get", self.pages, || self.touch(&file))?;
        phases.run("file dirty", self.pages, || self.overwrite(&file))?;
        file.sync_all()?;
        out()?;
        drop(file);
        phases.run("file remove", self.pages, || {
            Ok(fs::remove_file(&self.path)?)
        })
    }

    /// Reads it from the first page to the last.
    fn read(&self, file: &File) -> Result<()> {
        let mut bytes = vec![0; usize::try_from(CHUNK_PAGES)? * PAGE_SIZE];
        for chunk in 0..self.pages / CHUNK_PAGES {
            let first = chunk * CHUNK_PAGES;
            file.read_exact_at(&mut bytes, first * PAGE_SIZE as u64)?;
            for (page, number) in bytes.chunks_exact(PAGE_SIZE).zip(first..) {
                ensure!(Corpus::is(number, page), "page {number} is not what it was");
            }
        }
        Ok(())
    }

    /// Reads it page by page, in no order, without readahead.
    fn touch(&self, file: &File) -> Result<()> {
        // SAFETY: Nobody changes the file meanwhile.
        let memory = unsafe { Mmap::map(file) }?;
        memory.advise(Advice::Random)?;
        for n in 0..self.pages {
            let number = (n * 1_000_003 + 17) % self.pages;
            let page = &memory[usize::try_from(number)? * PAGE_SIZE..];
            ensure!(Corpus::is(number, page), "page {number} is not what it was");
        }
        Ok(())
    }

    /// Writes a few bytes to each page.
    fn overwrite(&self, file: &File) -> Result<()> {
        for number in 0..self.pages {
            file.write_all_at(b"dirt", number * PAGE_SIZE as u64 + 2048)?;
        }
        Ok(())
    }
}
