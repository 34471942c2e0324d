// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Threads that read and evict what others change.

use std::{
    fs::File,
    os::unix::fs::FileExt,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

use fastrand::Rng;

use super::path_of;
use crate::evict::{evict, Eviction};

/// Reads and evicts random ranges of random files below `dir` until told to stop.
///
/// Files come and go and end before a range does: no error matters here.
pub(super) fn run(dir: &Path, seed: u64, max_len: usize, stop: &AtomicBool) {
    let mut rng = Rng::with_seed(seed);
    let mut bytes = vec![0; 65_536];
    while !stop.load(Ordering::Relaxed) {
        let thread = dir.join(format!("thread-{}", rng.u8(0..4)));
        let Ok(file) = File::open(path_of(&thread, rng.bool())) else {
            continue;
        };
        for _ in 0..rng.u8(1..16) {
            let offset = rng.u64(0..max_len as u64);
            let _ = file.read_at(&mut bytes, offset);
            let _ = evict(&file, Eviction::AdviseDirty, offset, bytes.len() as u64);
        }
    }
}
