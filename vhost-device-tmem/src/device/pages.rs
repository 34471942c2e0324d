// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The pages of requests, as the store takes and gives them.

use super::{
    chain::{Cursor, Parts},
    execute::Run,
    fault::Watch,
    request::{REQUEST, RESPONSE},
};
use crate::store::{PageBytes, PageSink, PageSource, PAGE_SIZE};
use virtio_tmem_abi::Key;

/// The pages of requests, in ascending order, from one of them on.
pub(super) struct Pages<'r, 'm, 'w, I> {
    /// Where the pages of each request are, and how many.
    requests: I,
    cursor: Option<Cursor<'r, 'm>>,
    /// The page that the cursor is at, and the first one of the next request.
    next: usize,
    end: usize,
    /// The page that the store calls the first.
    first: usize,
    /// Pages that could not be copied.
    out_of_reach: u64,
    watch: &'w Watch,
}

impl<'r, 'm, 'w> Pages<'r, 'm, 'w, ()> {
    /// Returns the pages to be read, from page `first` on.
    pub(super) fn to_put(
        run: &Run<'r, 'm>,
        first: usize,
        watch: &'w Watch,
    ) -> Pages<'r, 'm, 'w, impl Iterator<Item = (Cursor<'r, 'm>, usize)>> {
        let table =
            |parts: &'r Parts<'m>, count| (parts.reader(), REQUEST + count * size_of::<Key>());
        Self::new(run, first, watch, table)
    }

    /// Returns the places for pages to be written, from page `first` on.
    pub(super) fn to_get(
        run: &Run<'r, 'm>,
        first: usize,
        watch: &'w Watch,
    ) -> Pages<'r, 'm, 'w, impl Iterator<Item = (Cursor<'r, 'm>, usize)>> {
        let results = |parts: &'r Parts<'m>, count| (parts.writer(), RESPONSE + count);
        Self::new(run, first, watch, results)
    }

    /// `part` returns the part of a request that has the pages, and how many bytes come before
    /// them.
    fn new(
        run: &Run<'r, 'm>,
        first: usize,
        watch: &'w Watch,
        part: impl Fn(&'r Parts<'m>, usize) -> (Cursor<'r, 'm>, usize),
    ) -> Pages<'r, 'm, 'w, impl Iterator<Item = (Cursor<'r, 'm>, usize)>> {
        let requests = run.each().map(move |(parts, count)| {
            let (mut cursor, before) = part(parts, count);
            cursor.skip(before);
            (cursor, count)
        });
        Pages {
            requests,
            cursor: None,
            next: 0,
            end: 0,
            first,
            out_of_reach: 0,
            watch,
        }
    }
}

impl<'r, 'm, I: Iterator<Item = (Cursor<'r, 'm>, usize)>> Pages<'r, 'm, '_, I> {
    /// Returns how many pages could not be copied.
    pub(super) fn out_of_reach(&self) -> u64 {
        self.out_of_reach
    }

    /// Goes to page `n`; [`None`] if it is behind, or there is none.
    fn seek(&mut self, n: usize) -> Option<&mut Cursor<'r, 'm>> {
        let n = self.first + n;
        while n >= self.end {
            let (cursor, count) = self.requests.next()?;
            self.cursor = Some(cursor);
            self.next = self.end;
            self.end += count;
        }
        let ahead = n.checked_sub(self.next)?;
        self.next = n + 1;
        let cursor = self.cursor.as_mut()?;
        cursor.skip(ahead * PAGE_SIZE).then_some(cursor)
    }

    /// Counts a page that was copied, or not, and returns whether it was. What was copied from, or
    /// to, memory that cannot be had is nothing.
    fn copied(&mut self, copied: bool) -> bool {
        self.out_of_reach += u64::from(!copied);
        copied && self.watch.fault().is_none()
    }
}

impl<'r, 'm, I: Iterator<Item = (Cursor<'r, 'm>, usize)>> PageSource for Pages<'r, 'm, '_, I> {
    fn read_page(&mut self, n: usize, frame: &mut PageBytes) -> bool {
        let read = self.seek(n).is_some_and(|cursor| cursor.read(frame));
        self.copied(read)
    }
}

impl<'r, 'm, I: Iterator<Item = (Cursor<'r, 'm>, usize)>> PageSink for Pages<'r, 'm, '_, I> {
    fn write_page(&mut self, n: usize, page: &PageBytes) -> bool {
        let written = self.seek(n).is_some_and(|cursor| cursor.write(page));
        self.copied(written)
    }
}
