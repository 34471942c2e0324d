// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Reading pages back.

use virtio_tmem_abi::{Key, PageResult};

use super::{
    classes::RAW,
    codec::Workspace,
    id::PageId,
    index::{Body, PageState},
    inner::{Cause, Inner},
    Guest, PageBytes, PoolError, PoolKind, Store, BATCH,
};

/// Where the pages of a get go to.
pub trait PageSink {
    /// Copies `page` to where page `n` of the request belongs. Returns whether all of it was
    /// copied; if not, the page stays in the store, whatever the get was.
    fn write_page(&mut self, n: usize, page: &PageBytes) -> bool;
}

impl Store {
    /// Copies the pages under `keys`, in this order, to `sink`, and says in the result of each
    /// whether it was there. With `take`, what was copied is gone from the store after.
    ///
    /// # Errors
    ///
    /// [`PoolError::NoPool`], and nothing was done.
    ///
    /// # Panics
    ///
    /// If there are not as many results as keys.
    pub fn get(
        &self,
        guest: &Guest,
        number: u32,
        take: bool,
        keys: &[Key],
        sink: &mut dyn PageSink,
        results: &mut [PageResult],
    ) -> Result<(), PoolError> {
        assert_eq!(keys.len(), results.len());
        let (mut any, mut much) = (false, false);
        let batches = keys.chunks(BATCH).zip(results.chunks_mut(BATCH));
        for (first, (keys, results)) in (0..).step_by(BATCH).zip(batches) {
            let mut pages = [None; BATCH];
            let pages = &mut pages[..keys.len()];
            match self.lock().pin_batch(guest, number, take, keys, pages) {
                // It was destroyed meanwhile.
                Err(PoolError::NoPool) if first > 0 => {}
                pinned => pinned?,
            }
            // SAFETY: They were pinned just now.
            unsafe { self.copy_batch(first, pages, sink, results) };
            let mut inner = self.lock();
            let used = inner.index.used_pages();
            inner.unpin_batch(take, pages, results);
            any |= inner.index.used_pages() < used;
            much |= inner.much_to_release();
        }
        if any {
            self.after_free(much);
        }
        Ok(())
    }

    /// Copies pages, of which the first is page `first` of the request.
    ///
    /// # Safety
    ///
    /// They are pinned, and these were their bodies when they were.
    pub(super) unsafe fn copy_batch(
        &self,
        first: usize,
        pages: &[Option<Pinned>],
        sink: &mut dyn PageSink,
        results: &mut [PageResult],
    ) {
        for (n, (page, result)) in pages.iter().zip(results).enumerate() {
            let copied = page.is_some_and(|pinned| {
                // SAFETY: The caller pinned it.
                unsafe { self.copy_out(pinned.1, |page| sink.write_page(first + n, page)) }
            });
            *result = if copied {
                PageResult::Hit
            } else {
                PageResult::Miss
            };
        }
    }

    /// Lends a page to `write`, and returns whether that was successful.
    ///
    /// # Safety
    ///
    /// The page is pinned, and this was its body when it was.
    unsafe fn copy_out(&self, body: Body, write: impl FnOnce(&PageBytes) -> bool) -> bool {
        match body {
            Body::Nothing => false,
            Body::Same(word) => Workspace::with(|space| write(space.repeat(word))),
            Body::Slot { slot, .. } if slot.class() == RAW => {
                // SAFETY: The caller pinned it.
                write(unsafe { self.arena.read_page(slot) })
            }
            Body::Slot { slot, len } => {
                // SAFETY: The caller pinned it.
                let packed = unsafe { self.arena.read(slot, len.into()) };
                Workspace::with(|space| {
                    let page = space.decode(self.compression, packed);
                    if page.is_none() {
                        tracing::error!("a stored page cannot be decompressed: memory is damaged");
                    }
                    page.is_some_and(write)
                })
            }
        }
    }
}

/// A page that is pinned, and what it consisted of then.
pub(super) type Pinned = (PageId, Body);

impl Inner {
    pub(super) fn pin_batch(
        &mut self,
        guest: &Guest,
        number: u32,
        take: bool,
        keys: &[Key],
        pages: &mut [Option<Pinned>],
    ) -> Result<(), PoolError> {
        let slot = self.require_pool(guest, number)?;
        let ephemeral = self.pool(slot).kind == PoolKind::Ephemeral;
        let mut hits = 0;
        let mut found = [None; BATCH];
        self.index.find_pages(slot, keys, &mut found);
        for ((key, found), pinned) in keys.iter().zip(found).zip(pages) {
            // What is forgotten here meanwhile is not linked any more.
            let Some(id) = found else { continue };
            let page = &mut self.index.pages[id.index()];
            if page.version.get() != key.version.get() || page.state != PageState::Linked {
                continue;
            }
            if take {
                page.state = PageState::Taking;
            }
            if ephemeral {
                if self.roll_forget() {
                    self.forget(id, Cause::Evicted);
                    continue;
                }
                self.lru.touch(&mut self.index.pages, id);
            }
            self.pin(id);
            *pinned = Some((id, self.index.pages[id.index()].body()));
            hits += 1;
        }
        let counters = &mut self.pool_mut(slot).counters;
        counters.gets += keys.len() as u64;
        counters.gets_hit += hits;
        Ok(())
    }

    pub(super) fn unpin_batch(
        &mut self,
        take: bool,
        pages: &[Option<Pinned>],
        results: &[PageResult],
    ) {
        for (page, result) in pages.iter().zip(results) {
            let Some((id, _)) = *page else { continue };
            if take && self.index.pages[id.index()].state == PageState::Taking {
                if *result == PageResult::Hit {
                    self.forget(id, Cause::Taken);
                } else {
                    self.index.pages[id.index()].state = PageState::Linked;
                }
            }
            self.unpin(id);
        }
    }
}
