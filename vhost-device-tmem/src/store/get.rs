// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Reading pages back.

use std::{fmt, thread};

use virtio_tmem_abi::{Key, PageResult};

use super::{
    classes::RAW,
    codec::Workspace,
    entry::{check_of, Body, Check, PageState},
    fetch::Found,
    id::PageId,
    inner::{Cause, Inner},
    pool::Pool,
    take::Held,
    Guest, PageBytes, PoolError, PoolKind, Store, BATCH,
};
use crate::tier::seal::Binding;

/// Where the pages of a get go to.
pub trait PageSink {
    /// Copies `page` to where page `n` of the request belongs. Returns whether all of it was
    /// copied; if not, the page stays in the store, whatever the get was.
    fn write_page(&mut self, n: usize, page: &PageBytes) -> bool;
}

/// Pages that a get took. No get finds them any more, and they are gone from the store once this is
/// dropped. Should the process end before, the next one has them.
pub struct Taken<'s> {
    store: &'s Store,
    held: Held,
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        self.store.end_take(&mut self.held, true);
    }
}

impl fmt::Debug for Taken<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.held.fmt(f)
    }
}

impl Store {
    /// Copies the pages under `keys`, in this order, to `sink`, and says in the result of each
    /// whether it was there. With `take`, what was copied is gone from the store once the caller
    /// drops what this returns: after it has told the guest.
    ///
    /// Pages in the tier are waited for.
    ///
    /// A persistent page that was stored and cannot be read back is [`PageResult::Damaged`], until
    /// it is put anew or flushed.
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
    ) -> Result<Taken<'_>, PoolError> {
        let mut taken = Taken {
            store: self,
            held: Held::default(),
        };
        self.get_held(guest, number, take, 0, keys, sink, results, &mut taken.held)?;
        self.wait_fetched(sink, results, &mut taken.held);
        Ok(taken)
    }

    /// As [`Self::get`], and adds what is taken to `held`, and what is in the tier, by its number: that
    /// of the first key is `base`.
    #[expect(
        clippy::too_many_arguments,
        reason = "they are those of a get, and two"
    )]
    pub(super) fn get_held(
        &self,
        guest: &Guest,
        number: u32,
        take: bool,
        base: usize,
        keys: &[Key],
        sink: &mut dyn PageSink,
        results: &mut [PageResult],
        held: &mut Held,
    ) -> Result<(), PoolError> {
        assert_eq!(keys.len(), results.len());
        let mut first = 0;
        while first < keys.len() {
            let mut pages = [None; BATCH];
            let end = keys.len().min(first + BATCH);
            let pinned = self
                .lock()
                .pin_batch(guest, number, take, &keys[first..end], &mut pages);
            let batch = match pinned {
                // All of the first page's pins are taken. They are given back soon.
                Ok(batch) if batch.count == 0 => {
                    thread::yield_now();
                    continue;
                }
                Ok(batch) => batch,
                Err(PoolError::NoPool) if first > 0 => {
                    // It was destroyed meanwhile.
                    results[first..].fill(PageResult::Miss);
                    break;
                }
                Err(error) => return Err(error),
            };
            let results = &mut results[first..first + batch.count];
            for (n, (page, result)) in pages.iter().zip(&mut *results).enumerate() {
                let write = |page: &PageBytes| sink.write_page(first + n, page);
                *result = match page {
                    None => PageResult::Miss,
                    Some(Pinned {
                        id,
                        body: Body::Below(below),
                        binding: Some(binding),
                        ..
                    }) => {
                        let found = Found {
                            n: base + first + n,
                            id: *id,
                            below: *below,
                            kind: batch.kind,
                            take,
                        };
                        self.fetch(found, *binding, held);
                        PageResult::Miss
                    }
                    // SAFETY: It was pinned when a key led to it.
                    Some(pinned) => match unsafe { self.copy_out(pinned, write) } {
                        Copied::All => PageResult::Hit,
                        Copied::NotAll => PageResult::Miss,
                        Copied::Damaged if batch.kind == PoolKind::Persistent => {
                            PageResult::Damaged
                        }
                        Copied::Damaged => PageResult::Miss,
                    },
                };
            }
            self.lock()
                .unpin_batch(take, &pages, results, &mut held.pages);
            first += batch.count;
        }
        Ok(())
    }

    /// Lends a page to `write`, and returns what came of it.
    ///
    /// # Safety
    ///
    /// The page is pinned, and this is what it was when it was.
    unsafe fn copy_out(&self, pinned: &Pinned, write: impl FnOnce(&PageBytes) -> bool) -> Copied {
        let copied = |all| if all { Copied::All } else { Copied::NotAll };
        if let (Body::Slot { slot, len }, Some(check)) = (pinned.body, pinned.check) {
            // SAFETY: The caller pinned it.
            if check_of(unsafe { self.arena.read(slot, len.into()) }) != check {
                tracing::error!("a page that another process stored is damaged");
                return Copied::Damaged;
            }
        }
        match pinned.body {
            // Where it is below it is fetched.
            Body::Nothing | Body::Below(_) => Copied::Damaged,
            Body::Same(word) => Workspace::with(|space| copied(write(space.repeat(word)))),
            Body::Slot { slot, .. } if slot.class() == RAW => {
                // SAFETY: The caller pinned it.
                copied(write(unsafe { self.arena.read_page(slot) }))
            }
            Body::Slot { slot, len } => {
                // SAFETY: The caller pinned it.
                let packed = unsafe { self.arena.read(slot, len.into()) };
                Workspace::with(|space| match space.decode(self.compression, packed) {
                    Some(page) => copied(write(page)),
                    None => {
                        tracing::error!("a stored page cannot be decompressed: memory is damaged");
                        Copied::Damaged
                    }
                })
            }
        }
    }
}

