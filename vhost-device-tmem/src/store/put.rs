// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Storing pages.

use virtio_tmem_abi::{Key, PageResult};

use super::{
    codec::{Encoded, Workspace},
    entry::Body,
    entry::{check_of, Check},
    id::PageId,
    inner::{Cause, Inner, Refusal},
    Compression, Guest, PageBytes, PoolError, PoolKind, Store, BATCH,
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
            Refusal::Frozen => Self::Frozen,
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
        let mut much = false;
        let batches = keys.chunks(BATCH).zip(results.chunks_mut(BATCH));
        for (first, (keys, results)) in (0..).step_by(BATCH).zip(batches) {
            let mut batch = Batch {
                guest,
                number,
                keys,
                contents: &mut [Encoded::Failed; BATCH][..keys.len()],
                checks: [None; BATCH],
                pages: &mut [Err(Refusal::NoMemory); BATCH][..keys.len()],
            };
            let put = if self.compression == Compression::None {
                self.put_batch(&mut batch, first, source)
            } else {
                Workspace::with(|space| self.put_compressed(&mut batch, first, source, space))
            };
            match put {
                Ok(more) => much |= more,
                // It was destroyed meanwhile, and with it what was stored.
                Err(PoolError::NoPool) if first > 0 => {}
                Err(error) => return Err(error),
            }
            for (n, result) in results.iter_mut().enumerate() {
                *result = match (batch.pages[n], batch.contents[n]) {
                    (Ok(_), Encoded::Failed) => PageResult::NoMemory,
                    (Ok(_), _) => PageResult::Stored,
                    (Err(refusal), _) => refusal.into(),
                };
            }
        }
        self.after_free(much);
        Ok(())
    }

    /// Returns whether contents of pages of such pools get a check.
    fn checks(&self, kind: PoolKind) -> bool {
        self.check_contents && kind == PoolKind::Persistent
    }

    /// Stores pages as they are, which are copied to where they stay. Returns whether there is much
    /// memory to give back.
    fn put_batch(
        &self,
        batch: &mut Batch<'_>,
        first: usize,
        source: &mut dyn PageSource,
    ) -> Result<bool, PoolError> {
        batch.contents.fill(Encoded::Raw);
        let (bodies, kind) = self.lock().reserve_batch(batch)?;
        for (n, contents) in batch.contents.iter_mut().enumerate() {
            if let Body::Slot { slot, .. } = bodies[n] {
                // SAFETY: It was just allocated, and the page is not found before it is filled.
                let bytes = unsafe { self.arena.fill_page(slot) };
                if !source.read_page(first + n, bytes) {
                    // What was half copied is not to stay.
                    bytes.fill(0);
                    *contents = Encoded::Failed;
                }
                // While it is in the processor's cache.
                batch.checks[n] = self.checks(kind).then(|| check_of(bytes));
            }
        }
        Ok(self.lock().filled_batch(batch, kind))
    }

    /// As [`Self::put_batch`], compressed. That is done before there is room, as only then it is
    /// known how much they need.
    fn put_compressed(
        &self,
        batch: &mut Batch<'_>,
        first: usize,
        source: &mut dyn PageSource,
        space: &mut Workspace,
    ) -> Result<bool, PoolError> {
        space.clear();
        for (n, contents) in batch.contents.iter_mut().enumerate() {
            let fill = |page: &mut PageBytes| source.read_page(first + n, page);
            *contents = space.encode(self.compression, fill);
        }
        let (bodies, kind) = self.lock().reserve_batch(batch)?;
        let mut packed = space.packed();
        for (n, (contents, body)) in batch.contents.iter().zip(bodies).enumerate() {
            let len = contents.packed_len();
            let (bytes, rest) = packed.split_at(len);
            packed = rest;
            if let Body::Slot { slot, .. } = body {
                // SAFETY: It was just allocated, and the page is not found before it is filled.
                unsafe { self.arena.fill(slot, len) }.copy_from_slice(bytes);
                // SAFETY: See above.
                unsafe { self.arena.scrub_behind(slot, len) };
                batch.checks[n] = self.checks(kind).then(|| check_of(bytes));
            }
        }
        Ok(self.lock().filled_batch(batch, kind))
    }
}

