// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Reading pages back that are in the tier below the store: a get finds where they are, is left until
//! they have arrived, and is finished then. They stay pinned meanwhile, so that nothing else comes to be
//! where they are.

use std::{mem, sync::Arc};

use virtio_tmem_abi::{Key, PageResult};

use super::{
    codec::Workspace,
    entry::{Body, PageState},
    id::PageId,
    inner::{Cause, Inner},
    pool::Pool,
    take::Held,
    PageBytes, PageSink, PoolKind, Store, BATCH, PAGE_SIZE,
};
use crate::tier::{seal::Binding, Arrival, Below, Gate, TierError, Wake};

/// A page that is waited for. It is pinned.
#[derive(Debug)]
pub(super) struct Awaited {
    /// Its place in the request.
    n: usize,
    id: PageId,
    below: Below,
    binding: Binding,
    kind: PoolKind,
    take: bool,
    arrival: Arc<Arrival>,
}

/// What came of a page that was waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fetched {
    All,
    /// That could not be written.
    NotAll,
    /// There is no way to have it any more.
    Lost,
}

/// What a get found of a page in the tier.
pub(super) struct Found {
    pub(super) n: usize,
    pub(super) id: PageId,
    pub(super) below: Below,
    pub(super) kind: PoolKind,
    pub(super) take: bool,
}

impl Pool {
    /// Returns what a page of the pool is.
    pub(super) fn binding(&self, key: &Key) -> Binding {
        Binding {
            owner: self.owner.into(),
            pool: self.number.into(),
            life: self.life.into(),
            key: *key,
        }
    }
}

impl Held {
    /// Says whom to wake when pages have arrived that are waited for.
    pub fn set_wake(&mut self, wake: Option<Wake>) {
        self.wake = wake;
    }

    /// Returns whether pages are waited for that have not arrived.
    pub fn is_waiting(&self) -> bool {
        let waits = |gate: &Arc<Gate>| !gate.is_open();
        !self.awaited.is_empty() && self.gate.as_ref().is_some_and(waits)
    }
}

impl Store {
    /// Begins to read a page, which was pinned.
    pub(super) fn fetch(&self, found: Found, binding: Binding, held: &mut Held) {
        let wake = &held.wake;
        let gate = held.gate.get_or_insert_with(|| Gate::new(wake.clone()));
        let arrival = Arrival::at(gate);
        match &self.lower {
            Some(lower) => {
                if found.kind == PoolKind::Ephemeral {
                    // A persistent page is waited for as long as it takes.
                    lower.clock.watch(&arrival);
                }
                lower.tier.get(found.below.place, Arc::clone(&arrival));
            }
            // Its process had a tier, and this one has none.
            None => {
                let none = "there is none".to_owned();
                arrival.arrive(Err(TierError::Failed(none)));
            }
        }
        held.awaited.push(Awaited {
            n: found.n,
            id: found.id,
            below: found.below,
            binding,
            kind: found.kind,
            take: found.take,
            arrival,
        });
    }

    /// Copies the pages that were waited for, all of which have arrived, to `sink`, and says in their
    /// results what became of them. Those that are taken are held from here on as those that were in
    /// the store. Returns how many pages that were.
    pub fn finish_get(
        &self,
        sink: &mut dyn PageSink,
        results: &mut [PageResult],
        held: &mut Held,
    ) -> usize {
        let awaited = mem::take(&mut held.awaited);
        held.gate = None;
        for pages in awaited.chunks(BATCH) {
            let mut fetched = [Fetched::Lost; BATCH];
            for (page, fetched) in pages.iter().zip(&mut fetched) {
                *fetched = self.copy_fetched(page, |contents| sink.write_page(page.n, contents));
                results[page.n] = match (*fetched, page.kind) {
                    (Fetched::All, _) => PageResult::Hit,
                    (Fetched::Lost, PoolKind::Persistent) => PageResult::Damaged,
                    (Fetched::NotAll | Fetched::Lost, _) => PageResult::Miss,
                };
            }
            let mut inner = self.lock();
            for (page, fetched) in pages.iter().zip(fetched) {
                inner.fetched(page, fetched, &mut held.pages);
            }
        }
        awaited.len()
    }

