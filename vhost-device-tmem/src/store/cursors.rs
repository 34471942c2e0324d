// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Where walks are in the lists of objects' pages, between two holds of the lock.

use super::id::{Link, PageId};

/// Names an open cursor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CursorId(usize);

/// The pages that walks look at next. A page that leaves its list while a cursor is on it moves the
/// cursor on, so that none is ever on a page that is not in the walk's list.
///
/// # Invariants
///
/// `open` of `places` are [`Some`].
#[derive(Debug, Default)]
pub(super) struct Cursors {
    places: Vec<Option<Link>>,
    open: usize,
}

impl Cursors {
    /// Opens a cursor on a page, or at the end of a list.
    pub(super) fn open(&mut self, at: Link) -> CursorId {
        self.open += 1;
        let free = self.places.iter().position(Option::is_none);
        let place = free.unwrap_or_else(|| {
            self.places.push(None);
            self.places.len() - 1
        });
        self.places[place] = Some(at);
        CursorId(place)
    }

    /// Closes a cursor.
    pub(super) fn close(&mut self, id: CursorId) {
        self.open -= usize::from(self.places[id.0].take().is_some());
    }

    /// Returns the page that a cursor is on, [`None`] at the end.
    pub(super) fn get(&self, id: CursorId) -> Option<PageId> {
        self.places[id.0]
            .flatten()
            .and_then(|page| PageId::from_link(Some(page)))
    }

    /// Moves a cursor.
    pub(super) fn set(&mut self, id: CursorId, at: Link) {
        self.places[id.0] = Some(at);
    }

    /// Moves all cursors that are on one page to another.
    pub(super) fn page_leaves(&mut self, page: PageId, next: Link) {
        // There is hardly ever one.
        if self.open > 0 {
            let on_it = |place: &&mut Option<Link>| **place == Some(page.link());
            self.places
                .iter_mut()
                .filter(on_it)
                .for_each(|place| *place = Some(next));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_on_a_page_that_leaves_moves_on() {
        let [a, b, c] = [0, 1, 2].map(PageId::from_index);
        let mut cursors = Cursors::default();
        let [one, two, end] = [a, b, c].map(|page| cursors.open(page.link()));
        cursors.set(end, None);
        cursors.page_leaves(a, b.link());
        assert_eq!(
            [one, two, end].map(|id| cursors.get(id)),
            [Some(b), Some(b), None]
        );
        cursors.close(one);
        cursors.page_leaves(b, None);
        assert_eq!(cursors.get(two), None);
        // The place is used again.
        assert_eq!(cursors.open(c.link()), one);
    }
}