/// Pages of a put that go the same way together.
pub(super) struct Batch<'b> {
    pub(super) guest: &'b Guest,
    pub(super) number: u32,
    pub(super) keys: &'b [Key],
    /// What the pages came to.
    contents: &'b mut [Encoded],
    /// The checks of those that are in slots, where such are wanted.
    checks: [Option<Check>; BATCH],
    /// The entries that they got.
    pub(super) pages: &'b mut [Result<PageId, Refusal>],
}

impl Inner {
    /// Returns whether a page can be taken over for other contents: nobody copies it, and it is in the
    /// store.
    fn may_take_over(&self, id: PageId) -> bool {
        let page = &self.index.pages[id.index()];
        page.is_idle() && !page.is_below()
    }

    /// Drops what is stored under the keys, and makes each lead to a page that has the room which
    /// its contents need. Returns where that is.
    fn reserve_batch(
        &mut self,
        batch: &mut Batch<'_>,
    ) -> Result<([Body; BATCH], PoolKind), PoolError> {
        let slot = self.require_pool(batch.guest, batch.number)?;
        let mut bodies = [Body::Nothing; BATCH];
        if self.has_frozen(batch.guest) {
            self.refuse_batch(batch, slot);
            return Ok((bodies, self.pool(slot).kind));
        }
        let (mut over_quota, mut no_memory) = (0, 0);
        self.index.fetch_pages(slot, batch.keys);
        for (n, key) in batch.keys.iter().enumerate() {
            // A page that is put anew finds the room that it had. The same key may stand twice in
            // one batch.
            let older = self.find(slot, &key.object, key.index.get());
            self.pool_mut(slot).counters.puts_replaced += u64::from(older.is_some());
            let contents = batch.contents[n];
            let reserved = match older {
                Some(id) if self.may_take_over(id) => self
                    .reserve_anew(id, slot, contents, key.version.get())
                    .map(|()| id),
                _ => {
                    if let Some(id) = older {
                        self.forget(id, Cause::Replaced);
                    }
                    self.reserve(contents, slot).and_then(|id| {
                        let linked = self.link(id, slot, key).map(|()| id);
                        linked.inspect_err(|_| self.release(id))
                    })
                }
            };
            match reserved {
                Ok(id) => bodies[n] = self.index.pages[id.index()].body(),
                Err(Refusal::OverQuota) => over_quota += 1,
                Err(Refusal::NoMemory | Refusal::Frozen) => no_memory += 1,
            }
            batch.pages[n] = reserved;
        }
        let counters = &mut self.pool_mut(slot).counters;
        let puts = batch.keys.len() as u64;
        counters.puts += puts;
        counters.puts_stored += puts - over_quota - no_memory;
        counters.puts_refused += over_quota + no_memory;
        counters.refused_over_quota += over_quota;
        counters.refused_no_memory += no_memory;
        self.note_access(batch.guest, batch.number, |counters| {
            counters.puts += puts;
            counters.puts_stored += puts - over_quota - no_memory;
        });
        Ok((bodies, self.pool(slot).kind))
    }

    /// Makes the pages be found, but for those whose contents could not be had. Returns whether
    /// there is much memory to give back.
    fn filled_batch(&mut self, batch: &Batch<'_>, kind: PoolKind) -> bool {
        for (n, page) in batch.pages.iter().enumerate() {
            if let Ok(id) = page {
                let successful = batch.contents[n] != Encoded::Failed;
                // What is in the place of a check is something else's in an ephemeral page.
                let check = (kind == PoolKind::Persistent).then_some(batch.checks[n]);
                self.filled(*id, successful, check);
                if !successful {
                    self.note_access(batch.guest, batch.number, |counters| {
                        counters.puts_stored = counters.puts_stored.saturating_sub(1);
                    });
                }
            }
        }
        self.much_to_release()
    }
}
