// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Ways to change what a file has without writing to it.

use anyhow::Result;
use rustix::fs::{fallocate, ftruncate, ioctl_ficlone, FallocateFlags};

use super::{done, Done, Tracked};

impl Tracked {
    /// Makes the file shorter, or longer with zeros.
    pub fn truncate(&mut self, len: usize) -> Result<()> {
        self.note(format!("truncate {} to {len}", self.len()));
        ftruncate(&self.file, len as u64)?;
        self.model.resize(len, 0);
        Ok(())
    }

    /// Makes a hole; the length stays.
    pub fn punch(&mut self, offset: usize, len: usize) -> Result<Done> {
        self.note(format!("punch {offset}+{len}"));
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let outcome = self.fallocate(flags, offset, len)?;
        self.clear(outcome, offset, len);
        Ok(outcome)
    }

    /// Makes zeros; the length stays.
    pub fn zero(&mut self, offset: usize, len: usize) -> Result<Done> {
        self.note(format!("zero {offset}+{len}"));
        let flags = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
        let outcome = self.fallocate(flags, offset, len)?;
        self.clear(outcome, offset, len);
        Ok(outcome)
    }

    /// Takes a range out; what follows moves down.
    pub fn collapse(&mut self, offset: usize, len: usize) -> Result<Done> {
        self.note(format!("collapse {offset}+{len}"));
        let outcome = self.fallocate(FallocateFlags::COLLAPSE_RANGE, offset, len)?;
        if outcome == Done::Yes {
            self.model.drain(offset..offset + len);
        }
        Ok(outcome)
    }

    /// Puts zeros in between; what follows moves up.
    pub fn insert(&mut self, offset: usize, len: usize) -> Result<Done> {
        self.note(format!("insert {offset}+{len}"));
        let outcome = self.fallocate(FallocateFlags::INSERT_RANGE, offset, len)?;
        if outcome == Done::Yes {
            self.model
                .splice(offset..offset, std::iter::repeat_n(0, len));
        }
        Ok(outcome)
    }

    /// Reserves blocks; the file grows to hold them.
    pub fn allocate(&mut self, offset: usize, len: usize) -> Result<Done> {
        self.note(format!("allocate {offset}+{len}"));
        let outcome = self.fallocate(FallocateFlags::empty(), offset, len)?;
        if outcome == Done::Yes && self.model.len() < offset + len {
            self.model.resize(offset + len, 0);
        }
        Ok(outcome)
    }

    /// Makes the file's blocks those of `source`.
    pub fn clone_from_file(&mut self, source: &Self) -> Result<Done> {
        self.note(format!("clone of {}", source.path.display()));
        let outcome = done(ioctl_ficlone(&self.file, &source.file))?;
        if outcome == Done::Yes {
            // The clone of a shorter file keeps what lies beyond.
            if self.model.len() < source.model.len() {
                self.model.resize(source.model.len(), 0);
            }
            self.model[..source.model.len()].copy_from_slice(&source.model);
        }
        Ok(outcome)
    }

    fn fallocate(&self, flags: FallocateFlags, offset: usize, len: usize) -> Result<Done> {
        done(fallocate(&self.file, flags, offset as u64, len as u64))
    }

    fn clear(&mut self, outcome: Done, offset: usize, len: usize) {
        if outcome == Done::Yes {
            let end = (offset + len).min(self.model.len());
            if let Some(range) = self.model.get_mut(offset..end) {
                range.fill(0);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tracked::Generations;

    #[test]
    fn the_model_follows() {
        let dir = tempfile::tempdir_in(".").unwrap();
        let mut file = Tracked::create(&dir.path().join("f"), 1, &Generations::default()).unwrap();
        file.write_buffered(0, 65_536).unwrap();
        file.truncate(50_001).unwrap();
        file.truncate(60_000).unwrap();
        file.punch(5000, 10_000).unwrap();
        file.zero(55_000, 20_000).unwrap();
        file.collapse(4096, 8192).unwrap();
        file.insert(8192, 4096).unwrap();
        file.allocate(60_000, 10_000).unwrap();
        assert_eq!(std::fs::read(file.path()).unwrap(), file.model());
    }

    #[test]
    fn clones_are_followed_or_unsupported() {
        let dir = tempfile::tempdir_in(".").unwrap();
        let mut from = Tracked::create(&dir.path().join("a"), 1, &Generations::default()).unwrap();
        let mut to = Tracked::create(&dir.path().join("b"), 2, &Generations::default()).unwrap();
        from.write_buffered(0, 8192).unwrap();
        to.write_buffered(0, 16_384).unwrap();
        to.clone_from_file(&from).unwrap();
        assert_eq!(std::fs::read(to.path()).unwrap(), to.model());
    }
}
