// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Storing pages.

use virtio_tmem_abi::{Key, PageResult};

use super::{
    codec::{Encoded, Workspace},
    id::PageId,
    index::Body,
    inner::{Cause, Inner, PoolSlot, Refusal},
    Compression, Guest, PageBytes, PoolError, Store, BATCH,
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
            let mut batch = Batch {
                guest,
                number,
                keys,
                contents: &mut [Encoded::Failed; BATCH][..keys.len()],
                pages: &mut [Err(Refusal::NoMemory); BATCH][..keys.len()],
            };
            much |= if self.compression == Compression::None {
                self.put_batch(&mut batch, first, source, results)
            } else {
                Workspace::with(|space| {
                    self.put_compressed(&mut batch, first, source, results, space)
                })
            };
        }
        self.after_free(much);
        Ok(())
    }

    /// Stores pages as they are, which are copied to where they stay.
    fn put_batch(
        &self,
        batch: &mut Batch<'_>,
        first: usize,
        source: &mut dyn PageSource,
        results: &mut [PageResult],
    ) -> bool {
        batch.contents.fill(Encoded::Raw);
        let Some((pool, bodies)) = self.lock().reserve_batch(batch) else {
            results.fill(PageResult::NoMemory);
            return false;
        };
        for (n, body) in bodies[..batch.keys.len()].iter().enumerate() {
            if let Body::Slot { slot, .. } = body {
                // SAFETY: It was just allocated, and no key leads to it yet.
                let bytes = unsafe { self.arena.fill_page(*slot) };
                if !source.read_page(first + n, bytes) {
                    // What was half copied is not to stay.
                    bytes.fill(0);
                    batch.contents[n] = Encoded::Failed;
                }
            }
        }
        self.lock().link_batch(batch, pool, results)
    }

    /// Stores compressed pages. They are compressed before it is known whether there is room, as
    /// it is not known how much they need before.
    fn put_compressed(
        &self,
        batch: &mut Batch<'_>,
        first: usize,
        source: &mut dyn PageSource,
        results: &mut [PageResult],
        space: &mut Workspace,
    ) -> bool {
        space.clear();
        for (n, contents) in batch.contents.iter_mut().enumerate() {
            let fill = |page: &mut PageBytes| source.read_page(first + n, page);
            *contents = space.encode(self.compression, fill);
        }
        let Some((pool, bodies)) = self.lock().reserve_batch(batch) else {
            results.fill(PageResult::NoMemory);
            return false;
        };
        let mut packed = space.packed();
        for (contents, body) in batch.contents.iter().zip(bodies) {
            let len = contents.packed_len();
            let (bytes, rest) = packed.split_at(len);
            packed = rest;
            if let Body::Slot { slot, .. } = body {
                // SAFETY: It was just allocated, and no key leads to it yet.
                unsafe { self.arena.fill(slot, len) }.copy_from_slice(bytes);
            }
        }
        self.lock().link_batch(batch, pool, results)
    }
}

/// Pages of a put that go the same way together.
struct Batch<'b> {
    guest: &'b Guest,
    number: u32,
    keys: &'b [Key],
    /// What the pages came to.
    contents: &'b mut [Encoded],
    /// The entries that they got.
    pages: &'b mut [Result<PageId, Refusal>],
}

/// The pool that a batch is for, and which of those that had its place.
type PoolTag = (PoolSlot, u64);

impl Inner {
    /// Drops what is stored under the keys, and takes an entry for each, and the room that its
    /// contents need, whose places it returns.
    fn reserve_batch(&mut self, batch: &mut Batch<'_>) -> Option<(PoolTag, [Body; BATCH])> {
        let slot = self.pool_slot(batch.guest.id, batch.number)?;
        let mut bodies = [Body::Nothing; BATCH];
        for (n, key) in batch.keys.iter().enumerate() {
            // First, so that a page which is put anew finds the room that it had.
            self.replace(slot, key);
            batch.pages[n] = self.reserve(batch.contents[n]);
            if let Ok(id) = batch.pages[n] {
                bodies[n] = self.index.pages[id.index()].body();
            }
        }
        Some(((slot, self.pool(slot).generation), bodies))
    }

    /// Makes the keys lead to the pages whose contents are there, and frees the others. Returns
    /// whether there is much memory to give back.
    fn link_batch(
        &mut self,
        batch: &Batch<'_>,
        (slot, generation): PoolTag,
        results: &mut [PageResult],
    ) -> bool {
        let same = self.pool_slot(batch.guest.id, batch.number) == Some(slot)
            && self.pool(slot).generation == generation;
        for (n, (key, result)) in batch.keys.iter().zip(results).enumerate() {
            let stored = batch.pages[n].and_then(|id| {
                let linked = if same && batch.contents[n] != Encoded::Failed {
                    // The same key may stand twice in one batch.
                    self.replace(slot, key);
                    self.link(id, slot, key)
                } else {
                    Err(Refusal::NoMemory)
                };
                linked.inspect_err(|_| self.release(id))
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
        self.much_to_release()
    }

    fn replace(&mut self, slot: PoolSlot, key: &Key) {
        if let Some(older) = self.find(slot, &key.object, key.index.get()) {
            self.forget(older, Cause::Replaced);
            self.pool_mut(slot).counters.puts_replaced += 1;
        }
    }
}
