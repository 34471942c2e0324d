// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Ways to write.

use std::{io, os::unix::fs::FileExt};

use anyhow::{Context, Result};
use rustix::fs::OFlags;

use super::{Done, Tracked};
use crate::sys::{write_direct_async, Aligned, Mapping};

/// Bytes in each of the writes that are under way together.
const PIECE: usize = 8192;

impl Tracked {
    /// Writes through the page cache.
    pub fn write_buffered(&mut self, offset: usize, len: usize) -> Result<()> {
        self.note(format!("write {offset}+{len}"));
        let bytes = self.fresh(offset, len);
        self.file.write_all_at(&bytes, offset as u64)?;
        self.patch(offset, &bytes);
        Ok(())
    }

    /// Writes through memory; what would be beyond the file's end is left out.
    pub fn write_mapped(&mut self, offset: usize, len: usize, sync: bool) -> Result<()> {
        let len = len.min(self.len().saturating_sub(offset));
        if len == 0 {
            return Ok(());
        }
        self.note(format!("mmap write {offset}+{len}, msync {sync}"));
        let bytes = self.fresh(offset, len);
        let mut mapping = Mapping::new(&self.file, self.len())?;
        mapping.write(offset, &bytes);
        if sync {
            mapping.sync()?;
        }
        self.patch(offset, &bytes);
        Ok(())
    }

    /// Writes past the page cache, where the disk's block size permits.
    pub fn write_direct(&mut self, offset: usize, len: usize) -> Result<Done> {
        self.note(format!("direct write {offset}+{len}"));
        let bytes = Aligned::copy_of(&self.fresh(offset, len));
        let file = self.reopen(OFlags::DIRECT)?;
        match file.write_all_at(&bytes, offset as u64) {
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(Done::Unsupported),
            outcome => {
                outcome.context("direct write")?;
                self.patch(offset, &bytes);
                Ok(Done::Yes)
            }
        }
    }

    /// Writes past the page cache, in pieces that are all under way at the same time.
    pub fn write_direct_async(&mut self, offset: usize, len: usize) -> Result<()> {
        self.note(format!("asynchronous direct write {offset}+{len}"));
        let bytes = self.fresh(offset, len);
        let pieces: Vec<_> = bytes
            .chunks(PIECE)
            .zip((offset as u64..).step_by(PIECE))
            .map(|(piece, offset)| (offset, Aligned::copy_of(piece)))
            .collect();
        write_direct_async(&self.reopen(OFlags::DIRECT)?, &pieces)
            .context("asynchronous direct write")?;
        self.patch(offset, &bytes);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        report::Findings,
        tracked::{Generations, Reading},
    };

    #[test]
    fn each_way_leads_into_the_file() {
        let dir = tempfile::tempdir_in(".").unwrap();
        let mut file = Tracked::create(&dir.path().join("f"), 1, &Generations::default()).unwrap();
        file.write_buffered(0, 100_000).unwrap();
        file.write_buffered(150_001, 33).unwrap();
        file.write_mapped(77_777, 9_999, true).unwrap();
        file.write_direct(8192, 12_288).unwrap();
        file.write_direct_async(131_072, 65_536).unwrap();
        let mut findings = Findings::default();
        for reading in Reading::ALL {
            file.verify_all(reading, &mut findings).unwrap();
        }
        assert!(findings.is_empty(), "{findings:?}");
        assert_eq!(std::fs::read(file.path()).unwrap(), file.model());
    }
}
