// SPDX-License-Identifier: GPL-2.0

//! Bios that were submitted to a device of the module's own.

use core::ptr::NonNull;

use kernel::prelude::*;

use super::{
    block::BlockDevice,
    page::PageRef,
    raw, //
};

/// What a bio does.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// It reads pages.
    Read,
    /// It writes pages that are swapped out.
    Swap,
    /// It changes what is on the device otherwise.
    Change,
    /// Neither.
    Other,
}

/// A bio that was submitted, and that whoever has it ends, or hands on.
///
/// One that is dropped is not ended: whoever submitted it waits for ever.
///
/// # Invariants
///
/// The pointer is a bio that was submitted and is not over, and that nobody else has.
#[must_use = "somebody waits for it"]
pub(crate) struct Bio(NonNull<raw::bio>);

// SAFETY: Bios may be ended from any thread.
unsafe impl Send for Bio {}

impl Bio {
    /// Takes a bio over.
    ///
    /// # Safety
    ///
    /// It must be one that was submitted to a device of the module's own, and nobody else may use it.
    pub(super) unsafe fn new(bio: NonNull<raw::bio>) -> Self {
        // INVARIANT: By the safety requirements.
        Self(bio)
    }

    /// Returns what it does.
    pub(crate) fn kind(&self) -> Kind {
        // SAFETY: By the type invariants it is valid.
        match unsafe { raw::tmem_bio_kind(self.0.as_ptr()) } {
            raw::tmem_bio_kind_TMEM_BIO_READ => Kind::Read,
            raw::tmem_bio_kind_TMEM_BIO_SWAP => Kind::Swap,
            raw::tmem_bio_kind_TMEM_BIO_CHANGE => Kind::Change,
            _ => Kind::Other,
        }
    }

    /// Returns which page of the device is the first one that it is about, and how many there are.
    ///
    /// [`None`] if there are none, or some that are no whole ones.
    pub(crate) fn range(&self) -> Option<(u64, u64)> {
        let (mut first, mut count) = (0, 0);

        // SAFETY: By the type invariants it is valid; the others are this function's own.
        unsafe { raw::tmem_bio_range(self.0.as_ptr(), &raw mut first, &raw mut count) }
            .then_some((first, count))
    }

    /// Takes its pages of memory, if all of them are whole ones and there are no more than room for
    /// them; returns how many there are, or 0.
    ///
    /// # Safety
    ///
    /// The pages may be used for no longer than until the bio is ended, or handed on.
    pub(crate) unsafe fn pages(&self, pages: &mut [Option<PageRef>]) -> usize {
        // CAST: There are few; and none, or a page, is a pointer that may be null.
        let (room, to) = (pages.len() as c_uint, pages.as_mut_ptr().cast());
        const _: () = assert!(size_of::<Option<PageRef>>() == size_of::<*mut raw::page>());

        // SAFETY: By the type invariants it is valid, and there is so much room, for pointers that are
        // those of valid pages.
        unsafe { raw::tmem_bio_pages(self.0.as_ptr(), to, room) as usize }
    }

    /// Cuts it down to what its device takes at once; the rest is submitted anew, once whoever has
    /// this one returns. [`None`] if it was ended instead. Sleeps.
    pub(crate) fn fit(self) -> Option<Self> {
        // SAFETY: By the type invariants it is a bio of a device that is there.
        let bio = unsafe { raw::bio_split_to_limits(self.0.as_ptr()) };

        // INVARIANT: It is the bio, or one that was just made of it.
        NonNull::new(bio).map(Self)
    }

    /// Cuts it down to so many pages, fewer than it has; for the rest see [`Self::fit`]. Sleeps.
    pub(crate) fn cut(self, pages: u64) -> Option<Self> {
        // CAST: It is below the number of pages of a bio.
        // SAFETY: By the type invariants it is a bio of a device that is there.
        let bio = unsafe { raw::tmem_bio_split(self.0.as_ptr(), pages as c_uint) };

        // INVARIANT: It is one that was just made of the bio.
        NonNull::new(bio).map(Self)
    }

    /// Hands it to another device, which ends it. Sleeps.
    pub(crate) fn forward(self, to: BlockDevice<'_>) {
        // SAFETY: By the type invariants nobody else has the bio, and the device is there.
        unsafe { raw::tmem_bio_forward(self.0.as_ptr(), to.as_ptr()) };
    }

    /// Ends it. Any context.
    pub(crate) fn end(self, result: Result) {
        let error = result.err().map_or(0, |error| error.to_errno());

        // SAFETY: By the type invariants it is not over, and nobody else ends it.
        unsafe { raw::tmem_bio_end(self.0.as_ptr(), error) };
    }
}
