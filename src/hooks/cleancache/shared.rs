// SPDX-License-Identifier: GPL-2.0

//! Pages of files that no guest can write to, which all that have the volume put and get.
//!
//! None of the rules of [`super`] is needed here: these pages do not change, and a volume that can be
//! written to is not [one of these](super::super::volumes) any more.
//!
//! Whether the host has a page is known when it has answered. So it is asked for the folios at the
//! beginning of a readahead before the filesystem is, as many as go into one request, and those
//! behind the first one that it has not got are left to the filesystem.

use core::ptr::NonNull;

use kernel::prelude::*;

use crate::{
    bindings::{
        self,
        page::PageRef, //
    },
    client::{
        Volume,
        MAX_PAGES, //
    },
    params,
};

use super::{
    super::{
        folio::Folio,
        volumes::Owner,
        Entered,
        Origin,
        PageOf, //
    },
    answers::{
        Came,
        Reading,
        Wait, //
    },
    File, //
};

/// Returns the volume of a file, if its pages are shared. Any context.
pub(super) fn volume_of(context: &Entered, file: File) -> Option<Volume> {
    // SAFETY: The file's superblock is there as long as the file is, by the invariants of `File`.
    unsafe { context.volumes.of(&context.client, file.superblock()) }
}

/// Returns whose the pages of a file are that is read, or of which a page is evicted. Where it is not
/// known yet, the host is asked. Any context.
pub(super) fn owner_of(context: &Entered, file: File) -> Owner {
    let superblock = file.superblock();

    // SAFETY: The file's superblock is there as long as the file is, by the invariants of `File`.
    if !unsafe { context.volumes.can_have(superblock) } || !file.can_be_shared(context) {
        return Owner::Guest;
    }
    // SAFETY: The file's superblock is there as long as the file is, by the invariants of `File`, and
    // in use, as the file has pages.
    let owner = unsafe { context.volumes.owner(&context.client, superblock) };

    if let Owner::Unknown { ask: true } = owner {
        context.join_later();
    }
    owner
}

/// Returns the volume of a file that is read, if its pages are shared; see [`owner_of()`].
pub(super) fn volume_to_read(context: &Entered, file: File) -> Option<Volume> {
    match owner_of(context, file) {
        Owner::All(volume) => Some(volume),
        Owner::Guest | Owner::Unknown { .. } => None,
    }
}

/// Puts the pages of a folio that is evicted.
///
/// Called as [`super::removed`] is.
pub(super) fn put(context: &Entered, volume: Volume, file: File, folio: Folio) {
    let client = &context.client;

    if !folio.is_putable() || !file.is_cacheable() || file.filesystem(context).is_none() {
        return;
    }
    let counters = client.counters(volume.pool());
    // CAST: A folio has fewer pages.
    let pages = folio.pages() as usize;
    if folio.order() > params::max_order() {
        counters.too_large.add(pages);
        return;
    }
    if !folio.is_workingset() && !client.is_worth_putting(file.tag(), folio.index()) {
        counters.not_admitted.add(pages);
        return;
    }
    let mut put = 0;

    for n in (0..folio.pages()).step_by(MAX_PAGES) {
        // CAST: It is at most `MAX_PAGES`.
        let count = (folio.pages() - n).min(MAX_PAGES as u64) as usize;
        let index = folio.index().saturating_add(n);

        put += client.put_shared(
            volume,
            file.handle(),
            index,
            count,
            folio.pages_at(n, count),
        );
    }
    if !folio.is_workingset() {
        client.spend_trust(file.tag(), folio.index(), put as u64);
    }
}

/// Folios next to each other.
struct Run {
    folios: [Option<Folio>; MAX_PAGES],
    pages: u64,
}

impl Run {
    const EMPTY: Self = Self {
        folios: [None; MAX_PAGES],
        pages: 0,
    };

    /// Returns a run of one folio.
    fn one(folio: Folio) -> Self {
        let mut run = Self::EMPTY;

        run.push(folio);
        run
    }

    /// Takes the folios at the beginning of a readahead: as many as go into one request, or one.
    ///
    /// # Safety
    ///
    /// `rac` must be what a filesystem is asked to read; the folios are to be used as long as it is
    /// not.
    unsafe fn first_of(rac: *mut bindings::readahead_control) -> Self {
        let mut run = Self::EMPTY;

        loop {
            // SAFETY: By the safety requirements the readahead is valid.
            let next = unsafe { bindings::tmem_readahead_peek_at(rac, run.pages as c_ulong) };
            // SAFETY: It is locked for reading until the read is ended, which by the safety
            // requirements is after the folios are used.
            let folio = NonNull::new(next).map(|folio| unsafe { Folio::new(folio) });

            match folio.filter(|folio| folio.is_fillable()) {
                Some(folio) if run.has_room_for(folio) => run.push(folio),
                _ => return run,
            }
        }
    }

