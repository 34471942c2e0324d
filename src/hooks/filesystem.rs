// SPDX-License-Identifier: GPL-2.0

//! Which filesystems' pages are put, and how they are asked to read.
//!
//! A filesystem may be a module that is loaded later, and its functions are not known by name. So
//! its functions are hooked when a page of it is evicted for the first time, by work that may
//! sleep, and nothing of it is put before that. It cannot be unloaded from then on.

use core::ptr;

use kernel::{
    prelude::*,
    sync::atomic::{
        Acquire,
        Atomic,
        Full,
        Relaxed,
        Release, //
    },
};

use crate::bindings;

use super::{
    cleancache,
    ftrace::{
        Code,
        Redirect, //
    },
};

/// A filesystem whose clean pages may be put.
///
/// # Invariants
///
/// `kind` is null or a filesystem type, to whose module a reference is held. `readahead` and
/// `read_folio` are written before `kind`.
pub(super) struct Filesystem {
    pub(super) name: &'static CStr,
    /// Whether it compares what it reads with checksums of its own.
    pub(super) checks: bool,
    seen: Atomic<bool>,
    kind: Atomic<*mut bindings::file_system_type>,
    readahead: Atomic<usize>,
    read_folio: Atomic<usize>,
    hooked: Atomic<bool>,
}

/// What is to be known of a mapping.
struct Facts {
    kind: *mut bindings::file_system_type,
    readahead: usize,
    read_folio: usize,
}

impl Facts {
    /// # Safety
    ///
    /// `mapping` must be valid and have an inode.
    unsafe fn new(mapping: *mut bindings::address_space) -> Option<Self> {
        // SAFETY: By the safety requirements; an inode has a superblock, and that a type.
        unsafe {
            let ops = &*(*mapping).a_ops;

            Some(Self {
                kind: (*(*(*mapping).host).i_sb).s_type,
                readahead: ops.readahead? as usize,
                read_folio: ops.read_folio? as usize,
            })
        }
    }
}

impl Filesystem {
    pub(super) const fn new(name: &'static CStr, checks: bool) -> Self {
        // INVARIANT: `kind` is null.
        Self {
            name,
            checks,
            seen: Atomic::new(false),
            kind: Atomic::new(ptr::null_mut()),
            readahead: Atomic::new(0),
            read_folio: Atomic::new(0),
            hooked: Atomic::new(false),
        }
    }

    /// Returns whether a mapping is of this filesystem.
    ///
    /// Any context.
    ///
    /// # Safety
    ///
    /// `mapping` must be valid and have an inode.
    pub(super) unsafe fn is_of(&self, mapping: *mut bindings::address_space) -> bool {
        // SAFETY: By the safety requirements; an inode has a superblock, and that a type with a
        // name.
        unsafe {
            let kind = (*(*(*mapping).host).i_sb).s_type;
            let known = self.kind.load(Acquire);

            if known.is_null() {
                CStr::from_char_ptr((*kind).name).to_bytes() == self.name.to_bytes()
            } else {
                kind == known
            }
        }
    }

    /// Returns whether the pages of a mapping of this filesystem may be put: it is read by
    /// functions that are hooked.
    ///
    /// Any context.
    ///
    /// # Safety
    ///
    /// `mapping` must be valid and have an inode.
    pub(super) unsafe fn is_hooked(&self, mapping: *mut bindings::address_space) -> bool {
        if !self.hooked.load(Acquire) {
            return false;
        }
        // SAFETY: By the safety requirements.
        let Some(facts) = (unsafe { Facts::new(mapping) }) else {
            return false;
        };

        facts.readahead == self.readahead.load(Relaxed)
            && facts.read_folio == self.read_folio.load(Relaxed)
    }

    /// Takes note of how the filesystem is asked to read; returns whether that is news.
    ///
    /// Any context.
    ///
    /// # Safety
    ///
    /// `mapping` must be valid, of this filesystem, and have an inode.
    pub(super) unsafe fn notice(&self, mapping: *mut bindings::address_space) -> bool {
        if self.seen.load(Relaxed) || self.seen.xchg(true, Full) {
            return false;
        }
        // SAFETY: By the safety requirements.
        let Some(facts) = (unsafe { Facts::new(mapping) }) else {
            return false;
        };

        // SAFETY: The filesystem is in use, so that its module is there.
        if !unsafe { bindings::try_module_get((*facts.kind).owner) } {
            return false;
        }
        self.readahead.store(facts.readahead, Relaxed);
        self.read_folio.store(facts.read_folio, Relaxed);
        // INVARIANT: As above.
        self.kind.store(facts.kind, Release);
        true
    }

    /// Hooks the filesystem's functions, if they are known and not hooked yet.
    ///
    /// May sleep.
    pub(super) fn hook(&self) -> Option<[Redirect; 2]> {
        if self.kind.load(Acquire).is_null() || self.hooked.load(Relaxed) {
            return None;
        }

        // SAFETY: The replacements have the types of the operations of an address space.
        let hooks = unsafe {
            Redirect::at(self.readahead.load(Relaxed), cleancache::readahead as Code).and_then(
                |readahead| {
                    Ok([
                        readahead,
                        Redirect::at(
                            self.read_folio.load(Relaxed),
                            cleancache::read_folio as Code,
                        )?,
                    ])
                },
            )
        };
        match hooks {
            Ok(hooks) => {
                self.hooked.store(true, Release);
                Some(hooks)
            }
            Err(error) => {
                pr_warn!(
                    "{:?} cannot be hooked ({error:?}): its pages are not put\n",
                    self.name
                );
                None
            }
        }
    }
}

impl Drop for Filesystem {
    fn drop(&mut self) {
        let kind = self.kind.load(Relaxed);

        if !kind.is_null() {
            // SAFETY: By the type invariants a reference is held.
            unsafe { bindings::module_put((*kind).owner) };
        }
    }
}
