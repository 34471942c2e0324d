// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Cases that change which blocks the file has.

use anyhow::Result;

use super::scene::{Scene, LEN};

const QUARTER: usize = LEN / 4;

/// R8, R9, F1: the file is cut and made as long as before; the rest has to be zeros.
pub(super) fn truncate(scene: &mut Scene) -> Result<()> {
    scene.victim.truncate(QUARTER)?;
    scene.victim.truncate(LEN)
}

/// F7: the file is cut within a page.
pub(super) fn truncate_partial_page(scene: &mut Scene) -> Result<()> {
    scene.victim.truncate(LEN - 1000)?;
    scene.victim.truncate(LEN)?;
    scene.check_victim()?;
    scene.victim.truncate(QUARTER + 1)?;
    scene.victim.truncate(LEN)
}

/// R8, R9, F1: a hole is made of whole pages.
pub(super) fn punch(scene: &mut Scene) -> Result<()> {
    let done = scene.victim.punch(QUARTER, QUARTER)?;
    scene.outcome(done);
    Ok(())
}

/// F7: a hole begins and ends within pages.
pub(super) fn punch_partial_page(scene: &mut Scene) -> Result<()> {
    for hole in [
        (QUARTER + 700, QUARTER),
        (40, 50),
        (3 * QUARTER + 4000, 200),
    ] {
        let done = scene.victim.punch(hole.0, hole.1)?;
        scene.outcome(done);
    }
    Ok(())
}

/// R8, F1: zeros are made without a hole.
pub(super) fn zero_range(scene: &mut Scene) -> Result<()> {
    let done = scene.victim.zero(QUARTER + 512, QUARTER)?;
    scene.outcome(done);
    Ok(())
}

/// R8, F1: pages move down.
pub(super) fn collapse(scene: &mut Scene) -> Result<()> {
    let done = scene.victim.collapse(QUARTER, QUARTER)?;
    scene.outcome(done);
    Ok(())
}

/// R8, F1: pages move up.
pub(super) fn insert(scene: &mut Scene) -> Result<()> {
    let done = scene.victim.insert(QUARTER, QUARTER)?;
    scene.outcome(done);
    Ok(())
}

/// F5: the file's blocks become another file's while none of its pages is in memory.
pub(super) fn reflink(scene: &mut Scene) -> Result<()> {
    let source = scene.another("source")?;
    let done = scene.victim.clone_from_file(&source)?;
    scene.outcome(done);
    scene.check(&source)
}
