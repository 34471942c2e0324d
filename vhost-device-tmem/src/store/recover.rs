// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Taking over what another process left: only what describes pages is in the files, and what leads
//! to them is built anew.
//!
//! Of a request that was under way, a page is there as it was before, or gone, or as it was to be.
//! The request was not answered, and is carried out again.

use std::{io, sync::Arc};

use super::{
    entry::{Body, Page, PageState, Verdict},
    id::{ObjectSlot, PageId, SpanId},
    inner::{Inner, PoolSlot},
    memory::{written, Files},
    pool::Pool,
    records::PoolRecord,
    shared::FIRST_SHARED,
    PoolKind,
};
use crate::tier::Tier;

/// What was found of a guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RecoveredGuest {
    /// The guest's number.
    pub guest: u32,
    /// Its pools.
    pub pools: u64,
    /// Its pages whose contents are there.
    pub pages: u64,
    /// Its persistent pages whose contents are not: a get answers that they are damaged.
    pub damaged: u64,
}

/// What was found in the memory of another process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// The guests that have pools, or access to shared ones, by ascending number.
    pub guests: Vec<RecoveredGuest>,
    /// Pages whose contents are there, of all guests.
    pub pages: u64,
    /// Persistent pages whose contents are not, of all guests.
    pub damaged: u64,
    /// Descriptions that were damaged. Which pages of which guests they were of cannot be said for
    /// sure, so that all guests need a new epoch unless this is zero.
    pub lost: u64,
}

impl Inner {
    /// Finds all that the files describe. Nothing is in use before.
    pub(super) fn recover(&mut self, files: &Files) -> io::Result<Recovered> {
        let mut found = Recovered::default();
        self.index.finish_move();
        self.recover_pools(files, &mut found)?;
        self.forget_pages_of_objects(files)?;
        let mut broken = Vec::new();
        for at in entries::<Page>(files, files.layout.pages, self.index.pages.len())? {
            let id = PageId::from_index(at);
            match self.index.pages[at].verdict() {
                Verdict::Free => self.index.pages[at].clear(),
                Verdict::InForce => {
                    self.index.pages[at].let_go();
                    if !self.adopt(id) {
                        broken.push(id);
                    }
                }
                Verdict::Broken => broken.push(id),
            }
        }
        // A key that some other entry says for sure is not that of a broken one.
        for id in broken {
            found.lost += 1;
            self.adopt_broken(id);
        }
        self.index.free_other_objects();
        for (span, count) in self.slots.spans().free_runs() {
            // What was left of pages there is not to be read by anybody.
            // SAFETY: The spans are free, and nobody else has the store yet.
            unsafe { self.arena.release(span, count) };
        }
        self.soil_used_spans();
        self.count_recovered(&mut found);
        Ok(found)
    }

    fn recover_pools(&mut self, files: &Files, found: &mut Recovered) -> io::Result<()> {
        let count = self.records.len();
        let mut accesses = Vec::new();
        for at in entries::<PoolRecord>(files, files.layout.pools, count)? {
            match self.records[at].known() {
                Ok(None) => {}
                Ok(Some(known)) => match known.access {
                    Some(pool) => accesses.push((at as PoolSlot, known, pool)),
                    None => self.adopt_pool(at as PoolSlot, known),
                },
                Err(_) => {
                    // Its pages are lost, and each counts then.
                    found.lost += 1;
                    self.records[at].clear();
                }
            }
        }
        self.adopt_accesses(accesses);
        self.list_free_pools();
        Ok(())
    }

    /// Makes no object have pages, until some are found.
    fn forget_pages_of_objects(&mut self, files: &Files) -> io::Result<()> {
        let objects = &mut self.index.objects;
        for at in entries::<super::entry::Object>(files, files.layout.objects, objects.len())? {
            objects[at].pages = 0;
        }
        Ok(())
    }

    /// Makes a key lead to a page again, and returns whether it does. Where the page's contents
    /// cannot be had, the page is damaged.
    fn adopt(&mut self, id: PageId) -> bool {
        let page = self.index.pages[id.index()];
        let Some(object) = self.adopt_object(&page) else {
            return false;
        };
        if let Some(other) = self.index.find_page(object, page.index.get()) {
            // Two say that they have the key. Neither can be trusted.
            self.lose_contents(other);
            return false;
        }
        let mut body = page.body();
        self.index.claim_page(id);
        self.index.pages[id.index()].set_verified(false);
        if let Body::Slot { slot, len } = body {
            if let Err(taken) = self.slots.claim(slot, len, id) {
                // Two say that they have the slot.
                if let Some(other) = taken.0 {
                    self.lose_contents(other);
                }
                body = Body::Nothing;
            }
        }
        if let Body::Below(below) = body {
            let owner = id.index() as u32;
            let adopts = |tier: &Arc<dyn Tier>| tier.adopt(below.place, owner);
            if !self.tier.as_ref().is_some_and(adopts) {
                body = Body::Nothing;
            }
        }
        self.attach(id, object, body);
        true
    }

