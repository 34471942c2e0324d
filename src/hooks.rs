// SPDX-License-Identifier: GPL-2.0

//! Where in the kernel pages come from, and go to.
//!
//! The hooks are functions that the kernel calls with nothing of the driver's; so they find what
//! they need in one place, the [`Context`], of which there is at most one. It is there before the
//! first hook is, and until nobody can be inside any hook any more: see [`teardown`].
//!
//! Swapped pages may outlive their device. Then the hooks of frontswap, the context and the client
//! stay, so that whoever wants such a page gets an error, and not what happens to be in the swap
//! area. They go when the last such page is gone.

mod cleancache;
mod filesystem;
mod folio;
mod frontswap;
mod ftrace;
mod points;
mod power;
mod symbol;

use core::{
    ops::Deref,
    ptr, //
};

use kernel::{
    new_mutex, new_work,
    prelude::*,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            Full,
            Relaxed, //
        },
        Arc,
        Mutex, //
    },
    workqueue::{
        self,
        impl_has_work,
        Work, //
    },
};

use crate::{
    bindings::{
        self,
        pm::Notifier,
        work::OwnedQueue, //
    },
    client::{
        self,
        Answers,
        Pool, //
    },
    params,
};

use self::filesystem::Filesystem;

pub(crate) use self::frontswap::Drain;

/// Gets, with this module's origins.
type Gets<'a> = client::Gets<'a, Origin>;

/// The client, with this module's origins.
pub(crate) type Client = client::Client<Origin>;

/// Who asked the client for something.
pub(crate) enum Origin {
    /// A swap request.
    Swap(frontswap::Request),
    /// A readahead.
    Readahead,
    /// Somebody who waits.
    Waiter(cleancache::Waiter),
    /// What drains swapped pages.
    Drain,
    /// Nobody any more: folios that the host may still write to.
    Left(cleancache::Left),
}

/// What whoever asked has to know about a page.
#[derive(Clone, Copy, Default)]
pub(crate) enum PageOf {
    /// Nothing.
    #[default]
    Any,
    /// Which folio of the swap request it belongs to, or which page of what is being drained it is.
    Place(u8),
    /// Which folio of the readahead.
    Folio(cleancache::Reading),
}

impl client::Origin for Origin {
    type Page = PageOf;

    fn done(self, answers: &Answers<'_, PageOf>) {
        match self {
            Self::Swap(request) => request.done(answers),
            Self::Readahead => cleancache::Reading::done(answers),
            Self::Waiter(waiter) => waiter.done(answers),
            Self::Left(left) => left.done(answers),
            Self::Drain => {
                if let Some(context) = Context::get() {
                    context.drain.done(answers);
                }
            }
        }
    }

    fn shrink(pages: u64) {
        if let Some(drain) = Drain::get() {
            drain.shrink(pages);
        }
    }

    fn can_leave(&self) -> bool {
        match self {
            Self::Swap(request) => request.is_write(),
            Self::Readahead => true,
            Self::Waiter(waiter) => waiter.can_leave(),
            Self::Left(_) | Self::Drain => false,
        }
    }

    fn leave(self, pages: &mut dyn Iterator<Item = PageOf>) -> Option<Self> {
        match self {
            Self::Swap(request) if request.is_write() => {
                request.leave();
                None
            }
            Self::Readahead => Some(Self::Left(cleancache::Left::readahead(pages))),
            Self::Waiter(waiter) => Some(Self::Left(waiter.leave(pages))),
            other => Some(other),
        }
    }
}

/// What the hooks need.
#[pin_data]
struct Context {
    client: Arc<Client>,
    /// Swap requests that are to go to the swap area after all.
    to_area: frontswap::Queue,
    /// Swap requests that are to be read once the host can be asked.
    to_host: frontswap::Queue,
    /// What writes swapped pages back.
    #[pin]
    drain: frontswap::Drainer,
    filesystems: KVec<Filesystem>,
    /// The hooks of filesystems.
    #[pin]
    reads: Mutex<KVec<filesystem::Hooks>>,
    /// What to compare pages by that come from the host, if they are compared.
    verify: Option<cleancache::Verify>,
    /// How many pages the largest folio has that is put.
    largest: usize,
    /// For work that reclaim waits for.
    urgent: OwnedQueue,
    /// For work that may wait for reclaim.
    leisurely: OwnedQueue,
    #[pin]
    write: Work<Self, 0>,
    #[pin]
    hook: Work<Self, 1>,
    /// For work that waits for the host.
    patient: OwnedQueue,
    #[pin]
    draining: Work<Self, 2>,
    #[pin]
    read: Work<Self, 3>,
}

