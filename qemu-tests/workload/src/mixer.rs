// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Random operations on files, each followed by a read that must see it.
//!
//! Every thread has two files of its own, which it alone changes and of which it keeps a model.
//! Racers read and evict pages of all files all the while, and so make the moments in which a
//! page leaves memory, or comes back, as many as possible.

mod operation;
mod race;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{anyhow, Context, Result};
use fastrand::Rng;
use serde::Serialize;

use crate::{
    evict::{evict, Eviction},
    report::Findings,
    tracked::{Generations, Reading, Tracked},
};

use operation::Files;

/// What is to be done.
#[derive(Clone, Debug)]
pub struct Mixer {
    /// The folder for the files.
    pub dir: PathBuf,
    /// What decides on the operations.
    pub seed: u64,
    /// Operations for each thread.
    pub ops: u64,
    /// The time after which no further operation begins.
    pub limit: Duration,
    /// The file that says, by being there, that no further operation shall begin.
    pub until: Option<PathBuf>,
    /// Threads that change files.
    pub threads: u8,
    /// Threads that only read and evict.
    pub racers: u8,
    /// Bytes that a file has at most.
    pub max_len: usize,
    /// Write past the page cache, too. A cache may have to leave a file alone from then on.
    pub direct: bool,
}

/// What was done and found.
#[derive(Debug, Default, Serialize)]
pub struct Outcome {
    /// Operations carried out.
    pub ops: u64,
    /// Operations that the filesystem does not have.
    pub unsupported: u64,
    /// Pages that were evicted on purpose, counted each time.
    pub evictions: u64,
    /// What was not as expected.
    #[serde(flatten)]
    pub findings: Findings,
}

impl Mixer {
    /// Does it; `after` is called after each operation, before the read that has to see it.
    pub fn run(&self, after: &(dyn Fn(&Tracked) + Sync)) -> Result<Outcome> {
        let start = Instant::now();
        let stop = AtomicBool::new(false);
        let generations = Generations::default();
        let mut all = Outcome::default();
        thread::scope(|scope| {
            for racer in 0..self.racers {
                let stop = &stop;
                let seed = self.seed ^ (u64::from(racer) << 32);
                scope.spawn(move || race::run(&self.dir, seed, self.max_len, stop));
            }
            let threads: Vec<_> = (0..self.threads)
                .map(|number| {
                    let worker = Worker::new(self, number, &generations);
                    scope.spawn(move || worker?.run(self, start, after))
                })
                .collect();
            let joined: Vec<_> = threads.into_iter().map(|thread| thread.join()).collect();
            stop.store(true, Ordering::Relaxed);
            for outcome in joined {
                let outcome = outcome.map_err(|_| anyhow!("a thread panicked"))??;
                all.ops += outcome.ops;
                all.unsupported += outcome.unsupported;
                all.evictions += outcome.evictions;
                all.findings.merge(outcome.findings);
            }
            Ok(all)
        })
    }
}

struct Worker {
    files: Files,
    rng: Rng,
    outcome: Outcome,
}

impl Worker {
    fn new(mixer: &Mixer, number: u8, generations: &Generations) -> Result<Self> {
        let dir = mixer.dir.join(format!("thread-{number}"));
        fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
        Ok(Self {
            files: Files::create(&dir, number, generations, mixer)?,
            rng: Rng::with_seed(mixer.seed.wrapping_add(u64::from(number))),
            outcome: Outcome::default(),
        })
    }

    fn run(
        mut self,
        mixer: &Mixer,
        start: Instant,
        after: &(dyn Fn(&Tracked) + Sync),
    ) -> Result<Outcome> {
        let told_to_stop = || mixer.until.as_ref().is_some_and(|path| path.exists());
        while self.outcome.ops < mixer.ops && start.elapsed() < mixer.limit && !told_to_stop() {
            self.step(after)?;
            // One mistake shows up in every later read; the first ones tell the most.
            if self.outcome.findings.wrong > 4 {
                break;
            }
        }
        for file in self.files.iter() {
            file.verify_all(Reading::Buffered, &mut self.outcome.findings)?;
            file.verify_all(Reading::Direct, &mut self.outcome.findings)?;
        }
        Ok(self.outcome)
    }

