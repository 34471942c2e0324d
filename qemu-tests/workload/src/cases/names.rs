// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Cases in which a name comes to mean another file.

use anyhow::Result;

use super::scene::{park, Scene, LEN};
use crate::{evict::evict_all, report::Findings, tracked::Anonymous};

/// R10: a file goes and another gets its name, and its inode number where they are used again.
///
/// The new file is never written, or past the page cache only, so that nothing but its own
/// identity protects it from the old one's pages.
pub(super) fn unlink_recreate(scene: &mut Scene) -> Result<()> {
    for round in 0..4 {
        scene.victim.recreate()?;
        if round % 2 == 0 {
            scene.victim.truncate(LEN)?;
        } else {
            scene.victim.allocate(0, LEN)?;
        }
        scene.check_victim()?;
        scene.victim.write_direct(LEN / 2, LEN / 2)?;
        scene.check_victim()?;
        scene.victim.write_buffered(0, LEN)?;
        evict_all(scene.victim.file())?;
        scene.check_victim()?;
        evict_all(scene.victim.file())?;
    }
    scene.victim.recreate()?;
    scene.victim.truncate(LEN)
}

/// R10: another file takes the name while the old one stays open.
pub(super) fn rename_over(scene: &mut Scene) -> Result<()> {
    let other = scene.another("other")?;
    let old = scene.victim.replace_by(other)?;
    scene.check(&old)
}

/// F2: a file without a name is changed, and then gets one.
pub(super) fn link_nameless(scene: &mut Scene) -> Result<()> {
    let mut nameless = Anonymous::create(scene.dir(), 5, scene.generations())?;
    let mut findings = Findings::default();
    nameless.file().write_buffered(0, LEN)?;
    park(nameless.file(), &mut findings)?;
    nameless.file().write_buffered(4096, LEN / 2)?;
    nameless.file().punch(LEN / 2, 8192)?;
    evict_all(nameless.file().file())?;
    let mut linked = nameless.link(&scene.dir().join("linked"))?;
    park(&mut linked, &mut findings)?;
    scene.merge(findings);
    scene.check(&linked)?;
    scene.victim.replace_by(linked)?;
    Ok(())
}
