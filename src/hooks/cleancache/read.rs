// SPDX-License-Identifier: GPL-2.0

//! Reading: what the host has of a file is got from there, and the rest from the disk.
//!
//! Readahead is answered by requests that nobody waits for: each folio is unlocked when its pages
//! have come, and where one has not, whoever wants the folio asks for it again, and is then sent to
//! the disk.

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

use crate::{
    bindings::{
        self,
        page::PageRef, //
    },
    client::{
        Answers,
        Batch,
        Outcome,
        Pool,
        Stop, //
    },
};

use super::{
    super::{
        folio::Folio,
        ftrace,
        Context,
        Entered,
        Gets,
        Origin,
        PageOf, //
    },
    verify,
    File, //
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

/// Somebody who waits for one folio.
pub(crate) struct Waiter(NonNull<Wait>);

// SAFETY: It is given to whoever completes the request, while the one who waits does not go away.
unsafe impl Send for Waiter {}

/// What somebody waits for.
#[pin_data]
pub(crate) struct Wait {
    /// Requests that are still to come back, plus one while they are made.
    left: Atomic<u32>,
    failed: Atomic<bool>,
    #[pin]
    completion: Completion,
}

impl Wait {
    fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            left: Atomic::new(1),
            failed: Atomic::new(false),
            completion <- Completion::new(),
        })
    }

    /// Returns what tells whoever waits of one more request.
    fn waiter(&self) -> Waiter {
        self.left.add(1, Relaxed);
        Waiter(NonNull::from(self))
    }

    fn put(&self) {
        if self.left.fetch_sub(1, Full) == 1 {
            self.completion.complete_all();
        }
    }

    /// Waits for all requests; returns whether all pages came. Sleeps.
    fn wait(&self) -> bool {
        self.put();
        // A device that does not answer is given up, so that this ends.
        self.completion.wait_for_completion();
        !self.failed.load(Acquire)
    }
}

impl Waiter {
    /// Tells whoever waits. Any context.
    pub(in crate::hooks) fn done(self, answers: &Answers<'_, PageOf>) {
        // SAFETY: Who waits does so until the last `put()`.
        let wait = unsafe { self.0.as_ref() };

        if answers
            .iter()
            .any(|(_, outcome)| outcome == Outcome::Failed)
        {
            wait.failed.store(true, Release);
        }
        wait.put();
    }
}

/// Returns whether all of a folio can be got, and may be.
pub(super) fn may_get(context: &Entered, file: File, folio: Folio) -> bool {
    let pages = folio.pages();
    let may = folio.is_fillable()
        && context
            .client
            .present(Pool::Cleancache, file.tag(), folio.index(), pages)
            == pages;

    if may {
        context.client.earn_trust(file.tag(), pages);
    }
    may
}

/// Asks for pages of a folio until the batch is full; page `n` is to be written to `to(n)`.
///
/// Returns the first page that was not asked for; fails if a page is not there.
fn ask(
    context: &Entered,
    batch: &mut Batch<Origin>,
    file: File,
    folio: Folio,
    first: u64,
    to: impl Fn(u64) -> Option<PageRef>,
) -> Result<u64> {
    let index = folio.index().saturating_add(first);
    // CAST: A folio has fewer pages.
    let count = folio.pages().saturating_sub(first) as usize;
    let reading = PageOf::Folio(Reading { folio, whole: true });
    let pages = (first..folio.pages()).map_while(|n| Some((to(n)?, reading)));

    match context
        .client
        .push_gets(batch, (file.tag(), index), count, pages)
    {
        (count, Stop::Done | Stop::Full) => Ok(first + count as u64),
        (_, Stop::Refused) => Err(ENOENT),
    }
}

/// Reads what the host has of the folios at the beginning of a readahead.
///
/// # Safety
///
/// `rac` must be what a filesystem is asked to read.
unsafe fn readahead_hits(context: &Entered, rac: *mut bindings::readahead_control, file: File) {
    let mut request: Option<Batch<Origin>> = None;
    let client = &context.client;
    let mut gets: Option<Gets<'_>> = None;

    loop {
        // SAFETY: By the safety requirements the readahead is valid.
        let next = NonNull::new(unsafe { bindings::tmem_readahead_peek(rac) });
        // SAFETY: It is locked for reading, and stays so until the read is ended.
        let Some(folio) = next.map(|folio| unsafe { Folio::new(folio) }) else {
            break;
        };
        if !may_get(context, file, folio) {
            let count = folio.pages() as usize;
            client.counters(Pool::Cleancache).misses.add(count);
            break;
        }

        let pages = folio.pages() as usize;
        if request
            .as_ref()
            .is_some_and(|batch| client.room(batch) < pages)
        {
            submit(context, &mut gets, request.take());
        }
        if request.is_none() {
            request = gets
                .get_or_insert_with(|| client.gets())
                .begin_waiting(Pool::Cleancache)
                .ok();
        }
        let Some(batch) = request.as_mut() else {
            break;
        };
        if client.room(batch) < pages {
            // It takes several requests, which somebody has to wait for.
            submit(context, &mut gets, request.take());
            gets = None;
            // SAFETY: By the safety requirements, and it is the one that was looked at.
            unsafe {
                bindings::tmem_readahead_next(rac);
                bindings::tmem_readahead_settle(rac);
                folio.end_read(read_by_parts(context, file, folio, |n| folio.page(n).ok()));
            }
            continue;
        }

        let before = batch.len();
        let asked = ask(context, batch, file, folio, 0, |n| folio.page(n).ok());
        // From here on the folio is this function's to end the read of.
        // SAFETY: By the safety requirements, and it is the one that was looked at.
        unsafe {
            bindings::tmem_readahead_next(rac);
            bindings::tmem_readahead_settle(rac);
        }
        if batch.len() == before {
            // Nothing is to come: it is all there, or it is not.
            // SAFETY: It was taken out of the readahead, locked, and no request is about it.
            unsafe { folio.end_read(asked.is_ok()) };
            continue;
        }

        if asked.is_err() {
            batch.set_last(PageOf::Folio(Reading {
                folio,
                whole: false,
            }));
        }
    }
    submit(context, &mut gets, request);
}

