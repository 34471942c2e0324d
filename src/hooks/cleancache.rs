// SPDX-License-Identifier: GPL-2.0

//! Clean page-cache pages: put when reclaim evicts them, got when they are read again.
//!
//! A page may be got only as long as the file cannot have changed. Each of the rules that see to
//! that has been shown to be needed by an experiment in which leaving it out gave stale reads:
//!
//! - F1: what is truncated is flushed, before *and after* it leaves the page cache, since reclaim
//!   can put a page in between;
//! - F2: a page that leaves the page cache otherwise than by reclaim is flushed;
//! - F3: so is one that becomes dirty;
//! - F4: an inode that sees direct I/O is banned: nothing of it is put until it is evicted, for
//!   there is no telling when direct I/O ends;
//! - F5: what a filesystem invalidates, for a reflink say, is flushed, before and after;
//! - F6: when an inode dies so do its pages, and its address may be that of another one;
//! - F7: a page that is truncated in part is flushed as a whole;
//! - F8: nothing is put while blocks may change under readers: while somebody holds the mapping's
//!   `invalidate_lock` for writing, or, where the filesystem lets readers in nevertheless, the
//!   inode's `i_rwsem`;
//! - F9: an inode whose blocks change without a word to its mapping is banned;
//! - F10: an inode of which a page could not be written is left alone, for what is in memory then
//!   is not what the disk has; so is a filesystem that has reported an error;
//! - F11: so is one that is a swap file, and is banned, for its blocks are written directly.
//!
//! `cleancache/PATHS.md` goes through what in the kernel changes blocks, and says which rule sees to
//! it.
//!
//! A ban is one bit in the mapping itself: nothing has to be allocated for it, so that it cannot be
//! forgotten. It holds until the inode is evicted, beyond a reload of the module.
//!
//! The object of a page is its inode in memory, by its address: see F6.
//!
//! # Why F8 is enough
//!
//! Say that an operation changes blocks, and holds the lock of F8 meanwhile. It flushes the range by
//! F1 once it has the lock: before and after it has gone through the page cache. A page of before the
//! change can be in the host afterwards only if it was put since.
//!
//! A put looks at the lock while it holds that of the page cache, with the folio still in there but
//! of no use to anybody. Who goes through the page cache waits for such a folio to be gone. So a put
//! that saw the lock free is either complete before the second flush, which finds the page, or it is
//! about a folio that came into the page cache after the operation went through it. Then the folio
//! came, and so the put, while the lock was held, and the put is refused; or the operation was over
//! before the put, and the folio, which was in the page cache while the blocks changed or was read
//! after that, is what the same reader would have been left with anyway.

mod answers;
mod file;
mod read;
mod shared;
mod verify;

use core::ptr::{
    self,
    NonNull, //
};

use kernel::{
    page::PAGE_SIZE,
    prelude::*, //
};

use crate::{
    bindings,
    client::{
        Pool,
        MAX_PAGES, //
    },
    params, //
};

pub(super) use self::{
    answers::{
        Left,
        Reading,
        Waiter, //
    },
    read::{
        read_folio,
        readahead, //
    },
    verify::Verify, //
};

use self::file::File;

use super::{
    filesystem::Filesystem,
    folio::Folio,
    ftrace::{
        self,
        Code,
        Probe,
        Redirect,
        Watch, //
    },
    points,
    volumes::{
        self,
        Owner, //
    },
    Client,
    Context,
    Entered, //
};

/// Mark of an inode that was once seen with nobody inside a truncate or direct I/O that may have
/// begun before there were hooks.
const ARMED: u8 = 1 << 0;

/// The hooks of this half, but for those of filesystems.
pub(super) struct Hooks {
    // Dropped in this order: what puts goes first.
    _volumes: Option<volumes::Hooks>,
    /// Where there was no window when the hooks were installed.
    _evicted: Option<Redirect>,
    _removed: Probe,
    _dirtied: Probe,
    _invalidated: Redirect,
    _written_directly: Redirect,
    _truncated: Redirect,
    _failed: Watch,
    _died: Redirect,
}

