// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Guests and their pools.

use std::ops::AddAssign;

use serde::{Deserialize, Serialize};

use super::{
    inner::{Inner, PoolSlot},
    records::{Hold, Known},
    PoolCounters, PoolKind, PoolReport, Store,
};

/// A guest's place in a [`Store`]. Nobody else reaches the pages of its own pools.
#[derive(Debug)]
pub struct Guest {
    number: u32,
}

impl Guest {
    pub(super) fn of(number: u32) -> Self {
        Self { number }
    }

    /// Returns the guest's number.
    pub fn number(&self) -> u32 {
        self.number
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
    /// All guests together have as many pools as the store has room for.
    #[error("there are too many pools")]
    TooMany,
    /// The operator has not authorised the guest for this shared pool.
    #[error("the pool is not for this guest")]
    NotAllowed,
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
    /// Returns those of a kind.
    pub fn of(&self, kind: PoolKind) -> &DroppedKind {
        match kind {
            PoolKind::Persistent => &self.persistent,
            PoolKind::Ephemeral => &self.ephemeral,
        }
    }

    /// Returns those of one pool, as it was when it was destroyed.
    pub fn one(pool: &PoolReport) -> Self {
        let mut this = Self::default();
        this.add(pool);
        this
    }

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
    /// Adds a guest that has no pools, under the lowest number that is free.
    pub fn add_guest(&self) -> Guest {
        let number = self.lock().add_guest(None);
        Guest { number }
    }

    /// Returns the guest of a number, with the pools that it has. One that there is not has none.
    pub fn guest(&self, number: u32) -> Guest {
        let number = self.lock().add_guest(Some(number));
        Guest { number }
    }

    /// Creates a pool that resets of the device leave as it is. One that is there already and of the
    /// same kind stays as it is.
    ///
    /// # Errors
    ///
    /// [`PoolError::Exists`] and [`PoolError::TooMany`].
    pub fn create_pool(&self, guest: &Guest, number: u32, kind: PoolKind) -> Result<(), PoolError> {
        self.create_pool_with(guest, number, kind, Hold::Stays)
    }

    /// As [`Self::create_pool`], and says what a reset does to the pool, if it is new.
    ///
    /// # Errors
    ///
    /// [`PoolError::Exists`] and [`PoolError::TooMany`].
    pub fn create_pool_with(
        &self,
        guest: &Guest,
        number: u32,
        kind: PoolKind,
        hold: Hold,
    ) -> Result<(), PoolError> {
        let mut inner = self.lock();
        match inner.pool_slot(guest.number, number) {
            None => inner.add_pool(Known {
                guest: guest.number,
                number,
                kind,
                hold,
                ending: false,
                access: None,
                life: 0,
            }),
            Some(slot) if inner.pool(slot).kind == kind && !inner.pool(slot).is_shared() => Ok(()),
            Some(_) => Err(PoolError::Exists),
        }
    }

    /// Sets what a reset of the device does to a pool.
    ///
    /// # Errors
    ///
    /// [`PoolError::NoPool`].
    pub fn set_hold(&self, guest: &Guest, number: u32, hold: Hold) -> Result<(), PoolError> {
        let mut inner = self.lock();
        let slot = inner.require_pool(guest, number)?;
        inner.set_hold(slot, hold);
        Ok(())
    }

    /// Returns what a reset of the device does to a pool.
    ///
    /// # Errors
    ///
    /// [`PoolError::NoPool`].
    pub fn hold(&self, guest: &Guest, number: u32) -> Result<Hold, PoolError> {
        let inner = self.lock();
        let slot = inner.require_pool(guest, number)?;
        Ok(inner.pool(slot).hold)
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

    /// Returns whether a get may take from a pool: from one that is ephemeral, and of no other guest.
    ///
    /// # Errors
    ///
    /// [`PoolError::NoPool`].
    pub fn may_take(&self, guest: &Guest, number: u32) -> Result<bool, PoolError> {
        let inner = self.lock();
        let slot = inner.require_pool(guest, number)?;
        let pool = inner.pool(slot);
        Ok(pool.kind == PoolKind::Ephemeral && !pool.is_shared())
    }

    /// Returns what a pool holds, and what happened in it. Of a shared one that is what all guests
    /// have put there, and done.
    ///
    /// # Errors
    ///
    /// [`PoolError::NoPool`].
    pub fn pool_report(&self, guest: &Guest, number: u32) -> Result<PoolReport, PoolError> {
        let inner = self.lock();
        let slot = inner.require_pool(guest, number)?;
        Ok(inner.report(number, slot))
    }

    /// Returns what all pools of a guest hold that are its own, by ascending number.
    pub fn pools(&self, guest: &Guest) -> Vec<PoolReport> {
        self.lock().reports(guest.number)
    }

    /// Returns how many pools a guest has, with those that it shares.
    pub fn pool_count(&self, guest: &Guest) -> usize {
        let inner = self.lock();
        let guest = inner.guests.get(&guest.number);
        guest.map_or(0, |guest| guest.pools.len() + guest.accesses.len())
    }
}

impl Inner {
    pub(super) fn require_pool(&self, guest: &Guest, number: u32) -> Result<PoolSlot, PoolError> {
        self.pool_slot(guest.number, number)
            .ok_or(PoolError::NoPool)
    }
}