/// What came of copying a page to where it belongs.
enum Copied {
    All,
    /// That could not be written.
    NotAll,
    /// There are no contents any more.
    Damaged,
}

/// A page that is pinned.
#[derive(Clone, Copy)]
struct Pinned {
    id: PageId,
    /// What it consisted of then.
    body: Body,
    /// What its contents have to be compared with.
    check: Option<Check>,
    /// What its record says that it is, if it is in the tier.
    binding: Option<Binding>,
}

/// Keys that were looked up.
struct PinnedBatch {
    /// How many of those that were to be. A page that has too many pins ends a batch.
    count: usize,
    kind: PoolKind,
}

impl Inner {
    fn pin_batch(
        &mut self,
        guest: &Guest,
        number: u32,
        take: bool,
        keys: &[Key],
        pages: &mut [Option<Pinned>],
    ) -> Result<PinnedBatch, PoolError> {
        let slot = self.require_pool(guest, number)?;
        let Pool { kind, account, .. } = *self.pool(slot);
        let (mut count, mut hits) = (0, 0);
        let mut found = [None; BATCH];
        self.index.find_pages(slot, keys, &mut found);
        for ((key, found), pinned) in keys.iter().zip(found).zip(pages) {
            count += 1;
            // What is forgotten here meanwhile is not linked any more.
            let Some(id) = found else {
                if kind == PoolKind::Ephemeral {
                    let digest = || self.index.digest(slot, &key.object, key.index.get());
                    self.accounts.miss(account, digest);
                }
                continue;
            };
            let page = &mut self.index.pages[id.index()];
            if page.version() != key.version.get() || page.state() != PageState::Linked {
                continue;
            }
            if !page.pin() {
                count -= 1;
                break;
            }
            if take {
                page.set_state(PageState::Taking);
            }
            if kind == PoolKind::Ephemeral {
                if self.roll_forget() {
                    self.forget(id, Cause::Evicted);
                    self.unpin(id);
                    continue;
                }
                self.accounts.touch(account, &mut self.index.pages, id);
                if take {
                    let digest = || self.index.digest(slot, &key.object, key.index.get());
                    self.accounts.note_reuse(account, digest);
                }
            }
            let page = &mut self.index.pages[id.index()];
            page.set_used(true);
            *pinned = Some(Pinned {
                id,
                body: page.body(),
                check: match kind {
                    PoolKind::Persistent if !page.is_below() => page.unverified(),
                    _ => None,
                },
                binding: page.is_below().then(|| self.pool(slot).binding(key)),
            });
            hits += 1;
        }
        let counters = &mut self.pool_mut(slot).counters;
        counters.gets += count as u64;
        counters.gets_hit += hits;
        self.note_access(guest, number, |counters| {
            counters.gets += count as u64;
            counters.gets_hit += hits;
        });
        Ok(PinnedBatch { count, kind })
    }

    /// Notes that the contents of a page are those that its check is of, if it still has that.
    fn verified(&mut self, id: PageId, check: Option<Check>) {
        let page = &mut self.index.pages[id.index()];
        // Where no key leads any more, nobody asks. What is put over it has contents of its own.
        if page.state() == PageState::Linked && page.unverified() == check {
            page.set_verified(true);
        }
    }

    /// Lets go of pages that were copied, but for those that were taken.
    fn unpin_batch(
        &mut self,
        take: bool,
        pages: &[Option<Pinned>],
        results: &[PageResult],
        taken: &mut Vec<PageId>,
    ) {
        for (page, result) in pages.iter().zip(results) {
            let Some(Pinned {
                id, check, body, ..
            }) = *page
            else {
                continue;
            };
            if let Body::Below(_) = body {
                // It is held until it has arrived.
                continue;
            }
            if check.is_some() && *result == PageResult::Hit {
                self.verified(id, check);
            }
            if take && *result == PageResult::Hit {
                taken.push(id);
                continue;
            }
            let page = &mut self.index.pages[id.index()];
            if take && page.state() == PageState::Taking {
                page.set_state(PageState::Linked);
            }
            self.unpin(id);
        }
    }
}