impl Hooks {
    /// Hooks the page cache; what puts pages comes last. May sleep.
    pub(super) fn install(client: &Client) -> Result<Self> {
        // SAFETY: The functions below have the types of those that they replace, and of the
        // tracepoints that they listen to, and take the arguments of those that they watch.
        unsafe {
            let died = Redirect::new(points::CLEAR_INODE, clear_inode as Code)?;
            let failed = Watch::two(points::ERROR_REPORT, failed)?;
            let truncated = Redirect::new(points::TRUNCATE, truncate as Code)?;
            let written_directly = Redirect::new(points::INVALIDATE_PAGES, invalidate2 as Code)?;
            let invalidated = Redirect::new(points::INVALIDATE_INODE, invalidate_inode as Code)?;
            let dirtied = Probe::new(points::DIRTIED, dirtied as Code)?;
            let removed = Probe::new(points::REMOVED, removed as Code)?;

            Ok(Self {
                _volumes: volumes::Hooks::install(client),
                // With a window pages wait for nobody.
                _evicted: (!client.has_window()).then(hold_up_reclaim).flatten(),
                _removed: removed,
                _dirtied: dirtied,
                _invalidated: invalidated,
                _written_directly: written_directly,
                _truncated: truncated,
                _failed: failed,
                _died: died,
            })
        }
    }
}

/// Hooks reclaim where it may still sleep, if this kernel has the function.
///
/// Without it pages are lost to the pool when they are evicted faster than the host takes them,
/// and all is well otherwise. With a window they are copied there at once, so that there is nothing
/// to hold reclaim up for, and no reason to have all of its folios pass here: swapped ones do, too.
/// Then it is done only once there is a volume whose pages are shared, and staged.
pub(super) fn hold_up_reclaim() -> Option<Redirect> {
    // SAFETY: The replacement is of the function's type, which is called by a static call.
    unsafe {
        Redirect::optional(
            points::REMOVE_MAPPING,
            remove_mapping as Code,
            bindings::tmem_set_remove_mapping,
        )
    }
}

/// Reclaim is about to evict a folio.
///
/// # Safety
///
/// To be called by the kernel, in the place of the function that it replaces.
unsafe extern "C" fn remove_mapping(
    mapping: *mut bindings::address_space,
    folio: *mut bindings::folio,
    reclaimed: bool,
    memcg: *mut bindings::mem_cgroup,
) -> c_int {
    let context = Context::enter();

    if let Some(context) = &context {
        // As good as always there is memory for the largest, and nothing else needs a look.
        if !context.client.can_stage(context.largest) {
            // SAFETY: The kernel calls with a locked folio, of the valid mapping that it is in.
            unsafe { hold_up(context, mapping, folio) };
        }
    }
    // SAFETY: It is what the kernel would have called, with the same arguments; the address was
    // set before the hook was.
    ftrace::original(|| unsafe {
        bindings::tmem_call_remove_mapping(mapping, folio, reclaimed, memcg)
    })
}

/// Holds reclaim up until there is memory for a folio that is to be put.
///
/// # Safety
///
/// `folio` must be null or valid, and `mapping` must be its own.
#[cold]
unsafe fn hold_up(
    context: &Entered,
    mapping: *mut bindings::address_space,
    folio: *mut bindings::folio,
) {
    let Some(folio) = NonNull::new(folio) else {
        return;
    };
    // SAFETY: By the safety requirements the mapping and the folio are valid, and the caller, who
    // has the folio locked, keeps both.
    let (file, folio) = unsafe { (File::new(mapping), Folio::new(folio)) };
    let count = folio.pages() as usize;
    let staged = |file| {
        shared::volume_of(context, file).is_some()
            || !context.client.puts_here(Pool::Cleancache) && wants_put(context, file, folio)
    };

    if !context.client.can_stage(count) && file.is_some_and(staged) {
        context.client.await_staging(count);
    }
}