impl_has_work! {
    impl HasWork<Self, 0> for Context { self.write }
    impl HasWork<Self, 1> for Context { self.hook }
    impl HasWork<Self, 2> for Context { self.draining }
    impl HasWork<Self, 3> for Context { self.read }
}

/// The context, or null.
static CONTEXT: Atomic<*mut Context> = Atomic::new(ptr::null_mut());

/// How many are inside a hook, or have the context for another reason.
static INSIDE: Atomic<i32> = Atomic::new(0);

/// Whether a device has the hooks.
static TAKEN: Atomic<bool> = Atomic::new(false);

/// The context of a device that is gone, but not all of whose swap pages are.
static LEFT_BEHIND: Atomic<*mut Context> = Atomic::new(ptr::null_mut());

/// The hooks of frontswap that belong to it.
static LEFT_HOOKS: Atomic<*mut frontswap::Hooks> = Atomic::new(ptr::null_mut());

/// Whether the module is kept from being unloaded, for the sake of what was left behind.
static PINNED: Atomic<bool> = Atomic::new(false);

/// The right to use the context; it does not go away as long as there is one.
struct Entered(&'static Context);

impl Deref for Entered {
    type Target = Context;

    fn deref(&self) -> &Context {
        self.0
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        INSIDE.fetch_sub(1, kernel::sync::atomic::Release);
    }
}

impl Context {
    /// Enters a hook.
    ///
    /// The result has to live until after whatever the hook calls, which it is counted for. Any
    /// context.
    #[inline]
    fn enter() -> Option<Entered> {
        Self::get()
    }

    /// Returns the context, if there is one. Any context.
    #[inline]
    fn get() -> Option<Entered> {
        INSIDE.fetch_add(1, Full);
        let context = CONTEXT.load(Acquire);

        if context.is_null() {
            INSIDE.fetch_sub(1, kernel::sync::atomic::Release);
            return None;
        }
        // SAFETY: It is valid as long as `INSIDE` is not zero, which was raised before it was
        // loaded: see `teardown()`.
        Some(Entered(unsafe { &*context }))
    }

    /// Returns the filesystem of a mapping, if its pages may be put.
    ///
    /// Any context.
    ///
    /// # Safety
    ///
    /// `mapping` must be valid and have an inode.
    unsafe fn filesystem(&self, mapping: *mut bindings::address_space) -> Option<&Filesystem> {
        // SAFETY: By the safety requirements the mapping is valid and has an inode.
        let is_of = |filesystem: &&Filesystem| unsafe { filesystem.is_of(mapping) };
        let filesystem = self.filesystems.iter().find(is_of)?;

        // SAFETY: The mapping is valid, has an inode, and is of this filesystem.
        unsafe {
            if filesystem.is_hooked(mapping) {
                return Some(filesystem);
            }
            if filesystem.notice(mapping) {
                self.hook_later();
            }
        }
        None
    }

    /// Returns whether pages of a mapping may be put, now or later.
    ///
    /// # Safety
    ///
    /// `mapping` must be valid and have an inode.
    unsafe fn may_cache(&self, mapping: *mut bindings::address_space) -> bool {
        self.filesystems
            .iter()
            // SAFETY: By the safety requirements the mapping is valid and has an inode.
            .any(|filesystem| unsafe { filesystem.is_of(mapping) })
    }

    /// Lets the module be unloaded once nothing is left of what kept it. Any context.
    fn unpin(&self) {
        if PINNED.load(Relaxed)
            && self.client.pages(Pool::Frontswap).load(Relaxed) == 0
            && PINNED.xchg(false, Full)
        {
            // SAFETY: `leave_behind()` took the reference, and a hook of the module is running, whose
            // end whoever unloads it waits for.
            unsafe { bindings::module_put(crate::this_module().as_ptr()) };
        }
    }

    fn arc(&self) -> Arc<Self> {
        // SAFETY: `Seat::install()` made the context as an `Arc`.
        let context = core::mem::ManuallyDrop::new(unsafe { Arc::from_raw(self) });

        Arc::clone(&context)
    }

    /// Has swap requests written to the swap area soon. Any context.
    fn write_later(&self) {
        let _ = self.urgent.enqueue::<_, 0>(self.arc());
    }

    /// Has swap requests read once the host can be asked. Any context.
    fn read_later(&self) {
        let _ = self.patient.enqueue::<_, 3>(self.arc());
    }

    /// Has pages drained soon. Any context.
    fn drain_later(&self) {
        self.drain.enqueue(self.arc());
    }

    /// Has the functions of a filesystem hooked soon. Any context.
    fn hook_later(&self) {
        let _ = self.leisurely.enqueue::<_, 1>(self.arc());
    }
}

impl workqueue::WorkItem<0> for Context {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        if let Some(context) = Self::get() {
            this.to_area.finish(&context);
        }
    }
}