fn submit<'a>(context: &'a Entered, gets: &mut Option<Gets<'a>>, request: Option<Batch<Origin>>) {
    match request {
        Some(batch) if batch.len() > 0 => gets
            .get_or_insert_with(|| context.client.gets())
            .submit(batch, Origin::Readahead),
        Some(batch) => context.client.cancel(batch),
        None => (),
    }
}

/// A filesystem is asked to read ahead.
///
/// # Safety
///
/// To be called by the kernel, in the place of the function that it replaces.
pub(in crate::hooks) unsafe extern "C" fn readahead(rac: *mut bindings::readahead_control) {
    let context = Context::enter();
    // SAFETY: The kernel calls with a valid readahead, of a valid mapping.
    let mapping = unsafe { (*rac).mapping };
    let mut checks = None;

    if let Some(context) = &context {
        // SAFETY: The mapping is valid as long as it is being read.
        let file = unsafe { File::new(mapping) };

        if let Some(file) = file.filter(|file| gives(context, *file)) {
            // SAFETY: It is what the filesystem is asked to read.
            unsafe {
                match &context.verify {
                    None => readahead_hits(context, rac, file),
                    Some(verify) => checks = Some(verify.readahead(context, rac, file)),
                }
            }
        }
    }

    // SAFETY: The readahead is valid, and the filesystem is asked what it would have been, or less.
    // It is its own function that was replaced.
    unsafe {
        if bindings::tmem_readahead_count(rac) > 0 {
            if let Some(readahead) = (*(*mapping).a_ops).readahead {
                ftrace::original(|| readahead(rac));
            }
        }
    }
    if let (Some(context), Some(checks)) = (&context, checks) {
        verify::finish(context, checks);
    }
}

/// Returns whether pages of a file may be got.
fn gives(context: &Entered, file: File) -> bool {
    let client = &context.client;

    client.running() && client.pages(Pool::Cleancache).load(Relaxed) > 0 && file.is_cacheable()
}

/// Returns whether a folio can be got; counts it if it cannot.
fn is_hit(context: &Entered, file: File, folio: Folio) -> bool {
    let client = &context.client;

    if !client.running() || client.pages(Pool::Cleancache).load(Relaxed) == 0 {
        return false;
    }
    let hit = file.is_cacheable() && may_get(context, file, folio);

    if !hit {
        client
            .counters(Pool::Cleancache)
            .misses
            .add(folio.pages() as usize);
    }
    hit
}

/// Reads a folio from the host, page `n` to `to(n)`, by as many requests as it takes. Sleeps.
pub(super) fn read_by_parts(
    context: &Entered,
    file: File,
    folio: Folio,
    to: impl Fn(u64) -> Option<PageRef>,
) -> bool {
    let client = &context.client;
    let mut next = Ok(0);

    pin_init::stack_pin_init!(let wait = Wait::new());
    let mut gets = client.gets();
    while let Ok(first) = next {
        if first >= folio.pages() {
            break;
        }
        let Ok(mut batch) = gets.begin_waiting(Pool::Cleancache) else {
            next = Err(ENODEV);
            break;
        };

        next = ask(context, &mut batch, file, folio, first, &to);
        if batch.len() == 0 {
            client.cancel(batch);
        } else {
            gets.submit(batch, Origin::Waiter(wait.waiter()));
        }
    }
    // That looks for the answers; what has not come by then is waited for.
    drop(gets);
    wait.wait() && next.is_ok()
}

/// A filesystem is asked to read one folio.
///
/// # Safety
///
/// To be called by the kernel, in the place of the function that it replaces.
pub(in crate::hooks) unsafe extern "C" fn read_folio(
    file: *mut bindings::file,
    folio: *mut bindings::folio,
) -> c_int {
    let context = Context::enter();
    // SAFETY: The kernel calls with a folio that is locked for reading, of a valid mapping.
    let mapping = unsafe { bindings::tmem_folio_mapping(folio) };
    let mut check = None;

    if let (Some(context), Some(folio)) = (&context, NonNull::new(folio)) {
        // SAFETY: The folio is locked, and so stays in its mapping, until the read is ended.
        let (cache, folio) = unsafe { (File::new(mapping), Folio::new(folio)) };

        if let Some(cache) = cache.filter(|cache| is_hit(context, *cache, folio)) {
            match &context.verify {
                None => {
                    if read_by_parts(context, cache, folio, |n| folio.page(n).ok()) {
                        // SAFETY: It is locked for a read, which the filesystem is not asked for.
                        unsafe { folio.end_read(true) };
                        return 0;
                    }
                }
                Some(verify) => check = verify.check(context, cache, folio),
            }
        }
    }
    // SAFETY: The folio is locked for reading and nothing has ended that read. It is the filesystem's
    // own function that was replaced.
    let result = unsafe {
        match (*(*mapping).a_ops).read_folio {
            Some(read_folio) => ftrace::original(|| read_folio(file, folio)),
            None => -(EIO.to_errno().abs()),
        }
    };
    if let (Some(context), Some(check)) = (&context, check) {
        verify::finish(context, check);
    }
    result
}
