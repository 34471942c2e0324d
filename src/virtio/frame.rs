// SPDX-License-Identifier: GPL-2.0

//! What goes over a virtqueue at once: some bytes out, some bytes in, and pages one way.

use kernel::{
    prelude::*,
    sync::Arc, //
};

use crate::bindings;

use super::pages::{
    PagePool,
    PageRef,
    Slot, //
};

/// The most bytes that a frame carries to the device, pages apart.
pub(crate) const OUT_BYTES: usize = 1344;

/// The most bytes that a frame carries from the device, pages apart.
pub(crate) const IN_BYTES: usize = 160;

/// The most pages that a frame carries.
pub(crate) const MAX_PAGES: usize = 32;

/// The size of a page in bytes.
pub(crate) const PAGE_SIZE: usize = kernel::page::PAGE_SIZE;

/// Which way a frame's pages go.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    /// The device reads them.
    Out,
    /// The device writes them.
    In,
}

/// Physically contiguous pages.
#[derive(Clone, Copy)]
struct Segment {
    first: PageRef,
    pages: usize,
}

/// Memory for one descriptor chain.
///
/// The device-readable part is the bytes of [`out`](Self::out), then the pages if they go out; the
/// device-writable part is the bytes of [`answer`](Self::answer), then the pages if they come in.
/// While the device owns the frame nobody else has a reference to it: it is inside the token that
/// [`Queues::submit`](super::queue::Queues::submit) took.
///
/// # Invariants
///
/// `out_len <= OUT_BYTES`, `in_len <= IN_BYTES` and `segments` has at most [`MAX_PAGES`] members.
pub(crate) struct Frame {
    out: [u8; OUT_BYTES],
    answer: [u8; IN_BYTES],
    out_len: usize,
    in_len: usize,
    direction: Direction,
    segments: [Option<Segment>; MAX_PAGES],
    count: usize,
    slots: [Option<Slot>; MAX_PAGES],
    /// How many slots there are.
    held: usize,
    pool: Option<Arc<PagePool>>,
    table: [bindings::scatterlist; MAX_PAGES + 2],
}

// SAFETY: The scatterlist points to memory of the frame itself and to pages that are valid for as
// long as the frame refers to them; nothing in it belongs to a thread.
unsafe impl Send for Frame {}

impl Frame {
    /// Returns an empty frame.
    pub(crate) fn init() -> impl Init<Self> {
        init!(Self {
            out <- pin_init::init_zeroed(),
            answer <- pin_init::init_zeroed(),
            out_len: 0,
            in_len: 0,
            direction: Direction::Out,
            segments: [None; MAX_PAGES],
            count: 0,
            slots: [const { None }; MAX_PAGES],
            held: 0,
            pool: None,
            table <- pin_init::init_zeroed(),
        })
    }

    /// Empties the frame, for an answer of `in_len` bytes and pages that go `direction`.
    ///
    /// Slots that are still attached go back to their pool.
    pub(crate) fn reset(&mut self, in_len: usize, direction: Direction) {
        self.detach();
        self.out_len = 0;
        // INVARIANT: Bounded here.
        self.in_len = in_len.min(IN_BYTES);
        self.direction = direction;
        self.count = 0;
    }

    /// Appends to the bytes for the device; more than [`OUT_BYTES`] are an error.
    pub(crate) fn push_out(&mut self, bytes: &[u8]) -> Result {
        let end = self.out_len.checked_add(bytes.len()).ok_or(EOVERFLOW)?;
        let room = self.out.get_mut(self.out_len..end).ok_or(EOVERFLOW)?;

        room.copy_from_slice(bytes);
        // INVARIANT: `end` was within `out`.
        self.out_len = end;
        Ok(())
    }

    /// Returns the bytes for the device.
    pub(crate) fn out(&self) -> &[u8] {
        self.out.get(..self.out_len).unwrap_or(&[])
    }

    /// Returns the bytes for the device, to change them in place.
    pub(crate) fn out_mut(&mut self) -> &mut [u8] {
        self.out.get_mut(..self.out_len).unwrap_or(&mut [])
    }

    /// Sets how many bytes the device may write, pages apart.
    pub(crate) fn set_answer_len(&mut self, in_len: usize) {
        // INVARIANT: Bounded here.
        self.in_len = in_len.min(IN_BYTES);
    }

    /// Returns the first `written` bytes of the device's answer, pages apart.
    pub(crate) fn answer(&self, written: usize) -> &[u8] {
        self.answer.get(..written.min(self.in_len)).unwrap_or(&[])
    }

