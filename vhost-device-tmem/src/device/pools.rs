// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A driver's pools, and what a device reset does to them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use virtio_tmem_abi::{pool_flags, PoolCreate, Status};

use super::request::{check_create, Reject};
use crate::store::{Dropped, Guest, Hold, PoolError, PoolKind, Store, Walk};

impl From<PoolError> for Reject {
    fn from(error: PoolError) -> Self {
        Self::Status(match error {
            PoolError::NoPool => Status::NoPool,
            PoolError::Exists => Status::PoolExists,
            PoolError::TooMany => Status::NoMemory,
        })
    }
}

/// The pools of one driver.
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
    /// Gives a driver its place in the store, by its guest's number. It has the pools that are there
    /// already, from a process before this one.
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

    /// Creates a pool. One that is there and was created in the same way keeps its pages, and is
    /// not kept over a reset any more.
    ///
    /// # Errors
    ///
    /// What the response says.
    pub(super) fn create(&self, number: u32, create: &PoolCreate) -> Result<(), Reject> {
        check_create(create)?;
        let has = |flag| create.flags.get() & flag != 0;
        let released = has(pool_flags::RELEASED_BY_RESET);
        let kind = if has(pool_flags::PERSISTENT) {
            PoolKind::Persistent
        } else {
            PoolKind::Ephemeral
        };
        let _order = self.lock();
        let (store, guest) = (&self.store, &self.guest);
        match store.hold(guest, number) {
            Ok(hold) if has(pool_flags::SHARED) || released != (hold != Hold::Stays) => {
                return Err(PoolError::Exists.into());
            }
            // No UUID is authorised.
            Err(_) if has(pool_flags::SHARED) => return Err(Reject::Status(Status::NotAllowed)),
            Ok(_) => {
                store.create_pool(guest, number, kind)?;
                if released {
                    store.set_hold(guest, number, Hold::Held)?;
                }
            }
            Err(_) => {
                let hold = if released { Hold::Held } else { Hold::Stays };
                store.create_pool_with(guest, number, kind, hold)?;
            }
        }
        Ok(())
    }

    /// Begins to forget a pool with its pages. There is none of that number from here on.
    ///
    /// # Errors
    ///
    /// There is none.
    pub(super) fn destroy(&self, number: u32) -> Result<Walk<Arc<Store>>, PoolError> {
        let mut dropped = self.lock();
        let store = Arc::clone(&self.store);
        let (walk, report) = Walk::destroy_pool(store, &self.guest, number)?;
        dropped.add(&report);
        Ok(walk)
    }

    /// Makes a pool outlive resets, until it is created again.
    ///
    /// # Errors
    ///
    /// There is none.
    pub(super) fn keep(&self, number: u32) -> Result<(), PoolError> {
        let _order = self.lock();
        match self.store.hold(&self.guest, number)? {
            Hold::Stays => Ok(()),
            Hold::Held | Hold::Kept => self.store.set_hold(&self.guest, number, Hold::Kept),
        }
    }

    /// Frees what a device reset releases, and returns what that was.
    pub(super) fn reset(&self) -> Dropped {
        let mut all = self.lock();
        let mut dropped = Dropped::default();
        for pool in self.store.pools(&self.guest).iter().map(|pool| pool.pool) {
            if self.store.hold(&self.guest, pool) != Ok(Hold::Held) {
                continue;
            }
            if let Ok(report) = self.store.destroy_pool(&self.guest, pool) {
                dropped.add(&report);
            }
        }
        *all += dropped;
        dropped
    }

    /// Forgets the driver and all its pages. No operation of it is running.
    pub(super) fn end(&self) -> Dropped {
        let mut all = self.lock();
        let dropped = self.store.remove_guest(&self.guest);
        *all += dropped;
        dropped
    }
}
