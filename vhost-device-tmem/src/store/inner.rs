// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Everything that the store's lock guards.

use std::{collections::BTreeMap, io, sync::Arc};

use virtio_tmem_abi::{Key, ObjectId};

use super::{
    arena::Arena,
    budget::{entry_bytes, Budget},
    id::{ObjectSlot, PageId},
    index::{Body, Index, Object, PageState},
    lru::Lru,
    pool::{Contents, Pool, PoolKind, PoolReport},
    slots::Slots,
    Credits, Faults,
};

/// Why a page was not stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// Nothing is free, and nothing can be evicted.
    OverQuota,
    /// The pool went away meanwhile, or a fault was asked for.
    NoMemory,
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

/// # Invariants
///
/// - The pages of a pool are those of the objects in its list; `pages` and `objects` count both.
/// - `lru` lists the linked pages of ephemeral pools.
/// - `slots` has a slot in use for each page whose body is one, and no others.
/// - Neither `slots.spans().used()` nor `.resident()` is ever above the budget's limit, and there
///   are as many entries as the budget says.
/// - The slots counted as fixed are those of the pages that `lru` does not list.
/// - `contents` is the sum of all pools' `contents`.
/// - `guests` leads to every pool in `pools` exactly once, but for one being destroyed.
#[derive(Debug)]
pub(super) struct Inner {
    pub(super) index: Index,
    pub(super) slots: Slots,
    pub(super) lru: Lru,
    pub(super) budget: Budget,
    pub(super) arena: Arc<Arena>,
    pub(super) contents: Contents,
    pub(super) guests: BTreeMap<u64, BTreeMap<u32, PoolSlot>>,
    pools: Vec<Option<Pool>>,
    free_pools: Vec<PoolSlot>,
    next_guest: u64,
    /// Pages evicted since the start.
    pub(super) evictions: u64,
    faults: Faults,
    dice: u64,
}

impl Inner {
    pub(super) fn new(budget: Budget, arena: Arc<Arena>, faults: Faults) -> io::Result<Self> {
        Ok(Self {
            index: Index::new(budget.max_pages(), budget.entries().0)?,
            slots: Slots::new(Arc::clone(&arena), budget.max_spans())?,
            lru: Lru::default(),
            budget,
            arena,
            contents: Contents::default(),
            guests: BTreeMap::new(),
            pools: Vec::new(),
            free_pools: Vec::new(),
            next_guest: 0,
            evictions: 0,
            faults,
            dice: 0x9e37_79b9_7f4a_7c15,
        })
    }

    pub(super) fn add_guest(&mut self) -> u64 {
        self.next_guest += 1;
        self.guests.insert(self.next_guest, BTreeMap::new());
        self.next_guest
    }

    /// Returns the place of a guest's pool.
    pub(super) fn pool_slot(&self, guest: u64, number: u32) -> Option<PoolSlot> {
        self.guests.get(&guest)?.get(&number).copied()
    }

    pub(super) fn pool(&self, slot: PoolSlot) -> &Pool {
        let pool = self.pools.get(slot as usize).and_then(Option::as_ref);
        pool.expect("a pool that is referred to exists")
    }

    pub(super) fn pool_mut(&mut self, slot: PoolSlot) -> &mut Pool {
        let pool = self.pools.get_mut(slot as usize).and_then(Option::as_mut);
        pool.expect("a pool that is referred to exists")
    }

    pub(super) fn add_pool(&mut self, guest: u64, number: u32, kind: PoolKind) {
        let pool = Some(Pool::new(kind));
        let slot = match self.free_pools.pop() {
            Some(slot) => {
                self.pools[slot as usize] = pool;
                slot
            }
            None => {
                self.pools.push(pool);
                self.pools.len() as PoolSlot - 1
            }
        };
        self.guests.entry(guest).or_default().insert(number, slot);
    }

    /// Makes a guest's number lead to no pool any more, and returns the pool's place.
    pub(super) fn take_pool(&mut self, guest: u64, number: u32) -> Option<PoolSlot> {
        self.guests.get_mut(&guest)?.remove(&number)
    }

