// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Sets of files with content that is known without being remembered.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use serde::Serialize;

use crate::{
    page::{Found, Tag, PAGE_SIZE},
    report::{Finding, Findings},
};

/// Pages that are read or written with one call.
const CHUNK_PAGES: u64 = 32;

/// A set of files in a folder.
#[derive(Clone, Debug)]
pub struct FileSet {
    /// The folder.
    pub dir: PathBuf,
    /// The number of files.
    pub files: u32,
    /// Pages in all of them together.
    pub pages: u64,
    /// What their content depends on.
    pub seed: u64,
    /// Which writing of them is meant.
    pub generation: u32,
}

/// What a verification found.
#[derive(Debug, Default, Serialize)]
pub struct Verified {
    /// Pages read.
    pub pages: u64,
    /// Pages that are not as expected.
    #[serde(flatten)]
    pub findings: Findings,
}

impl FileSet {
    fn path(&self, file: u32) -> PathBuf {
        self.dir.join(format!("set-{file:05}"))
    }

    fn pages_of(&self, file: u32) -> u64 {
        let (files, file) = (u64::from(self.files), u64::from(file));
        self.pages / files + u64::from(file < self.pages % files)
    }

    fn tag(&self, file: u32, page: u64) -> Tag {
        Tag {
            seed: self.seed,
            owner: file,
            page,
            generation: self.generation,
        }
    }

    /// Writes all files anew and waits until they are on the disk.
    pub fn create(&self) -> Result<()> {
        fs::create_dir_all(&self.dir)?;
        for number in 0..self.files {
            let path = self.path(number);
            let file = File::create(&path).with_context(|| path.display().to_string())?;
            for (first, count) in self.chunks(number) {
                let mut bytes = buffer(count);
                for (page, place) in (first..).zip(bytes.chunks_exact_mut(PAGE_SIZE)) {
                    self.tag(number, page).fill(place);
                }
                file.write_all_at(&bytes, first * PAGE_SIZE as u64)?;
            }
            file.sync_all()?;
        }
        Ok(())
    }

    /// Reads all files, in order, and compares every page.
    pub fn verify(&self) -> Result<Verified> {
        let mut verified = Verified::default();
        for number in 0..self.files {
            let path = self.path(number);
            let file = self.open(number)?;
            for (first, count) in self.chunks(number) {
                let mut bytes = buffer(count);
                let offset = first * PAGE_SIZE as u64;
                file.read_exact_at(&mut bytes, offset)
                    .with_context(|| format!("{} at {offset}", path.display()))?;
                self.compare(&mut verified, &path, number, first, &bytes);
            }
        }
        Ok(verified)
    }

    /// Reads all files, in order, and looks at nothing.
    pub fn read(&self) -> Result<()> {
        for number in 0..self.files {
            let file = self.open(number)?;
            let mut bytes = buffer(CHUNK_PAGES);
            for (first, count) in self.chunks(number) {
                let bytes = &mut bytes[..usize::try_from(count)? * PAGE_SIZE];
                file.read_exact_at(bytes, first * PAGE_SIZE as u64)?;
            }
        }
        Ok(())
    }

    /// Reads pieces of `each` pages, by their numbers in the whole set, and looks at nothing.
    pub fn read_pieces(&self, pieces: &[u64], each: u64) -> Result<()> {
        let files: Vec<File> = (0..self.files)
            .map(|number| self.open(number))
            .collect::<Result<_>>()?;
        let mut bytes = buffer(each);
        let size = each * PAGE_SIZE as u64;
        for &piece in pieces {
            // One after the other the files have the pieces, dealt out like cards.
            let (file, place) = (piece % u64::from(self.files), piece / u64::from(self.files));
            files[usize::try_from(file)?].read_exact_at(&mut bytes, place * size)?;
        }
        Ok(())
    }

    fn open(&self, number: u32) -> Result<File> {
        let path = self.path(number);
        File::open(&path).with_context(|| path.display().to_string())
    }

    fn compare(&self, to: &mut Verified, path: &Path, number: u32, first: u64, bytes: &[u8]) {
        for (page, bytes) in (first..).zip(bytes.chunks_exact(PAGE_SIZE)) {
            to.pages += 1;
            let tag = self.tag(number, page);
            let found = tag.diagnose(bytes);
            if found != Found::Right {
                to.findings.add(|| Finding {
                    place: path.display().to_string(),
                    offset: page * PAGE_SIZE as u64,
                    expected: tag.to_string(),
                    found: found.to_string(),
                    history: Vec::new(),
                });
            }
        }
    }

    fn chunks(&self, file: u32) -> impl Iterator<Item = (u64, u64)> {
        let pages = self.pages_of(file);
        (0..pages.div_ceil(CHUNK_PAGES)).map(move |chunk| {
            let first = chunk * CHUNK_PAGES;
            (first, CHUNK_PAGES.min(pages - first))
        })
    }
}

fn buffer(pages: u64) -> Vec<u8> {
    vec![0; usize::try_from(pages).unwrap_or(0) * PAGE_SIZE]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(dir: &Path, generation: u32) -> FileSet {
        FileSet {
            dir: dir.into(),
            files: 3,
            pages: 100,
            seed: 1,
            generation,
        }
    }

    #[test]
    fn what_was_created_is_verified() {
        let dir = tempfile::tempdir().unwrap();
        let set = set(dir.path(), 1);
        set.create().unwrap();
        let verified = set.verify().unwrap();
        assert_eq!(verified.pages, 100);
        assert!(verified.findings.is_empty());
    }

    #[test]
    fn one_stale_page_is_found_and_named() {
        let dir = tempfile::tempdir().unwrap();
        let (old, new) = (set(dir.path(), 1), set(dir.path(), 2));
        new.create().unwrap();
        let mut page = vec![0; PAGE_SIZE];
        old.tag(1, 20).fill(&mut page);
        let file = File::options().write(true).open(new.path(1)).unwrap();
        file.write_all_at(&page, 20 * 4096).unwrap();
        let findings = new.verify().unwrap().findings;
        assert_eq!(findings.wrong, 1);
        assert_eq!(findings.findings[0].offset, 20 * 4096);
        assert_eq!(findings.findings[0].found, "generation 1 of it");
    }

    #[test]
    fn a_page_of_another_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let set = set(dir.path(), 1);
        set.create().unwrap();
        fs::copy(set.path(0), set.path(1)).unwrap();
        let findings = set.verify().unwrap().findings;
        assert_eq!(findings.wrong, 33);
        assert!(findings.findings[0].found.contains("page 0 of 0"));
    }

    #[test]
    fn every_piece_can_be_read_by_its_number() {
        let dir = tempfile::tempdir().unwrap();
        let set = set(dir.path(), 1);
        set.create().unwrap();
        set.read_pieces(&(0..100).rev().collect::<Vec<_>>(), 1)
            .unwrap();
        set.read_pieces(&[0, 23], 4).unwrap();
        assert!(set.read_pieces(&[102], 1).is_err());
        assert!(set.read_pieces(&[25], 4).is_err());
    }

    #[test]
    fn a_file_cut_short_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let set = set(dir.path(), 1);
        set.create().unwrap();
        let file = File::options().write(true).open(set.path(2)).unwrap();
        file.set_len(4096).unwrap();
        assert!(set.verify().is_err());
        assert!(set.read().is_err());
    }
}
