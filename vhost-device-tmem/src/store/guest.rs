// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Guests and their pools.

use std::{
    ops::AddAssign,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde::{Deserialize, Serialize};

use super::{
    inner::{Inner, PoolSlot},
    PoolCounters, PoolKind, PoolReport, Store,
};

/// A guest's place in a [`Store`]. Nobody else reaches its pages.
///
/// # Locking
///
/// `walk` is taken before the store's lock, by what walks over many pages and lets go of the
/// store's lock in between, so that two walks never disturb each other's order.
#[derive(Debug)]
pub struct Guest {
    pub(super) id: u64,
    walk: Arc<Mutex<()>>,
}

impl Guest {
    /// Returns the same place.
    pub(super) fn again(&self) -> Self {
        Self {
            id: self.id,
            walk: Arc::clone(&self.walk),
        }
    }

    pub(super) fn walk(&self) -> MutexGuard<'_, ()> {
        self.walk.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why an operation on a pool was not carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PoolError {
    /// The guest has no pool of this number.
    #[error("there is no such pool")]
    NoPool,
    /// The guest has a pool of this number, of another kind.
    #[error("the pool exists and is of another kind")]
    Exists,
}

/// Pools of one kind that were destroyed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DroppedKind {
    /// How many they were.
    pub pools: u64,
    /// Pages that they held then.
    pub pages: u64,
    /// The sum of their counters.
    #[serde(flatten)]
    pub counters: PoolCounters,
}

impl AddAssign for DroppedKind {
    fn add_assign(&mut self, other: Self) {
        self.pools += other.pools;
        self.pages += other.pages;
        self.counters += other.counters;
    }
}

/// Pools of a guest that were destroyed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dropped {
    /// The persistent ones.
    pub persistent: DroppedKind,
    /// The ephemeral ones.
    pub ephemeral: DroppedKind,
}

impl Dropped {
    /// Adds a pool, as it was when it was destroyed.
    pub fn add(&mut self, pool: &PoolReport) {
        let kind = match pool.kind {
            PoolKind::Persistent => &mut self.persistent,
            PoolKind::Ephemeral => &mut self.ephemeral,
        };
        *kind += DroppedKind {
            pools: 1,
            pages: pool.pages,
            counters: pool.counters,
        };
    }
}

impl AddAssign for Dropped {
    fn add_assign(&mut self, other: Self) {
        self.persistent += other.persistent;
        self.ephemeral += other.ephemeral;
    }
}

impl Store {
    /// Adds a guest that has no pools.
    pub fn add_guest(&self) -> Guest {
        Guest {
            id: self.lock().add_guest(),
            walk: Arc::default(),
        }
    }

    /// Forgets a guest and all its pages. No operation of it is running.
    pub fn remove_guest(&self, guest: &Guest) -> Dropped {
        let mut dropped = Dropped::default();
        for pool in self.pools(guest) {
            if let Ok(pool) = self.destroy_pool(guest, pool.pool) {
                dropped.add(&pool);
            }
        }
        self.lock().guests.remove(&guest.id);
        dropped
    }

    /// Creates a pool. One that is there already and of the same kind stays as it is.
    ///
    /// # Errors
    ///
    /// [`PoolError::Exists`].
    pub fn create_pool(&self, guest: &Guest, number: u32, kind: PoolKind) -> Result<(), PoolError> {
        let mut inner = self.lock();
        match inner.pool_slot(guest.id, number) {
            None => {
                inner.add_pool(guest.id, number, kind);
                Ok(())
            }
            Some(slot) if inner.pool(slot).kind == kind => Ok(()),
            Some(_) => Err(PoolError::Exists),
        }
    }

    /// Forgets all pages of a pool, and the pool. Returns what it was before.
    ///
    /// # Errors
    ///
    /// [`PoolError::NoPool`].
    pub fn destroy_pool(&self, guest: &Guest, number: u32) -> Result<PoolReport, PoolError> {
        let _walk = guest.walk();
        let (slot, report) = {
            let mut inner = self.lock();
            // No put finds the pool from here on.
            let slot = inner.take_pool(guest.id, number);
            let slot = slot.ok_or(PoolError::NoPool)?;
            (slot, inner.report(number, slot))
        };
        self.empty_pool(slot);
        self.lock().remove_pool(slot);
        Ok(report)
    }

    /// Returns what kind a pool is of.
    ///
    /// # Errors
    ///
    /// [`PoolError::NoPool`].
    pub fn pool_kind(&self, guest: &Guest, number: u32) -> Result<PoolKind, PoolError> {
        let inner = self.lock();
        let slot = inner.require_pool(guest, number)?;
        Ok(inner.pool(slot).kind)
    }

    /// Returns what a pool holds, and what happened in it.
    ///
    /// # Errors
    ///
    /// [`PoolError::NoPool`].
    pub fn pool_report(&self, guest: &Guest, number: u32) -> Result<PoolReport, PoolError> {
        let inner = self.lock();
        let slot = inner.require_pool(guest, number)?;
        Ok(inner.report(number, slot))
    }

    /// Returns what all pools of a guest hold, by ascending number.
    pub fn pools(&self, guest: &Guest) -> Vec<PoolReport> {
        let inner = self.lock();
        let Some(pools) = inner.guests.get(&guest.id) else {
            return Vec::new();
        };
        let report = |(number, slot): (&u32, &PoolSlot)| inner.report(*number, *slot);
        pools.iter().map(report).collect()
    }
}

impl Inner {
    pub(super) fn require_pool(&self, guest: &Guest, number: u32) -> Result<PoolSlot, PoolError> {
        self.pool_slot(guest.id, number).ok_or(PoolError::NoPool)
    }
}