    fn has_room_for(&self, folio: Folio) -> bool {
        self.pages == 0 || self.pages.saturating_add(folio.pages()) <= MAX_PAGES as u64
    }

    fn push(&mut self, folio: Folio) {
        if let Some(place) = self.folios.iter_mut().find(|place| place.is_none()) {
            *place = Some(folio);
            self.pages = self.pages.saturating_add(folio.pages());
        }
    }

    fn iter(&self) -> impl Iterator<Item = Folio> + '_ {
        self.folios.iter().copied().flatten()
    }

    /// Returns the pages from page `first` on, each with what is to be told of it.
    fn pages_from(&self, first: u64) -> impl Iterator<Item = (PageRef, PageOf)> + '_ {
        self.iter()
            .flat_map(|folio| {
                let reading = PageOf::Folio(Reading::of(folio));

                (0..folio.pages()).map_while(move |n| Some((folio.page(n).ok()?, reading)))
            })
            // CAST: To as many bits.
            .skip(first as usize)
    }
}

/// Asks the host for the pages of a run; returns what came, and how many of the first pages it was if
/// not all did. Sleeps.
fn get(context: &Entered, volume: Volume, file: File, run: &Run) -> (Came, u64) {
    let client = &context.client;
    let Some(first) = run.iter().next().map(Folio::index) else {
        return (Came::All, 0);
    };

    pin_init::stack_pin_init!(let wait = Wait::new());
    let mut gets = client.gets();
    let mut asked = 0;
    while asked < run.pages {
        let Ok(mut batch) = gets.begin_shared(volume) else {
            break;
        };
        let index = first.saturating_add(asked);
        let pushed =
            client.push_shared_gets(&mut batch, file.handle(), index, run.pages_from(asked));

        if pushed == 0 {
            client.cancel(batch);
            break;
        }
        gets.submit(batch, Origin::Waiter(wait.waiter_from(asked)));
        asked += pushed as u64;
    }
    // That looks for the answers; what has not come by then is waited for.
    drop(gets);
    let came = wait.wait();
    let first = wait.came_first().min(asked);

    match came {
        Came::All if asked < run.pages => (Came::NotAll, first),
        came => (came, first),
    }
}

/// Reads what the host has of the folios at the beginning of a readahead. Sleeps.
///
/// # Safety
///
/// `rac` must be what a filesystem is asked to read.
pub(super) unsafe fn readahead(
    context: &Entered,
    rac: *mut bindings::readahead_control,
    volume: Volume,
    file: File,
) {
    loop {
        // SAFETY: By the safety requirements; the filesystem has not been asked yet.
        let run = unsafe { Run::first_of(rac) };
        if run.pages == 0 {
            return;
        }
        let (came, mut left) = get(context, volume, file, &run);

        if came == Came::All {
            left = run.pages;
        }
        for folio in run.iter() {
            let whole = folio.pages() <= left;

            if !whole && came == Came::NotAll {
                // This one, and what is behind it, is the filesystem's to read.
                return;
            }
            left = left.saturating_sub(folio.pages());
            if came != Came::Later {
                context.client.earn_trust(file.tag(), folio.pages());
            }
            // SAFETY: By the safety requirements, and it is the first one in the readahead; no request
            // is about it, or, if one is, it is taken out of the page cache, and kept for it.
            unsafe {
                bindings::tmem_readahead_next(rac);
                bindings::tmem_readahead_settle(rac);
                if came == Came::Later {
                    folio.evict();
                } else {
                    folio.end_read(true);
                }
            }
        }
        if came == Came::Later {
            return;
        }
    }
}

/// Reads a folio from the host, if that has all of it. Sleeps.
pub(super) fn read(context: &Entered, volume: Volume, file: File, folio: Folio) -> Came {
    if !folio.is_fillable() {
        return Came::NotAll;
    }
    let (came, _) = get(context, volume, file, &Run::one(folio));

    if came == Came::All {
        context.client.earn_trust(file.tag(), folio.pages());
    }
    came
}
