// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Reading pages back.

use virtio_tmem_abi::{Key, PageResult};

use super::{
    id::FrameId,
    index::PageState,
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
        self.pool_kind(guest, number)?;
        let (mut any, mut much) = (false, false);
        let batches = keys.chunks(BATCH).zip(results.chunks_mut(BATCH));
        for (first, (keys, results)) in (0..).step_by(BATCH).zip(batches) {
            let mut frames = [None; BATCH];
            let frames = &mut frames[..keys.len()];
            self.lock().pin_batch(guest, number, take, keys, frames);
            for (n, (frame, result)) in frames.iter().zip(&mut *results).enumerate() {
                let copied = frame.is_some_and(|frame| {
                    // SAFETY: It was pinned when a key led to it.
                    let page = unsafe { self.arena.read(frame) };
                    sink.write_page(first + n, page)
                });
                *result = if copied {
                    PageResult::Hit
                } else {
                    PageResult::Miss
                };
            }
            let mut inner = self.lock();
            let used = inner.frames.used();
            inner.unpin_batch(take, frames, results);
            any |= inner.frames.used() < used;
            much |= inner.frames.can_drain();
        }
        if any {
            self.after_free(much);
        }
        Ok(())
    }
}

impl Inner {
    fn pin_batch(
        &mut self,
        guest: &Guest,
        number: u32,
        take: bool,
        keys: &[Key],
        frames: &mut [Option<FrameId>],
    ) {
        let Some(slot) = self.pool_slot(guest.id, number) else {
            return;
        };
        let ephemeral = self.pool(slot).kind == PoolKind::Ephemeral;
        let mut hits = 0;
        for (key, pinned) in keys.iter().zip(frames) {
            let Some(frame) = self.find(slot, &key.object, key.index.get()) else {
                continue;
            };
            let page = &mut self.index.pages[frame.index()];
            if page.version != key.version.get() || page.state != PageState::Linked {
                continue;
            }
            if take {
                page.state = PageState::Taking;
            }
            if ephemeral {
                if self.roll_forget() {
                    self.forget(frame, Cause::Evicted);
                    continue;
                }
                self.lru.touch(&mut self.index.pages, frame);
            }
            self.pin(frame);
            *pinned = Some(frame);
            hits += 1;
        }
        let counters = &mut self.pool_mut(slot).counters;
        counters.gets += keys.len() as u64;
        counters.gets_hit += hits;
    }

    fn unpin_batch(&mut self, take: bool, frames: &[Option<FrameId>], results: &[PageResult]) {
        for (frame, result) in frames.iter().zip(results) {
            let Some(frame) = *frame else { continue };
            if take && self.index.pages[frame.index()].state == PageState::Taking {
                if *result == PageResult::Hit {
                    self.forget(frame, Cause::Taken);
                } else {
                    self.index.pages[frame.index()].state = PageState::Linked;
                }
            }
            self.unpin(frame);
        }
    }
}
