// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! F3: a page of which only a block was ever in memory.
//!
//! Where blocks are smaller than pages, a write of one block leaves the others out of memory. If
//! reclaim then takes the page's buffers but not the page, nothing of the page any longer says
//! that a part of it is newer than what is kept elsewhere. Reclaim does that when somebody else
//! holds the page: here, another CPU that has the page in its list of pages to be activated.

use std::{fs::File, os::unix::fs::FileExt};

use anyhow::Result;

use super::scene::{Scene, LEN};
use crate::{
    evict::{evict, reclaim, Eviction},
    sys::{cpus, run_on},
};

/// Pages at a time, fewer than a CPU's list takes.
const PAGES: usize = 8;

/// The smallest block of any filesystem.
const BLOCK: usize = 1024;

/// F3: one block of each page is written while the page is not in memory.
pub(super) fn partial_block(scene: &mut Scene) -> Result<()> {
    let all = cpus()?;
    for group in (0..LEN).step_by(PAGES * 4096) {
        run_on(&all[..1])?;
        for page in (group..group + PAGES * 4096).step_by(4096) {
            scene.victim.write_buffered(page + BLOCK, BLOCK)?;
        }
        if group % (2 * PAGES * 4096) == 0 {
            activate(scene, group)?;
        } else {
            let file = scene.victim.file();
            evict(
                file,
                Eviction::AdviseDirty,
                group as u64,
                (PAGES * 4096) as u64,
            )?;
        }
        scene.victim.file().sync_data()?;
        run_on(&all[all.len() - 1..])?;
        reclaim(8 << 20)?;
        scene.check_victim()?;
    }
    Ok(run_on(&all)?)
}

/// Reads the block of each page twice, which needs no other block of it.
fn activate(scene: &Scene, group: usize) -> Result<()> {
    let mut bytes = [0; BLOCK];
    for _ in 0..2 {
        let file = File::open(scene.victim.path())?;
        for page in (group..group + PAGES * 4096).step_by(4096) {
            file.read_exact_at(&mut bytes, (page + BLOCK) as u64)?;
        }
    }
    Ok(())
}
