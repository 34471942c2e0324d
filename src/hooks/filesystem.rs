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
        Redirect,
        Watch, //
    },
    points, //
};

/// What is particular to a filesystem.
pub(super) struct Kind {
    pub(super) name: &'static CStr,
    /// Whether it compares what it reads with checksums of its own.
    pub(super) checks: bool,
    /// Whether it lets readers bring pages in while it changes the blocks under them: it does not
    /// hold the mapping's `invalidate_lock` then, but only the inode's `i_rwsem`.
    pub(super) lets_readers_in: bool,
    /// Whether a volume is one block device, at whose beginning is what changes with each write, and
    /// its inodes are known by their numbers: not so where there are subvolumes.
    pub(super) can_be_shared: bool,
    /// A function that changes the blocks of a file without a word to its mapping: that of its second
    /// argument, a `struct file`.
    silent: Option<&'static CStr>,
}

/// The filesystems that there are parameters for.
pub(super) const KINDS: [Kind; 3] = [
    Kind {
        name: c"ext4",
        checks: false,
        lets_readers_in: false,
        can_be_shared: true,
        silent: Some(points::MOVE_EXTENTS),
    },
    Kind {
        name: c"xfs",
        checks: false,
        lets_readers_in: false,
        can_be_shared: true,
        silent: None,
    },
    Kind {
        name: c"btrfs",
        checks: true,
        lets_readers_in: true,
        can_be_shared: false,
        silent: None,
    },
];

/// A filesystem whose clean pages may be put.
///
/// # Invariants
///
/// `owner` is null or a filesystem type, to whose module a reference is held. `readahead`,
/// `read_folio` and `swap_activate` are written before it.
pub(super) struct Filesystem {
    pub(super) kind: Kind,
    seen: Atomic<bool>,
    owner: Atomic<*mut bindings::file_system_type>,
    readahead: Atomic<usize>,
    read_folio: Atomic<usize>,
    swap_activate: Atomic<usize>,
    hooked: Atomic<bool>,
}

/// The hooks of one filesystem.
pub(super) struct Hooks {
    // Dropped in this order: nothing can be got from the host when the others go.
    _readahead: Redirect,
    _read_folio: Redirect,
    _swap_activate: Redirect,
    _silent: Option<Watch>,
}

/// What is to be known of a mapping.
struct Facts {
    owner: *mut bindings::file_system_type,
    readahead: usize,
    read_folio: usize,
    swap_activate: usize,
}

impl Facts {
    /// Returns the facts, or [`None`] if the filesystem is asked to read in another way.
    ///
    /// # Safety
    ///
    /// `mapping` must be valid and have an inode.
    unsafe fn new(mapping: *mut bindings::address_space) -> Option<Self> {
        // SAFETY: By the safety requirements the mapping is valid, so that it has operations and
        // an inode; that has a superblock, and that a type.
        unsafe {
            let ops = &*(*mapping).a_ops;

            Some(Self {
                owner: (*(*(*mapping).host).i_sb).s_type,
                readahead: ops.readahead? as usize,
                read_folio: ops.read_folio? as usize,
                swap_activate: ops.swap_activate? as usize,
            })
        }
    }
}

impl Filesystem {
    pub(super) const fn new(kind: Kind) -> Self {
        // INVARIANT: `owner` is null.
        Self {
            kind,
            seen: Atomic::new(false),
            owner: Atomic::new(ptr::null_mut()),
            readahead: Atomic::new(0),
            read_folio: Atomic::new(0),
            swap_activate: Atomic::new(0),
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
        // SAFETY: By the safety requirements there is an inode, which has a superblock, and that a
        // type with a name.
        unsafe {
            let owner = (*(*(*mapping).host).i_sb).s_type;
            let known = self.owner.load(Acquire);

            if known.is_null() {
                CStr::from_char_ptr((*owner).name).to_bytes() == self.kind.name.to_bytes()
            } else {
                owner == known
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
        // SAFETY: The mapping is valid and has an inode, by this function's requirements.
        let Some(facts) = (unsafe { Facts::new(mapping) }) else {
            return false;
        };

        facts.readahead == self.readahead.load(Relaxed)
            && facts.read_folio == self.read_folio.load(Relaxed)
            && facts.swap_activate == self.swap_activate.load(Relaxed)
    }

    /// Takes note of how the filesystem is asked to read; returns whether that is news.
    ///
    /// Any context.
    ///
    /// # Safety
    ///
    /// `mapping` must be valid, of this filesystem, and have an inode.
    pub(super) unsafe fn notice(&self, mapping: *mut bindings::address_space) -> bool {
        if self.seen.load(Relaxed) {
            return false;
        }
        // SAFETY: The mapping is valid and has an inode, by this function's requirements.
        let Some(facts) = (unsafe { Facts::new(mapping) }) else {
            return false;
        };

        // SAFETY: A mapping of the filesystem is in use, so that its type and its module are there.
        if !unsafe { bindings::try_module_get((*facts.owner).owner) } {
            return false;
        }
        // Only once nothing can fail any more: a mapping that does not do leaves it to the next.
        if self.seen.xchg(true, Full) {
            // SAFETY: The reference was taken above, and is not needed: somebody else was first.
            unsafe { bindings::module_put((*facts.owner).owner) };
            return false;
        }
        self.readahead.store(facts.readahead, Relaxed);
        self.read_folio.store(facts.read_folio, Relaxed);
        self.swap_activate.store(facts.swap_activate, Relaxed);
        // INVARIANT: A reference is held, and the functions have been written.
        self.owner.store(facts.owner, Release);
        true
    }

    /// Hooks the filesystem's functions, if they are known and not hooked yet.
    ///
    /// May sleep.
    pub(super) fn hook(&self) -> Option<Hooks> {
        if self.owner.load(Acquire).is_null() || self.hooked.load(Relaxed) {
            return None;
        }

        match self.try_hook() {
            Ok(hooks) => {
                self.hooked.store(true, Release);
                Some(hooks)
            }
            Err(error) => {
                pr_warn!(
                    "{:?} cannot be hooked ({error:?}): its pages are not put\n",
                    self.kind.name
                );
                None
            }
        }
    }

    fn try_hook(&self) -> Result<Hooks> {
        // What makes pages stale is hooked before there can be any.
        let silent = self
            .kind
            .silent
            // SAFETY: By what `silent` is, the second argument of the function is an open file.
            .map(|name| unsafe { Watch::two(name, cleancache::changed_silently) })
            .transpose()?;

        // SAFETY: The addresses are those of operations of an address space, and each replacement
        // has the type of the operation that it replaces.
        unsafe {
            Ok(Hooks {
                _swap_activate: Redirect::at(
                    self.swap_activate.load(Relaxed),
                    cleancache::swap_activate as Code,
                )?,
                _readahead: Redirect::at(
                    self.readahead.load(Relaxed),
                    cleancache::readahead as Code,
                )?,
                _read_folio: Redirect::at(
                    self.read_folio.load(Relaxed),
                    cleancache::read_folio as Code,
                )?,
                _silent: silent,
            })
        }
    }
}

impl Drop for Filesystem {
    fn drop(&mut self) {
        let owner = self.owner.load(Relaxed);

        if !owner.is_null() {
            // SAFETY: By the type invariants a reference is held.
            unsafe { bindings::module_put((*owner).owner) };
        }
    }
}
