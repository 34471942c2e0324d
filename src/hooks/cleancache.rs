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
//! - F7: a page that is truncated in part is flushed as a whole.
//!
//! The object of a page is its inode in memory, by its address: see F6.

mod read;

use core::ptr::{
    self,
    NonNull, //
};

use kernel::{
    prelude::*,
    sync::atomic::{
        Full,
        Relaxed, //
    },
};

use crate::{
    bindings,
    client::Pool,
    params,
    virtio::frame::{
        MAX_PAGES,
        PAGE_SIZE, //
    },
};

pub(super) use self::read::{
    read_folio,
    readahead,
    Reading,
    Waiter, //
};

use super::{
    filesystem::Filesystem,
    folio::Folio,
    ftrace::{
        self,
        Code,
        Probe,
        Redirect, //
    },
    symbol,
    Context,
    Entered, //
};

/// Mark of an inode that saw direct I/O: rule F4.
const BANNED: u8 = 1 << 0;

/// Mark of an inode that was once seen with nobody inside a truncate or direct I/O that may have
/// begun before there were hooks.
const ARMED: u8 = 1 << 1;

/// The hooks of this half, but for those of filesystems.
pub(super) struct Hooks {
    // Dropped in this order: what puts goes first.
    _evicted: Option<Redirect>,
    _removed: Probe,
    _dirtied: Probe,
    _invalidated: Redirect,
    _written_directly: Redirect,
    _truncated: Redirect,
    _died: Redirect,
}

impl Hooks {
    /// Hooks the page cache; what puts pages comes last. May sleep.
    pub(super) fn install() -> Result<Self> {
        // SAFETY: The functions below have the types of those that they replace, and of the
        // tracepoints that they listen to.
        unsafe {
            let died = Redirect::new(c"clear_inode", clear_inode as Code)?;
            let truncated = Redirect::new(c"truncate_inode_pages_range", truncate as Code)?;
            let written_directly =
                Redirect::new(c"invalidate_inode_pages2_range", invalidate2 as Code)?;
            let invalidated = Redirect::new(c"filemap_invalidate_inode", invalidate_inode as Code)?;
            let dirtied = Probe::new(c"writeback_dirty_folio", dirtied as Code)?;
            let removed = Probe::new(c"mm_filemap_delete_from_page_cache", removed as Code)?;

            Ok(Self {
                _evicted: hold_up_reclaim(),
                _removed: removed,
                _dirtied: dirtied,
                _invalidated: invalidated,
                _written_directly: written_directly,
                _truncated: truncated,
                _died: died,
            })
        }
    }
}

