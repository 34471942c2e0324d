// SPDX-License-Identifier: GPL-2.0

//! What the kernel's requests for swapped pages have in common, whichever way they come.
//!
//! A request is shared by whoever asks the host about its pages, and by each question that is not
//! answered yet. Whoever gives up the last share ends it: it is over, or it goes to where its pages
//! are without the host.

use core::{
    marker::PhantomData,
    ptr::{
        self,
        NonNull, //
    },
};

use kernel::{
    prelude::*,
    sync::atomic::{
        Atomic,
        Full,
        Relaxed, //
    },
};

use crate::{
    bindings::page::PageRef,
    client::{
        logic::drain::InFlight,
        Answers,
        Outcome, //
    },
    params,
};

use super::super::{
    Context,
    Entered,
    Origin,
    PageOf, //
};

/// Which way a request goes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// Its pages are read.
    In,
    /// Its pages are written.
    Out,
}

/// How a request stands.
pub(super) struct State {
    pub(super) way: Way,
    /// Answers that are still to come, plus one while questions are asked.
    left: Atomic<u32>,
    /// A bit for each place with a page that was refused, or did not come.
    failed: Atomic<u64>,
    /// The next one of a [`Queue`].
    next: Atomic<*mut c_void>,
}

/// The most places that a request has.
pub(super) const MAX_PLACES: usize = u64::BITS as usize;

impl State {
    pub(super) const fn new(way: Way) -> Self {
        Self {
            way,
            left: Atomic::new(1),
            failed: Atomic::new(0),
            next: Atomic::new(ptr::null_mut()),
        }
    }
}

/// A page of a request: the place of what it belongs to, and which page of that it is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Position {
    pub(super) place: usize,
    pub(super) n: u64,
}

impl Position {
    /// The first page.
    pub(super) const START: Self = Self { place: 0, n: 0 };
}

/// Pages of a request that are neighbours in an object.
pub(super) struct Run {
    pub(super) tag: u64,
    pub(super) index: u64,
    pub(super) len: u64,
    /// Where the next one begins.
    pub(super) next: Position,
}

/// A request that belongs to this half, until it is ended.
///
/// A page that is looked for in the index and found there may be drained before the host is asked for
/// it, or before it answers. Then it does not come, the index does not have it any more, and it is
/// in its area: see [`Self::finish_read`].
pub(super) trait Request: Copy + Send {
    /// Whether whoever submits one may wait for the disk meanwhile.
    const MAY_WAIT: bool;

    /// Returns how it stands.
    fn state(&self) -> &State;

    /// Returns how many pages there are.
    fn pages(&self) -> u64;

    /// Returns the longest run of neighbours from a position on, if there is a page.
    fn run(&self, from: Position) -> Option<Run>;

    /// Returns the page at a position, and moves on to the next one.
    fn next(&self, at: &mut Position) -> Option<(PageRef, PageOf)>;

    /// Remembers that an object will have pages of it.
    fn note(&self, tag: u64);

    /// Returns whether one of its places is being written.
    fn is_in(&self, flight: &InFlight) -> bool;

    /// Makes sure that nothing that the host has of its pages can be got any more. Any context.
    fn forget(&self, context: &Entered);

    /// Returns it as who asks the client.
    fn origin(self) -> Origin;

    /// Ends it: all is done. Any context.
    fn complete(self);

    /// Hands it to where its pages are without the host, which ends it. Sleeps.
    fn submit(self);

    /// Ends a read of which some places have failed: what did not come but is in the area is read from
    /// there. Sleeps.
    fn finish_read(self, context: &Entered, failed: u64);

    /// Returns where such requests wait for somebody who may sleep, and then for the host.
    fn queues(context: &Context) -> &Queues<Self>;

    /// Returns it as a pointer.
    fn into_raw(self) -> NonNull<c_void>;

    /// Returns what [`Self::into_raw`] made a pointer.
    ///
    /// # Safety
    ///
    /// It must have, and nobody else may have the request.
    unsafe fn from_raw(raw: NonNull<c_void>) -> Self;

    /// Returns whether it is to be written.
    fn is_write(&self) -> bool {
        self.state().way == Way::Out
    }

