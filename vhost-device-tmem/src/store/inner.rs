// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Everything that the store's lock guards.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::{atomic::AtomicBool, Arc},
};

use virtio_tmem_abi::{Key, ObjectId};

use super::{
    accounts::{AccountId, Accounts},
    arena::Arena,
    budget::{entry_bytes, slot_bytes, Budget},
    classes::RAW,
    entry::{Body, Check, Object, PageState},
    fairness::{room_for, Parts},
    id::{ObjectSlot, PageId},
    index::Index,
    mapping::Table,
    memory::Files,
    pool::{Contents, Pool, PoolKind, PoolReport},
    records::{Hold, Known, PoolRecord, MAX_POOLS},
    shared::{Access, SharedPool},
    slots::Slots,
    Credits, Faults, PoolError,
};
use crate::tier::{choice::TierUse, Tier};

/// Why a page was not stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// Nothing is free, and nothing can be evicted.
    OverQuota,
    /// The pool went away meanwhile, or a fault was asked for.
    NoMemory,
    /// The operator wants nothing more to be taken of the guest.
    Frozen,
}

/// Why a page is forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// A newer one has its key, or was refused under it.
    Replaced,
    /// The guest asked.
    Flushed,
    /// A get took it.
    Taken,
    /// The store needed the room.
    Evicted,
}

/// Where a pool is in the table of pools.
pub(super) type PoolSlot = u32;

/// The pools of a guest, or a shared pool, which is kept as the only pool of a guest of its own.
#[derive(Debug)]
pub(super) struct GuestPools {
    /// Its place in the accounts.
    pub(super) account: AccountId,
    /// The places of its own pools, by their numbers.
    pub(super) pools: BTreeMap<u32, PoolSlot>,
    /// The shared pools that it has access to, by its numbers for them.
    pub(super) accesses: BTreeMap<u32, Access>,
}

/// A pool that may have ended since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PoolRef {
    pub(super) slot: PoolSlot,
    serial: u64,
}

/// What an entry counts for in a guest's account.
const ENTRY: i64 = entry_bytes(1, 0) as i64;

/// What a page counts for that is stored as it is.
const RAW_BYTES: u64 = entry_bytes(1, 0) + slot_bytes(RAW);

fn body_bytes(body: Body) -> i64 {
    match body {
        Body::Slot { slot, .. } => slot_bytes(slot.class()) as i64,
        Body::Nothing | Body::Same(_) | Body::Below(_) => 0,
    }
}

/// # Invariants
///
/// - The pages of a pool are those of the objects in its list; `pages` and `objects` count both.
/// - The lists in `accounts` have the linked pages of ephemeral pools, each guest's its own.
/// - `slots` has a slot in use for each page whose body is one, and no others.
/// - Neither `slots.spans().used()` nor `.resident()` is ever above the budget's limit, and there
///   are as many entries as the budget says.
/// - The slots counted as fixed are those of pages that are not in these lists.
/// - `contents` is the sum of all pools' `contents`.
/// - The `pools` of `guests` lead to every pool in `pools` exactly once, but for those in `ending`;
///   that of a shared pool is number 0 of a guest that has its number.
/// - A shared pool that is not in `ending` has as many `accesses` as lead to it, and at least one.
#[derive(Debug)]
pub(super) struct Inner {
    pub(super) index: Index,
    pub(super) slots: Slots,
    /// What guests hold, by their places.
    pub(super) accounts: Accounts,
    pub(super) budget: Budget,
    pub(super) arena: Arc<Arena>,
    pub(super) contents: Contents,
    pub(super) guests: BTreeMap<u32, GuestPools>,
    /// The numbers of guests of whom nothing more is taken, whether they are there or not.
    pub(super) frozen: BTreeSet<u32>,
    /// The shared pools that operators authorised guests for, by their numbers.
    pub(super) shared: BTreeMap<u32, SharedPool>,
    /// What describes the pools, by their places.
    pub(super) records: Table<PoolRecord>,
    pub(super) pools: Vec<Option<Pool>>,
    pub(super) free_pools: Vec<PoolSlot>,
    /// Pools that are being emptied, which no number leads to.
    ending: Vec<PoolSlot>,
    next_serial: u64,
    /// Pages evicted since the start.
    pub(super) evictions: u64,
    faults: Faults,
    dice: u64,
    /// What is below, if there is something.
    pub(super) tier: Option<Arc<dyn Tier>>,
    /// Which pages of guests may be there, by their numbers.
    pub(super) uses: BTreeMap<u32, TierUse>,
    /// Where cold persistent pages are looked for next.
    pub(super) hand: usize,
    /// The life of the pool that was made last.
    pub(super) last_life: u64,
    /// An ephemeral page was evicted since it was last looked for cold ones.
    pub(super) pressed: Arc<AtomicBool>,
}