/// Hooks reclaim where it may still sleep, if this kernel has the function.
///
/// Without it pages are lost to the pool when they are evicted faster than the host takes them,
/// and all is well otherwise.
fn hold_up_reclaim() -> Option<Redirect> {
    const NAME: &CStr = c"__remove_mapping";
    let addr = symbol::resolve(NAME).ok()?;

    // SAFETY: It is the address of the function, and the replacement is of its type.
    unsafe {
        let body = ftrace::body(addr);

        bindings::tmem_set_remove_mapping(ptr::with_exposed_provenance_mut(body));
        Redirect::new(NAME, remove_mapping as Code).ok()
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
            // SAFETY: The kernel calls with a locked folio of a valid mapping.
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
    // SAFETY: By the safety requirements.
    let (file, folio) = unsafe { (File::new(mapping), Folio::new(folio)) };
    let count = folio.pages() as usize;

    if !context.client.can_stage(count) && file.is_some_and(|file| wants_put(context, file, folio))
    {
        context.client.await_staging(count);
    }
}

/// The page cache of a regular file.
///
/// # Invariants
///
/// The mapping is valid, and its inode's own, for as long as the hook runs that has the instance.
#[derive(Clone, Copy)]
struct File(NonNull<bindings::address_space>);

impl File {
    /// Borrows a mapping, if it is that of a regular file.
    ///
    /// # Safety
    ///
    /// `mapping` must be null, or valid for longer than the instance.
    unsafe fn new(mapping: *mut bindings::address_space) -> Option<Self> {
        let mapping = NonNull::new(mapping)?;

        // INVARIANT: By the safety requirements, and the check.
        // SAFETY: By the safety requirements it is valid.
        unsafe { bindings::tmem_mapping_regular(mapping.as_ptr()) }.then_some(Self(mapping))
    }

    fn tag(self) -> u64 {
        self.0.as_ptr().addr() as u64
    }

    /// Returns whether its pages are what the disk has, and stay so unless a hook hears of it.
    fn is_cacheable(self) -> bool {
        // SAFETY: By the type invariants it is valid.
        unsafe {
            bindings::tmem_mapping_cacheable(self.0.as_ptr())
                && !bindings::tmem_mapping_exiting(self.0.as_ptr())
        }
    }

    /// Returns the file's filesystem, if its pages may be put.
    fn filesystem(self, context: &Entered) -> Option<&'static Filesystem> {
        // SAFETY: By the type invariants it is valid, and has an inode.
        unsafe { context.filesystem(self.0.as_ptr()) }
    }

    fn is_quiet(self) -> bool {
        // SAFETY: By the type invariants it is valid, and has an inode.
        unsafe { bindings::tmem_inode_quiet((*self.0.as_ptr()).host) }
    }

    fn flush(self, context: &Entered, first: u64, last: u64) {
        if context.client.pages(Pool::Cleancache).load(Relaxed) > 0 {
            context
                .client
                .flush_range(Pool::Cleancache, self.tag(), first, last);
        }
    }

    /// Sees to it that nothing of the inode is put until it is evicted: rule F4.
    fn ban(self, context: &Entered) {
        let marks = context.client.marks(Pool::Cleancache, self.tag());

        if marks & BANNED != 0 {
            return;
        }
        context.client.counters(Pool::Cleancache).bans.add(1);
        if !context.client.mark(Pool::Cleancache, self.tag(), BANNED) {
            // It cannot be remembered. Then nothing is put at all.
            if !context.no_memory.xchg(true, Full) {
                pr_warn!("no memory to remember which inodes see direct I/O: cleancache is off\n");
            }
        }
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
    // SAFETY: As above.
    let (Some(file), folio) = (unsafe { (File::new(mapping), Folio::new(folio)) }) else {
        return;
    };
    let first = folio.index();
    let last = first.saturating_add(folio.pages() - 1);
    let tag = file.tag();

    let Some(filesystem) = may_put(&context, file, folio) else {
        return file.flush(&context, first, last);
    };

    let checked = match params::crc() {
        params::Crc::Never => false,
        params::Crc::Checksummed => filesystem.checks,
        params::Crc::Always => true,
    };
    let mut staged = 0;
    for n in (0..folio.pages()).step_by(MAX_PAGES) {
        // CAST: It is at most `MAX_PAGES`.
        let count = (folio.pages() - n).min(MAX_PAGES as u64) as usize;
        let index = first.saturating_add(n);

        staged +=
            context
                .client
                .stage(tag, index, count, folio.pages_at(n, count), checked, BANNED);
    }
    if !folio.is_workingset() {
        context.client.spend_trust(tag, first, staged as u64);
    }
}

/// Returns whether a folio is one that is put, if all else is right.
fn wants_put(context: &Entered, file: File, folio: Folio) -> bool {
    context.client.running()
        && folio.order() <= params::max_order()
        && file.is_cacheable()
        && file.filesystem(context).is_some()
        && is_worth_putting(context, file, folio)
        && context.client.marks(Pool::Cleancache, file.tag()) & BANNED == 0
}

/// Returns whether a folio is likely to be read again.
///
/// The kernel knows so of some; of all others the client says what became of those before.
fn is_worth_putting(context: &Entered, file: File, folio: Folio) -> bool {
    folio.is_workingset() || context.client.is_worth_putting(file.tag(), folio.index())
}

/// Returns the filesystem of a folio that is to be put.
fn may_put(context: &Entered, file: File, folio: Folio) -> Option<&'static Filesystem> {
    let client = &context.client;
    let counters = client.counters(Pool::Cleancache);
    let pages = folio.pages() as usize;

    if !client.running() || !folio.is_putable() || !file.is_cacheable() {
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

    let marks = client.marks(Pool::Cleancache, file.tag());
    let armed =
        marks & ARMED != 0 || file.is_quiet() && client.mark(Pool::Cleancache, file.tag(), ARMED);
    if marks & BANNED != 0 || !armed || context.no_memory.load(Relaxed) {
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
        // SAFETY: As above.
        if unsafe { context.may_cache(mapping) } {
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
