// SPDX-License-Identifier: GPL-2.0

//! Which clean pages are put, as all CPUs remember it.
//!
//! What is remembered is read and written without a lock. An update that is lost to another one is
//! a few pages of trust, more or fewer.

use kernel::{
    prelude::*,
    sync::atomic::{
        Atomic,
        Relaxed, //
    },
};

use super::{
    logic::admission::{
        is_sample,
        place,
        File,
        Policy, //
    },
    request::Origin,
    Client, //
};

/// How many files there is a place for. A power of two.
const PLACES: usize = 1024;

/// The trust in files, and in all of them together.
pub(super) struct Admission {
    policy: Policy,
    files: KVec<Atomic<u64>>,
    all: Atomic<u32>,
}

impl Admission {
    /// Returns the trust of a guest with so many pages of memory.
    ///
    /// May sleep.
    pub(super) fn new(memory: u64) -> Result<Self> {
        let policy = Policy::new(memory);
        let mut files = KVec::with_capacity(PLACES, GFP_KERNEL)?;

        for _ in 0..PLACES {
            files.push(Atomic::new(0), GFP_KERNEL)?;
        }
        Ok(Self {
            policy,
            files,
            all: Atomic::new(policy.at_first()),
        })
    }

    /// Lets `f` change the trust in a file and in all together; returns whether it did.
    #[inline]
    fn with(&self, tag: u64, f: impl FnOnce(&Policy, File, u32) -> Option<(File, u32)>) -> bool {
        let Some(word) = self.files.get(place(tag, self.files.len())) else {
            return false;
        };
        let old = (word.load(Relaxed), self.all.load(Relaxed));
        let Some((file, all)) = f(&self.policy, self.policy.file(tag, old.0), old.1) else {
            return false;
        };

        // What does not change is not written: the words are shared with other CPUs.
        if file.to_word() != old.0 {
            word.store(file.to_word(), Relaxed);
        }
        if all != old.1 {
            self.all.store(all, Relaxed);
        }
        true
    }
}

impl<O: Origin> Client<O> {
    /// Returns whether a clean page is worth being put, as far as can be known. Any context.
    #[inline]
    pub(crate) fn is_worth_putting(&self, tag: u64, index: u64) -> bool {
        let Some(admission) = &self.admission else {
            return true;
        };
        admission.with(tag, |policy, file, all| policy.put(file, all, 0)) || is_sample(tag, index)
    }

    /// Takes note that clean pages are put. Any context.
    #[inline]
    pub(crate) fn spend_trust(&self, tag: u64, index: u64, pages: u64) {
        if let Some(admission) = self.admission.as_ref().filter(|_| !is_sample(tag, index)) {
            // CAST: A folio has by far fewer pages.
            admission.with(tag, |policy, file, all| policy.put(file, all, pages as u32));
        }
    }

    /// Forgets what is known of a file, whose tag may be used again. Any context.
    pub(crate) fn forget_trust(&self, tag: u64) {
        if let Some(admission) = &self.admission {
            admission.with(tag, |policy, file, all| Some((policy.forget(file), all)));
        }
    }

    /// Takes note that clean pages are wanted that were put. Any context.
    #[inline]
    pub(crate) fn earn_trust(&self, tag: u64, pages: u64) {
        if let Some(admission) = &self.admission {
            admission.with(tag, |policy, file, all| {
                // CAST: A folio has by far fewer pages.
                Some(policy.came_back(file, all, pages as u32))
            });
        }
    }
}