impl Inner {
    /// Starts with nothing in use, whatever is in the files.
    pub(super) fn new(
        files: &Files,
        budget: Budget,
        arena: Arc<Arena>,
        parts: Parts,
        faults: Faults,
    ) -> io::Result<Self> {
        // SAFETY: The header says that the file is laid out so, and whoever hands it over has it to
        // himself. A record is of numbers only.
        let records = unsafe { Table::shared(&files.index, files.layout.pools, MAX_POOLS)? };
        Ok(Self {
            index: Index::new(files, budget.max_pages(), budget.entries().0)?,
            slots: Slots::new(Arc::clone(&arena), budget.max_spans())?,
            accounts: Accounts::new(parts),
            budget,
            arena,
            contents: Contents::default(),
            guests: BTreeMap::new(),
            frozen: BTreeSet::new(),
            shared: BTreeMap::new(),
            records,
            pools: Vec::new(),
            free_pools: Vec::new(),
            ending: Vec::new(),
            next_serial: 0,
            evictions: 0,
            faults,
            dice: 0x9e37_79b9_7f4a_7c15,
            tier: None,
            uses: BTreeMap::new(),
            hand: 0,
            last_life: 0,
            pressed: Arc::default(),
        })
    }

    /// Adds a guest that has no pools, unless there is one of this number. Without a number it gets
    /// the lowest that is free.
    pub(super) fn add_guest(&mut self, number: Option<u32>) -> u32 {
        let free = || (0..).find(|number| !self.guests.contains_key(number));
        let number = number
            .or_else(free)
            .expect("there are fewer guests than numbers");
        self.guest_pools(number);
        number
    }

    /// Returns the pools of a guest, which there is from now on.
    pub(super) fn guest_pools(&mut self, number: u32) -> &mut GuestPools {
        let accounts = &mut self.accounts;
        self.guests.entry(number).or_insert_with(|| GuestPools {
            account: accounts.open(number),
            pools: BTreeMap::new(),
            accesses: BTreeMap::new(),
        })
    }

    /// Returns the place of the pool that a guest's number leads to.
    pub(super) fn pool_slot(&self, guest: u32, number: u32) -> Option<PoolSlot> {
        let guest = self.guests.get(&guest)?;
        let own = guest.pools.get(&number).copied();
        own.or_else(|| guest.accesses.get(&number).map(|access| access.pool))
    }

    pub(super) fn pool(&self, slot: PoolSlot) -> &Pool {
        let pool = self.pools.get(slot as usize).and_then(Option::as_ref);
        pool.expect("a pool that is referred to exists")
    }

    pub(super) fn pool_mut(&mut self, slot: PoolSlot) -> &mut Pool {
        let pool = self.pools.get_mut(slot as usize).and_then(Option::as_mut);
        pool.expect("a pool that is referred to exists")
    }

