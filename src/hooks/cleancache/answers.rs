// SPDX-License-Identifier: GPL-2.0

//! What becomes of folios when the host has answered: of those that nobody waits for, of those that
//! somebody waits for, and of those that were given up meanwhile.
//!
//! A host that falls silent may still write to the folios that it was asked for. They are taken out
//! of the page cache, so that whoever waits for one looks for it anew and is sent to the disk, and
//! are kept until the host has given them back.

use core::ptr::NonNull;

use kernel::{
    prelude::*,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            Full,
            Relaxed,
            Release, //
        },
        Completion, //
    },
};

use crate::client::{
    Answers,
    Outcome, //
};

use super::super::{
    folio::Folio,
    PageOf, //
};

/// A folio that is being read from the host.
///
/// # Invariants
///
/// The folio is locked for a read that is not ended before [`Self::done`].
#[derive(Clone, Copy)]
pub(crate) struct Reading {
    folio: Folio,
    /// Whether all of its pages were asked for.
    whole: bool,
}

impl Reading {
    /// A folio all of which is asked for.
    pub(super) fn of(folio: Folio) -> Self {
        Self { folio, whole: true }
    }

    /// A folio of which some pages were not asked for.
    pub(super) fn in_part(folio: Folio) -> Self {
        Self {
            folio,
            whole: false,
        }
    }

    /// Ends the reads of folios: whoever waits for a page that did not come reads it from the disk.
    ///
    /// The pages of a folio come one after the other. Any context.
    pub(in crate::hooks) fn done(answers: &Answers<'_, PageOf>) {
        let mut last: Option<Self> = None;

        for (page, outcome) in answers.iter() {
            let PageOf::Folio(mut reading) = page else {
                continue;
            };

            reading.whole &= outcome == Outcome::Done;
            match &mut last {
                Some(last) if last.folio == reading.folio => last.whole &= reading.whole,
                Some(done) => {
                    let done = core::mem::replace(done, reading);

                    // SAFETY: By the type invariants, and no page of it is to come.
                    unsafe { done.folio.end_read(done.whole) };
                }
                None => last = Some(reading),
            }
        }
        if let Some(done) = last {
            // SAFETY: By the type invariants of the last one, and no page is to come.
            unsafe { done.folio.end_read(done.whole) };
        }
    }
}

/// Goes through the folios of a request, whose pages come one after the other.
fn for_each_folio(pages: impl Iterator<Item = PageOf>, mut f: impl FnMut(Folio)) {
    let mut last: Option<Folio> = None;

    for page in pages {
        let PageOf::Folio(Reading { folio, .. }) = page else {
            continue;
        };
        if last.replace(folio) != Some(folio) {
            f(folio);
        }
    }
}

/// Folios that the host may still write to, and that nobody waits for any more.
///
/// # Invariants
///
/// A reference is held to each folio of the request that it is the origin of.
pub(crate) struct Left(());

impl Left {
    /// Takes the folios of a readahead out of the page cache. Sleeps.
    pub(in crate::hooks) fn readahead(pages: impl Iterator<Item = PageOf>) -> Self {
        // INVARIANT: A reference is taken to each folio.
        for_each_folio(pages, |folio| {
            folio.hold();
            // SAFETY: By the type invariants of `Reading` it is locked for a read that has not been
            // ended, and will not be: its request has this as its origin from here on.
            unsafe { folio.evict() };
        });
        Self(())
    }

    /// Gives the folios back, now that the host has. Any context.
    pub(in crate::hooks) fn done(self, answers: &Answers<'_, PageOf>) {
        for_each_folio(answers.iter().map(|(page, _)| page), |folio| {
            // SAFETY: By the type invariants a reference is held, and the host was the last to use
            // the folio.
            unsafe { folio.release() };
        });
    }
}

/// Somebody who waits for one folio.
pub(crate) struct Waiter {
    wait: NonNull<Wait>,
    /// Whether the host writes to the folio itself, which whoever waits can do without.
    to_folio: bool,
    /// How many pages were asked for before.
    before: u64,
}

// SAFETY: It is given to whoever completes the request, while the one who waits does not go away.
unsafe impl Send for Waiter {}

/// What somebody waits for.
#[pin_data]
pub(crate) struct Wait {
    /// Requests that are still to come back, plus one while they are made.
    left: Atomic<u32>,
    /// How many of the first pages came; [`u64::MAX`] if all did.
    came: Atomic<u64>,
    /// Whether the host may still write to the folio.
    forsaken: Atomic<bool>,
    #[pin]
    completion: Completion,
}

impl Wait {
    pub(super) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            left: Atomic::new(1),
            came: Atomic::new(u64::MAX),
            forsaken: Atomic::new(false),
            completion <- Completion::new(),
        })
    }

    /// Returns what tells whoever waits of one more request.
    pub(super) fn waiter(&self, to_folio: bool) -> Waiter {
        self.left.add(1, Relaxed);
        Waiter {
            wait: NonNull::from(self),
            to_folio,
            before: 0,
        }
    }

    /// Returns what tells whoever waits of one more request for pages of folios themselves, of which
    /// so many were asked for before.
    pub(super) fn waiter_from(&self, before: u64) -> Waiter {
        Waiter {
            before,
            ..self.waiter(true)
        }
    }

    /// Returns how many of the first pages came; [`u64::MAX`] if all did.
    pub(super) fn came_first(&self) -> u64 {
        self.came.load(Acquire)
    }

    /// Takes note that no more of the first pages than so many came.
    fn failed(&self, came: u64) {
        let mut old = self.came.load(Relaxed);

        while came < old {
            match self.came.cmpxchg(old, came, Release) {
                Ok(_) => break,
                Err(now) => old = now,
            }
        }
    }

    fn put(&self) {
        if self.left.fetch_sub(1, Full) == 1 {
            self.completion.complete_all();
        }
    }

    /// Waits for all requests; returns what came. Sleeps.
    pub(super) fn wait(&self) -> Came {
        self.put();
        // A host that falls silent is not waited for, so that this ends: see `Waiter::leave()`.
        self.completion.wait_for_completion();
        if self.forsaken.load(Acquire) {
            Came::Later
        } else if self.came_first() == u64::MAX {
            Came::All
        } else {
            Came::NotAll
        }
    }
}

/// What came of the pages of a folio that somebody waited for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Came {
    /// All of them.
    All,
    /// Not all, and nothing is to come.
    NotAll,
    /// The host may still write to the folio, which is of no use any more.
    Later,
}

impl Waiter {
    /// Returns whether whoever waits can do without the answer.
    pub(in crate::hooks) fn can_leave(&self) -> bool {
        self.to_folio
    }

    /// Has nobody wait for the host any more. Process context.
    pub(in crate::hooks) fn leave(self, pages: impl Iterator<Item = PageOf>) -> Left {
        // INVARIANT: A reference is taken to each folio, which is locked until whoever waits is told.
        for_each_folio(pages, Folio::hold);
        // SAFETY: Who waits does so until the last `put()`.
        let wait = unsafe { self.wait.as_ref() };

        wait.forsaken.store(true, Release);
        wait.put();
        Left(())
    }

    /// Tells whoever waits. Any context.
    pub(in crate::hooks) fn done(self, answers: &Answers<'_, PageOf>) {
        // SAFETY: Who waits does so until the last `put()`.
        let wait = unsafe { self.wait.as_ref() };

        let failed = answers
            .iter()
            .position(|(_, outcome)| outcome == Outcome::Failed);
        if let Some(n) = failed {
            // CAST: To as many bits.
            wait.failed(self.before + n as u64);
        }
        wait.put();
    }
}
