// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Reading pages back for good: each is gone once its reader is known to have it.

use virtio_tmem_abi::{Key, PageResult};

use super::{get::Pinned, Guest, PageSink, PoolError, Store, BATCH};

/// Pages that were copied, and are forgotten once the copies have arrived. Nobody else gets them
/// meanwhile.
///
/// It is to be handed to [`Store::end_take`] before it is dropped: its pages are held until then.
#[derive(Debug, Default)]
pub struct Taken {
    pages: Vec<Option<Pinned>>,
    results: Vec<PageResult>,
}

impl Taken {
    /// Returns whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.pages.is_empty()
    }
}

impl Store {
    /// Copies the pages under `keys`, as [`Self::get`] does. What was copied is held in `taken`,
    /// with what is there already.
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
        taken: &mut Taken,
    ) -> Result<(), PoolError> {
        assert_eq!(keys.len(), results.len());
        let batches = keys.chunks(BATCH).zip(results.chunks_mut(BATCH));
        for (first, (keys, results)) in (0..).step_by(BATCH).zip(batches) {
            let mut pages = [None; BATCH];
            let pages = &mut pages[..keys.len()];
            match self.lock().pin_batch(guest, number, true, keys, pages) {
                // It was destroyed meanwhile.
                Err(PoolError::NoPool) if first > 0 => {}
                pinned => pinned?,
            }
            // SAFETY: They were pinned just now.
            unsafe { self.copy_batch(first, pages, sink, results) };
            taken.pages.extend_from_slice(pages);
            taken.results.extend_from_slice(results);
        }
        Ok(())
    }

    /// Forgets what was copied if it has `arrived`; otherwise all of it stays in the store.
    pub fn end_take(&self, taken: &mut Taken, arrived: bool) {
        if !arrived {
            taken.results.fill(PageResult::Miss);
        }
        let (mut any, mut much) = (false, false);
        let batches = taken.pages.chunks(BATCH).zip(taken.results.chunks(BATCH));
        for (pages, results) in batches {
            let mut inner = self.lock();
            let used = inner.index.used_pages();
            inner.unpin_batch(true, pages, results);
            any |= inner.index.used_pages() < used;
            much |= inner.much_to_release();
        }
        taken.pages.clear();
        taken.results.clear();
        if any {
            self.after_free(much);
        }
    }
}