    /// Adds a pool of a number that the guest has none of.
    pub(super) fn add_pool(&mut self, known: Known) -> Result<(), PoolError> {
        self.last_life += 1;
        let life = self.last_life;
        let known = Known { life, ..known };
        let slot = self.describe_new(known).ok_or(PoolError::TooMany)?;
        let guest = self.guest_pools(known.guest);
        guest.pools.insert(known.number, slot);
        let pool = Pool::of(known, guest.account);
        self.restore_pool(slot, pool, false);
        Ok(())
    }

    /// Puts a pool that is described at its place.
    pub(super) fn restore_pool(&mut self, slot: PoolSlot, pool: Pool, ending: bool) {
        self.next_serial += 1;
        let at = slot as usize;
        self.add_place(slot);
        self.accounts.add_pool(pool.account);
        self.pools[at] = Some(Pool {
            serial: self.next_serial,
            ..pool
        });
        if ending {
            self.ending.push(slot);
        }
    }

    pub(super) fn has_pool(&self, slot: PoolSlot) -> bool {
        self.pools.get(slot as usize).is_some_and(Option::is_some)
    }

    /// Sets what a reset of the device does to a pool.
    pub(super) fn set_hold(&mut self, slot: PoolSlot, hold: Hold) {
        self.pool_mut(slot).hold = hold;
        self.describe(slot, |known| known.hold = hold);
    }

    /// Names a pool, so that it is told from one that has its place later.
    pub(super) fn pool_ref(&self, slot: PoolSlot) -> PoolRef {
        let serial = self.pool(slot).serial;
        PoolRef { slot, serial }
    }

    /// Returns whether the pool is still there.
    pub(super) fn is_current(&self, pool: PoolRef) -> bool {
        let there = self.pools.get(pool.slot as usize).and_then(Option::as_ref);
        there.is_some_and(|there| there.serial == pool.serial)
    }

    /// Makes a guest's number lead to no pool any more. The pool is to be emptied and removed.
    pub(super) fn end_pool(&mut self, guest: u32, number: u32) -> Result<PoolRef, PoolError> {
        let pools = self.guests.get_mut(&guest).ok_or(PoolError::NoPool)?;
        let slot = pools.pools.remove(&number).ok_or(PoolError::NoPool)?;
        self.ending.push(slot);
        self.describe(slot, |known| known.ending = true);
        Ok(self.pool_ref(slot))
    }

    /// Makes there be no such guest. Its pools are to be emptied and removed.
    pub(super) fn end_guest(&mut self, guest: u32) -> Vec<PoolRef> {
        let pools = self.guests.get(&guest).into_iter();
        let numbers: Vec<_> = pools
            .flat_map(|guest| guest.pools.keys().copied())
            .collect();
        let mut ended = Vec::new();
        for number in numbers {
            ended.extend(self.end_pool(guest, number));
        }
        ended.extend(self.leave_all(guest));
        if let Some(guest) = self.guests.remove(&guest) {
            // It is not lent anything any more either.
            for kind in PoolKind::ALL {
                let lent = self.accounts.end_loan(guest.account, kind, u64::MAX);
                self.budget = self.budget.returned(lent as usize);
            }
            self.accounts.close(guest.account);
        }
        ended
    }

    /// Returns a pool that is being emptied.
    pub(super) fn ending(&self) -> Option<PoolRef> {
        self.ending.last().map(|slot| self.pool_ref(*slot))
    }

    /// Removes a pool that has no pages left, and that no number leads to.
    pub(super) fn remove_pool(&mut self, slot: PoolSlot) {
        debug_assert_eq!(self.pool(slot).pages, 0);
        let account = self.pool(slot).account;
        self.accounts.remove_pool(account);
        self.pools[slot as usize] = None;
        self.ending.retain(|ending| *ending != slot);
        self.clear_place(slot);
    }

    /// Finds the page under a key, in whatever version.
    pub(super) fn find(&mut self, pool: PoolSlot, object: &ObjectId, index: u64) -> Option<PageId> {
        let object = self.index.find_object(pool, object)?;
        self.index.find_page(object, index)
    }

