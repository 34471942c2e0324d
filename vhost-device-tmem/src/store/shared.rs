// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Pools that several guests have access to.
//!
//! A shared pool is ephemeral, and has an account of its own beside those of guests: no guest is
//! charged for what is in it, whoever put it there. It is the only pool of a "guest" that nobody is,
//! whose number is that of the pool. A guest has *access* under a number of its own, which is
//! described beside pools, so that the next process has it as well.
//!
//! The pool is there while some guest has access.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{
    budget::{entry_bytes, slot_bytes},
    codec::Encoded,
    guest::Guest,
    inner::{Cause, Inner, PoolRef, PoolSlot},
    pool::Pool,
    records::{Hold, Known},
    PoolError, PoolKind, PoolReport, Store, BATCH,
};

/// Numbers from here on are those of shared pools, and those below of guests.
pub const FIRST_SHARED: u32 = 1 << 31;

/// The number of a shared pool among the pools of the guest that it counts as.
const ONLY: u32 = 0;

/// A shared pool, as the operator wants it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SharedPool {
    /// Its number, from [`FIRST_SHARED`] on. No other pool ever has the same.
    pub number: u32,
    /// What guests call it.
    pub uuid: Uuid,
    /// The guests that may have access, by their numbers.
    pub guests: BTreeSet<u32>,
    /// The bytes that it takes at most, with what finds its pages.
    pub max: Option<u64>,
}

/// What a guest did in a shared pool, since it has access.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccessCounters {
    /// Pages put, stored or refused.
    pub puts: u64,
    /// Pages put and stored.
    pub puts_stored: u64,
    /// Pages asked for.
    pub gets: u64,
    /// Pages asked for and returned.
    pub gets_hit: u64,
    /// Pages, ranges and objects asked to be forgotten.
    pub flushes: u64,
}

/// A guest's access to a shared pool.
#[derive(Debug)]
pub(super) struct Access {
    /// The pool.
    pub(super) pool: PoolSlot,
    /// Where the access is described.
    place: PoolSlot,
    counters: AccessCounters,
}

/// A guest's access to a shared pool, and what it did there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AccessReport {
    /// The guest's number.
    pub guest: u32,
    /// The number that the guest gave the pool.
    pub pool: u32,
    /// What it did.
    pub counters: AccessCounters,
}

/// A shared pool that guests were authorised for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedReport {
    /// How the operator wants it.
    pub terms: SharedPool,
    /// What it holds, and what happened in it; [`None`] while no guest has access.
    pub pool: Option<PoolReport>,
    /// Who has access, by their numbers.
    pub accesses: Vec<AccessReport>,
}

impl Store {
    /// Authorises guests for shared pools, and for no others, from now on. An access that is not
    /// authorised any more ends with that, and what a pool has above its limit is evicted.
    pub fn set_shared(&self, pools: impl IntoIterator<Item = SharedPool>) {
        let mut inner = self.lock();
        let pools = pools.into_iter().map(|pool| (pool.number, pool));
        inner.shared = pools.collect();
        for (guest, number) in inner.unauthorised() {
            // What is emptied by that has no number any more, and goes when the store is tidied.
            inner.leave(guest, number);
        }
        let numbers: Vec<_> = inner.shared.keys().copied().collect();
        for number in numbers {
            while inner.shed_above_max(number) {
                // Whoever waits for the lock comes first.
                drop(inner);
                inner = self.lock();
            }
        }
        drop(inner);
        self.wake_watchers();
    }

    /// Gives a guest access to a shared pool, under a number of its own. It stays as it is where it has
    /// that already.
    ///
    /// # Errors
    ///
    /// [`PoolError::Exists`] where the number is that of another pool, [`PoolError::NotAllowed`], and
    /// [`PoolError::TooMany`]; none of these depends on whether the pool is there.
    pub fn join_pool(&self, guest: &Guest, number: u32, uuid: Uuid) -> Result<(), PoolError> {
        self.lock().join(guest.number(), number, uuid)
    }

    /// Returns whether a guest's pool is one that others may have access to.
    ///
    /// # Errors
    ///
    /// [`PoolError::NoPool`].
    pub fn is_shared(&self, guest: &Guest, number: u32) -> Result<bool, PoolError> {
        let inner = self.lock();
        let slot = inner.require_pool(guest, number)?;
        Ok(inner.pool(slot).is_shared())
    }

