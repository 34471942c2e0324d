// SPDX-License-Identifier: GPL-2.0

//! What of the kernel is hooked, and what is taken for granted about it.
//!
//! | hook point | how | what for | in kernels |
//! |---|---|---|---|
//! | [`CLEAR_INODE`] | replaced | F6: an inode dies | 6.12–7.3 |
//! | [`TRUNCATE`] | replaced | F1, F7: pages are truncated | 6.12–7.3 |
//! | [`INVALIDATE_PAGES`] | replaced | F4: pages are invalidated, for direct I/O above all | 6.12–7.3 |
//! | [`INVALIDATE_INODE`] | replaced | F5: a filesystem invalidates pages | 6.18–7.3 |
//! | [`REMOVE_MAPPING`] | replaced, where there is one and no window | reclaim is held up while it may still sleep | where the compiler leaves it out of line |
//! | [`REMOUNT`], [`UNMOUNT`] | watched, where pools can be shared | a volume may be written to from now on | 6.12–7.3 |
//! | [`ERROR_REPORT`] | watched | a filesystem reports an error of its own | 7.3 |
//! | [`MOVE_EXTENTS`] | watched | ext4 exchanges the blocks of two files | 6.12–7.3 |
//! | [`REMOVED`] | tracepoint | F2, and the one way in which clean pages are put | 6.12–7.3 |
//! | [`DIRTIED`] | tracepoint | F3: a page becomes dirty | 6.12–7.3 |
//! | a filesystem's `readahead`, `read_folio` | replaced | gets of clean pages | 6.12–7.3 |
//! | [`SWAP_READ`], [`SWAP_WRITE`] | replaced | gets and puts of swapped pages | 7.3 |
//! | [`FOLIO_READ`] | replaced, where there is one and a window | gets of swapped pages without a request | 7.3 |
//! | [`SLOT_FREE`], [`SWAP_OFF`] | watched | slots and swap areas are free | 7.3 |
//!
//! Where a kernel lacks one, or the compiler has made copies of it, the half that needs it is left
//! off, and a line says so; of swapping, what is swapped to devices of our own is served all the same. What the other end of a hook point looks like is checked when the module
//! is built: see [`checks`].

use kernel::prelude::*;

/// `void clear_inode(struct inode *)`
pub(super) const CLEAR_INODE: &CStr = c"clear_inode";
/// `void truncate_inode_pages_range(struct address_space *, loff_t, uoff_t)`
pub(super) const TRUNCATE: &CStr = c"truncate_inode_pages_range";
/// `int invalidate_inode_pages2_range(struct address_space *, pgoff_t, pgoff_t)`
pub(super) const INVALIDATE_PAGES: &CStr = c"invalidate_inode_pages2_range";
/// `int filemap_invalidate_inode(struct inode *, bool, loff_t, loff_t)`
pub(super) const INVALIDATE_INODE: &CStr = c"filemap_invalidate_inode";
/// `int __remove_mapping(struct address_space *, struct folio *, bool, struct mem_cgroup *)`
pub(super) const REMOVE_MAPPING: &CStr = c"__remove_mapping";
/// `int reconfigure_super(struct fs_context *)`
pub(super) const REMOUNT: &CStr = c"reconfigure_super";
/// `void kill_block_super(struct super_block *)`
pub(super) const UNMOUNT: &CStr = c"kill_block_super";
/// `void fserror_report(struct super_block *, struct inode *, …)`
pub(super) const ERROR_REPORT: &CStr = c"fserror_report";
/// `int ext4_move_extents(struct file *, struct file *, …)`
pub(super) const MOVE_EXTENTS: &CStr = c"ext4_move_extents";
/// The tracepoint of a folio that leaves the page cache: `(struct folio *)`
pub(super) const REMOVED: &CStr = c"mm_filemap_delete_from_page_cache";
/// The tracepoint of a folio that becomes dirty: `(struct folio *, struct address_space *)`
pub(super) const DIRTIED: &CStr = c"writeback_dirty_folio";
/// `void swap_bdev_submit_read(struct swap_io_ctx *)`
pub(super) const SWAP_READ: &CStr = c"swap_bdev_submit_read";
/// `void swap_bdev_submit_write(struct swap_io_ctx *)`
pub(super) const SWAP_WRITE: &CStr = c"swap_bdev_submit_write";
/// `int zswap_load(struct folio *)`
pub(super) const FOLIO_READ: &CStr = c"zswap_load";
/// `void zswap_invalidate(swp_entry_t)`
pub(super) const SLOT_FREE: &CStr = c"zswap_invalidate";
/// `void zswap_swapoff(int)`
pub(super) const SWAP_OFF: &CStr = c"zswap_swapoff";

/// What the kernel's declarations have to be for the replacements to be of the right type.
///
/// Functions that no header declares cannot be checked: those of swap are called by way of
/// `struct swap_ops`, which can, and the rest is checked by the types of what they are given.
/// [`FOLIO_READ`] need not be there; its type is checked where it is called, in `swap.c`.
mod checks {
    use kernel::prelude::*;

    use crate::bindings::{
        address_space,
        clear_inode,
        filemap_invalidate_inode,
        inode,
        invalidate_inode_pages2_range,
        loff_t,
        swap_io_ctx,
        swap_iocb,
        swap_ops,
        truncate_inode_pages_range,
        uoff_t,
        SWAP_CLUSTER_MAX, //
    };

    const _: unsafe extern "C" fn(*mut inode) = clear_inode;
    const _: unsafe extern "C" fn(*mut address_space, loff_t, uoff_t) = truncate_inode_pages_range;
    const _: unsafe extern "C" fn(*mut address_space, c_ulong, c_ulong) -> c_int =
        invalidate_inode_pages2_range;
    const _: unsafe extern "C" fn(*mut inode, bool, loff_t, loff_t) -> c_int =
        filemap_invalidate_inode;
    const _: fn(&swap_ops) -> Option<unsafe extern "C" fn(*mut swap_io_ctx)> =
        |ops| ops.submit_read;
    const _: fn(&swap_ops) -> Option<unsafe extern "C" fn(*mut swap_io_ctx)> =
        |ops| ops.submit_write;
    // A bit for each folio of a request.
    const _: () = assert!(SWAP_CLUSTER_MAX as usize <= u32::BITS as usize);
    // The vectors stay where they are while the rest of a request is used otherwise.
    const _: () = assert!(core::mem::offset_of!(swap_iocb, __bindgen_anon_1) == 0);
}