    /// Makes a key lead to a page that is filled until [`Self::filled`]. No other page has the key.
    ///
    /// On an error the page is as before.
    pub(super) fn link(&mut self, id: PageId, slot: PoolSlot, key: &Key) -> Result<(), Refusal> {
        let object = match self.index.find_object(slot, &key.object) {
            Some(object) => object,
            None => self.add_object(slot, key.object)?,
        };
        self.index
            .link_page(id, object, key.index.get(), key.version.get());
        let Pool { kind, account, .. } = *self.pool(slot);
        let used = kind == PoolKind::Persistent || {
            let digest = || self.index.digest(slot, &key.object, key.index.get());
            self.accounts.is_reused(account, digest)
        };
        self.index.pages[id.index()].set_used(used);
        self.count_linked(id, slot);
        Ok(())
    }

    /// Counts a page that was just linked.
    pub(super) fn count_linked(&mut self, id: PageId, slot: PoolSlot) {
        let body = self.index.pages[id.index()].body();
        self.count(slot, Body::Nothing, body);
        let pool = self.pool_mut(slot);
        pool.pages += 1;
        let (kind, account) = (pool.kind, pool.account);
        self.accounts.hold(account, kind, ENTRY);
        if kind == PoolKind::Ephemeral {
            self.accounts.push(account, &mut self.index.pages, id);
        }
    }

    /// Counts that a linked page of a pool consists of something else.
    pub(super) fn count(&mut self, pool: PoolSlot, older: Body, newer: Body) {
        self.contents.remove(older);
        self.contents.add(newer);
        let pool = self.pool_mut(pool);
        pool.contents.remove(older);
        pool.contents.add(newer);
        let (kind, account) = (pool.kind, pool.account);
        let more = body_bytes(newer) - body_bytes(older);
        self.accounts.hold(account, kind, more);
        if kind == PoolKind::Ephemeral {
            if let Body::Slot { slot, .. } = older {
                self.slots.fix(slot.class());
            }
            if let Body::Slot { slot, .. } = newer {
                self.slots.unfix(slot.class());
            }
        }
    }

    fn add_object(&mut self, slot: PoolSlot, id: ObjectId) -> Result<ObjectSlot, Refusal> {
        if self.lacks_objects() {
            self.grow_objects()?;
        }
        let object = self.index.add_object(slot, id);
        self.list_object(slot, object);
        Ok(object)
    }

    /// Makes an object the last of its pool.
    pub(super) fn list_object(&mut self, slot: PoolSlot, object: ObjectSlot) {
        let last = self.pool(slot).last;
        self.index.objects[object.index()].pool_prev = last;
        match ObjectSlot::from_link(last) {
            Some(last) => self.index.objects[last.index()].pool_next = object.link(),
            None => self.pool_mut(slot).first = object.link(),
        }
        let pool = self.pool_mut(slot);
        pool.last = object.link();
        pool.objects += 1;
    }

    /// Makes a page be found that a put has filled, with the check of its contents if it is a
    /// persistent one; or forgets it, if that failed. Nothing of both
    /// is to be done if it was forgotten meanwhile.
    pub(super) fn filled(&mut self, id: PageId, successful: bool, check: Option<Option<Check>>) {
        let page = &mut self.index.pages[id.index()];
        if page.state() == PageState::Filling {
            if successful {
                if let Some(check) = check {
                    page.set_contents(check);
                }
                page.set_state(PageState::Linked);
            } else {
                let pool = self.pool_of_linked(id);
                let counters = &mut self.pool_mut(pool).counters;
                counters.puts_stored -= 1;
                counters.puts_refused += 1;
                counters.refused_no_memory += 1;
                self.forget(id, Cause::Replaced);
            }
        }
        self.unpin(id);
    }

    /// Returns whether another object would take of the room for pages.
    fn lacks_objects(&self) -> bool {
        self.index.objects_exhausted() && self.index.touched_objects() == self.budget.entries().1
    }