    /// Returns the place of a shared pool, which is that of a guest whose only pool it is, and its
    /// number there.
    pub fn shared_pool(&self, uuid: Uuid) -> Option<(Guest, u32)> {
        let inner = self.lock();
        let number = inner.number_of(uuid)?;
        let there = inner.pool_slot(number, ONLY).is_some();
        there.then(|| (Guest::of(number), ONLY))
    }

    /// Returns what there is of all shared pools, by their numbers.
    pub fn shared_pools(&self) -> Vec<SharedReport> {
        let inner = self.lock();
        let report = |terms: &SharedPool| {
            let slot = inner.pool_slot(terms.number, ONLY);
            SharedReport {
                terms: terms.clone(),
                pool: slot.map(|slot| inner.report(ONLY, slot)),
                accesses: slot.map(|slot| inner.accesses(slot)).unwrap_or_default(),
            }
        };
        inner.shared.values().map(report).collect()
    }
}

impl Inner {
    fn number_of(&self, uuid: Uuid) -> Option<u32> {
        let mut pools = self.shared.values();
        let pool = pools.find(|pool| pool.uuid == uuid)?;
        Some(pool.number)
    }

    fn each_access(&self) -> impl Iterator<Item = (u32, u32, &Access)> {
        self.guests.iter().flat_map(|(guest, of)| {
            let accesses = of.accesses.iter();
            accesses.map(|(number, access)| (*guest, *number, access))
        })
    }

    fn accesses(&self, pool: PoolSlot) -> Vec<AccessReport> {
        let accesses = self.each_access();
        let accesses = accesses.filter(|(.., access)| access.pool == pool);
        let report = |(guest, pool, access): (u32, u32, &Access)| AccessReport {
            guest,
            pool,
            counters: access.counters,
        };
        accesses.map(report).collect()
    }

    /// Returns the accesses, each a guest's number and its number for the pool, that no operator
    /// authorises.
    fn unauthorised(&self) -> Vec<(u32, u32)> {
        let accesses = self.each_access();
        let others = accesses.filter(|(guest, _, access)| {
            let pool = self.shared.get(&self.pool(access.pool).owner);
            !pool.is_some_and(|pool| pool.guests.contains(guest))
        });
        others.map(|(guest, number, _)| (guest, number)).collect()
    }

    fn join(&mut self, guest: u32, number: u32, uuid: Uuid) -> Result<(), PoolError> {
        if let Some(slot) = self.pool_slot(guest, number) {
            let there = self.shared.get(&self.pool(slot).owner);
            let same = there.is_some_and(|there| there.uuid == uuid);
            return if same { Ok(()) } else { Err(PoolError::Exists) };
        }
        let owner = self.number_of(uuid).ok_or(PoolError::NotAllowed)?;
        if !self.shared[&owner].guests.contains(&guest) {
            return Err(PoolError::NotAllowed);
        }
        // One for the access, and one for the pool, whether that is there or not.
        if self.free_places() < 2 {
            return Err(PoolError::TooMany);
        }
        let known = Known {
            guest: owner,
            number: ONLY,
            kind: PoolKind::Ephemeral,
            hold: Hold::Stays,
            ending: false,
            access: None,
            life: 0,
        };
        if self.pool_slot(owner, ONLY).is_none() {
            self.add_pool(known)?;
        }
        let pool = self.pool_slot(owner, ONLY).ok_or(PoolError::NoPool)?;
        let access = Known {
            guest,
            number,
            access: Some(pool),
            ..known
        };
        let place = self.describe_new(access).ok_or(PoolError::TooMany)?;
        self.add_access(guest, number, pool, place);
        Ok(())
    }

    fn add_access(&mut self, guest: u32, number: u32, pool: PoolSlot, place: PoolSlot) {
        let counters = AccessCounters::default();
        let access = Access {
            pool,
            place,
            counters,
        };
        let accesses = &mut self.guest_pools(guest).accesses;
        accesses.insert(number, access);
        self.pool_mut(pool).accesses += 1;
    }

