// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A driver's pools, and what a device reset does to them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use uuid::Uuid;
use virtio_tmem_abi::{pool_flags, PoolCreate, Status};

use super::request::{check_create, Reject};
use crate::store::{Dropped, Guest, Hold, PoolError, PoolKind, Store, Walk};

impl From<PoolError> for Reject {
    fn from(error: PoolError) -> Self {
        Self::Status(match error {
            PoolError::NoPool => Status::NoPool,
            PoolError::Exists => Status::PoolExists,
            PoolError::TooMany => Status::NoMemory,
            PoolError::NotAllowed => Status::NotAllowed,
        })
    }
}

/// The pools of one driver. The store keeps them, also for another process that serves the driver
/// after this one.
///
/// # Locking
///
/// `dropped` is taken before any lock of the store, and held over what creates and destroys pools,
/// so that a reset comes before or after it.
#[derive(Debug)]
pub(super) struct Pools {
    store: Arc<Store>,
    guest: Guest,
    /// The pools that are not there any more.
    dropped: Mutex<Dropped>,
}

impl Pools {
    /// Takes the place of this number in the store, with the pools that are there.
    pub(super) fn new(store: Arc<Store>, number: u32) -> Self {
        Self {
            guest: store.guest(number),
            store,
            dropped: Mutex::default(),
        }
    }

    /// Returns the driver's place in the store.
    pub(super) fn guest(&self) -> &Guest {
        &self.guest
    }

    /// Returns what became of the pools that are not there any more.
    pub(super) fn dropped(&self) -> Dropped {
        *self.lock()
    }

    fn lock(&self) -> MutexGuard<'_, Dropped> {
        self.dropped.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Creates a pool, or enters a shared one. One that is there and was created in the same way keeps
    /// its pages, and is not kept over a reset any more.
    ///
    /// # Errors
    ///
    /// What the response says.
    pub(super) fn create(&self, number: u32, create: &PoolCreate) -> Result<(), Reject> {
        check_create(create)?;
        let has = |flag| create.flags.get() & flag != 0;
        let kind = if has(pool_flags::PERSISTENT) {
            PoolKind::Persistent
        } else {
            PoolKind::Ephemeral
        };
        let released = has(pool_flags::RELEASED_BY_RESET);
        let hold = if released { Hold::Held } else { Hold::Stays };
        let _dropped = self.lock();
        if has(pool_flags::SHARED) {
            let uuid = Uuid::from_bytes(create.uuid);
            self.store.join_pool(&self.guest, number, uuid)?;
            return Ok(());
        }
        let there = self.store.hold(&self.guest, number);
        if there.is_ok_and(|hold| released != (hold != Hold::Stays)) {
            return Err(PoolError::Exists.into());
        }
        self.store
            .create_pool_with(&self.guest, number, kind, hold)?;
        // One that was there already may have been kept.
        self.store.set_hold(&self.guest, number, hold)?;
        Ok(())
    }

    /// Begins to forget a pool with its pages, or leaves a shared one. There is none of that number from
    /// here on.
    ///
    /// # Errors
    ///
    /// There is none.
    pub(super) fn destroy(&self, number: u32) -> Result<Walk<Arc<Store>>, PoolError> {
        let mut dropped = self.lock();
        let store = Arc::clone(&self.store);
        let (walk, lost) = Walk::destroy_pool(store, &self.guest, number)?;
        *dropped += lost;
        Ok(walk)
    }

    /// Makes a pool outlive resets, until it is created again.
    ///
    /// # Errors
    ///
    /// There is none.
    pub(super) fn keep(&self, number: u32) -> Result<(), PoolError> {
        let _dropped = self.lock();
        match self.store.hold(&self.guest, number)? {
            Hold::Held => self.store.set_hold(&self.guest, number, Hold::Kept),
            Hold::Stays | Hold::Kept => Ok(()),
        }
    }

    /// Takes from the driver what a device reset releases, and returns what that was. The pages are
    /// gone to everybody, and their memory is freed by [`Store::tidy_step`].
    pub(super) fn reset(&self) -> Dropped {
        let mut all = self.lock();
        let mut dropped = Dropped::default();
        for pool in self.store.pools(&self.guest) {
            if self.store.hold(&self.guest, pool.pool) != Ok(Hold::Held) {
                continue;
            }
            if let Ok((_, lost)) = Walk::destroy_pool(&*self.store, &self.guest, pool.pool) {
                dropped += lost;
            }
        }
        *all += dropped;
        dropped
    }

    /// Takes everything from the driver, which is gone. No operation of it is running. What becomes
    /// of the pages is as for a [reset](Self::reset).
    pub(super) fn end(&self) -> Dropped {
        let mut all = self.lock();
        let (_, dropped) = Walk::remove_guest(&*self.store, &self.guest);
        *all += dropped;
        dropped
    }
}