    /// Forgets a linked page. Its room is free at once, or when the last get or put let it go.
    pub(super) fn forget(&mut self, id: PageId, cause: Cause) {
        let object = self.index.unlink_page(id);
        let Object {
            pool: slot,
            pages,
            id: name,
            ..
        } = self.index.objects[object.index()];
        let body = self.index.pages[id.index()].body();
        self.count(slot, body, Body::Nothing);
        if pages == 0 {
            self.remove_object(slot, object);
        }
        let Pool { kind, account, .. } = *self.pool(slot);
        self.accounts.hold(account, kind, -ENTRY);
        if kind == PoolKind::Ephemeral {
            self.accounts.remove(account, &mut self.index.pages, id);
        }
        let pool = self.pool_mut(slot);
        pool.pages -= 1;
        match cause {
            Cause::Replaced | Cause::Taken => {}
            Cause::Flushed => pool.counters.pages_flushed += 1,
            Cause::Evicted => {
                pool.counters.pages_evicted += 1;
                self.evictions += 1;
                let index = self.index.pages[id.index()].index.get();
                let digest = self.index.digest(slot, &name, index);
                self.accounts.evict(account, digest);
            }
        }
        if self.index.pages[id.index()].pins() == 0 {
            self.release(id);
        }
    }

    fn remove_object(&mut self, slot: PoolSlot, object: ObjectSlot) {
        let Object {
            pool_prev,
            pool_next,
            ..
        } = self.index.objects[object.index()];
        match ObjectSlot::from_link(pool_prev) {
            Some(prev) => self.index.objects[prev.index()].pool_next = pool_next,
            None => self.pool_mut(slot).first = pool_next,
        }
        match ObjectSlot::from_link(pool_next) {
            Some(next) => self.index.objects[next.index()].pool_prev = pool_prev,
            None => self.pool_mut(slot).last = pool_prev,
        }
        self.pool_mut(slot).objects -= 1;
        self.index.remove_object(object);
    }

    /// Frees a page that no key leads to and nobody reads.
    pub(super) fn release(&mut self, id: PageId) {
        let page = &mut self.index.pages[id.index()];
        page.set_state(PageState::Unlinked);
        let body = page.body();
        page.set_body(Body::Nothing);
        self.free_body(body);
        self.index.free_page(id);
    }

    /// Frees what a page consisted of, which no entry says any more.
    pub(super) fn free_body(&mut self, body: Body) {
        match body {
            Body::Slot { slot, .. } => self.slots.free(slot),
            Body::Below(below) => {
                if let Some(tier) = &self.tier {
                    tier.remove(below.place);
                }
            }
            Body::Nothing | Body::Same(_) => {}
        }
    }

    /// Has a linked page consist of something else, which is there already. Should the process end
    /// meanwhile, the next one finds it as it was or as it is to be. Nobody copies it.
    pub(super) fn replace_body(&mut self, id: PageId, newer: Body) {
        let page = self.index.pages[id.index()];
        let (older, pool) = (page.body(), self.pool_of_linked(id));
        let Pool { kind, account, .. } = *self.pool(pool);
        if kind == PoolKind::Ephemeral {
            self.accounts.remove(account, &mut self.index.pages, id);
        }
        self.index.move_contents(id, newer);
        if kind == PoolKind::Ephemeral {
            self.accounts.push(account, &mut self.index.pages, id);
        }
        self.count(pool, older, newer);
        self.free_body(older);
    }

    /// Returns the pool of a linked page.
    pub(super) fn pool_of_linked(&self, id: PageId) -> PoolSlot {
        let object = ObjectSlot::from_link(self.index.pages[id.index()].object);
        let object = object.expect("a linked page has an object");
        self.index.objects[object.index()].pool
    }

    /// Lets go of a page, and frees it if no key leads there any more.
    pub(super) fn unpin(&mut self, id: PageId) {
        let page = &mut self.index.pages[id.index()];
        page.unpin();
        if page.pins() == 0 && page.state() == PageState::Orphan {
            self.release(id);
        }
    }