impl workqueue::WorkItem<1> for Context {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        for filesystem in this.filesystems.iter() {
            let mut reads = this.reads.lock();

            // Room first: a hook that cannot be kept could not be removed either.
            if reads.reserve(1, GFP_KERNEL).is_err() {
                return;
            }
            if let Some(hooks) = filesystem.hook() {
                let _ = reads.push_within_capacity(hooks);
            }
        }
    }
}

impl workqueue::WorkItem<3> for Context {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        if let Some(context) = Self::get() {
            this.to_host.read(&context);
        }
    }
}

impl workqueue::WorkItem<2> for Context {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        // It stays as long as this runs: whoever removes the hooks waits for the queue.
        if let Some(context) = Self::get() {
            this.drain.run(&context);
        }
    }
}

/// The right to install hooks, of which there is one.
pub(crate) struct Seat(());

impl Seat {
    /// Takes the right. May sleep.
    pub(crate) fn take() -> Result<Self> {
        if TAKEN.xchg(true, Full) {
            return Err(EBUSY);
        }
        let seat = Self(());

        if !clear_left_behind() {
            return Err(EBUSY);
        }
        Ok(seat)
    }

    /// Installs the hooks of the halves that are wanted.
    ///
    /// A half that this kernel has not got all hook points for is left off, and a line says which
    /// and why. May sleep.
    pub(crate) fn install(self, client: &Arc<Client>, wants: client::Wants) -> Result<Hooks> {
        let mut filesystems = KVec::with_capacity(filesystem::KINDS.len(), GFP_KERNEL)?;
        for kind in filesystem::KINDS {
            if params::filesystem(kind.name) {
                filesystems.push(Filesystem::new(kind), GFP_KERNEL)?;
            }
        }
        let verify = if params::verify() {
            Some(cleancache::Verify::new()?)
        } else {
            None
        };
        let context = Arc::pin_init(
            try_pin_init!(Context {
                client: client.clone(),
                to_area: frontswap::Queue::new(),
                to_host: frontswap::Queue::new(),
                drain <- frontswap::Drainer::new(),
                filesystems,
                reads <- new_mutex!(KVec::new(), "Context::reads"),
                verify,
                largest: 1 << params::max_order(),
                urgent: OwnedQueue::new(c"virtio_tmem_swap", true)?,
                leisurely: OwnedQueue::new(c"virtio_tmem_hook", false)?,
                patient: OwnedQueue::new(c"virtio_tmem_read", true)?,
                write <- new_work!("Context::write"),
                hook <- new_work!("Context::hook"),
                draining <- new_work!("Context::draining"),
                read <- new_work!("Context::read"),
            }? Error),
            GFP_KERNEL,
        )?;

        CONTEXT.store(
            Arc::into_raw(context).cast_mut(),
            kernel::sync::atomic::Release,
        );
        let mut hooks = Hooks {
            frontswap: None,
            cleancache: None,
            power: None,
            seat: self,
        };
        if wants.frontswap {
            hooks.frontswap = match frontswap::Hooks::install() {
                Ok(hooks) => Some(KBox::new(hooks, GFP_KERNEL)?),
                Err(_) => {
                    pr_warn!("frontswap is off: this kernel lacks a hook point that it needs\n");
                    None
                }
            };
        }
        if wants.cleancache {
            hooks.cleancache = cleancache::Hooks::install()
                .inspect_err(|_| {
                    pr_warn!("cleancache is off: this kernel lacks a hook point that it needs\n");
                })
                .ok();
        }
        hooks.power = Some(KBox::pin_init(
            Notifier::new(power::Power::new()),
            GFP_KERNEL,
        )?);
        Ok(hooks)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        TAKEN.store(false, kernel::sync::atomic::Release);
    }
}

/// The hooks of a device.
pub(crate) struct Hooks {
    frontswap: Option<KBox<frontswap::Hooks>>,
    cleancache: Option<cleancache::Hooks>,
    power: Option<Pin<KBox<Notifier<power::Power>>>>,
    seat: Seat,
}

impl Hooks {
    /// Returns whether swapped pages are put.
    pub(crate) fn frontswap(&self) -> bool {
        self.frontswap.is_some()
    }

    /// Returns whether clean pages are put.
    pub(crate) fn cleancache(&self) -> bool {
        self.cleancache.is_some()
    }

