// SPDX-License-Identifier: GPL-2.0

//! The memory of one request: some bytes out, some bytes in, and pages one way.

use kernel::{
    page::PAGE_SIZE,
    prelude::*,
    sync::Arc, //
};

use crate::{
    bindings::page::PageRef,
    virtio::queue::Buffers, //
};

use super::{
    logic::wire::{
        ANSWER_BYTES,
        HEADER_BYTES,
        MAX_ENTRIES,
        REQUEST_BYTES, //
    },
    pages::{
        PagePool,
        Slot, //
    },
};

/// The most pages that a frame carries.
pub(crate) const MAX_PAGES: usize = MAX_ENTRIES;

/// Of how many pieces a frame consists at most: its bytes either way, and its pages.
pub(crate) const PIECES: usize = MAX_PAGES + 2;

/// Which way a frame's pages go.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    /// The device reads them.
    Out,
    /// The device writes them.
    In,
}

/// Memory for one descriptor chain.
///
/// The device-readable part is the bytes that were [pushed](Self::push_out), then the pages if they
/// go out; the device-writable part is the bytes of [`answer`](Self::answer), then the pages if they
/// come in.
///
/// # Invariants
///
/// `out_len <= REQUEST_BYTES` and `in_len <= ANSWER_BYTES`.
pub(crate) struct Frame {
    out: [u8; REQUEST_BYTES],
    answer: [u8; ANSWER_BYTES],
    out_len: usize,
    in_len: usize,
    direction: Direction,
    /// Pages of others.
    pages: [Option<PageRef>; MAX_PAGES],
    count: usize,
    /// Pages of a pool.
    slots: [Option<Slot>; MAX_PAGES],
    held: usize,
    pool: Option<Arc<PagePool>>,
}

impl Frame {
    /// Returns an empty frame.
    pub(crate) fn init() -> impl Init<Self> {
        init!(Self {
            out <- pin_init::init_zeroed(),
            answer <- pin_init::init_zeroed(),
            out_len: 0,
            in_len: 0,
            direction: Direction::Out,
            pages: [None; MAX_PAGES],
            count: 0,
            slots: [const { None }; MAX_PAGES],
            held: 0,
            pool: None,
        })
    }

    /// Empties the frame, for an answer of `in_len` bytes and pages that go `direction`.
    ///
    /// Slots that are still attached go back to their pool.
    pub(crate) fn reset(&mut self, in_len: usize, direction: Direction) {
        self.detach();
        self.out_len = 0;
        // INVARIANT: Bounded here.
        self.in_len = in_len.min(ANSWER_BYTES);
        self.direction = direction;
    }

    /// Appends to the bytes for the device; more than [`REQUEST_BYTES`] are an error.
    pub(crate) fn push_out(&mut self, bytes: &[u8]) -> Result {
        let end = self.out_len.checked_add(bytes.len()).ok_or(EOVERFLOW)?;
        let room = self.out.get_mut(self.out_len..end).ok_or(EOVERFLOW)?;

        room.copy_from_slice(bytes);
        // INVARIANT: `end` was within `out`.
        self.out_len = end;
        Ok(())
    }

    /// Leaves room for a header, before all else.
    pub(crate) fn reserve_header(&mut self) {
        // INVARIANT: The longest request has one.
        self.out_len = HEADER_BYTES;
    }

    /// Writes the header into the room that was left for it.
    pub(crate) fn write_header(&mut self, header: &[u8]) {
        if let Some(room) = self.out.get_mut(..header.len()) {
            room.copy_from_slice(header);
        }
    }

    /// Sets how many bytes the device may write, pages apart.
    pub(crate) fn set_answer_len(&mut self, in_len: usize) {
        // INVARIANT: Bounded here.
        self.in_len = in_len.min(ANSWER_BYTES);
    }

    /// Returns what the device may have written, pages apart.
    ///
    /// What it did not write is zero.
    pub(crate) fn answer(&self) -> &[u8] {
        self.answer.get(..self.in_len).unwrap_or(&[])
    }

    /// Returns how many bytes the device may write, with pages.
    pub(crate) fn room(&self) -> usize {
        let pages = match self.direction {
            Direction::Out => 0,
            Direction::In => self.count + self.held,
        };

        self.in_len + pages * PAGE_SIZE
    }

    /// Appends a page.
    pub(crate) fn push_page(&mut self, page: PageRef) -> Result {
        *self.pages.get_mut(self.count).ok_or(EOVERFLOW)? = Some(page);
        self.count += 1;
        Ok(())
    }

    /// Returns page `n` of those that were [pushed](Self::push_page).
    pub(crate) fn page(&self, n: usize) -> Option<PageRef> {
        self.pages.get(..self.count)?.get(n).copied().flatten()
    }

    /// Appends a page of a pool; the frame owns the slot until [`Self::detach`].
    ///
    /// All slots of a frame are of one pool. They come after the pages of others.
    pub(crate) fn attach(&mut self, pool: &Arc<PagePool>, slot: Slot) -> Result {
        let Some(place) = self.slots.get_mut(self.held) else {
            pool.give([slot]);
            return Err(EOVERFLOW);
        };

        *place = Some(slot);
        self.held += 1;
        if self.pool.is_none() {
            self.pool = Some(pool.clone());
        }
        Ok(())
    }

    /// Copies page `n` of those that were [attached](Self::attach) to `to`.
    pub(crate) fn copy_slot(&self, n: usize, to: PageRef) {
        if let Some(Some(slot)) = self.slots.get(n) {
            slot.page().copy_to(to);
        }
    }

    /// Gives the slots back to their pool and forgets all pages.
    pub(crate) fn detach(&mut self) {
        if let Some(pool) = self.pool.take() {
            pool.give(
                self.slots
                    .iter_mut()
                    .take(self.held)
                    .filter_map(Option::take),
            );
        }
        self.held = 0;
        self.count = 0;
    }

    /// Lists what the device is given.
    pub(crate) fn buffers<'a>(&'a mut self, list: &mut Buffers<'a>) {
        let out = self.out.get(..self.out_len).unwrap_or(&[]);
        let answer = self.answer.get_mut(..self.in_len).unwrap_or(&mut []);
        let pages = self.pages.iter().take(self.count).flatten();
        let slots = self.slots.iter().take(self.held).flatten();
        let owned = slots.map(Slot::page);

        // The device may write less than it says, so that nothing old may be left to be read.
        answer.fill(0);
        list.readable(out);
        match self.direction {
            Direction::Out => {
                pages.for_each(|&page| list.readable_page(page));
                owned.for_each(|page| list.readable_owned(page));
                list.writable(answer);
            }
            Direction::In => {
                list.writable(answer);
                pages.for_each(|&page| list.writable_page(page));
                owned.for_each(|page| list.writable_owned(page));
            }
        }
    }
}

impl Drop for Frame {
    fn drop(&mut self) {
        self.detach();
    }
}