    /// Returns whether free memory is worth giving back to the operating system.
    pub(super) fn much_to_release(&self) -> bool {
        self.slots.spans().can_drain() || self.budget.is_elastic() && self.index.may_shrink_pages()
    }

    /// Returns whether a put is to be refused to test that.
    pub(super) fn roll_refuse(&mut self) -> bool {
        self.roll(self.faults.refuse_percent)
    }

    /// Returns whether an ephemeral page is to be forgotten to test that.
    pub(super) fn roll_forget(&mut self) -> bool {
        self.roll(self.faults.forget_percent)
    }

    fn roll(&mut self, percent: u8) -> bool {
        if percent == 0 {
            return false;
        }
        self.dice ^= self.dice << 13;
        self.dice ^= self.dice >> 7;
        self.dice ^= self.dice << 17;
        (self.dice >> 32) % 100 < u64::from(percent)
    }

    /// Returns how many persistent pages would be stored now, whatever they contain: each is taken
    /// for one that no compression makes smaller. What is less than that leaves more for those after
    /// it.
    pub(super) fn room(&self) -> usize {
        let mut budget = self.budget;
        if self.lacks_objects() {
            budget = budget.grow_objects().unwrap_or(budget);
        }
        let room = self.slots.room(budget.span_limit());
        let unevictable = self.index.used_pages() - self.accounts.ephemeral_pages();
        budget.credits(room, budget.entries().0 - unevictable)
    }

    /// Returns how much of the room is for a guest that has this account.
    pub(super) fn room_of(&self, room: usize, account: AccountId) -> usize {
        let (unmet, others) = self.accounts.unmet(account);
        let pages = |bytes: u64| bytes.div_ceil(RAW_BYTES);
        let room = room_for(room as u64, pages(unmet), pages(others));
        room.min(self.accounts.quota_left(account) / RAW_BYTES) as usize
    }

    /// Returns whether a guest's persistent page may take memory that the guest does not have yet.
    pub(super) fn admits(&self, account: AccountId) -> bool {
        let (unmet, others) = self.accounts.unmet(account);
        if self.accounts.quota_left(account) < RAW_BYTES {
            return false;
        }
        // What was promised to it is found, or it is not there at all.
        unmet > 0 || others == 0 || self.room_of(self.room(), account) > 0
    }

    /// Returns the credits of a guest, or those that there are for whoever comes first.
    pub(super) fn credits(&self, guest: Option<u32>) -> Credits {
        if guest.is_some_and(|guest| self.frozen.contains(&guest)) {
            return Credits {
                persistent: 0,
                ephemeral: 0,
            };
        }
        let room = self.room();
        let account = guest.and_then(|guest| self.guests.get(&guest));
        let own = account.map_or(room, |guest| self.room_of(room, guest.account));
        let told = |room: usize| {
            let room = room.saturating_sub(self.budget.reserve_pages());
            u32::try_from(room).unwrap_or(u32::MAX - 1)
        };
        Credits {
            persistent: told(own),
            ephemeral: told(room),
        }
    }

    /// Returns what all pools of a guest hold that are its own, by ascending number.
    pub(super) fn reports(&self, guest: u32) -> Vec<PoolReport> {
        let pools = self.guests.get(&guest).into_iter();
        pools
            .flat_map(|guest| &guest.pools)
            .map(|(number, slot)| self.report(*number, *slot))
            .collect()
    }

    /// Returns what a pool holds, and what happened in it.
    pub(super) fn report(&self, number: u32, slot: PoolSlot) -> PoolReport {
        let pool = self.pool(slot);
        PoolReport {
            pool: number,
            kind: pool.kind,
            pages: pool.pages,
            objects: pool.objects,
            bytes: entry_bytes(pool.pages, pool.objects) + pool.contents.slot_bytes,
            contents: pool.contents,
            counters: pool.counters,
        }
    }
}