/// A folio leaves the page cache: rule F2, and the one way in which pages are put.
///
/// Called with the lock of the page cache held and interrupts off.
///
/// # Safety
///
/// To be called by the tracepoint.
unsafe extern "C" fn removed(_data: *mut c_void, folio: *mut bindings::folio) {
    let (Some(context), Some(folio)) = (Context::get(), NonNull::new(folio)) else {
        return;
    };
    // SAFETY: The tracepoint comes with a folio in the page cache, whose lock is held.
    let mapping = unsafe { bindings::tmem_folio_mapping(folio.as_ptr()) };
    // SAFETY: The folio is in the mapping, and stays there, with the lock of the page cache held,
    // until this returns.
    let (Some(file), folio) = (unsafe { (File::new(mapping), Folio::new(folio)) }) else {
        return;
    };
    let first = folio.index();
    let last = first.saturating_add(folio.pages() - 1);
    let tag = file.tag();

    match shared::owner_of(&context, file) {
        Owner::Guest => (),
        Owner::All(volume) => return shared::put(&context, volume, file, folio),
        Owner::Unknown { .. } => {
            // As the guest's own it would be in the host twice.
            let counters = context.client.counters(Pool::Cleancache);

            counters.not_admitted.add(folio.pages() as usize);
            return file.flush(&context, first, last);
        }
    }
    let Some(filesystem) = may_put(&context, file, folio) else {
        return file.flush(&context, first, last);
    };

    let checked = match params::crc() {
        params::Crc::Never => false,
        params::Crc::Checksummed => filesystem.kind.checks,
        params::Crc::Always => true,
    };
    let mut staged = 0;
    for n in (0..folio.pages()).step_by(MAX_PAGES) {
        // CAST: It is at most `MAX_PAGES`.
        let count = (folio.pages() - n).min(MAX_PAGES as u64) as usize;
        let index = first.saturating_add(n);

        let refuse = || file.is_banned() || file.is_changing(filesystem);

        staged +=
            context
                .client
                .stage(tag, index, count, folio.pages_at(n, count), checked, refuse);
    }
    if !folio.is_workingset() && !context.client.puts_here(Pool::Cleancache) {
        context.client.spend_trust(tag, first, staged as u64);
    }
}

/// Returns whether a folio is one that is put, if all else is right.
fn wants_put(context: &Entered, file: File, folio: Folio) -> bool {
    can_put(context)
        && folio.order() <= params::max_order()
        && file.is_cacheable()
        && file.filesystem(context).is_some()
        && is_worth_putting(context, file, folio)
        && !file.is_banned()
}

/// Returns whether a folio is likely to be read again.
///
/// The kernel knows so of some; of all others the client says what became of those before. Where a
/// put is a copy and nothing else, all are: those that do not come back make room first.
fn is_worth_putting(context: &Entered, file: File, folio: Folio) -> bool {
    folio.is_workingset()
        || context.client.puts_here(Pool::Cleancache)
        || context.client.is_worth_putting(file.tag(), folio.index())
}

/// Returns whether clean pages can be put now.
fn can_put(context: &Entered) -> bool {
    context.client.running() || context.client.puts_here(Pool::Cleancache)
}

/// Returns the filesystem of a folio that is to be put.
fn may_put(context: &Entered, file: File, folio: Folio) -> Option<&Filesystem> {
    let client = &context.client;
    let counters = client.counters(Pool::Cleancache);
    let pages = folio.pages() as usize;

    if !can_put(context) || !folio.is_putable() {
        return None;
    }
    if !file.is_cacheable() {
        file.ban_if_it_swaps(context);
        return None;
    }
    let filesystem = file.filesystem(context)?;
    if folio.order() > params::max_order() {
        counters.too_large.add(pages);
        return None;
    }
    if !is_worth_putting(context, file, folio) {
        counters.not_admitted.add(pages);
        return None;
    }

    // Where the mark cannot be remembered, for want of memory, it is asked for again with the next
    // page.
    let armed = client.marks(Pool::Cleancache, file.tag()) & ARMED != 0
        || file.is_quiet() && client.mark(Pool::Cleancache, file.tag(), ARMED);
    if !armed || file.is_banned() || file.is_changing(filesystem) {
        counters.unsafe_inode.add(pages);
        return None;
    }
    Some(filesystem)
}