    /// Appends a page.
    pub(crate) fn push_page(&mut self, page: PageRef) -> Result {
        // A page that follows the last one in memory needs no descriptor of its own.
        if let Some(Some(last)) = self.count.checked_sub(1).map(|n| &mut self.segments[n]) {
            if last.first.offset(last.pages).as_ptr() == page.as_ptr() {
                last.pages += 1;
                return Ok(());
            }
        }
        *self.segments.get_mut(self.count).ok_or(EOVERFLOW)? = Some(Segment {
            first: page,
            pages: 1,
        });
        self.count += 1;
        Ok(())
    }

    /// Returns page `n`.
    pub(crate) fn page(&self, n: usize) -> Option<PageRef> {
        let mut before = 0;

        for segment in self.segments() {
            if n < before + segment.pages {
                return Some(segment.first.offset(n - before));
            }
            before += segment.pages;
        }
        None
    }

    /// Appends a page of a pool; the frame owns the slot until [`Self::detach`].
    pub(crate) fn attach(&mut self, pool: &Arc<PagePool>, slot: Slot) -> Result {
        let Some(page) = pool.page(&slot) else {
            return Err(EINVAL);
        };
        // Not one for each segment: a segment may have many pages.
        let Some(place) = self.slots.get_mut(self.held) else {
            pool.give([slot]);
            return Err(EOVERFLOW);
        };

        *place = Some(slot);
        self.held += 1;
        if self.pool.is_none() {
            self.pool = Some(pool.clone());
        }
        self.push_page(page)
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

    /// Returns how many bytes the device may write, all in all.
    pub(super) fn writable(&self) -> usize {
        let pages = match self.direction {
            Direction::Out => 0,
            Direction::In => self.segments().map(|s| s.pages).sum(),
        };

        self.in_len + pages * PAGE_SIZE
    }

    fn segments(&self) -> impl Iterator<Item = &Segment> {
        self.segments.iter().take(self.count).flatten()
    }

    /// Builds the scatterlists, and returns the first readable and the first writable entry.
    pub(super) fn map(&mut self) -> (*mut bindings::scatterlist, *mut bindings::scatterlist) {
        let out_pages = match self.direction {
            Direction::Out => self.count,
            Direction::In => 0,
        };
        let readable = usize::from(self.out_len > 0) + out_pages;
        let total = readable + 1 + self.count - out_pages;
        let table = self.table.as_mut_ptr();

        // The device may write less than it says, so that nothing old may be left to be read.
        if let Some(answer) = self.answer.get_mut(..self.in_len) {
            answer.fill(0);
        }

        // SAFETY: `total <= MAX_PAGES + 2` by the type invariants, so that it is within `table`.
        unsafe { bindings::sg_init_table(table, total as c_uint) };

        let mut n = 0;
        let mut next = || {
            n += 1;
            // SAFETY: It is called `total` times.
            unsafe { table.add(n - 1) }
        };

        if self.out_len > 0 {
            let out = self.out.as_ptr().cast();
            // SAFETY: The entry is within `table`, and `out` is `out_len` bytes of `self`.
            unsafe { bindings::tmem_sg_set_buf(next(), out, self.out_len as c_uint) };
        }

        let answer = self.answer.as_ptr().cast();
        if self.direction == Direction::In {
            // SAFETY: The entry is within `table`, and `answer` is `in_len` bytes of `self`.
            unsafe { bindings::tmem_sg_set_buf(next(), answer, self.in_len as c_uint) };
        }
        for segment in self.segments.iter().take(self.count).flatten() {
            let len = segment.pages * PAGE_SIZE;
            // SAFETY: The entry is within `table`, and the pages are valid by the type
            // invariants of `PageRef`.
            unsafe { bindings::tmem_sg_set_page(next(), segment.first.as_ptr(), len as c_uint, 0) };
        }
        if self.direction == Direction::Out {
            // SAFETY: As above.
            unsafe { bindings::tmem_sg_set_buf(next(), answer, self.in_len as c_uint) };
        }

        if readable == 0 {
            return (core::ptr::null_mut(), table);
        }
        // SAFETY: `readable` is at least 1 and below `total`.
        unsafe {
            bindings::tmem_sg_mark_end(table.add(readable - 1));
            (table, table.add(readable))
        }
    }
}

impl Drop for Frame {
    fn drop(&mut self) {
        self.detach();
    }
}
