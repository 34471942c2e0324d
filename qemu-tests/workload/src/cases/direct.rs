// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A case in which many files are written past the page cache.

use std::fs::create_dir;

use anyhow::Result;

use super::scene::Scene;
use crate::tracked::{Done, Tracked};

/// Files that are written directly: more than anybody has memory set aside for.
const FILES: usize = if cfg!(test) { 10 } else { 3000 };

/// F4: a file that is written directly is left alone, which must not be at the cost of others.
pub(super) fn many(scene: &mut Scene) -> Result<()> {
    let dir = scene.dir().join("direct");
    create_dir(&dir)?;
    for n in 0..FILES {
        let path = dir.join(n.to_string());
        let mut file = Tracked::create(&path, 6, scene.generations())?;
        if file.write_direct(0, 4096)? == Done::Unsupported {
            scene.outcome(Done::Unsupported);
            return Ok(());
        }
    }
    let after = scene.another("after")?;
    scene.check(&after)?;
    scene.victim.write_buffered(0, 4096)
}
