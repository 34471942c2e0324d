// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Reading pages back for good, in several steps: each is gone once its reader is known to have all
//! of them.

use virtio_tmem_abi::{Key, PageResult};

use super::{entry::PageState, id::PageId, inner::Cause, Guest, PageSink, PoolError, Store, BATCH};

/// Pages that were taken by gets, and are forgotten once the copies have arrived. No get finds them
/// meanwhile.
///
/// It is to be handed to [`Store::end_take`] before it is dropped: its pages are held until then.
#[derive(Debug, Default)]
pub struct Held {
    /// Each is pinned.
    pub(super) pages: Vec<PageId>,
}

impl Held {
    /// Returns whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.pages.is_empty()
    }
}

impl Store {
    /// Copies the pages under `keys`, as a [`Self::get`] that takes. They are held with what `held`
    /// holds already.
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
        self.get_held(guest, number, true, keys, sink, results, held)
    }

    /// Forgets what was taken if it has `arrived`; otherwise all of it stays in the store, and gets
    /// find it again.
    pub fn end_take(&self, held: &mut Held, arrived: bool) {
        if held.is_empty() {
            return;
        }
        let mut much = false;
        for pages in held.pages.chunks(BATCH) {
            let mut inner = self.lock();
            for id in pages {
                // It may have been flushed meanwhile.
                let page = &mut inner.index.pages[id.index()];
                if page.state() == PageState::Taking {
                    if arrived {
                        inner.forget(*id, Cause::Taken);
                    } else {
                        page.set_state(PageState::Linked);
                    }
                }
                inner.unpin(*id);
            }
            much |= inner.much_to_release();
        }
        held.pages.clear();
        self.after_free(much);
    }
}
