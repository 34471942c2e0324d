// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Everything that the store's lock guards.

use std::{collections::BTreeMap, io, sync::Arc};

use virtio_tmem_abi::{Key, ObjectId};

use super::{
    arena::Arena,
    budget::Budget,
    frames::Frames,
    id::{FrameId, ObjectSlot},
    index::{Index, Object, PageState},
    lru::Lru,
    pool::{Pool, PoolKind, PoolReport},
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
/// - `frames.used()` is the number of frames that are linked, orphaned with pins, or being copied
///   into; neither it nor `frames.resident()` is ever above the budget's limit.
/// - `guests` leads to every pool in `pools` exactly once, but for one being destroyed.
#[derive(Debug)]
pub(super) struct Inner {
    pub(super) index: Index,
    pub(super) frames: Frames,
    pub(super) lru: Lru,
    pub(super) budget: Budget,
    arena: Arc<Arena>,
    pub(super) guests: BTreeMap<u64, BTreeMap<u32, PoolSlot>>,
    pools: Vec<Option<Pool>>,
    free_pools: Vec<PoolSlot>,
    generation: u64,
    next_guest: u64,
    /// Pages evicted since the start.
    pub(super) evictions: u64,
    faults: Faults,
    dice: u64,
}

impl Inner {
    pub(super) fn new(budget: Budget, arena: Arc<Arena>, faults: Faults) -> io::Result<Self> {
        Ok(Self {
            index: Index::new(budget.max_frames())?,
            frames: Frames::new(budget.max_frames()),
            lru: Lru::default(),
            budget,
            arena,
            guests: BTreeMap::new(),
            pools: Vec::new(),
            free_pools: Vec::new(),
            generation: 0,
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
        self.generation += 1;
        let pool = Some(Pool::new(kind, self.generation));
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
    pub(super) fn find(
        &mut self,
        pool: PoolSlot,
        object: &ObjectId,
        index: u64,
    ) -> Option<FrameId> {
        let object = self.index.find_object(pool, object)?;
        self.index.find_page(object, index)
    }

    /// Takes a frame, evicting where that is needed.
    pub(super) fn reserve(&mut self) -> Result<FrameId, Refusal> {
        if self.roll(self.faults.refuse_percent) {
            return Err(Refusal::NoMemory);
        }
        let limit = self.budget.frame_limit();
        while self.frames.used() >= limit {
            self.evict()?;
        }
        self.frames.alloc(limit).ok_or(Refusal::OverQuota)
    }

    /// Makes a key lead to a frame that was filled. No other page has the key.
    ///
    /// On an error the frame is as before.
    pub(super) fn link(
        &mut self,
        frame: FrameId,
        slot: PoolSlot,
        key: &Key,
    ) -> Result<(), Refusal> {
        let object = match self.index.find_object(slot, &key.object) {
            Some(object) => object,
            None => self.add_object(slot, key.object)?,
        };
        self.index
            .link_page(frame, object, key.index.get(), key.version.get());
        let pool = self.pool_mut(slot);
        pool.pages += 1;
        if pool.kind == PoolKind::Ephemeral {
            self.lru.push(&mut self.index.pages, frame);
        }
        Ok(())
    }

    fn add_object(&mut self, slot: PoolSlot, id: ObjectId) -> Result<ObjectSlot, Refusal> {
        if self.index.objects_exhausted() && self.index.touched_objects() == self.budget.objects() {
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

    /// Moves room from the frames to the objects.
    fn grow_objects(&mut self) -> Result<(), Refusal> {
        let grown = self.budget.grow_objects().ok_or(Refusal::OverQuota)?;
        let limit = grown.frame_limit();
        while self.frames.used() > limit {
            self.evict()?;
        }
        while self.frames.resident() > limit {
            let frame = self.frames.trim().ok_or(Refusal::OverQuota)?;
            // SAFETY: The frame is free.
            unsafe { self.arena.release(frame) };
        }
        self.budget = grown;
        Ok(())
    }

    /// Forgets a linked page. Its frame is free at once, or when the last get let it go.
    pub(super) fn forget(&mut self, frame: FrameId, cause: Cause) {
        let object = self.index.unlink_page(frame);
        let Object { pool, pages, .. } = self.index.objects[object.index()];
        if self.pool(pool).kind == PoolKind::Ephemeral {
            self.lru.remove(&mut self.index.pages, frame);
        }
        if pages == 0 {
            self.remove_object(pool, object);
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
        if self.index.pages[frame.index()].pins == 0 {
            self.release(frame);
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

    /// Frees a frame that no key leads to and nobody reads.
    pub(super) fn release(&mut self, frame: FrameId) {
        let page = &mut self.index.pages[frame.index()];
        page.state = PageState::Unlinked;
        self.frames.free(frame);
    }

    fn evict(&mut self) -> Result<(), Refusal> {
        let victim = self.lru.victim(&self.index.pages);
        self.forget(victim.ok_or(Refusal::OverQuota)?, Cause::Evicted);
        Ok(())
    }

    /// Keeps a get's page where it is until [`Self::unpin`].
    pub(super) fn pin(&mut self, frame: FrameId) {
        self.index.pages[frame.index()].pins += 1;
    }

    /// Lets go of a page, and frees its frame if no key leads there any more.
    pub(super) fn unpin(&mut self, frame: FrameId) {
        let page = &mut self.index.pages[frame.index()];
        page.pins -= 1;
        if page.pins == 0 && page.state == PageState::Orphan {
            self.release(frame);
        }
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

    /// Returns how many pages would be stored now.
    pub(super) fn credits(&self) -> Credits {
        let unevictable = self.frames.used() - self.lru.len();
        let limit = self.budget.frame_limit();
        let room = limit.saturating_sub(unevictable + self.budget.reserve_frames());
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
            bytes: self.budget.bytes_of(pool.pages, pool.objects),
            counters: pool.counters,
        }
    }
}
