// SPDX-License-Identifier: GPL-2.0

//! Verifying: what comes from the host is compared with what the disk has, which is used.
//!
//! Pages are got into memory of their own, the filesystem reads the folio as if there were no host,
//! and when it has done so the two are compared, with the folio locked.
//!
//! The folio is locked from before its pages are got until the filesystem has read it, so that
//! nobody writes to it through the page cache meanwhile. Somebody may do so between the filesystem
//! unlocking it and the comparison, and change it otherwise at any time. Whatever does either has
//! the file's pages flushed, so that a file that saw a flush since, or whose folio is not clean, is
//! not compared.

use core::{
    iter::{
        once,
        Once, //
    },
    ptr::NonNull,
};

use kernel::{
    alloc::flags::__GFP_NOWARN,
    page::PAGE_SIZE,
    prelude::*,
    sync::atomic::{
        Acquire,
        Atomic,
        Full, //
    },
};

use crate::{
    bindings::{
        self,
        page::{
            OwnedPage,
            PageRef, //
        },
    },
    client::Pool, //
};

use super::{
    super::{
        folio::Folio,
        Entered, //
    },
    answers::Came,
    read::{
        count_miss,
        may_get,
        read_by_parts, //
    },
    File, //
};

/// Files share so many counters of changes.
const COUNTERS: usize = 1024;

/// Pages that are got for one readahead; the others are left where they are.
const MOST: u64 = 512;

/// What pages that come from the host are compared by.
pub(in crate::hooks) struct Verify {
    /// How often a file was flushed, or another one with the same place in here.
    changes: KVVec<Atomic<u64>>,
}

impl Verify {
    /// May sleep.
    pub(in crate::hooks) fn new() -> Result<Self> {
        let mut changes = KVVec::with_capacity(COUNTERS, GFP_KERNEL)?;

        for _ in 0..COUNTERS {
            changes.push(Atomic::new(0), GFP_KERNEL)?;
        }
        Ok(Self { changes })
    }

    fn counter(&self, tag: u64) -> Option<&Atomic<u64>> {
        // Inodes are some hundred bytes long, and begin at a multiple of as many.
        self.changes.get((tag >> 6) as usize % COUNTERS)
    }

    /// Takes note of pages being flushed: they have changed, or may. Any context.
    pub(super) fn changes(&self, tag: u64) {
        if let Some(counter) = self.counter(tag) {
            counter.fetch_add(1, Full);
        }
    }

    fn count(&self, tag: u64) -> u64 {
        self.counter(tag).map_or(0, |counter| counter.load(Acquire))
    }

    /// Gets the pages of a folio, to be compared when the filesystem has read it. Sleeps.
    ///
    /// [`None`] if they are not there any more, or there is no memory for them.
    pub(super) fn check(&self, context: &Entered, file: File, folio: Folio) -> Option<Once<Check>> {
        Some(once(self.get(context, file, folio)?))
    }

    fn get(&self, context: &Entered, file: File, folio: Folio) -> Option<Check> {
        let count = self.count(file.tag());
        // CAST: A folio has fewer pages.
        let len = folio.pages() as usize;
        // What is needed to read must not be waited for by whoever frees memory.
        let mut pages = KVec::with_capacity(len, GFP_NOWAIT | __GFP_NOWARN).ok()?;

        for _ in 0..len {
            let page = Page::new()?;

            pages.push_within_capacity(page).ok()?;
        }
        let to = |n| pages.get(usize::try_from(n).ok()?)?.borrow();

        (read_by_parts(context, file, folio, 0, false, to) == Came::All).then(|| Check {
            file,
            // SAFETY: It is locked, and so is not freed before this has a reference to it.
            folio: unsafe { Held::new(folio) },
            pages,
            count,
        })
    }

    /// Gets the pages of the folios of a readahead, to be compared when the filesystem has read them.
    ///
    /// Sleeps.
    ///
    /// # Safety
    ///
    /// `rac` must be what a filesystem is asked to read, of which nothing has been taken yet.
    pub(super) unsafe fn readahead(
        &self,
        context: &Entered,
        rac: *mut bindings::readahead_control,
        file: File,
    ) -> KVec<Check> {
        let mut checks = KVec::new();
        let mut at = 0;

        while at < MOST {
            // SAFETY: By the safety requirements the readahead is valid.
            let next = unsafe { bindings::tmem_readahead_peek_at(rac, at as c_ulong) };
            // SAFETY: It is locked for reading until the filesystem, which has not been asked yet,
            // ends the read.
            let Some(folio) = NonNull::new(next).map(|folio| unsafe { Folio::new(folio) }) else {
                break;
            };

            at += folio.pages();
            if !may_get(context, file, folio) {
                count_miss(context, file, folio, folio.pages());
                continue;
            }
            if checks.reserve(1, GFP_NOWAIT | __GFP_NOWARN).is_err() {
                break;
            }
            if let Some(check) = self.get(context, file, folio) {
                let _ = checks.push_within_capacity(check);
            }
        }
        checks
    }
}

