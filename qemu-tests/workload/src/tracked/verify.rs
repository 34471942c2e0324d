// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Comparing a file with its model.

use std::{ops::Range, os::unix::fs::FileExt};

use anyhow::{Context, Result};
use rustix::fs::OFlags;

use super::Tracked;
use crate::{
    report::{Finding, Findings},
    sys::{Aligned, Mapping},
    word::Content,
};

/// Ways to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// With `pread`.
    Buffered,
    /// As memory.
    Mapped,
    /// Past the page cache.
    Direct,
}

impl Reading {
    /// Every way.
    pub const ALL: [Self; 3] = [Self::Buffered, Self::Mapped, Self::Direct];
}

impl Tracked {
    /// Compares the whole file, its length included.
    pub fn verify_all(&self, how: Reading, findings: &mut Findings) -> Result<()> {
        let len = self.file.metadata()?.len();
        if len != self.len() as u64 {
            findings.add(|| Finding {
                place: self.path.display().to_string(),
                offset: len,
                expected: format!("a file of {} bytes", self.len()),
                found: format!("one of {len}"),
                history: self.history.iter().cloned().collect(),
            });
            return Ok(());
        }
        self.verify(0..self.len(), how, findings)
    }

    /// Compares the bytes `range`, cut to the file's length.
    pub fn verify(&self, range: Range<usize>, how: Reading, findings: &mut Findings) -> Result<()> {
        let range = range.start / 4096 * 4096..range.end.min(self.len());
        if range.is_empty() {
            return Ok(());
        }
        let bytes = self
            .read(range.clone(), how)
            .with_context(|| format!("{how:?} read of {range:?}"))?;
        self.compare(range.start, &bytes, how, findings);
        Ok(())
    }

    fn read(&self, range: Range<usize>, how: Reading) -> Result<Vec<u8>> {
        let mut bytes = vec![0; range.len()];
        match how {
            Reading::Buffered => self.file.read_exact_at(&mut bytes, range.start as u64)?,
            Reading::Mapped => {
                Mapping::new(&self.file, self.len())?.read(range.start, &mut bytes);
            }
            Reading::Direct => {
                let mut aligned = Aligned::zeroed(range.len().next_multiple_of(4096));
                let file = self.reopen(OFlags::DIRECT)?;
                let mut got = 0;
                while got < range.len() {
                    let count = file.read_at(&mut aligned[got..], (range.start + got) as u64)?;
                    anyhow::ensure!(count > 0, "the file ended early");
                    got += count;
                }
                bytes.copy_from_slice(&aligned[..range.len()]);
            }
        }
        Ok(bytes)
    }

    /// Adds a finding for each page that differs.
    fn compare(&self, start: usize, bytes: &[u8], how: Reading, findings: &mut Findings) {
        let expected = &self.model[start..start + bytes.len()];
        let pages = bytes.chunks(4096).zip(expected.chunks(4096));
        for (page, (bytes, expected)) in pages.enumerate() {
            let Some(at) = bytes.iter().zip(expected).position(|(a, b)| a != b) else {
                continue;
            };
            findings.add(|| Finding {
                place: self.path.display().to_string(),
                offset: (start + page * 4096 + at) as u64,
                expected: Content::at(expected, at).to_string(),
                found: format!("{} ({how:?} read)", Content::at(bytes, at)),
                history: self.history.iter().cloned().collect(),
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tracked::Generations;

    fn file() -> (tempfile::TempDir, Tracked) {
        let dir = tempfile::tempdir_in(".").unwrap();
        let mut file = Tracked::create(&dir.path().join("f"), 1, &Generations::default()).unwrap();
        file.write_buffered(0, 20_000).unwrap();
        (dir, file)
    }

    #[test]
    fn a_stale_page_is_found_in_every_way() {
        let (_dir, mut file) = file();
        let stale = file.model()[4096..8192].to_vec();
        file.write_buffered(0, 20_000).unwrap();
        file.file().write_all_at(&stale, 4096).unwrap();
        for reading in Reading::ALL {
            let mut findings = Findings::default();
            file.verify_all(reading, &mut findings).unwrap();
            assert_eq!(findings.wrong, 1);
            let finding = &findings.findings[0];
            assert_eq!(finding.offset / 4096, 1);
            assert!(finding.expected.starts_with("generation 2"));
            assert!(finding.found.starts_with("generation 1"));
            assert_eq!(finding.history, ["write 0+20000", "write 0+20000"]);
        }
    }

    #[test]
    fn zeros_that_should_be_data_and_data_that_should_be_zeros_are_found() {
        let (_dir, mut file) = file();
        file.file().write_all_at(&[0; 8], 8000).unwrap();
        let bytes = file.model()[12_288..12_300].to_vec();
        file.punch(12_288, 4096).unwrap();
        file.file().write_all_at(&bytes, 12_288).unwrap();
        let mut findings = Findings::default();
        file.verify_all(Reading::Buffered, &mut findings).unwrap();
        assert_eq!(findings.wrong, 2);
        assert!(findings.findings[0].found.starts_with("zeros"));
        assert_eq!(findings.findings[1].expected, "zeros");
    }

    #[test]
    fn a_wrong_length_is_found() {
        let (_dir, file) = file();
        file.file().set_len(19_999).unwrap();
        let mut findings = Findings::default();
        file.verify_all(Reading::Buffered, &mut findings).unwrap();
        assert_eq!(findings.findings[0].expected, "a file of 20000 bytes");
    }
}
