// SPDX-License-Identifier: GPL-2.0

//! What the hooks need, in one place: where it is, and for how long.

use core::{
    ops::Deref,
    ptr, //
};

use kernel::{
    impl_has_work, new_mutex, new_work,
    prelude::*,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            Full,
            Release, //
        },
        Arc,
        Mutex, //
    },
    workqueue::{
        self,
        Work, //
    },
};

use crate::{
    bindings::{
        self,
        work::OwnedQueue, //
    },
    params,
};

use super::{
    cleancache,
    filesystem::{
        self,
        Filesystem, //
    },
    frontswap,
    ftrace::Redirect,
    volumes::Volumes,
    Client, //
};

/// What the hooks need.
#[pin_data]
pub(super) struct Context {
    pub(super) client: Arc<Client>,
    /// Swap requests that are to go to the swap area after all, or to be read once the host can be
    /// asked.
    pub(super) waiting: frontswap::Waiting,
    /// What writes swapped pages back.
    #[pin]
    pub(super) drain: frontswap::Drainer,
    pub(super) filesystems: KVec<Filesystem>,
    /// The hooks of filesystems.
    #[pin]
    pub(super) reads: Mutex<KVec<filesystem::Hooks>>,
    /// What holds reclaim up for pages that are shared, where nothing else does.
    #[pin]
    pub(super) held_up: Mutex<Option<Redirect>>,
    /// The volumes whose pages other guests have, too.
    #[pin]
    pub(super) volumes: Volumes,
    /// What to compare pages by that come from the host, if they are compared.
    pub(super) verify: Option<cleancache::Verify>,
    /// How many pages the largest folio has that is put.
    pub(super) largest: usize,
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
    #[pin]
    join: Work<Self, 4>,
}

impl_has_work! {
    impl HasWork<Self, 0> for Context { self.write }
    impl HasWork<Self, 1> for Context { self.hook }
    impl HasWork<Self, 2> for Context { self.draining }
    impl HasWork<Self, 3> for Context { self.read }
    impl HasWork<Self, 4> for Context { self.join }
}

/// The context, or null.
static CONTEXT: Atomic<*mut Context> = Atomic::new(ptr::null_mut());

/// How many are inside a hook, or have the context for another reason.
static INSIDE: Atomic<i32> = Atomic::new(0);

/// The right to use the context; it does not go away as long as there is one.
pub(super) struct Entered(&'static Context);

impl Deref for Entered {
    type Target = Context;

    fn deref(&self) -> &Context {
        self.0
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        INSIDE.fetch_sub(1, Release);
    }
}

impl Context {
    /// Makes the context, of which there is none yet. Sleeps.
    pub(super) fn install(client: &Arc<Client>) -> Result {
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
                waiting: frontswap::Waiting::new(),
                drain <- frontswap::Drainer::new(),
                filesystems,
                reads <- new_mutex!(KVec::new(), "Context::reads"),
                held_up <- new_mutex!(None, "Context::held_up"),
                volumes <- Volumes::new(),
                verify,
                largest: 1 << params::max_order(),
                urgent: OwnedQueue::new(c"virtio_tmem_swap", true)?,
                leisurely: OwnedQueue::new(c"virtio_tmem_hook", false)?,
                patient: OwnedQueue::new(c"virtio_tmem_read", true)?,
                write <- new_work!("Context::write"),
                hook <- new_work!("Context::hook"),
                draining <- new_work!("Context::draining"),
                read <- new_work!("Context::read"),
                join <- new_work!("Context::join"),
            }? Error),
            GFP_KERNEL,
        )?;
        CONTEXT.store(Arc::into_raw(context).cast_mut(), Release);
        Ok(())
    }

    /// Enters a hook.
    ///
    /// The result has to live until after whatever the hook calls, which it is counted for. Any
    /// context.
    #[inline]
    pub(super) fn enter() -> Option<Entered> {
        Self::get()
    }

    /// Returns the context, if there is one. Any context.
    #[inline]
    pub(super) fn get() -> Option<Entered> {
        INSIDE.fetch_add(1, Full);
        let context = CONTEXT.load(Acquire);

        if context.is_null() {
            INSIDE.fetch_sub(1, Release);
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
    pub(super) unsafe fn filesystem(
        &self,
        mapping: *mut bindings::address_space,
    ) -> Option<&Filesystem> {
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
    pub(super) unsafe fn may_cache(&self, mapping: *mut bindings::address_space) -> bool {
        self.filesystems
            .iter()
            // SAFETY: By the safety requirements the mapping is valid and has an inode.
            .any(|filesystem| unsafe { filesystem.is_of(mapping) })
    }

    fn arc(&self) -> Arc<Self> {
        // SAFETY: `Context::install()` made the context as an `Arc`.
        let context = core::mem::ManuallyDrop::new(unsafe { Arc::from_raw(self) });

        Arc::clone(&context)
    }

    /// Has swap requests written to the swap area soon. Any context.
    pub(super) fn write_later(&self) {
        let _ = self.urgent.enqueue::<_, 0>(self.arc());
    }

    /// Has swap requests read once the host can be asked. Any context.
    pub(super) fn read_later(&self) {
        let _ = self.patient.enqueue::<_, 3>(self.arc());
    }

    /// Has pages drained soon. Any context.
    pub(super) fn drain_later(&self) {
        self.drain.enqueue(self.arc());
    }

    /// Has the functions of a filesystem hooked soon. Any context.
    fn hook_later(&self) {
        let _ = self.leisurely.enqueue::<_, 1>(self.arc());
    }

    /// Has the host be asked about volumes soon. Any context.
    pub(super) fn join_later(&self) {
        let _ = self.leisurely.enqueue::<_, 4>(self.arc());
    }

    /// Waits for all work. Sleeps.
    pub(super) fn flush_work(&self) {
        self.drain.end();
        self.leisurely.flush();
        self.patient.flush();
        self.urgent.flush();
    }
}

impl workqueue::WorkItem<0> for Context {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        if let Some(context) = Self::get() {
            this.waiting.finish(&context);
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
            this.waiting.read(&context);
        }
    }
}

impl workqueue::WorkItem<4> for Context {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        this.volumes.settle(&this.client);
        // Where there is none, nothing has been staged, nor was reclaim held up for it.
        if this.client.running() && this.client.has_window() && this.client.stages() {
            let mut held_up = this.held_up.lock();

            if held_up.is_none() {
                *held_up = cleancache::hold_up_reclaim();
            }
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

/// Gives up the context, once all hooks are removed.
///
/// Whoever was called as a replacement before that may still be inside it: asleep, and counted, or
/// at its first or last instructions, and not counted. The former are waited for; so are the
/// latter, by a grace period of tasks that run what ftrace sent them to. May sleep.
pub(super) fn teardown() {
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
        // SAFETY: `Context::install()` made it from an `Arc`, and nobody has it any more.
        let context = unsafe { Arc::from_raw(context.cast_const()) };

        context.flush_work();
    }
}
