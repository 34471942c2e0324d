// SPDX-License-Identifier: GPL-2.0

//! Reading: what the host has of a file is got from there, and the rest from the disk.
//!
//! Readahead is answered by requests that nobody waits for: each folio is unlocked when its pages
//! have come, and where one has not, whoever wants the folio asks for it again, and is then sent to
//! the disk.

use core::ptr::NonNull;

use kernel::{
    prelude::*,
    sync::atomic::Relaxed, //
};

use crate::{
    bindings::{
        self,
        page::PageRef, //
    },
    client::{
        Batch,
        Here,
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
    answers::{
        Came,
        Reading,
        Wait, //
    },
    shared,
    verify,
    File, //
};

/// What whoever asks for a folio is told that is not in the page cache any more, and not locked.
// CAST: It is far below what there is room for.
const TRUNCATED: c_int = bindings::positive_aop_returns_AOP_TRUNCATED_PAGE as c_int;

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
    let reading = PageOf::Folio(Reading::of(folio));
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
            // SAFETY: By the safety requirements the readahead is valid.
            let left = unsafe { bindings::tmem_readahead_count(rac) };
            count_miss(context, file, folio, left.into());
            break;
        }

        let pages = folio.pages() as usize;
        let here = get_here(context, file, folio, 0, |n| folio.page(n).ok());
        if here.got == pages || here.lost {
            // From here on the folio is this function's to end the read of.
            // SAFETY: By the safety requirements, and it is the one that was looked at; no request is
            // about it.
            unsafe {
                bindings::tmem_readahead_next(rac);
                bindings::tmem_readahead_settle(rac);
                folio.end_read(!here.lost);
            }
            continue;
        }
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
        if client.room(batch) < pages || here.got > 0 {
            // It takes several requests, or is here in part, so that somebody has to wait for it.
            submit(context, &mut gets, request.take());
            gets = None;
            // SAFETY: By the safety requirements, and it is the one that was looked at.
            unsafe {
                bindings::tmem_readahead_next(rac);
                bindings::tmem_readahead_settle(rac);
                // CAST: To as many bits.
                let from = here.got as u64;
                match read_by_parts(context, file, folio, from, true, |n| folio.page(n).ok()) {
                    Came::All => folio.end_read(true),
                    Came::NotAll => folio.end_read(false),
                    Came::Later => folio.evict(),
                }
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
            batch.set_last(PageOf::Folio(Reading::in_part(folio)));
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
        let volume = file.and_then(|file| Some((shared::volume_to_read(context, file)?, file)));

        if let Some((volume, file)) = volume {
            // SAFETY: It is what the filesystem is asked to read.
            unsafe { shared::readahead(context, rac, volume, file) };
        } else if let Some(file) = file.filter(|file| gives(context, *file)) {
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

    client.gives(Pool::Cleancache)
        && client.pages(Pool::Cleancache).load(Relaxed) > 0
        && file.is_cacheable()
}

/// Returns whether a folio can be got; counts it if it cannot.
fn is_hit(context: &Entered, file: File, folio: Folio) -> bool {
    let client = &context.client;

    if !client.gives(Pool::Cleancache) || client.pages(Pool::Cleancache).load(Relaxed) == 0 {
        return false;
    }
    let hit = file.is_cacheable() && may_get(context, file, folio);

    if !hit {
        count_miss(context, file, folio, folio.pages());
    }
    hit
}

/// Counts a folio that cannot be got, and takes note that from its beginning on so many pages are read
/// from the disk.
pub(super) fn count_miss(context: &Entered, file: File, folio: Folio, read: u64) {
    let client = &context.client;

    client
        .counters(Pool::Cleancache)
        .misses
        .add(folio.pages() as usize);
    client.missed(file.tag(), folio.index(), read);
}

/// Gets the pages of a folio from `from` on that are in the host's window, page `n` to `to(n)`.
///
/// Any context.
fn get_here(
    context: &Entered,
    file: File,
    folio: Folio,
    from: u64,
    to: impl Fn(u64) -> Option<PageRef>,
) -> Here {
    let key = (file.tag(), folio.index().saturating_add(from));
    // CAST: A folio has fewer pages.
    let count = folio.pages().saturating_sub(from) as usize;

    // CAST: To as many bits.
    context
        .client
        .get_here(Pool::Cleancache, key, count, |n| to(from + n as u64))
}

/// Reads a folio from the host from page `from` on, page `n` to `to(n)`, by as many requests as it
/// takes. Sleeps.
///
/// Where that is the folio's own page, `to_folio`, it is not waited for any longer than the host
/// answers.
pub(super) fn read_by_parts(
    context: &Entered,
    file: File,
    folio: Folio,
    from: u64,
    to_folio: bool,
    to: impl Fn(u64) -> Option<PageRef>,
) -> Came {
    let client = &context.client;
    let here = get_here(context, file, folio, from, &to);
    // CAST: To as many bits.
    let from = from + here.got as u64;
    if here.lost {
        return Came::NotAll;
    }
    if from == folio.pages() {
        return Came::All;
    }
    let mut next = Ok(from);

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
            gets.submit(batch, Origin::Waiter(wait.waiter(to_folio)));
        }
    }
    // That looks for the answers; what has not come by then is waited for.
    drop(gets);
    match wait.wait() {
        Came::All if next.is_err() => Came::NotAll,
        came => came,
    }
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
        let volume = cache.and_then(|cache| Some((shared::volume_to_read(context, cache)?, cache)));
        let mut came = Came::NotAll;

        if let Some((volume, cache)) = volume {
            came = shared::read(context, volume, cache, folio);
        } else if let Some(cache) = cache.filter(|cache| is_hit(context, *cache, folio)) {
            match &context.verify {
                None => {
                    came = read_by_parts(context, cache, folio, 0, true, |n| folio.page(n).ok());
                }
                Some(verify) => check = verify.check(context, cache, folio),
            }
        }
        match came {
            Came::All => {
                // SAFETY: It is locked for a read, which the filesystem is not asked for.
                unsafe { folio.end_read(true) };
                return 0;
            }
            Came::NotAll => (),
            Came::Later => {
                // SAFETY: It is locked for a read, which nobody is asked for any more; who has asked
                // for it looks for it anew.
                unsafe { folio.evict() };
                return TRUNCATED;
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
