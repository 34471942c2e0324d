// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Finding room for pages: by growing, by moving pages together, by evicting.

use std::sync::atomic::Ordering;

use super::{
    budget::STEP,
    classes::ClassId,
    codec::Encoded,
    entry::Body,
    id::PageId,
    inner::{Cause, Inner, PoolSlot, Refusal},
    pool::Pool,
    PoolKind,
};

impl Inner {
    /// Returns whether there may be a page of these contents more in a pool: for all that others were
    /// promised, and that the pool itself may have.
    fn may_hold_more(&mut self, pool: PoolSlot, contents: Encoded) -> bool {
        let Pool { kind, account, .. } = *self.pool(pool);
        match kind {
            PoolKind::Ephemeral => self.fits_max(pool, contents),
            PoolKind::Persistent => self.admits(account),
        }
    }

    /// Takes an entry for a page of a pool, and the room that its contents need.
    pub(super) fn reserve(&mut self, contents: Encoded, pool: PoolSlot) -> Result<PageId, Refusal> {
        if contents == Encoded::Failed || self.roll_refuse() {
            return Err(Refusal::NoMemory);
        }
        if !self.may_hold_more(pool, contents) {
            return Err(Refusal::OverQuota);
        }
        let id = self.take_page()?;
        let body = self.take_body(contents, id);
        let body = body.inspect_err(|_| self.index.free_page(id))?;
        self.index.pages[id.index()].set_body(body);
        Ok(id)
    }

    /// Has a linked page, which nobody copies, filled with other contents. It is taken over for
    /// them, and keeps its slot if that is as large as it has to be.
    ///
    /// On an error the page is gone.
    pub(super) fn reserve_anew(
        &mut self,
        id: PageId,
        pool: PoolSlot,
        contents: Encoded,
        version: u64,
    ) -> Result<(), Refusal> {
        if contents == Encoded::Failed || self.roll_refuse() {
            self.forget(id, Cause::Replaced);
            return Err(Refusal::NoMemory);
        }
        let page = &mut self.index.pages[id.index()];
        page.begin_filling(version);
        let older = page.body();
        let Pool { kind, account, .. } = *self.pool(pool);
        match kind {
            PoolKind::Ephemeral => self.accounts.touch(account, &mut self.index.pages, id),
            PoolKind::Persistent => self.index.pages[id.index()].set_used(true),
        }
        let newer = match older {
            Body::Slot { slot, .. } if contents.class() == Some(slot.class()) => Body::Slot {
                slot,
                len: contents.packed_len() as u16,
            },
            _ => {
                self.count(pool, older, Body::Nothing);
                self.index.pages[id.index()].set_body(Body::Nothing);
                if let Body::Slot { slot, .. } = older {
                    self.slots.free(slot);
                }
                // Whoever has less after than before needs nobody's leave.
                let less = match (older, contents.class()) {
                    (_, None) => true,
                    (Body::Slot { slot, .. }, Some(class)) => class > slot.class(),
                    _ => false,
                };
                let newer = if less || self.may_hold_more(pool, contents) {
                    self.take_body(contents, id)
                } else {
                    Err(Refusal::OverQuota)
                };
                newer.inspect_err(|_| {
                    self.forget(id, Cause::Replaced);
                    self.unpin(id);
                })?
            }
        };
        let older = self.index.pages[id.index()].body();
        self.index.pages[id.index()].set_body(newer);
        self.count(pool, older, newer);
        Ok(())
    }

    /// Takes the room that contents need.
    fn take_body(&mut self, contents: Encoded, id: PageId) -> Result<Body, Refusal> {
        match (contents, contents.class()) {
            (Encoded::Same(word), _) => Ok(Body::Same(word)),
            (_, None) => Ok(Body::Nothing),
            (_, Some(class)) => self.take_slot(class, id, contents.packed_len() as u16),
        }
    }

    fn take_page(&mut self) -> Result<PageId, Refusal> {
        loop {
            if let Some(id) = self.index.take_page() {
                return Ok(id);
            }
            // What is evicted leaves an entry, so that there is no need for more.
            if !self.grow_pages() {
                let made = self.make_room();
                if made.is_err() {
                    // Entries of pages in the tier are no better.
                    let below = self.accounts.victim_below(&self.index.pages);
                    self.forget(below.ok_or(Refusal::OverQuota)?, Cause::Evicted);
                }
            }
        }
    }

    fn take_slot(&mut self, class: ClassId, id: PageId, len: u16) -> Result<Body, Refusal> {
        loop {
            let limit = self.budget.span_limit();
            if let Some(slot) = self.slots.alloc(class, id, limit) {
                return Ok(Body::Slot { slot, len });
            }
            if !self.shrink_pages() {
                self.make_room()?;
            }
        }
    }

    /// Makes more of a span free, or a page; an error if nothing can be.
    pub(super) fn make_room(&mut self) -> Result<(), Refusal> {
        if self.slots.compact(&mut self.index, false) {
            return Ok(());
        }
        match self.accounts.victim(&self.index.pages) {
            Some(victim) => {
                self.pressed.store(true, Ordering::Relaxed);
                self.forget(victim, Cause::Evicted);
                Ok(())
            }
            None if self.slots.compact(&mut self.index, true) => Ok(()),
            None => Err(Refusal::OverQuota),
        }
    }

    /// Moves room from the spans to the pages' entries, if there are free spans enough.
    fn grow_pages(&mut self) -> bool {
        let Some(grown) = self.budget.grow_pages() else {
            return false;
        };
        let limit = grown.span_limit();
        if self.slots.spans().used() > limit || !self.trim(limit) {
            return false;
        }
        let more = grown.entries().0 - self.budget.entries().0;
        self.budget = grown;
        self.index.grow_pages(more);
        true
    }

    /// Moves room from free entries of pages to the spans, if there are many.
    pub(super) fn shrink_pages(&mut self) -> bool {
        if !self.index.may_shrink_pages() {
            return false;
        }
        let Some(shrunk) = self.budget.shrink_pages() else {
            return false;
        };
        let less = self.budget.entries().0 - shrunk.entries().0;
        if less > STEP || !self.index.shrink_pages(less) {
            return false;
        }
        self.budget = shrunk;
        true
    }

    /// Moves room from the spans to the objects.
    pub(super) fn grow_objects(&mut self) -> Result<(), Refusal> {
        let grown = self.budget.grow_objects().ok_or(Refusal::OverQuota)?;
        let limit = grown.span_limit();
        while self.slots.spans().used() > limit {
            self.make_room()?;
        }
        if !self.trim(limit) {
            return Err(Refusal::OverQuota);
        }
        self.budget = grown;
        Ok(())
    }

    /// Gives memory of free spans back until no more than `limit` take memory; false if there are
    /// not enough free ones.
    pub(super) fn trim(&mut self, limit: usize) -> bool {
        while self.slots.spans().resident() > limit {
            let split = |chunk| self.arena.split_chunk(chunk);
            let Some(span) = self.slots.spans_mut().trim(split) else {
                return false;
            };
            // SAFETY: The span is free.
            unsafe { self.arena.release(span, 1) };
            self.slots.cleaned(span, 1);
        }
        true
    }
}
