// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The choice of an operation.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Result;
use fastrand::Rng;

use super::{path_of, Mixer};
use crate::tracked::{Anonymous, Done, Generations, Tracked};

/// The block size of every filesystem in question divides this.
const BLOCK: usize = 4096;

/// The two files of a thread.
pub(super) struct Files {
    dir: PathBuf,
    numbers: [u8; 2],
    generations: Generations,
    max_len: usize,
    direct: bool,
    files: [Tracked; 2],
}

impl Files {
    /// Creates them in `dir`.
    pub(super) fn create(
        dir: &Path,
        thread: u8,
        generations: &Generations,
        mixer: &Mixer,
    ) -> Result<Self> {
        let numbers = [2 * thread, 2 * thread + 1];
        let create =
            |which: usize| Tracked::create(&path_of(dir, which == 1), numbers[which], generations);
        Ok(Self {
            dir: dir.into(),
            numbers,
            generations: generations.clone(),
            max_len: mixer.max_len,
            direct: mixer.direct,
            files: [create(0)?, create(1)?],
        })
    }

    /// One of them.
    pub(super) fn get(&self, second: bool) -> &Tracked {
        &self.files[usize::from(second)]
    }

    /// One of them.
    pub(super) fn get_mut(&mut self, second: bool) -> &mut Tracked {
        &mut self.files[usize::from(second)]
    }

    /// Both.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Tracked> {
        self.files.iter()
    }

    /// Does something to one of them.
    pub(super) fn operate(&mut self, second: bool, rng: &mut Rng) -> Result<Done> {
        let range = Range::choose(rng, self.max_len);
        let max_len = self.max_len;
        let direct = self.direct;
        let len = self.get(second).len();
        let file = self.get_mut(second);
        match rng.u8(0..40) {
            0..=9 => file.write_buffered(range.start, range.len)?,
            10..=14 => file.write_mapped(range.start, range.len, rng.bool())?,
            15..=17 if direct => {
                let range = range.aligned(if rng.u8(0..4) == 0 { 512 } else { BLOCK });
                return file.write_direct(range.start, range.len);
            }
            18 | 19 if direct => {
                let range = range.aligned(BLOCK);
                file.write_direct_async(range.start, range.len)?;
            }
            20 | 21 => file.truncate(rng.usize(0..=len))?,
            22..=24 => file.truncate(rng.usize(len..=max_len))?,
            25 | 26 => return file.punch(range.start, range.len),
            27 => return file.punch(range.aligned(BLOCK).start, range.aligned(BLOCK).len),
            28 | 29 => return file.zero(range.start, range.len),
            30 => {
                let range = range.aligned(BLOCK);
                if range.start + range.len < len {
                    return file.collapse(range.start, range.len);
                }
            }
            31 => {
                let range = range.aligned(BLOCK);
                if range.start < len && len + range.len <= max_len {
                    return file.insert(range.start, range.len);
                }
            }
            32 | 33 => return file.allocate(range.start, range.len),
            34 | 35 => return self.reflink(second),
            36 => drop(file.recreate()?),
            37 => self.rename_over(second, range)?,
            38 => self.link(second, range)?,
            _ => file.file().sync_all()?,
        }
        Ok(Done::Yes)
    }

    fn reflink(&mut self, second: bool) -> Result<Done> {
        let [a, b] = &mut self.files;
        let (to, from) = if second { (b, a) } else { (a, b) };
        // A clone may end within a block only where the target ends, too.
        if from.len() % BLOCK != 0 && from.len() < to.len() {
            to.truncate(from.len())?;
        }
        to.clone_from_file(from)
    }

    fn rename_over(&mut self, second: bool, range: Range) -> Result<()> {
        let number = self.numbers[usize::from(second)];
        let mut other = Tracked::create(&self.dir.join("other"), number, &self.generations)?;
        other.write_buffered(range.start, range.len)?;
        self.get_mut(second).replace_by(other)?;
        Ok(())
    }

    fn link(&mut self, second: bool, range: Range) -> Result<()> {
        let number = self.numbers[usize::from(second)];
        let mut nameless = Anonymous::create(&self.dir, number, &self.generations)?;
        nameless.file().write_buffered(range.start, range.len)?;
        fs::remove_file(self.get(second).path())?;
        let path = self.get(second).path().to_path_buf();
        *self.get_mut(second) = nameless.link(&path)?;
        Ok(())
    }
}

/// Bytes of a file.
#[derive(Clone, Copy)]
struct Range {
    start: usize,
    len: usize,
}

impl Range {
    fn choose(rng: &mut Rng, max_len: usize) -> Self {
        let start = rng.usize(0..max_len - 1);
        let longest = if rng.u8(0..4) == 0 { 262_144 } else { 16_384 };
        let len = rng.usize(1..=longest.min(max_len - start));
        Self { start, len }
    }

    /// The blocks that it touches.
    fn aligned(self, block: usize) -> Self {
        let start = self.start / block * block;
        let end = (self.start + self.len).next_multiple_of(block);
        Self {
            start,
            len: end - start,
        }
    }
}
