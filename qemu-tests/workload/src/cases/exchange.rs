// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Cases in which a file gets the blocks of another one.

use anyhow::{ensure, Result};

use super::scene::{Scene, LEN};
use crate::evict::evict_all;

/// F9: the file is the donor of a defragmentation, which gets the old blocks of the other file.
///
/// The kernel neither drops the pages of a donor that are in memory, nor does it write to them; as
/// long as they stay there, they show what they did.
pub(super) fn move_extents(scene: &mut Scene) -> Result<()> {
    let origin = scene.another("origin")?;
    let outcome = scene.victim.take_extents(&origin)?;
    scene.outcome(outcome);
    scene.check(&origin)?;
    scene.check_victim()?;

    let origin = scene.another("origin of pages in memory")?;
    scene.load(LEN / 2)?;
    let outcome = scene.victim.take_extents(&origin)?;
    scene.outcome(outcome);
    ensure!(evict_all(scene.victim.file())?, "the pages stay in memory");
    scene.check_victim()?;
    scene.check(&origin)
}

/// F1: the file's blocks are exchanged with those of another one, some while they are in memory.
pub(super) fn exchange(scene: &mut Scene) -> Result<()> {
    let mut other = scene.another("other")?;
    for loaded in [0, LEN / 2] {
        scene.load(loaded)?;
        let outcome = scene.victim.exchange(&mut other)?;
        scene.outcome(outcome);
        scene.check(&other)?;
        scene.check_victim()?;
    }
    Ok(())
}

/// F5: the file's blocks become another file's while some of its pages are in memory.
///
/// That is no writing around the page cache: what is read afterwards is kept like before.
pub(super) fn reflink_cached(scene: &mut Scene) -> Result<()> {
    let source = scene.another("source")?;
    scene.load(LEN / 2)?;
    let outcome = scene.victim.clone_from_file(&source)?;
    scene.outcome(outcome);
    scene.check(&source)
}