    /// Takes note that a page of a place was refused, or did not come. Any context.
    fn fail(&self, place: usize) {
        let failed = &self.state().failed;
        let bit = 1u64 << (place & (MAX_PLACES - 1));
        let mut old = failed.load(Relaxed);

        while let Err(now) = failed.cmpxchg(old, old | bit, Relaxed) {
            old = now;
        }
    }

    /// Takes another share of it.
    fn get(&self) {
        self.state().left.add(1, Relaxed);
    }

    /// Gives up a share of it; whoever gives up the last one finishes it.
    fn put(self, context: &Entered, may_sleep: bool) {
        if self.state().left.fetch_sub(1, Full) == 1 {
            self.finish(context, may_sleep);
        }
    }

    /// Takes the outcome of a batch. Any context.
    fn done(self, answers: &Answers<'_, PageOf>) {
        for (page, outcome) in answers.iter() {
            if let (PageOf::Place(place), Outcome::Failed) = (page, outcome) {
                self.fail(place.into());
            }
        }
        if let Some(context) = Context::get() {
            self.put(&context, false);
            context.drain.nudge();
        }
    }

    /// Has a batch of it not be waited for: then all of it goes to the area. Sleeps.
    fn leave(self) {
        self.fail(0);
        if let Some(context) = Context::get() {
            self.put(&context, true);
        }
    }

    /// Ends it, or hands it to the area.
    fn finish(self, context: &Entered, may_sleep: bool) {
        let failed = self.state().failed.load(Relaxed);
        let reads = !self.is_write();

        if failed == 0 && (reads || !params::write_through()) {
            self.complete();
        } else if !may_sleep {
            Self::queues(context).to_area.push(self);
            context.write_later();
        } else if reads {
            self.finish_read(context, failed);
        } else if failed == 0 {
            // The host has it, and so will the area.
            self.submit();
        } else {
            self.write_to_area(context);
        }
    }

    /// Writes it to the area, and forgets what the host has of it. Sleeps.
    fn write_to_area(self, context: &Entered) {
        self.forget(context);
        // In this order: see there.
        context.drain.wait_while(|flight| self.is_in(flight));
        self.submit();
    }
}

/// Where requests wait.
pub(super) struct Queues<R: Request> {
    /// For somebody who may sleep, to end them, or hand them to their area.
    to_area: Queue<R>,
    /// For the host, which could not be asked.
    to_host: Queue<R>,
}

impl<R: Request> Queues<R> {
    pub(super) const fn new() -> Self {
        Self {
            to_area: Queue::new(),
            to_host: Queue::new(),
        }
    }

    /// Ends all requests that wait for somebody who may sleep. Sleeps.
    pub(super) fn finish(&self, context: &Entered) {
        self.to_area
            .for_each(|request| request.finish(context, true));
    }

    /// Has a request read once the host can be asked. Any context.
    pub(super) fn wait_for_host(&self, request: R) {
        self.to_host.push(request);
    }

    /// Calls `f` with each request that waits for the host.
    pub(super) fn for_each_to_host(&self, f: impl Fn(R)) {
        self.to_host.for_each(f);
    }
}

/// Requests, of which the last one comes first.
///
/// # Invariants
///
/// `head` is null or a request that nobody else has, as a pointer, and so is the `next` of each.
struct Queue<R: Request> {
    head: Atomic<*mut c_void>,
    _requests: PhantomData<fn(R)>,
}

impl<R: Request> Queue<R> {
    const fn new() -> Self {
        // INVARIANT: `head` is null.
        Self {
            head: Atomic::new(ptr::null_mut()),
            _requests: PhantomData,
        }
    }

    /// Adds a request. Any context.
    fn push(&self, request: R) {
        let mut head = self.head.load(Relaxed);

        loop {
            request.state().next.store(head, Relaxed);
            match self.head.cmpxchg(head, request.into_raw().as_ptr(), Full) {
                Ok(_) => return,
                Err(now) => head = now,
            }
        }
    }

    /// Takes all requests, and calls `f` with each.
    fn for_each(&self, f: impl Fn(R)) {
        let mut next = self.head.xchg(ptr::null_mut(), Full);

        while let Some(raw) = NonNull::new(next) {
            // SAFETY: By the type invariants, and it was just taken from the list.
            let request = unsafe { R::from_raw(raw) };

            next = request.state().next.load(Relaxed);
            f(request);
        }
    }
}