    /// Makes the key that a broken entry seems to have lead to a damaged page, if it is one of a
    /// persistent pool. Otherwise the entry is free.
    fn adopt_broken(&mut self, id: PageId) {
        let page = self.index.pages[id.index()];
        let pool = self.pool_of(&page).map(|slot| self.pool(slot).kind);
        let object = (pool == Some(PoolKind::Persistent)).then(|| self.adopt_object(&page));
        match object.flatten() {
            Some(object) if self.index.find_page(object, page.index.get()).is_none() => {
                self.index.claim_page(id);
                self.attach(id, object, Body::Nothing);
            }
            _ => self.index.pages[id.index()].clear(),
        }
    }

    /// Returns the pool of the object that an entry says, if both are sound.
    fn pool_of(&self, page: &Page) -> Option<PoolSlot> {
        let slot = ObjectSlot::from_link(page.object)?;
        let sound = slot.index() < self.index.objects.len();
        let object = sound.then(|| &self.index.objects[slot.index()])?;
        (object.is_sound() && self.has_pool(object.pool)).then_some(object.pool)
    }

    /// Returns the object that an entry says, if it is sound.
    fn adopt_object(&mut self, page: &Page) -> Option<ObjectSlot> {
        let pool = self.pool_of(page)?;
        let slot = ObjectSlot::from_link(page.object)?;
        let object = self.index.objects[slot.index()];
        if object.pages == 0 {
            if self.index.find_object(pool, &object.id).is_some() {
                return None;
            }
            self.index.attach_object(slot);
            self.list_object(pool, slot);
        }
        Some(slot)
    }

    /// Links a page whose entry and slot were claimed.
    fn attach(&mut self, id: PageId, object: ObjectSlot, body: Body) {
        let page = &mut self.index.pages[id.index()];
        if page.verdict() != Verdict::InForce || page.body() != body {
            page.set_state(PageState::Unlinked);
            page.let_go();
            page.set_body(body);
            page.set_state(PageState::Linked);
        }
        self.index.attach_page(id, object);
        let pool = self.index.objects[object.index()].pool;
        self.count_linked(id, pool);
    }

    /// Makes a page be damaged.
    pub(super) fn lose_contents(&mut self, id: PageId) {
        self.replace_body(id, Body::Nothing);
    }

    /// Has the free slots of spans that are in use be scrubbed.
    fn soil_used_spans(&mut self) {
        for at in 0..self.slots.spans().count() {
            let span = SpanId::from_index(at);
            if self.slots.spans().is_used(span) {
                self.slots.soil(span);
            }
        }
    }

    fn count_recovered(&self, found: &mut Recovered) {
        for guest in self.guests.keys() {
            if *guest >= FIRST_SHARED {
                found.pages += self
                    .reports(*guest)
                    .iter()
                    .map(|pool| pool.pages)
                    .sum::<u64>();
                continue;
            }
            let mut counts = RecoveredGuest {
                guest: *guest,
                ..RecoveredGuest::default()
            };
            for pool in self.reports(*guest) {
                let there = pool.contents.pages();
                counts.pools += 1;
                counts.pages += there;
                if pool.kind == PoolKind::Persistent {
                    counts.damaged += pool.pages - there;
                }
            }
            found.pages += counts.pages;
            found.damaged += counts.damaged;
            found.guests.push(counts);
        }
    }

    fn adopt_pool(&mut self, slot: PoolSlot, known: super::records::Known) {
        let guest = self.guest_pools(known.guest);
        // A number leads to one pool; that of another is not known.
        let ending = known.ending || guest.pools.contains_key(&known.number);
        if !ending {
            guest.pools.insert(known.number, slot);
        }
        let pool = Pool::of(known, guest.account);
        self.restore_pool(slot, pool, ending);
    }
}

/// Returns the entries of a table that were ever written, and maybe some more.
fn entries<T>(files: &Files, start: u64, len: usize) -> io::Result<impl Iterator<Item = usize>> {
    let size = size_of::<T>() as u64;
    let parts = written(&files.index, start, start + len as u64 * size)?;
    let mut next = 0;
    let ranges: Vec<_> = parts
        .into_iter()
        .map(|(from, to)| {
            let first = ((from - start) / size).max(next);
            next = (to - start).div_ceil(size).max(first);
            first as usize..next as usize
        })
        .collect();
    Ok(ranges.into_iter().flatten())
}

/// Returns how many entries of a table may have been written: none past these was.
pub(super) fn extent<T>(files: &Files, start: u64, len: usize) -> io::Result<usize> {
    let size = size_of::<T>() as u64;
    let parts = written(&files.index, start, start + len as u64 * size)?;
    let end = parts
        .last()
        .map_or(0, |(_, to)| (to - start).div_ceil(size));
    Ok((end as usize).min(len))
}