/// A folio becomes dirty: rule F3.
///
/// # Safety
///
/// To be called by the tracepoint.
unsafe extern "C" fn dirtied(
    _data: *mut c_void,
    folio: *mut bindings::folio,
    mapping: *mut bindings::address_space,
) {
    let (Some(context), Some(folio)) = (Context::get(), NonNull::new(folio)) else {
        return;
    };
    // SAFETY: The tracepoint comes with a folio in the page cache of a valid mapping.
    let (Some(file), folio) = (unsafe { (File::new(mapping), Folio::new(folio)) }) else {
        return;
    };
    let first = folio.index();

    file.flush(&context, first, first.saturating_add(folio.pages() - 1));
}

fn page_of(byte: i64) -> u64 {
    // CAST: A negative one stands for the end of the file.
    byte as u64 / PAGE_SIZE as u64
}

/// Pages are truncated: rules F1 and F7.
///
/// # Safety
///
/// To be called by the kernel, in the place of the function that it replaces.
unsafe extern "C" fn truncate(
    mapping: *mut bindings::address_space,
    start: bindings::loff_t,
    end: bindings::uoff_t,
) {
    let context = Context::enter();
    // SAFETY: The kernel calls with a valid mapping.
    let file = unsafe { File::new(mapping) };
    let flush = || {
        if let (Some(context), Some(file)) = (&context, file) {
            let last = if end == u64::MAX {
                u64::MAX
            } else {
                page_of(end as i64)
            };
            file.flush(context, page_of(start), last);
        }
    };

    flush();
    // SAFETY: It is what the kernel would have called, with the same arguments.
    ftrace::original(|| unsafe { bindings::truncate_inode_pages_range(mapping, start, end) });
    flush();
}

/// Pages are invalidated, for direct I/O above all: rule F4.
///
/// Whoever holds the mapping's `invalidate_lock` for writing does no direct I/O: that would wait for
/// itself if the memory that it reads from were a part of the file. It invalidates what it, or the
/// disk, has changed, and keeps readers out meanwhile: rule F5.
///
/// # Safety
///
/// To be called by the kernel, in the place of the function that it replaces.
unsafe extern "C" fn invalidate2(
    mapping: *mut bindings::address_space,
    first: c_ulong,
    last: c_ulong,
) -> c_int {
    let context = Context::enter();
    // SAFETY: The kernel calls with a valid mapping.
    let file = unsafe { File::new(mapping) };
    let flush = || {
        if let (Some(context), Some(file)) = (&context, file) {
            file.flush(context, first as u64, last as u64);
        }
    };

    if let (Some(context), Some(file)) = (&context, file) {
        // SAFETY: The kernel calls with a valid mapping, which has an inode if it is a file's.
        let direct = unsafe {
            context.may_cache(mapping) && !bindings::tmem_mapping_invalidated_by_us(mapping)
        };

        if direct {
            file.ban(context);
        }
    }
    flush();
    // SAFETY: It is what the kernel would have called, with the same arguments.
    let result = ftrace::original(|| unsafe {
        bindings::invalidate_inode_pages2_range(mapping, first, last)
    });
    flush();
    result
}