    /// Waits for the pages of a get, wherever they are.
    pub(super) fn wait_fetched(
        &self,
        sink: &mut dyn PageSink,
        results: &mut [PageResult],
        held: &mut Held,
    ) {
        if let Some(gate) = &held.gate {
            gate.wait();
            self.finish_get(sink, results, held);
        }
    }

    /// Lets go of pages that are not waited for any more. They stay where they are.
    pub(super) fn abandon_fetches(&self, held: &mut Held) {
        let awaited = mem::take(&mut held.awaited);
        held.gate = None;
        for pages in awaited.chunks(BATCH) {
            let mut inner = self.lock();
            for page in pages {
                inner.untake(page.id);
                inner.unpin(page.id);
            }
        }
    }

    fn copy_fetched(&self, page: &Awaited, write: impl FnOnce(&PageBytes) -> bool) -> Fetched {
        let contents = page.arrival.take();
        let mut sealed = match contents {
            Ok(sealed) => sealed,
            // That is counted, and there may be many.
            Err(TierError::Late) => return Fetched::Lost,
            Err(error) => {
                tracing::error!("a page cannot be brought back: {error}");
                return Fetched::Lost;
            }
        };
        let Below { mark, .. } = page.below;
        let opened = self.lower.as_ref();
        let opened = opened.and_then(|lower| lower.sealer.open(&page.binding, mark, &mut sealed));
        let copied = opened.and_then(|packed| self.unpack(packed, write));
        match copied {
            Some(true) => Fetched::All,
            Some(false) => Fetched::NotAll,
            None => {
                tracing::error!("a page in the tier is damaged, or is another one");
                Fetched::Lost
            }
        }
    }

    /// Lends the page that was stored as this to `write`, and returns whether it could be written;
    /// [`None`] if it was no page.
    fn unpack(&self, packed: &[u8], write: impl FnOnce(&PageBytes) -> bool) -> Option<bool> {
        if packed.len() == PAGE_SIZE {
            return packed.try_into().ok().map(write);
        }
        Workspace::with(|space| space.decode(self.compression, packed).map(write))
    }
}

impl Inner {
    /// Notes what came of a page that was waited for, and lets go of it unless it is taken.
    fn fetched(&mut self, page: &Awaited, fetched: Fetched, taken: &mut Vec<PageId>) {
        let id = page.id;
        let state = self.index.pages[id.index()].state();
        let linked = matches!(state, PageState::Linked | PageState::Taking);
        if linked {
            let pool = self.pool_of_linked(id);
            let counters = &mut self.pool_mut(pool).counters;
            match fetched {
                Fetched::All => counters.gets_below += 1,
                Fetched::NotAll => {}
                Fetched::Lost => {
                    counters.gets_lost_below += 1;
                    counters.gets_hit = counters.gets_hit.saturating_sub(1);
                }
            }
        }
        if fetched == Fetched::All && page.take {
            taken.push(id);
            return;
        }
        self.untake(id);
        if fetched == Fetched::Lost && linked {
            match page.kind {
                // What a get missed is not to be there later.
                PoolKind::Ephemeral => self.forget(id, Cause::Evicted),
                PoolKind::Persistent if self.index.pages[id.index()].is_below() => {
                    self.replace_body(id, Body::Nothing);
                }
                PoolKind::Persistent => {}
            }
        }
        self.unpin(id);
    }

    /// A page is not taken after all.
    fn untake(&mut self, id: PageId) {
        let page = &mut self.index.pages[id.index()];
        if page.state() == PageState::Taking {
            page.set_state(PageState::Linked);
        }
    }
}
