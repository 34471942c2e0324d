// SPDX-License-Identifier: GPL-2.0

//! The page cache of a file, as far as the rules are about it.

use core::ptr::{
    self,
    NonNull, //
};

use kernel::{
    prelude::*,
    sync::atomic::Relaxed, //
};

use crate::{
    bindings,
    client::{
        Handle,
        Pool, //
    },
};

use super::super::{
    filesystem::Filesystem,
    Entered, //
};

/// The page cache of a regular file.
///
/// # Invariants
///
/// The mapping is valid, and its inode's own, for as long as the hook runs that has the instance.
#[derive(Clone, Copy)]
pub(super) struct File(NonNull<bindings::address_space>);

impl File {
    /// Borrows a mapping, if it is that of a regular file.
    ///
    /// # Safety
    ///
    /// `mapping` must be null, or valid for longer than the instance.
    pub(super) unsafe fn new(mapping: *mut bindings::address_space) -> Option<Self> {
        let mapping = NonNull::new(mapping)?;

        // INVARIANT: By the safety requirements, and the check.
        // SAFETY: By the safety requirements it is valid.
        unsafe { bindings::tmem_mapping_regular(mapping.as_ptr()) }.then_some(Self(mapping))
    }

    pub(super) fn tag(self) -> u64 {
        self.0.as_ptr().addr() as u64
    }

    /// Returns its superblock.
    pub(super) fn superblock(self) -> *mut bindings::super_block {
        // SAFETY: By the type invariants it is valid, and has an inode, which has a superblock.
        unsafe { (*(*self.0.as_ptr()).host).i_sb }
    }

    /// Returns what other guests that have the volume know it by.
    pub(super) fn handle(self) -> Handle {
        // SAFETY: By the type invariants it is valid, and has an inode.
        let inode = unsafe { (*self.0.as_ptr()).host };

        // SAFETY: An inode is there for as long as its own mapping, which by the type invariants is
        // valid; neither number changes meanwhile.
        let (inode, generation) = unsafe { ((*inode).i_ino, (*inode).i_generation) };
        Handle { inode, generation }
    }

    /// Returns whether other guests may have the same file: all of its filesystem is on one block
    /// device, and inodes of it are known by their numbers.
    pub(super) fn can_be_shared(self, context: &Entered) -> bool {
        self.is_cacheable()
            && self
                .filesystem(context)
                .is_some_and(|filesystem| filesystem.kind.can_be_shared)
    }

    /// Returns whether its pages are what the disk has, and stay so unless a hook hears of it.
    pub(super) fn is_cacheable(self) -> bool {
        // SAFETY: By the type invariants it is valid.
        unsafe {
            bindings::tmem_mapping_cacheable(self.0.as_ptr())
                && !bindings::tmem_mapping_exiting(self.0.as_ptr())
        }
    }

    /// Returns the file's filesystem, if its pages may be put.
    pub(super) fn filesystem(self, context: &Entered) -> Option<&Filesystem> {
        // SAFETY: By the type invariants it is valid, and has an inode.
        unsafe { context.filesystem(self.0.as_ptr()) }
    }

    pub(super) fn is_quiet(self) -> bool {
        // SAFETY: By the type invariants it is valid, and has an inode.
        unsafe { bindings::tmem_inode_quiet((*self.0.as_ptr()).host) }
    }

    /// Returns whether blocks may be changing under readers: rule F8.
    pub(super) fn is_changing(self, filesystem: &Filesystem) -> bool {
        // SAFETY: By the type invariants it is valid, and has an inode.
        unsafe {
            bindings::tmem_mapping_invalidating(self.0.as_ptr())
                || filesystem.kind.lets_readers_in
                    && bindings::tmem_inode_write_locked((*self.0.as_ptr()).host)
        }
    }

    /// Flushes pages: those that were put before whoever calls has gone through the page cache.
    pub(super) fn flush(self, context: &Entered, first: u64, last: u64) {
        if let Some(verify) = &context.verify {
            verify.changes(self.tag());
        }
        // A put that is not counted yet has its folio in the page cache still, and is complete when
        // the folio has been seen to be gone.
        if context.client.pages(Pool::Cleancache).load(Relaxed) > 0 {
            context
                .client
                .flush_range(Pool::Cleancache, self.tag(), first, last);
        }
    }

    /// Sees to it that nothing of the inode is put until it is evicted: rules F4, F9 and F11.
    ///
    /// What has been put is to be flushed after that.
    pub(super) fn ban(self, context: &Entered) {
        // SAFETY: By the type invariants it is valid.
        if unsafe { bindings::tmem_mapping_ban(self.0.as_ptr()) } {
            context.client.counters(Pool::Cleancache).bans.add(1);
        }
    }

    pub(super) fn is_banned(self) -> bool {
        // SAFETY: By the type invariants it is valid.
        unsafe { bindings::tmem_mapping_banned(self.0.as_ptr()) }
    }

    /// Bans the inode, if it is of a filesystem whose pages are put, and flushes all of it.
    pub(super) fn leave_alone(self, context: &Entered) {
        // SAFETY: By the type invariants it is valid, and has an inode.
        if unsafe { context.may_cache(self.0.as_ptr()) } {
            self.ban(context);
            if let Some(verify) = &context.verify {
                verify.changes(self.tag());
            }
            // Nobody goes through the page cache here. A put has looked for the ban under the lock
            // that this takes, so that it saw the ban or has its page flushed.
            context
                .client
                .flush_range(Pool::Cleancache, self.tag(), 0, u64::MAX);
        }
    }

    /// Returns whether this is the mapping.
    pub(super) fn is(self, mapping: *mut bindings::address_space) -> bool {
        ptr::eq(self.0.as_ptr(), mapping)
    }

    /// Returns how long the file is; 0 if what it has is not in blocks, but in its inode.
    pub(super) fn bytes_in_blocks(self) -> u64 {
        // SAFETY: By the type invariants it is valid, and has an inode.
        unsafe { bindings::tmem_inode_bytes_in_blocks((*self.0.as_ptr()).host) }
    }

    /// Says that the host and the disk do not have the same page.
    pub(super) fn report(self, index: u64, host: u32, disk: u32) {
        // SAFETY: By the type invariants it is valid, and has an inode.
        unsafe {
            bindings::tmem_report_difference(self.0.as_ptr(), index as c_ulong, host, disk);
        }
    }

    /// Bans the inode if it is a swap file of before there were hooks: rule F11.
    #[cold]
    pub(super) fn ban_if_it_swaps(self, context: &Entered) {
        // SAFETY: By the type invariants it is valid, and has an inode.
        if unsafe { bindings::tmem_mapping_swaps(self.0.as_ptr()) } {
            self.leave_alone(context);
        }
    }
}
