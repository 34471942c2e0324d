// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Cases that write into the file.

use std::{
    fs::File,
    os::unix::fs::FileExt,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use anyhow::{anyhow, Result};

use super::scene::{Scene, LEN};
use crate::evict::{evict, Eviction};

/// Rounds of the case that has to hit a race.
const RACES: usize = 40;

/// R1: whole pages are overwritten, half of them while they are in memory.
pub(super) fn buffered(scene: &mut Scene) -> Result<()> {
    scene.load(LEN / 2)?;
    scene.victim.write_buffered(0, LEN)
}

/// R1: a few bytes of each page are overwritten, which makes the kernel read the page first.
pub(super) fn part(scene: &mut Scene) -> Result<()> {
    for page in (0..LEN).step_by(4096) {
        scene.victim.write_buffered(page + 1000, 99)?;
        if page % 8192 == 0 {
            evict(scene.victim.file(), Eviction::Advise, page as u64, 4096)?;
            scene.check_victim()?;
        }
    }
    Ok(())
}

/// R1, F3: pages are overwritten as memory.
pub(super) fn mapped(scene: &mut Scene) -> Result<()> {
    scene.victim.write_mapped(100, LEN / 2, true)?;
    scene.victim.write_mapped(LEN / 2 + 8192, 10_000, false)
}

/// R8, R9: the disk is overwritten while no page is in memory, and while some are.
pub(super) fn direct(scene: &mut Scene) -> Result<()> {
    let outcome = scene.victim.write_direct(0, LEN / 4)?;
    scene.outcome(outcome);
    scene.check_victim()?;
    let outcome = scene.victim.write_direct(LEN / 2, LEN / 4)?;
    scene.outcome(outcome);
    Ok(())
}

/// F4: the disk is overwritten asynchronously while the pages are read and evicted.
pub(super) fn direct_async(scene: &mut Scene) -> Result<()> {
    let stop = AtomicBool::new(false);
    let file = File::open(scene.victim.path())?;
    thread::scope(|scope| {
        let racer = scope.spawn(|| race(&file, &stop));
        let outcome = (0..RACES).try_for_each(|_| {
            scene.victim.write_direct_async(0, LEN)?;
            scene.check_victim()
        });
        stop.store(true, Ordering::Relaxed);
        racer.join().map_err(|_| anyhow!("the racer panicked"))??;
        outcome
    })
}

fn race(file: &File, stop: &AtomicBool) -> Result<()> {
    let mut rng = fastrand::Rng::with_seed(4);
    let mut bytes = vec![0; 16 * 4096];
    while !stop.load(Ordering::Relaxed) {
        let page = rng.u64(0..(LEN / 4096) as u64);
        let _ = file.read_at(&mut bytes, page * 4096)?;
        evict(file, Eviction::AdviseDirty, page * 4096, bytes.len() as u64)?;
    }
    Ok(())
}
