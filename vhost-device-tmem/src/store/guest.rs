// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Guests and their pools.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{
    inner::{Inner, PoolSlot},
    pool::Contents,
    PoolKind, PoolReport, Store,
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
    walk: Mutex<()>,
}

impl Guest {
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

/// Pools that were destroyed, when a guest went away or was reset.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dropped {
    /// Pages of persistent pools.
    pub persistent_pages: u64,
    /// Pages of ephemeral pools.
    pub ephemeral_pages: u64,
    /// The pools, with the counters that they had at last, and no pages.
    pub pools: Vec<PoolReport>,
}

impl Dropped {
    /// Adds a pool that was destroyed, as it was before.
    pub fn add(&mut self, mut pool: PoolReport) {
        match pool.kind {
            PoolKind::Persistent => self.persistent_pages += pool.pages,
            PoolKind::Ephemeral => self.ephemeral_pages += pool.pages,
        }
        (pool.pages, pool.objects, pool.bytes) = (0, 0, 0);
        pool.contents = Contents::default();
        self.pools.push(pool);
    }
}

impl Store {
    /// Adds a guest that has no pools.
    pub fn add_guest(&self) -> Guest {
        Guest {
            id: self.lock().add_guest(),
            walk: Mutex::new(()),
        }
    }

    /// Forgets a guest and all its pages. No operation of it is running.
    pub fn remove_guest(&self, guest: &Guest) -> Dropped {
        let mut dropped = Dropped::default();
        for pool in self.pools(guest) {
            if self.destroy_pool(guest, pool.pool).is_ok() {
                dropped.add(pool);
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

    /// Forgets all pages of a pool, and the pool.
    ///
    /// # Errors
    ///
    /// [`PoolError::NoPool`].
    pub fn destroy_pool(&self, guest: &Guest, number: u32) -> Result<(), PoolError> {
        let _walk = guest.walk();
        // No put finds the pool from here on.
        let slot = self.lock().take_pool(guest.id, number);
        let slot = slot.ok_or(PoolError::NoPool)?;
        self.empty_pool(slot);
        self.lock().remove_pool(slot);
        Ok(())
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
