// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Pages as real ones are, out of files of the system: compressors shall find what they would find.

use std::{fs::File, os::unix::fs::FileExt, path::Path};

use anyhow::{ensure, Context, Result};
use rustix::fs::{fadvise, Advice};

use crate::page::PAGE_SIZE;

/// Set in the first word of every page, lest one be zero.
const STAMP: u64 = 1 << 63;

/// Files that pages are taken from.
pub struct Corpus {
    files: Vec<(File, u64)>,
    pages: u64,
}

impl Corpus {
    /// The whole pages of some files.
    pub fn open(paths: &[impl AsRef<Path>]) -> Result<Self> {
        let mut corpus = Self {
            files: Vec::new(),
            pages: 0,
        };
        for path in paths {
            let path = path.as_ref();
            let file = File::open(path).with_context(|| path.display().to_string())?;
            let pages = file.metadata()?.len() / PAGE_SIZE as u64;
            corpus.pages += pages;
            corpus.files.push((file, pages));
        }
        ensure!(corpus.pages > 0, "the corpus has not one page");
        Ok(corpus)
    }

    /// Writes page `number` into `page`: real content after a first word that tells the number.
    pub fn fill(&self, number: u64, page: &mut [u8]) -> Result<()> {
        // A step that has no factor in common with most sizes, so that kinds of content mix.
        let mut place = number.wrapping_mul(7919) % self.pages;
        for (file, pages) in &self.files {
            if place < *pages {
                file.read_exact_at(page, place * PAGE_SIZE as u64)?;
                break;
            }
            place -= pages;
        }
        page[..8].copy_from_slice(&(number | STAMP).to_le_bytes());
        Ok(())
    }

    /// Whether `page` begins as page `number` does.
    pub fn is(number: u64, page: &[u8]) -> bool {
        page.first_chunk() == Some(&(number | STAMP).to_le_bytes())
    }

    /// Lets the files' pages go from memory.
    pub fn forget(&self) -> Result<()> {
        for (file, _) in &self.files {
            fadvise(file, 0, None, Advice::DontNeed)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_tell_their_numbers() {
        let corpus = Corpus::open(&[std::env::current_exe().unwrap()]).unwrap();
        let mut page = vec![0; PAGE_SIZE];
        for number in [0, 1, 1 << 40] {
            corpus.fill(number, &mut page).unwrap();
            assert!(Corpus::is(number, &page));
            assert!(!Corpus::is(number + 1, &page));
        }
    }

    #[test]
    fn a_corpus_without_a_page_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(4095).unwrap();
        assert!(Corpus::open(&[file.path()]).is_err());
    }
}