    /// Has nothing be left that only the host has, as far as that can be. Sleeps.
    pub(crate) fn empty(&self) {
        let Some(drain) = Drain::get() else {
            return;
        };

        let result = loop {
            match drain.run_to_end(false) {
                // Whoever stopped it did not know what it is for.
                Err(error) if error == ECANCELED => (),
                result => break result,
            }
        };
        if let Err(error) = result {
            pr_err!(
                "{} swap pages could not be written to their swap areas ({error:?})\n",
                drain.progress().left
            );
        }
    }
}

impl Drop for Hooks {
    fn drop(&mut self) {
        drop(self.power.take());
        // What puts goes first: the tracepoints. Nothing can be got from now on.
        drop(self.cleancache.take());
        let context = CONTEXT.load(Relaxed);
        // SAFETY: `Seat::install()` made the context before these hooks, and only `teardown()`, below
        // or when nothing is left behind any more, gives it up.
        unsafe {
            (*context).client.quiesce();
            flush_work(&*context);
            let reads = core::mem::take(&mut *(*context).reads.lock());
            drop(reads);
        }

        // SAFETY: The context is valid until `teardown()`, which is called below or later.
        let pages = unsafe { (*context).client.pages(Pool::Frontswap).load(Relaxed) };
        match self.frontswap.take() {
            Some(hooks) if pages > 0 => leave_behind(context, hooks),
            hooks => {
                drop(hooks);
                teardown();
            }
        }
        let _ = &self.seat;
    }
}

fn flush_work(context: &Context) {
    context.drain.end();
    context.leisurely.flush();
    context.patient.flush();
    context.urgent.flush();
}

/// Gives up the context, once all hooks are removed.
///
/// Whoever was called as a replacement before that may still be inside it: asleep, and counted, or
/// at its first or last instructions, and not counted. The former are waited for; so are the
/// latter, by a grace period of tasks that run what ftrace sent them to. May sleep.
fn teardown() {
    let context = CONTEXT.xchg(ptr::null_mut(), Full);

    for _ in 0..2 {
        while INSIDE.load(Acquire) != 0 {
            // SAFETY: Whoever calls may sleep, as this function says, and so holds no spin lock.
            unsafe { bindings::msleep(1) };
        }
        // SAFETY: Whoever calls may sleep; and no hook calls, which would wait for itself.
        unsafe { bindings::synchronize_rcu_tasks() };
    }
    if !context.is_null() {
        // SAFETY: `Seat::install()` made it from an `Arc`, and nobody has it any more.
        let context = unsafe { Arc::from_raw(context.cast_const()) };

        flush_work(&context);
    }
}

/// Leaves the hooks of frontswap and the context where they are, for pages that are lost: whoever
/// wants one has to get an error.
///
/// They are what the module is needed for from here on. If it is being unloaded already, they are
/// waited for. May sleep.
fn leave_behind(context: *mut Context, hooks: KBox<frontswap::Hooks>) {
    LEFT_HOOKS.store(KBox::into_raw(hooks), Relaxed);
    LEFT_BEHIND.store(context, kernel::sync::atomic::Release);

    // SAFETY: The module is there: its code is running.
    if unsafe { bindings::try_module_get(crate::this_module().as_ptr()) } {
        PINNED.store(true, Relaxed);
        if let Some(context) = Context::get() {
            // The last page may have gone before.
            context.unpin();
        }
        return;
    }
    pr_warn!("waiting for the lost swap pages to be freed before the module goes: swapoff, or end who has them\n");
    while !clear_left_behind() {
        // SAFETY: Whoever calls may sleep, as this function says.
        unsafe { bindings::msleep(100) };
    }
}

/// Removes what a device left behind; returns false if it is still needed.
fn clear_left_behind() -> bool {
    let context = LEFT_BEHIND.load(Acquire);
    if context.is_null() {
        return true;
    }
    // SAFETY: It is valid until `teardown()`.
    if unsafe { (*context).client.pages(Pool::Frontswap).load(Relaxed) } > 0 {
        return false;
    }

    LEFT_BEHIND.store(ptr::null_mut(), Relaxed);
    let hooks = LEFT_HOOKS.xchg(ptr::null_mut(), Full);
    if !hooks.is_null() {
        // SAFETY: `Hooks::drop()` made it from a box.
        drop(unsafe { KBox::from_raw(hooks) });
    }
    teardown();
    true
}

/// Removes, when the module goes, what a device has left behind.
///
/// The module cannot go before the last swap page has.
pub(crate) struct Teardown;

impl Drop for Teardown {
    fn drop(&mut self) {
        clear_left_behind();
    }
}
