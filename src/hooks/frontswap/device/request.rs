// SPDX-License-Identifier: GPL-2.0

//! Bios on their way to the host, or back.

use core::ptr::NonNull;

use kernel::prelude::*;

use crate::{
    bindings::{
        bio::Bio,
        block,
        page::PageRef, //
    },
    client::{
        logic::drain::InFlight,
        Pool, //
    },
    hooks::{
        Context,
        Entered,
        Origin,
        PageOf, //
    },
};

use super::{
    super::{
        areas::{
            self,
            key,
            Span,
            OBJECT_PAGES, //
        },
        request::{
            Position,
            Queues,
            Request,
            Run,
            State,
            Way,
            MAX_PLACES, //
        },
        Asker, //
    },
    Device, //
};

/// What is remembered of a bio.
pub(super) struct Transfer {
    state: State,
    device: NonNull<Device>,
    bio: Bio,
    span: Span,
    pages: [Option<PageRef>; MAX_PLACES],
}

/// A bio that belongs to this half.
///
/// Its places are its pages.
///
/// # Invariants
///
/// The memory is that of a [`Transfer`], from the reserve of its device, until the request is ended.
/// The device stays until then, as the request counts as one of its, and so do the pages, which are
/// those of the bio.
#[derive(Clone, Copy)]
pub(crate) struct Submitted(NonNull<Transfer>);

// SAFETY: A bio may be ended from any thread.
unsafe impl Send for Submitted {}

impl Submitted {
    /// Makes a request of a bio, unless it is about anything but whole pages, and no more than there are
    /// places, or there is no memory, and it is not to `wait` for that. Sleeps if it is.
    pub(super) fn new(device: &Device, bio: Bio, way: Way, wait: bool) -> Result<Self, Bio> {
        let Some(span) = device.span(&bio) else {
            return Err(bio);
        };
        let Some(memory) = device.reserve.take(wait) else {
            return Err(bio);
        };
        let mut pages = [None; MAX_PLACES];

        // SAFETY: They are used for no longer than the request is there.
        let count = unsafe { bio.pages(&mut pages) };
        // CAST: To more bits.
        if count as u64 != span.count {
            // SAFETY: It was just taken, and nobody has used it.
            unsafe { device.reserve.give(memory) };
            return Err(bio);
        }
        device.begin();
        let transfer = Transfer {
            state: State::new(way),
            device: device.into(),
            bio,
            span,
            pages,
        };
        // SAFETY: There is room, and nobody else uses it.
        unsafe { memory.write(transfer) };
        // INVARIANT: It was just written, and counted.
        Ok(Self(memory))
    }

    fn transfer(&self) -> &Transfer {
        // SAFETY: By the type invariants it is there.
        unsafe { self.0.as_ref() }
    }

    fn device(&self) -> &Device {
        // SAFETY: By the type invariants it is there.
        unsafe { self.transfer().device.as_ref() }
    }

    /// Returns which pages it is about.
    pub(super) fn span(&self) -> Span {
        self.transfer().span
    }

    fn page(&self, place: usize) -> Option<PageRef> {
        *self.transfer().pages.get(place)?
    }

    /// Ends the request, and does something with the bio before the device may go.
    fn end<T>(self, f: impl FnOnce(Bio, &Device) -> T) -> T {
        let device = self.transfer().device;
        // SAFETY: By the type invariants it is there, and nobody uses the request any more.
        let bio = unsafe { (&raw const (*self.0.as_ptr()).bio).read() };
        // SAFETY: By the type invariants it is there until it is told that the request is not.
        let device = unsafe { device.as_ref() };

        // SAFETY: By the type invariants the memory is from there; what was in it has been taken, or
        // need not be dropped.
        unsafe { device.reserve.give(self.0) };
        let result = f(bio, device);

        device.end();
        result
    }

    /// Makes it a bio again. Any context.
    pub(super) fn into_bio(self) -> Bio {
        self.end(|bio, _| bio)
    }

    /// Reads a page that the host did not return from the device below, if that has it, and returns
    /// whether it was read. Sleeps.
    fn reread(&self, context: &Entered, place: usize) -> bool {
        let span = self.span();
        // CAST: To more bits.
        let n = place as u64;

        // Nobody writes what somebody reads.
        if !span.page(n).is_in_area(context) {
            return false;
        }
        let Some(page) = self.page(place) else {
            return false;
        };
        let read = block::Transfer::<1>::new()
            .read(
                self.device().below(),
                span.first + n,
                core::iter::once(page),
            )
            .is_ok();

        if read {
            context.client.counters(Pool::Frontswap).from_area.add(1);
        }
        read
    }
}

impl Request for Submitted {
    /// What is submitted while a bio is being submitted does not begin before that is over.
    const MAY_WAIT: bool = false;

    fn state(&self) -> &State {
        &self.transfer().state
    }

    fn pages(&self) -> u64 {
        self.span().count
    }

    fn run(&self, from: Position) -> Option<Run> {
        let span = self.span();
        // CAST: To more bits.
        let at = from.place as u64;
        let left = span.count.checked_sub(at).filter(|&left| left > 0)?;
        let (tag, index) = key(span.area, span.first + at);
        let len = left.min(OBJECT_PAGES - index);

        Some(Run {
            tag,
            index,
            len,
            next: Position {
                // CAST: There are few.
                place: from.place + len as usize,
                n: 0,
            },
        })
    }

    fn next(&self, at: &mut Position) -> Option<(PageRef, PageOf)> {
        let page = self.page(at.place)?;
        // CAST: There are few.
        let place = at.place as u8;

        at.place += 1;
        Some((page, PageOf::Place(place)))
    }

    fn note(&self, tag: u64) {
        areas::note_device(tag);
    }

    fn is_in(&self, flight: &InFlight) -> bool {
        self.span().is_in(flight)
    }

    fn forget(&self, context: &Entered) {
        self.span().forget(context);
    }

    fn origin(self) -> Origin {
        Origin::Swap(Asker::Bio(self))
    }

    fn complete(self) {
        self.into_bio().end(Ok(()));
    }

    fn submit(self) {
        self.end(|bio, device| bio.forward(device.below()));
    }

    /// A bio has one result: a page that cannot be had is an error for all that are read with it.
    fn finish_read(self, context: &Entered, failed: u64) {
        let all = (0..MAX_PLACES)
            .filter(|place| failed & (1 << place) != 0)
            .all(|place| self.reread(context, place));

        self.into_bio().end(if all { Ok(()) } else { Err(EIO) });
    }

    fn queues(context: &Context) -> &Queues<Self> {
        &context.waiting.bios
    }

    fn into_raw(self) -> NonNull<c_void> {
        self.0.cast()
    }

    unsafe fn from_raw(raw: NonNull<c_void>) -> Self {
        // INVARIANT: By the safety requirements it was one.
        Self(raw.cast())
    }
}