/// A filesystem invalidates pages: rule F5.
///
/// # Safety
///
/// To be called by the kernel, in the place of the function that it replaces.
unsafe extern "C" fn invalidate_inode(
    inode: *mut bindings::inode,
    write: bool,
    start: bindings::loff_t,
    end: bindings::loff_t,
) -> c_int {
    let context = Context::enter();
    // SAFETY: The kernel calls with a valid inode.
    let file = unsafe { File::new((*inode).i_mapping) };
    let flush = || {
        if let (Some(context), Some(file)) = (&context, file) {
            file.flush(context, page_of(start), page_of(end));
        }
    };

    flush();
    // SAFETY: It is what the kernel would have called, with the same arguments.
    let result = ftrace::original(|| unsafe {
        bindings::filemap_invalidate_inode(inode, write, start, end)
    });
    flush();
    result
}

/// An inode dies: rule F6.
///
/// # Safety
///
/// To be called by the kernel, in the place of the function that it replaces.
unsafe extern "C" fn clear_inode(inode: *mut bindings::inode) {
    let context = Context::enter();

    // It waits for who is in reclaim with a page of the inode.
    // SAFETY: It is what the kernel would have called, with the same argument.
    ftrace::original(|| unsafe { bindings::clear_inode(inode) });
    if let Some(context) = &context {
        // SAFETY: The kernel calls with a valid inode.
        let mapping = unsafe { &raw mut (*inode).i_data };

        let tag = mapping.addr() as u64;

        context.client.flush_object(Pool::Cleancache, tag);
        context.client.forget_trust(tag);
    }
}

/// A file is about to become a swap area: rule F11.
///
/// # Safety
///
/// To be called by the kernel, in the place of the function that it replaces.
pub(super) unsafe extern "C" fn swap_activate(
    info: *mut bindings::swap_info_struct,
    file: *mut bindings::file,
    span: *mut bindings::sector_t,
) -> c_int {
    let context = Context::enter();
    // SAFETY: The kernel calls with an open file, which has a mapping.
    let mapping = unsafe { (*file).f_mapping };

    if let Some(context) = &context {
        // SAFETY: The mapping is valid as long as the file is open.
        if let Some(file) = unsafe { File::new(mapping) } {
            file.leave_alone(context);
        }
    }
    // SAFETY: It is what the kernel would have called, with the same arguments: the filesystem's
    // own function, which was replaced.
    unsafe {
        match (*(*mapping).a_ops).swap_activate {
            Some(swap_activate) => swap_activate(info, file, span),
            None => EINVAL.to_errno(),
        }
    }
}

/// A filesystem is about to change the blocks of a file, given by its `struct file`, of which it
/// does not tell the mapping: rule F9.
///
/// What is in the page cache stays there, and is not what the disk has: it must not be put later.
/// Any context.
///
/// # Safety
///
/// `file` must be the address of an open file.
pub(super) unsafe fn changed_silently(_origin: usize, file: usize) {
    let Some(context) = Context::get() else {
        return;
    };
    let file = ptr::with_exposed_provenance_mut::<bindings::file>(file);

    // SAFETY: By the safety requirements the file is open, so that its mapping is valid.
    if let Some(file) = unsafe { File::new((*file).f_mapping) } {
        file.leave_alone(&context);
    }
}

/// A filesystem reports an error, of an inode or of its own: rule F10.
///
/// Where its journal is given up, pages become clean that were not written. It is not worth finding
/// out which. Any context.
///
/// # Safety
///
/// `superblock` must be the address of a superblock, and `inode` that of an inode, or null.
unsafe fn failed(superblock: usize, inode: usize) {
    let Some(context) = Context::get() else {
        return;
    };
    let superblock = ptr::with_exposed_provenance_mut::<bindings::super_block>(superblock);
    let inode = ptr::with_exposed_provenance_mut::<bindings::inode>(inode);

    // SAFETY: By the safety requirements the superblock is valid, and the inode is if there is one.
    unsafe {
        if inode.is_null() {
            if bindings::tmem_superblock_distrust(superblock) {
                pr_warn!("a filesystem has reported an error: its pages are not put any more\n");
            }
        } else if let Some(file) = File::new((*inode).i_mapping) {
            file.leave_alone(&context);
        }
    }
}
