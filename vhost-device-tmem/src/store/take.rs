// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Reading pages back for good, in several steps: each is gone once its reader is known to have all
//! of them.

use std::{fmt, sync::Arc};

use virtio_tmem_abi::{Key, PageResult};

use super::{
    entry::PageState, fetch::Awaited, id::PageId, inner::Cause, Guest, PageSink, PoolError, Store,
    BATCH,
};
use crate::tier::{Gate, Wake};

/// Pages of gets that are not finished: those that were taken, and are forgotten once the copies have
/// arrived, which no get finds meanwhile; and those that are waited for, as they are in the tier.
///
/// It is to be handed to [`Store::end_take`] before it is dropped: its pages are held until then.
#[derive(Default)]
pub struct Held {
    /// Each is pinned.
    pub(super) pages: Vec<PageId>,
    /// In the order of their requests.
    pub(super) awaited: Vec<Awaited>,
    /// Where those wait.
    pub(super) gate: Option<Arc<Gate>>,
    /// Who is woken when they have arrived.
    pub(super) wake: Option<Wake>,
}

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut held = f.debug_struct("Held");
        held.field("pages", &self.pages);
        held.field("awaited", &self.awaited).finish_non_exhaustive()
    }
}

impl Held {
    /// Returns whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.pages.is_empty() && self.awaited.is_empty()
    }
}

impl Store {
    /// Copies the pages under `keys` that are in the store, as a [`Self::get`]. What is taken is held
    /// with what `held` holds already. So are pages in the tier, whose results are
    /// [`PageResult::Miss`] for now: they are read meanwhile, and copied by [`Self::finish_get`] once
    /// `held` does not [wait](Held::is_waiting) any more. The first key is number `first` of those that
    /// are to be finished together.
    ///
    /// # Errors
    ///
    /// [`PoolError::NoPool`], and nothing was done.
    ///
    /// # Panics
    ///
    /// If there are not as many results as keys.
    #[expect(
        clippy::too_many_arguments,
        reason = "they are those of a get, and two"
    )]
    pub fn begin_get(
        &self,
        guest: &Guest,
        number: u32,
        take: bool,
        first: usize,
        keys: &[Key],
        sink: &mut dyn PageSink,
        results: &mut [PageResult],
        held: &mut Held,
    ) -> Result<(), PoolError> {
        self.get_held(guest, number, take, first, keys, sink, results, held)
    }

    /// Forgets what was taken if it has `arrived`; otherwise all of it stays where it was, and gets
    /// find it again. Nothing is waited for any more.
    pub fn end_take(&self, held: &mut Held, arrived: bool) {
        self.abandon_fetches(held);
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
