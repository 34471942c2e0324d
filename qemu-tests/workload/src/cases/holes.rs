// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Cases in which pages are read and evicted while a hole is made where they are.
//!
//! A filesystem may let readers in between the moment when it drops the pages of the hole and the
//! one when the blocks go. A page that is read and evicted there is of what is no more. Two
//! real-time threads make these moments frequent, all on one CPU: the reader interrupts whoever
//! makes the hole, and the keeper uses the CPU up while the reader waits for the disk.

use std::{
    fs::File,
    os::unix::fs::FileExt,
    sync::{
        atomic::{AtomicBool, Ordering},
        mpsc::{channel, Receiver, Sender},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{anyhow, Result};

use super::scene::Scene;
use crate::{
    evict::{evict, Eviction},
    sys::{cpus, real_time, run_on},
    tracked::{Done, Tracked},
};

/// Bytes of the hole.
const HOLE: usize = 4 * 4096;

/// Holes that are made; fewer where nothing is to be hit.
const ROUNDS: usize = if cfg!(test) { 10 } else { 200 };

/// How long the keeper keeps the CPU at most, should the disk be slow.
const KEEP: Duration = Duration::from_millis(20);

/// F8: a hole is made under a reader.
pub(super) fn punch(scene: &mut Scene) -> Result<()> {
    race(scene, |file| file.punch(0, HOLE))
}

/// F8: zeros are made under a reader.
pub(super) fn zero_range(scene: &mut Scene) -> Result<()> {
    race(scene, |file| file.zero(0, HOLE))
}

/// F8: the file is cut, and made as long as before, under a reader.
pub(super) fn truncate(scene: &mut Scene) -> Result<()> {
    race(scene, |file| {
        let len = file.len();
        file.truncate(0)?;
        file.truncate(len)?;
        Ok(Done::Yes)
    })
}

fn race(scene: &mut Scene, change: impl Fn(&mut Tracked) -> Result<Done>) -> Result<()> {
    let all = cpus()?;
    let file = File::open(scene.victim.path())?;
    let (stop, reading) = (AtomicBool::new(false), AtomicBool::new(false));
    let (begun, begins) = channel();
    let outcome = thread::scope(|scope| {
        let threads = [
            scope.spawn(|| keep(&all[..1], begins, &reading)),
            scope.spawn(|| read(&file, &all[..1], begun, &reading, &stop)),
        ];
        let outcome = run_on(&all[..1])
            .map_err(Into::into)
            .and_then(|()| (0..ROUNDS).try_for_each(|_| round(scene, &change)));
        stop.store(true, Ordering::Relaxed);
        for thread in threads {
            thread.join().map_err(|_| anyhow!("a racer panicked"))??;
        }
        outcome
    });
    run_on(&all)?;
    outcome
}

fn round(scene: &mut Scene, change: &impl Fn(&mut Tracked) -> Result<Done>) -> Result<()> {
    scene.victim.write_buffered(0, HOLE)?;
    scene.victim.file().sync_data()?;
    let done = change(&mut scene.victim)?;
    scene.outcome(done);
    scene.load(HOLE)
}

/// Reads and evicts the pages of the hole, again and again.
fn read(
    file: &File,
    cpus: &[usize],
    begun: Sender<()>,
    reading: &AtomicBool,
    stop: &AtomicBool,
) -> Result<()> {
    run_on(cpus)?;
    real_time(10);
    let mut rng = fastrand::Rng::with_seed(8);
    let mut bytes = vec![0; HOLE];
    while !stop.load(Ordering::Relaxed) {
        // So that it begins at any moment of what the others do.
        thread::sleep(Duration::from_micros(rng.u64(300..1800)));
        reading.store(true, Ordering::Relaxed);
        begun.send(())?;
        let _ = file.read_at(&mut bytes, 0)?;
        evict(file, Eviction::AdviseDirty, 0, HOLE as u64)?;
        reading.store(false, Ordering::Relaxed);
    }
    Ok(())
}

/// Keeps the CPU busy for as long as the reader reads.
fn keep(cpus: &[usize], begins: Receiver<()>, reading: &AtomicBool) -> Result<()> {
    run_on(cpus)?;
    real_time(5);
    while begins.recv().is_ok() {
        let start = Instant::now();
        while reading.load(Ordering::Relaxed) && start.elapsed() < KEEP {
            std::hint::spin_loop();
        }
    }
    Ok(())
}
