// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A driver's pools, and what a device reset does to them.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use virtio_tmem_abi::{pool_flags, PoolCreate, Status};

use super::request::{check_create, Reject};
use crate::store::{Dropped, Guest, PoolError, PoolKind, Store};

impl From<PoolError> for Reject {
    fn from(error: PoolError) -> Self {
        Self::Status(match error {
            PoolError::NoPool => Status::NoPool,
            PoolError::Exists => Status::PoolExists,
            PoolError::TooMany => Status::NoMemory,
        })
    }
}

/// What the next reset does to a pool that resets release.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hold {
    /// The driver is there: the reset frees the pool.
    Held,
    /// The driver means to come back: the pool stays.
    Kept,
}

/// What is known of a driver's pools beside the store.
#[derive(Debug, Default)]
struct State {
    /// The pools that resets release. All others stay.
    holds: BTreeMap<u32, Hold>,
    /// The pools that are not there any more.
    dropped: Dropped,
}

/// The pools of one driver.
///
/// # Locking
///
/// `state` is taken before any lock of the store, and held over what creates and destroys pools,
/// so that a reset comes before or after it.
#[derive(Debug)]
pub(super) struct Pools {
    store: Arc<Store>,
    guest: Guest,
    state: Mutex<State>,
}

impl Pools {
    /// Gives a driver that has no pools a place in the store.
    pub(super) fn new(store: Arc<Store>) -> Self {
        Self {
            guest: store.add_guest(),
            store,
            state: Mutex::default(),
        }
    }

    /// Returns the driver's place in the store.
    pub(super) fn guest(&self) -> &Guest {
        &self.guest
    }

    /// Returns what became of the pools that are not there any more.
    pub(super) fn dropped(&self) -> Dropped {
        self.state().dropped
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
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
        let holds = &mut self.state().holds;
        match self.store.pool_kind(&self.guest, number) {
            Ok(_) if has(pool_flags::SHARED) || released != holds.contains_key(&number) => {
                return Err(PoolError::Exists.into());
            }
            // No UUID is authorised.
            Err(_) if has(pool_flags::SHARED) => return Err(Reject::Status(Status::NotAllowed)),
            Ok(_) | Err(_) => self.store.create_pool(&self.guest, number, kind)?,
        }
        if released {
            holds.insert(number, Hold::Held);
        }
        Ok(())
    }

    /// Forgets a pool with its pages.
    ///
    /// # Errors
    ///
    /// There is none.
    pub(super) fn destroy(&self, number: u32) -> Result<(), PoolError> {
        let mut state = self.state();
        state.holds.remove(&number);
        let report = self.store.destroy_pool(&self.guest, number)?;
        state.dropped.add(&report);
        Ok(())
    }

    /// Makes a pool outlive resets, until it is created again.
    ///
    /// # Errors
    ///
    /// There is none.
    pub(super) fn keep(&self, number: u32) -> Result<(), PoolError> {
        let holds = &mut self.state().holds;
        self.store.pool_kind(&self.guest, number)?;
        if let Some(hold) = holds.get_mut(&number) {
            *hold = Hold::Kept;
        }
        Ok(())
    }

    /// Frees what a device reset releases, and returns what that was.
    pub(super) fn reset(&self) -> Dropped {
        let mut state = self.state();
        let mut dropped = Dropped::default();
        for pool in self.store.pools(&self.guest).iter().map(|pool| pool.pool) {
            if state.holds.get(&pool) != Some(&Hold::Held) {
                continue;
            }
            state.holds.remove(&pool);
            if let Ok(report) = self.store.destroy_pool(&self.guest, pool) {
                dropped.add(&report);
            }
        }
        state.dropped += dropped;
        dropped
    }

    /// Forgets the driver and all its pages. No operation of it is running.
    pub(super) fn end(&self) -> Dropped {
        let mut state = self.state();
        state.holds.clear();
        let dropped = self.store.remove_guest(&self.guest);
        state.dropped += dropped;
        dropped
    }
}