    fn step(&mut self, after: &(dyn Fn(&Tracked) + Sync)) -> Result<()> {
        let choice = self.rng.bool();
        if self.rng.u8(0..4) == 0 {
            self.evict(choice)?;
        }
        let done = self.files.operate(choice, &mut self.rng)?;
        self.outcome.ops += 1;
        self.outcome.unsupported += u64::from(done == crate::tracked::Done::Unsupported);
        after(self.files.get(choice));
        if self.rng.u8(0..4) != 0 {
            self.evict(choice)?;
        }
        self.verify(choice)
    }

    fn evict(&mut self, choice: bool) -> Result<()> {
        let how = match self.rng.u8(0..32) {
            0..=15 => Eviction::Advise,
            16..=23 => Eviction::AdviseDirty,
            24..=29 => Eviction::PageOut,
            30 => Eviction::Reclaim,
            _ => Eviction::DropCaches,
        };
        let file = self.files.get_mut(choice);
        file.note(format!("{how:?}"));
        evict(file.file(), how, 0, file.len() as u64)?;
        self.outcome.evictions += (file.len() / 4096) as u64;
        Ok(())
    }

    fn verify(&mut self, choice: bool) -> Result<()> {
        let file = self.files.get(choice);
        let findings = &mut self.outcome.findings;
        let how = Reading::ALL[self.rng.usize(0..8) / 3];
        if self.rng.u8(0..4) == 0 {
            return file.verify_all(how, findings);
        }
        let start = self.rng.usize(0..file.len().max(1));
        file.verify(start..start + self.rng.usize(1..131_072), how, findings)
    }
}

fn path_of(dir: &Path, second: bool) -> PathBuf {
    dir.join(if second { "b" } else { "a" })
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::FileExt, sync::Mutex};

    use super::*;

    fn mixer(dir: &Path) -> Mixer {
        Mixer {
            dir: dir.into(),
            seed: 11,
            ops: 300,
            limit: Duration::from_secs(60),
            until: None,
            threads: 2,
            racers: 1,
            max_len: 256 << 10,
            direct: true,
        }
    }

    #[test]
    fn a_filesystem_that_keeps_its_word_passes() {
        let dir = tempfile::tempdir_in(".").unwrap();
        let outcome = mixer(dir.path()).run(&|_| {}).unwrap();
        assert!(outcome.findings.is_empty(), "{:#?}", outcome.findings);
        assert_eq!(outcome.ops, 600);
    }

    #[test]
    fn it_stops_when_told() {
        let dir = tempfile::tempdir_in(".").unwrap();
        let mut mixer = mixer(dir.path());
        mixer.until = Some(dir.path().into());
        assert_eq!(mixer.run(&|_| {}).unwrap().ops, 0);
    }

    #[test]
    fn one_page_that_turns_stale_once_is_noticed() {
        let dir = tempfile::tempdir_in(".").unwrap();
        let kept = Mutex::new(None);
        let sabotage = |file: &Tracked| {
            let mut kept = kept.lock().unwrap();
            let Some(page) = file.model().get(4096..8192) else {
                return;
            };
            match kept.take() {
                None => *kept = Some((file.path().to_path_buf(), page.to_vec())),
                Some((path, old)) if path == file.path() && old != page => {
                    file.file().write_all_at(&old, 4096).unwrap();
                    *kept = Some((PathBuf::new(), Vec::new()));
                }
                other => *kept = other,
            }
        };
        let outcome = mixer(dir.path()).run(&sabotage).unwrap();
        assert!(!outcome.findings.is_empty());
        assert_eq!(outcome.findings.findings[0].offset / 4096, 1);
        assert!(!outcome.findings.findings[0].history.is_empty());
    }
}
