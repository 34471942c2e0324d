// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Memory of guests that could be had at once.

use serde::{Deserialize, Serialize};

use super::protocol::GuestStat;
use crate::{store::PoolKind, window::CHUNK};

/// Memory that a guest has for ephemeral pages, which it need not be asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Freeable {
    /// What ephemeral pages take in the store, in bytes, with what the store needs to find them.
    pub store_bytes: u64,
    /// Chunks of its window that are granted for such pages, or to nobody yet, in bytes.
    pub window_bytes: u64,
}

impl Freeable {
    /// Returns what could be had of a guest.
    pub fn of(guest: &GuestStat) -> Self {
        let pools = guest.pools.iter();
        let ephemeral = pools.filter(|pool| pool.kind == PoolKind::Ephemeral);
        let chunks = guest.window.unwrap_or_default().chunks;
        Self {
            store_bytes: ephemeral.map(|pool| pool.bytes).sum(),
            window_bytes: (u64::from(chunks.ephemeral) + u64::from(chunks.ready)) * CHUNK,
        }
    }

    /// Returns the sum.
    pub fn bytes(&self) -> u64 {
        self.store_bytes + self.window_bytes
    }
}
