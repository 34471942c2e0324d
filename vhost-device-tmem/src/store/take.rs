// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Reading pages back for good, in several steps: each is gone once its reader is known to have all
//! of them.

use virtio_tmem_abi::{Key, PageResult};

use super::{entry::PageState, get::Taken, id::PageId, Guest, PageSink, PoolError, Store, BATCH};

/// Pages that were taken, and are forgotten once the copies have arrived. Nobody else gets them
/// meanwhile.
///
/// It is to be handed to [`Store::end_take`] before it is dropped: its pages are held until then.
#[derive(Debug, Default)]
pub struct Held {
    pages: Vec<PageId>,
}

impl Held {
    /// Returns whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.pages.is_empty()
    }
}

impl Store {
    /// Copies the pages under `keys`, as [`Self::get`] does. What was copied is put to what is
    /// `held` already.
    ///
    /// # Errors
    ///
    /// [`PoolError::NoPool`], and nothing was done.
    ///
    /// # Panics
    ///
    /// If there are not as many results as keys.
    pub fn begin_take(
        &self,
        guest: &Guest,
        number: u32,
        keys: &[Key],
        sink: &mut dyn PageSink,
        results: &mut [PageResult],
        held: &mut Held,
    ) -> Result<(), PoolError> {
        let mut taken = self.get(guest, number, true, keys, sink, results)?;
        held.pages.append(&mut taken.pages);
        Ok(())
    }

    /// Forgets what was taken if it has `arrived`; otherwise all of it stays in the store.
    pub fn end_take(&self, held: &mut Held, arrived: bool) {
        let pages = std::mem::take(&mut held.pages);
        if arrived {
            drop(Taken { store: self, pages });
            return;
        }
        for pages in pages.chunks(BATCH) {
            let mut inner = self.lock();
            for id in pages {
                // It may have been flushed meanwhile.
                if inner.index.pages[id.index()].state() == PageState::Taking {
                    inner.index.pages[id.index()].set_state(PageState::Linked);
                }
                inner.unpin(*id);
            }
        }
    }
}