    /// Removes a pool that has no pages left, and that no number leads to.
    pub(super) fn remove_pool(&mut self, slot: PoolSlot) {
        debug_assert_eq!(self.pool(slot).pages, 0);
        self.pools[slot as usize] = None;
        self.free_pools.push(slot);
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
        let body = self.index.pages[id.index()].body();
        self.count(slot, Body::Nothing, body);
        let pool = self.pool_mut(slot);
        pool.pages += 1;
        if pool.kind == PoolKind::Ephemeral {
            self.lru.push(&mut self.index.pages, id);
        }
        Ok(())
    }

    /// Counts that a linked page of a pool consists of something else.
    pub(super) fn count(&mut self, pool: PoolSlot, older: Body, newer: Body) {
        self.contents.remove(older);
        self.contents.add(newer);
        let pool = self.pool_mut(pool);
        pool.contents.remove(older);
        pool.contents.add(newer);
        if pool.kind == PoolKind::Ephemeral {
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
        let last = self.pool(slot).last;
        self.index.objects[object.index()].pool_prev = last;
        match ObjectSlot::from_link(last) {
            Some(last) => self.index.objects[last.index()].pool_next = object.link(),
            None => self.pool_mut(slot).first = object.link(),
        }
        let pool = self.pool_mut(slot);
        pool.last = object.link();
        pool.objects += 1;
        Ok(object)
    }

    /// Makes a page be found that a put has filled; or forgets it, if that failed. Nothing of both
    /// is to be done if it was forgotten meanwhile.
    pub(super) fn filled(&mut self, id: PageId, successful: bool) {
        let page = &mut self.index.pages[id.index()];
        if page.state == PageState::Filling {
            if successful {
                page.state = PageState::Linked;
            } else {
                let object = ObjectSlot::from_link(page.object);
                let object = object.expect("a linked page has an object");
                let pool = self.index.objects[object.index()].pool;
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
        let Object { pool, pages, .. } = self.index.objects[object.index()];
        let body = self.index.pages[id.index()].body();
        self.count(pool, body, Body::Nothing);
        if pages == 0 {
            self.remove_object(pool, object);
        }
        let ephemeral = self.pool(pool).kind == PoolKind::Ephemeral;
        if ephemeral {
            self.lru.remove(&mut self.index.pages, id);
        }
        let pool = self.pool_mut(pool);
        pool.pages -= 1;
        match cause {
            Cause::Replaced | Cause::Taken => {}
            Cause::Flushed => pool.counters.pages_flushed += 1,
            Cause::Evicted => {
                pool.counters.pages_evicted += 1;
                self.evictions += 1;
            }
        }
        if self.index.pages[id.index()].pins == 0 {
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
        page.state = PageState::Unlinked;
        if let Body::Slot { slot, .. } = page.body() {
            self.slots.free(slot);
        }
        page.set_body(Body::Nothing);
        self.index.free_page(id);
    }

    /// Keeps a get's page where it is until [`Self::unpin`].
    pub(super) fn pin(&mut self, id: PageId) {
        self.index.pages[id.index()].pins += 1;
    }

    /// Lets go of a page, and frees it if no key leads there any more.
    pub(super) fn unpin(&mut self, id: PageId) {
        let page = &mut self.index.pages[id.index()];
        page.pins -= 1;
        if page.pins == 0 && page.state == PageState::Orphan {
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

    /// Returns how many pages would be stored now, whatever they contain: each is taken for one
    /// that no compression makes smaller. What is less than that leaves more for those after it.
    pub(super) fn credits(&self) -> Credits {
        let mut budget = self.budget;
        if self.lacks_objects() {
            budget = budget.grow_objects().unwrap_or(budget);
        }
        let room = self.slots.room(budget.span_limit());
        let unevictable = self.index.used_pages() - self.lru.len();
        let room = budget.credits(room, budget.entries().0 - unevictable);
        let room = room.saturating_sub(self.budget.reserve_pages());
        let room = u32::try_from(room).unwrap_or(u32::MAX - 1);
        Credits {
            persistent: room,
            ephemeral: room,
        }
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
