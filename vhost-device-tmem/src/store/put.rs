// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Storing pages.

use virtio_tmem_abi::{Key, PageResult};

use super::{
    id::FrameId,
    inner::{Cause, Inner, PoolSlot, Refusal},
    Guest, PageBytes, PoolError, Store, BATCH,
};

/// Where the pages of a put come from.
pub trait PageSource {
    /// Copies page `n` of the request into `frame`. Returns whether all of it was copied; if not,
    /// nobody will ever read what was.
    fn read_page(&mut self, n: usize, frame: &mut PageBytes) -> bool;
}

impl From<Refusal> for PageResult {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::OverQuota => Self::OverQuota,
            Refusal::NoMemory => Self::NoMemory,
        }
    }
}

impl Store {
    /// Stores the pages of `source` under `keys`, in this order, and says in the result of each
    /// what became of it. Whatever that is, an older page under the key is gone.
    ///
    /// # Errors
    ///
    /// [`PoolError::NoPool`], and nothing was done.
    ///
    /// # Panics
    ///
    /// If there are not as many results as keys.
    pub fn put(
        &self,
        guest: &Guest,
        number: u32,
        keys: &[Key],
        source: &mut dyn PageSource,
        results: &mut [PageResult],
    ) -> Result<(), PoolError> {
        assert_eq!(keys.len(), results.len());
        self.pool_kind(guest, number)?;
        let mut much = false;
        let batches = keys.chunks(BATCH).zip(results.chunks_mut(BATCH));
        for (first, (keys, results)) in (0..).step_by(BATCH).zip(batches) {
            let mut frames = [Err(Refusal::NoMemory); BATCH];
            let frames = &mut frames[..keys.len()];
            let Some(pool) = self.lock().reserve_batch(guest, number, keys, frames) else {
                results.fill(PageResult::NoMemory);
                continue;
            };
            let mut filled = [false; BATCH];
            for (n, frame) in frames.iter().enumerate() {
                if let Ok(frame) = frame {
                    // SAFETY: It was just allocated, and no key leads to it yet.
                    let bytes = unsafe { self.arena.fill(*frame) };
                    filled[n] = source.read_page(first + n, bytes);
                }
            }
            for (frame, filled) in frames.iter().zip(filled) {
                if let (Ok(frame), false) = (frame, filled) {
                    // SAFETY: As above. What was half copied is not to stay.
                    unsafe { self.arena.fill(*frame) }.fill(0);
                }
            }
            let mut inner = self.lock();
            inner.link_batch(guest, number, pool, keys, frames, &filled, results);
            much |= inner.frames.can_drain();
        }
        self.after_free(much);
        Ok(())
    }
}

/// The pool that a batch is for, and which of those that had its place.
type PoolTag = (PoolSlot, u64);

impl Inner {
    /// Drops what is stored under the keys, and takes a frame for each.
    fn reserve_batch(
        &mut self,
        guest: &Guest,
        number: u32,
        keys: &[Key],
        frames: &mut [Result<FrameId, Refusal>],
    ) -> Option<PoolTag> {
        let slot = self.pool_slot(guest.id, number)?;
        for (key, frame) in keys.iter().zip(frames) {
            // First, so that a page which is put anew finds the room that it had.
            self.replace(slot, key);
            *frame = self.reserve();
        }
        Some((slot, self.pool(slot).generation))
    }

    /// Makes the keys lead to the frames that were filled, and frees the others.
    #[allow(clippy::too_many_arguments)]
    fn link_batch(
        &mut self,
        guest: &Guest,
        number: u32,
        (slot, generation): PoolTag,
        keys: &[Key],
        frames: &[Result<FrameId, Refusal>],
        filled: &[bool],
        results: &mut [PageResult],
    ) {
        let same = self.pool_slot(guest.id, number) == Some(slot)
            && self.pool(slot).generation == generation;
        for (((key, frame), filled), result) in keys.iter().zip(frames).zip(filled).zip(results) {
            let stored = frame.and_then(|frame| {
                let linked = if same && *filled {
                    // The same key may stand twice in one batch.
                    self.replace(slot, key);
                    self.link(frame, slot, key)
                } else {
                    Err(Refusal::NoMemory)
                };
                linked.inspect_err(|_| self.release(frame))
            });
            *result = stored.map_or_else(PageResult::from, |()| PageResult::Stored);
            if !same {
                continue;
            }
            if stored.is_err() {
                self.replace(slot, key);
            }
            let counters = &mut self.pool_mut(slot).counters;
            counters.puts += 1;
            match stored {
                Ok(()) => counters.puts_stored += 1,
                Err(refusal) => {
                    counters.puts_refused += 1;
                    match refusal {
                        Refusal::OverQuota => counters.refused_over_quota += 1,
                        Refusal::NoMemory => counters.refused_no_memory += 1,
                    }
                }
            }
        }
    }

    fn replace(&mut self, slot: PoolSlot, key: &Key) {
        if let Some(older) = self.find(slot, &key.object, key.index.get()) {
            self.forget(older, Cause::Replaced);
            self.pool_mut(slot).counters.puts_replaced += 1;
        }
    }
}
