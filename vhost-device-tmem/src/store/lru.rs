// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The order in which ephemeral pages were last used.

use super::{
    entry::Page,
    id::{Link, PageId},
    mapping::Table,
};

/// Pages that an eviction looks at before it gives up: those in use by a get cannot go.
const SEARCH: usize = 128;

/// A list of ephemeral pages of a guest, the one used last at its end.
///
/// # Invariants
///
/// A guest has two: together they hold exactly the linked pages of its ephemeral pools, the one those
/// whose contents are in the store, and the other those in the tier below it.
#[derive(Debug, Default)]
pub(super) struct Lru {
    oldest: Link,
    newest: Link,
}

impl Lru {
    /// Adds a page that was just put.
    pub(super) fn push(&mut self, pages: &mut Table<Page>, id: PageId) {
        let page = &mut pages[id.index()];
        page.lru_prev = self.newest;
        page.lru_next = None;
        match PageId::from_link(self.newest) {
            Some(newest) => pages[newest.index()].lru_next = id.link(),
            None => self.oldest = id.link(),
        }
        self.newest = id.link();
    }

    /// Takes a page out.
    pub(super) fn remove(&mut self, pages: &mut Table<Page>, id: PageId) {
        let Page {
            lru_prev, lru_next, ..
        } = pages[id.index()];
        match PageId::from_link(lru_prev) {
            Some(prev) => pages[prev.index()].lru_next = lru_next,
            None => self.oldest = lru_next,
        }
        match PageId::from_link(lru_next) {
            Some(next) => pages[next.index()].lru_prev = lru_prev,
            None => self.newest = lru_prev,
        }
    }

    /// Notes that a page was used.
    pub(super) fn touch(&mut self, pages: &mut Table<Page>, id: PageId) {
        if self.newest != id.link() {
            self.remove(pages, id);
            self.push(pages, id);
        }
    }

    /// Returns the pages, the one used longest ago first.
    pub(super) fn oldest<'p>(
        &self,
        pages: &'p Table<Page>,
    ) -> impl Iterator<Item = PageId> + use<'p> {
        let first = PageId::from_link(self.oldest);
        std::iter::successors(first, |id| PageId::from_link(pages[id.index()].lru_next))
    }

    /// Returns the page to evict next, [`None`] if there is none that nobody is reading.
    pub(super) fn victim(&self, pages: &Table<Page>) -> Option<PageId> {
        let mut link = self.oldest;
        for _ in 0..SEARCH {
            let id = PageId::from_link(link)?;
            let page = &pages[id.index()];
            if page.is_idle() {
                return Some(id);
            }
            link = page.lru_next;
        }
        None
    }
}