    /// Ends a guest's access to a shared pool, and the pool with the last one: that is to be emptied
    /// and removed then. [`None`] if there is no such access.
    pub(super) fn leave(&mut self, guest: u32, number: u32) -> Option<Vec<PoolRef>> {
        let accesses = &mut self.guests.get_mut(&guest)?.accesses;
        let Access { pool, place, .. } = accesses.remove(&number)?;
        self.clear_place(place);
        let Pool {
            accesses, owner, ..
        } = self.pool_mut(pool);
        *accesses -= 1;
        let (left, owner) = (*accesses, *owner);
        Some(match left {
            0 => self.end_guest(owner),
            _ => Vec::new(),
        })
    }

    /// Ends all of a guest's accesses, as [`Self::leave`] does.
    pub(super) fn leave_all(&mut self, guest: u32) -> Vec<PoolRef> {
        let accesses = self.guests.get(&guest).map(|guest| &guest.accesses);
        let numbers: Vec<_> = accesses.into_iter().flatten().map(|(n, _)| *n).collect();
        let ended = numbers
            .into_iter()
            .filter_map(|number| self.leave(guest, number));
        ended.flatten().collect()
    }

    /// Takes over accesses that are described at these places, after all pools: those that lead to a
    /// pool. A pool to which none leads ends.
    pub(super) fn adopt_accesses(&mut self, accesses: Vec<(PoolSlot, Known, PoolSlot)>) {
        for (place, known, pool) in accesses {
            self.add_place(place);
            let leads = self.has_pool(pool) && self.is_open_shared(pool);
            if leads && self.pool_slot(known.guest, known.number).is_none() {
                self.add_access(known.guest, known.number, pool, place);
            } else {
                self.records[place as usize].clear();
            }
        }
        let shared = self.guests.range(FIRST_SHARED..);
        let left = shared.filter(|(_, of)| {
            let mut pools = of.pools.values();
            pools.all(|slot| self.pool(*slot).accesses == 0)
        });
        let left: Vec<_> = left.map(|(number, _)| *number).collect();
        for number in left {
            self.end_guest(number);
        }
    }

    /// Returns whether a pool is shared, and does not end.
    fn is_open_shared(&self, slot: PoolSlot) -> bool {
        let pool = self.pool(slot);
        pool.is_shared() && self.pool_slot(pool.owner, ONLY) == Some(slot)
    }

    /// Counts something that a guest did in a pool, if that is a shared one.
    pub(super) fn note_access(
        &mut self,
        guest: &Guest,
        number: u32,
        note: impl FnOnce(&mut AccessCounters),
    ) {
        let guest = self.guests.get_mut(&guest.number());
        if let Some(access) = guest.and_then(|guest| guest.accesses.get_mut(&number)) {
            note(&mut access.counters);
        }
    }

    /// Returns whether there may be a page of these contents more in an ephemeral pool, for all that
    /// limits the pool alone. The oldest pages make room for it.
    pub(super) fn fits_max(&mut self, slot: PoolSlot, contents: Encoded) -> bool {
        let Pool { owner, account, .. } = *self.pool(slot);
        if owner < FIRST_SHARED {
            return true;
        }
        let Some(max) = self.shared.get(&owner).and_then(|pool| pool.max) else {
            return true;
        };
        let page = entry_bytes(1, 0) + contents.class().map_or(0, slot_bytes);
        for _ in 0..BATCH {
            if self.accounts.ephemeral_of(account).saturating_add(page) <= max {
                return true;
            }
            let Some(oldest) = self.accounts.oldest(account, &self.index.pages) else {
                break;
            };
            self.forget(oldest, Cause::Evicted);
        }
        false
    }

    /// Evicts some of what a shared pool has above its limit, under one hold of the lock; false if there
    /// is nothing to be evicted any more.
    fn shed_above_max(&mut self, number: u32) -> bool {
        let max = self.shared.get(&number).and_then(|pool| pool.max);
        let account = self.guests.get(&number).map(|pool| pool.account);
        let (Some(max), Some(account)) = (max, account) else {
            return false;
        };
        for _ in 0..BATCH {
            if self.accounts.ephemeral_of(account) <= max {
                return false;
            }
            let Some(oldest) = self.accounts.oldest(account, &self.index.pages) else {
                return false;
            };
            self.forget(oldest, Cause::Evicted);
        }
        true
    }
}