/// Compares pages that were got with what the filesystem has read. Sleeps.
pub(super) fn finish(context: &Entered, checks: impl IntoIterator<Item = Check>) {
    for check in checks {
        check.finish(context);
    }
}

/// The pages of a folio as the host had them.
///
/// # Invariants
///
/// The file's mapping is valid for as long as the hook runs that has the instance.
pub(super) struct Check {
    file: File,
    folio: Held,
    pages: KVec<Page>,
    count: u64,
}

impl Check {
    fn finish(self, context: &Entered) {
        let counters = context.client.counters(Pool::Cleancache);
        let locked = self.folio.lock();
        let Some(len) = locked.comparable(self.file, self.pages.len()).filter(|_| {
            let now = context.verify.as_ref();

            now.is_some_and(|verify| verify.count(self.file.tag()) == self.count)
        }) else {
            counters.verify_skipped.add(self.pages.len());
            return;
        };

        for (n, host) in (0..).zip(&self.pages) {
            let Ok(disk) = locked.folio().page(n) else {
                break;
            };
            // CAST: It is at most a page.
            let len = len
                .saturating_sub(n * PAGE_SIZE as u64)
                .min(PAGE_SIZE as u64) as usize;
            let Some(host) = host.borrow() else {
                break;
            };

            counters.verified.add(1);
            if !host.begins_like(disk, len) {
                counters.verify_different.add(1);
                self.file
                    .report(locked.folio().index() + n, host.crc(), disk.crc());
            }
        }
    }
}

/// A reference to a folio.
///
/// # Invariants
///
/// A reference is held.
struct Held(Folio);

impl Held {
    /// Takes a reference.
    ///
    /// # Safety
    ///
    /// The folio must be valid.
    unsafe fn new(folio: Folio) -> Self {
        // SAFETY: By the safety requirements it is valid.
        unsafe { bindings::tmem_folio_get(folio.as_ptr()) };
        // INVARIANT: The reference was taken.
        Self(folio)
    }

    /// Locks the folio, once whoever reads it has unlocked it. Sleeps.
    fn lock(&self) -> Locked<'_> {
        // SAFETY: By the type invariants it is valid; whoever verifies is in process context and
        // has no other folio locked.
        unsafe { bindings::tmem_folio_lock(self.0.as_ptr()) };
        // INVARIANT: It is locked now.
        Locked(self)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // SAFETY: By the type invariants a reference is held, and it is not used any more.
        unsafe { bindings::tmem_folio_put(self.0.as_ptr()) };
    }
}

/// A folio that is locked.
///
/// # Invariants
///
/// It is locked by whoever has the instance.
struct Locked<'a>(&'a Held);

impl Locked<'_> {
    fn folio(&self) -> Folio {
        self.0 .0
    }

    /// Returns how many of its bytes are in the file, if it is what a filesystem has read of it.
    fn comparable(&self, file: File, pages: usize) -> Option<u64> {
        let folio = self.folio();
        // SAFETY: It is locked, and so stays in its mapping, if it is still in one.
        let (mapping, pristine) = unsafe {
            (
                bindings::tmem_folio_mapping(folio.as_ptr()),
                bindings::tmem_folio_pristine(folio.as_ptr()),
            )
        };
        let same = file.is(mapping) && folio.pages() == pages as u64;

        (same && pristine)
            .then(|| {
                file.bytes_in_blocks()
                    .checked_sub(folio.index() * PAGE_SIZE as u64)
            })
            .flatten()
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        // SAFETY: By the type invariants it is locked by us.
        unsafe { bindings::folio_unlock(self.folio().as_ptr()) };
    }
}

/// A page of memory.
struct Page(OwnedPage);

impl Page {
    /// Allocates a page; does not wait for memory to be freed.
    fn new() -> Option<Self> {
        OwnedPage::try_new().ok().map(Self)
    }

    fn borrow(&self) -> Option<PageRef> {
        let page = NonNull::new(self.0.as_ptr())?;

        // SAFETY: Whoever is given it is done with it before the page is freed: requests are waited
        // for, and comparisons borrow the instance.
        Some(unsafe { PageRef::new(page) })
    }
}
