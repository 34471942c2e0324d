// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What all cases have in common.

use std::{
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use anyhow::{ensure, Result};

use super::Outcome;
use crate::{
    evict::evict_all,
    report::Findings,
    tracked::{Done, Generations, Reading, Tracked},
};

/// Bytes in each of a case's files.
pub(super) const LEN: usize = 64 * 4096;

/// Times that a file is evicted and read again before its pages count as kept elsewhere.
///
/// A cache may wait until a page has proved that it is needed again.
const ROUNDS: usize = 2;

/// Two files whose pages are not in memory.
pub(super) struct Scene {
    dir: PathBuf,
    generations: Generations,
    inject: bool,
    before: Vec<u8>,
    supported: bool,
    witness: Tracked,
    findings: Findings,
    /// The file that the case changes.
    pub victim: Tracked,
}

impl Scene {
    /// Makes the files in `dir`.
    pub(super) fn new(dir: &Path, inject: bool) -> Result<Self> {
        let generations = Generations::default();
        let mut scene = Self {
            victim: Tracked::create(&dir.join("victim"), 1, &generations)?,
            witness: Tracked::create(&dir.join("witness"), 2, &generations)?,
            dir: dir.into(),
            generations,
            inject,
            before: Vec::new(),
            supported: true,
            findings: Findings::default(),
        };
        scene.victim.write_buffered(0, LEN)?;
        scene.witness.write_buffered(0, LEN)?;
        park(&mut scene.victim, &mut scene.findings)?;
        park(&mut scene.witness, &mut scene.findings)?;
        scene.before = scene.victim.model().to_vec();
        Ok(scene)
    }

    /// Makes a third file, not in memory either.
    pub(super) fn another(&mut self, name: &str) -> Result<Tracked> {
        let path = self.dir.join(name);
        let mut file = Tracked::create(&path, 3, &self.generations)?;
        file.write_buffered(0, LEN)?;
        park(&mut file, &mut self.findings)?;
        Ok(file)
    }

    /// The folder.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The counter of writes.
    pub(super) fn generations(&self) -> &Generations {
        &self.generations
    }

    /// Reads the victim's first `len` bytes into memory.
    pub(super) fn load(&mut self, len: usize) -> Result<()> {
        self.victim
            .verify(0..len, Reading::Buffered, &mut self.findings)
    }

    /// Compares `file`, whatever is in memory.
    pub(super) fn check(&mut self, file: &Tracked) -> Result<()> {
        file.verify_all(Reading::Buffered, &mut self.findings)
    }

    /// Compares the victim, whatever is in memory.
    pub(super) fn check_victim(&mut self) -> Result<()> {
        self.victim
            .verify_all(Reading::Buffered, &mut self.findings)
    }

    /// Adds findings.
    pub(super) fn merge(&mut self, findings: Findings) {
        self.findings.merge(findings);
    }

    /// Remembers whether the filesystem could do what the case is about.
    pub(super) fn outcome(&mut self, done: Done) {
        self.supported &= done == Done::Yes;
    }

    /// Reads everything back in several ways.
    pub(super) fn finish(mut self, case: &'static str) -> Result<Outcome> {
        if self.inject && self.supported {
            self.put_old_content_back()?;
        }
        self.check_victim()?;
        for reading in [Reading::Buffered, Reading::Mapped, Reading::Direct] {
            evict_all(self.victim.file())?;
            self.victim.verify_all(reading, &mut self.findings)?;
        }
        self.witness
            .verify_all(Reading::Buffered, &mut self.findings)?;
        Ok(Outcome {
            case,
            supported: self.supported,
            witness_pages: self.witness.len() / 4096,
            findings: self.findings,
        })
    }

    fn put_old_content_back(&self) -> Result<()> {
        let model = self.victim.model();
        let pages = model.chunks(4096).zip(self.before.chunks(4096));
        for (page, (new, old)) in pages.enumerate() {
            let common = new.len().min(old.len());
            if new[..common] != old[..common] {
                let offset = page as u64 * 4096;
                self.victim.file().write_all_at(&old[..common], offset)?;
            }
        }
        Ok(())
    }
}

/// Reads and evicts `file` until its pages are where evicted pages go.
pub(super) fn park(file: &mut Tracked, findings: &mut Findings) -> Result<()> {
    for _ in 0..ROUNDS {
        evict_all(file.file())?;
        file.verify_all(Reading::Buffered, findings)?;
    }
    ensure!(evict_all(file.file())?, "the pages stay in memory");
    file.note("evicted");
    Ok(())
}