impl SharedReport {
    /// Returns what each guest did that has access, by its number: under whichever numbers it knows the
    /// pool.
    pub fn by_guest(&self) -> BTreeMap<u32, AccessCounters> {
        let mut guests = BTreeMap::<u32, AccessCounters>::new();
        for AccessReport {
            guest, counters, ..
        } in &self.accesses
        {
            let sum = guests.entry(*guest).or_default();
            sum.puts += counters.puts;
            sum.puts_stored += counters.puts_stored;
            sum.gets += counters.gets;
            sum.gets_hit += counters.gets_hit;
            sum.flushes += counters.flushes;
        }
        guests
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Config, Memory, Progress};

    /// Has something be described, as a process that was killed left it, and returns what the next one
    /// makes of it.
    fn recovered(describe: impl FnOnce(&mut Inner)) -> Store {
        let config = Config::new(4 << 20);
        let memory = Memory::create(&config, None).unwrap();
        let next = memory.try_clone().unwrap();
        let (store, _) = Store::recover(&config, memory).unwrap();
        describe(&mut store.lock());
        drop(store);
        let (store, found) = Store::recover(&config, next).unwrap();
        assert_eq!((found.lost, found.pages), (0, 0));
        while store.tidy_step(100) == Progress::More {}
        store
    }

    fn known(guest: u32, number: u32, access: Option<PoolSlot>) -> Known {
        Known {
            guest,
            number,
            kind: PoolKind::Ephemeral,
            hold: Hold::Stays,
            ending: false,
            access,
            life: 0,
        }
    }

    fn assert_nothing_is_left(store: &Store) {
        let inner = store.lock();
        assert_eq!(inner.free_places(), inner.records.len());
        assert!(inner.pools.iter().all(Option::is_none));
        assert!(inner.guests.values().all(|guest| guest.accesses.is_empty()));
        assert!(!inner.guests.contains_key(&FIRST_SHARED));
    }

    #[test]
    fn what_was_half_done_is_undone() {
        // Nobody had entered the pool yet.
        let store = recovered(|inner| inner.add_pool(known(FIRST_SHARED, ONLY, None)).unwrap());
        assert_nothing_is_left(&store);
        // Somebody had access to what is no pool, to one of a guest's, and to one that ended.
        for pool in [0, 77] {
            let store = recovered(|inner| {
                let place = inner.describe_new(known(1, 4, Some(pool)));
                assert_eq!(place, Some(0));
            });
            assert_nothing_is_left(&store);
        }
        let store = recovered(|inner| {
            inner.add_pool(known(2, 4, None)).unwrap();
            inner.describe_new(known(1, 4, Some(0))).unwrap();
        });
        assert_eq!(store.pools(&Guest::of(2)).len(), 1);
        assert!(store.is_shared(&Guest::of(1), 4).is_err());
        store.remove_guest(&Guest::of(2));
        assert_nothing_is_left(&store);
        let store = recovered(|inner| {
            inner.add_pool(known(FIRST_SHARED, ONLY, None)).unwrap();
            inner.describe_new(known(1, 4, Some(0))).unwrap();
            inner.end_pool(FIRST_SHARED, ONLY).unwrap();
        });
        assert_nothing_is_left(&store);
    }

    #[test]
    fn an_access_is_as_it_was() {
        let store = recovered(|inner| {
            inner.add_pool(known(FIRST_SHARED, ONLY, None)).unwrap();
            inner.describe_new(known(1, 4, Some(0))).unwrap();
            inner.describe_new(known(1, 5, Some(0))).unwrap();
            inner.describe_new(known(2, 4, Some(0))).unwrap();
            // A number leads to one pool.
            inner.add_pool(known(2, 9, None)).unwrap();
            inner.describe_new(known(2, 9, Some(0))).unwrap();
        });
        let shared = |guest, number| store.is_shared(&Guest::of(guest), number);
        for (guest, number) in [(1, 4), (1, 5), (2, 4)] {
            assert_eq!(shared(guest, number), Ok(true));
        }
        assert_eq!(shared(2, 9), Ok(false));
        assert_eq!(store.lock().pool(0).accesses, 3);
        // Under one number less it is there, and with the last it goes.
        assert!(store.lock().leave(1, 4).is_some());
        assert!(store.lock().leave(1, 4).is_none());
        assert_eq!(shared(1, 5), Ok(true));
        store.remove_guest(&Guest::of(1));
        store.remove_guest(&Guest::of(2));
        while store.tidy_step(100) == Progress::More {}
        assert_nothing_is_left(&store);
    }
}
