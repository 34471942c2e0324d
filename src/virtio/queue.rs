// SPDX-License-Identifier: GPL-2.0

//! Virtqueues that own what they carry.
//!
//! What goes into a virtqueue is a token: a box with a [`Frame`] in it. [`Queues::submit`] takes
//! the token, and the [`Handler`] gets it back when the device has used it, or when the virtqueues
//! are stopped. So nobody can touch memory that the device owns, and no token can be lost.
//!
//! An interrupt costs several exits, a look at the ring none. So whoever waits for the device may
//! look for a while itself, as a [`Poller`], and meanwhile the device does not interrupt; and a
//! virtqueue whose tokens nobody waits for is looked at whenever something is added to it, and the
//! device interrupts only when it is done with most of what there is: see [`Interrupts`].
//!
//! C header: [`include/linux/virtio.h`](srctree/include/linux/virtio.h)

mod poll;

use core::{
    cell::UnsafeCell,
    ptr, //
};

use kernel::{
    device,
    error::to_result,
    new_mutex, new_spinlock_irq,
    prelude::*,
    sync::{
        aref::ARef,
        atomic::{
            Atomic,
            Relaxed, //
        },
        lock::{
            spinlock::SpinLockIrqBackend,
            Guard, //
        },
        rcu,
        Arc,
        Mutex,
        SpinLockIrq, //
    },
};

use crate::bindings;

use super::{
    frame::Frame,
    Device, //
};

pub(crate) use self::poll::Poller;

/// What a virtqueue carries.
pub(crate) trait Token: Send + 'static {
    /// Returns the frame.
    fn frame(&mut self) -> &mut Frame;
}

/// What takes tokens back.
pub(crate) trait Handler: Send + Sync + Sized + 'static {
    /// The type of the tokens.
    type Token: Token;

    /// Takes a token back.
    ///
    /// `written` is how many bytes the device claims to have written, but never more than it was
    /// given to write; [`None`] if the virtqueues were stopped and the device may or may not have
    /// carried the request out.
    ///
    /// Hard interrupt context, or process context; may not sleep.
    fn done(&self, queue: usize, token: KBox<Self::Token>, written: Option<usize>);
}

/// When the device is to be told of a token.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Notify {
    /// At once.
    Now,
    /// By somebody's [`Queues::kick`].
    Later,
}

/// When the device is to interrupt.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Interrupts {
    /// As soon as there is something to take back.
    Soon,
    /// When most of what it has is done.
    Late,
}

/// One virtqueue.
///
/// # Invariants
///
/// The ring's virtqueue, and what `used_index` points to, are valid while `open` is true, and until
/// an RCU grace period after that.
#[pin_data]
struct Queue {
    index: usize,
    interrupts: Interrupts,
    /// Changed with the lock of the ring held.
    open: Atomic<bool>,
    /// Where the device counts what it has used, in a split virtqueue; otherwise null.
    used_index: *const u16,
    /// How many tokens were added. Changed with the lock of the ring held.
    added: Atomic<u64>,
    /// How many tokens the device has used.
    used: Atomic<u64>,
    #[pin]
    ring: SpinLockIrq<Ring>,
}

/// A virtqueue of the C portion of the kernel.
struct Ring {
    vq: *mut bindings::virtqueue,
    /// How many look for used tokens themselves; if any do, the device does not interrupt.
    pollers: u32,
}

// SAFETY: A virtqueue may be used from any thread.
unsafe impl Send for Ring {}
// SAFETY: As above; `used_index` is only read.
unsafe impl Send for Queue {}
// SAFETY: As above.
unsafe impl Sync for Queue {}

impl Queue {
    /// Returns whether tokens go in and out. It stays true as long as the lock of the ring is held.
    fn is_open(&self) -> bool {
        self.open.load(Relaxed)
    }

    /// Has the device interrupt again, unless somebody polls.
    ///
    /// Returns false if there is something to take back already.
    fn enable_interrupts(&self, ring: &Guard<'_, Ring, SpinLockIrqBackend>) -> bool {
        if !self.is_open() || ring.pollers > 0 {
            // Whoever polls will look again.
            return true;
        }
        // SAFETY: The ring is open, and its lock is held.
        unsafe {
            match self.interrupts {
                Interrupts::Soon => bindings::virtqueue_enable_cb(ring.vq),
                Interrupts::Late => bindings::virtqueue_enable_cb_delayed(ring.vq),
            }
        }
    }
}

/// The virtqueues of a device.
///
/// # Invariants
///
/// `handler` is written once, before any callback can come, and taken once all rings have been
/// closed for an RCU grace period; in between it is only read.
#[pin_data]
pub(crate) struct Queues<H: Handler> {
    vdev: ARef<Device>,
    #[pin]
    stopped: Mutex<bool>,
    handler: UnsafeCell<Option<Arc<H>>>,
    queues: UnsafeCell<KVec<Pin<KBox<Queue>>>>,
    notifications: Atomic<u64>,
    interrupts: Atomic<u64>,
}

// SAFETY: All that is not written once before it is shared is behind locks.
unsafe impl<H: Handler> Send for Queues<H> {}
// SAFETY: As above.
unsafe impl<H: Handler> Sync for Queues<H> {}

/// Why a token was not taken; the token comes back with it.
pub(crate) enum Rejected<T> {
    /// The ring is full: some request must complete first.
    Full(KBox<T>),
    /// The virtqueues are stopped, or the device is broken.
    Stopped(KBox<T>),
}

/// The right to have virtqueues: they are stopped when it is dropped.
pub(crate) struct Owner<H: Handler>(Arc<Queues<H>>);

impl<H: Handler> Owner<H> {
    /// Returns the virtqueues.
    pub(crate) fn queues(&self) -> &Arc<Queues<H>> {
        &self.0
    }
}

impl<H: Handler> Drop for Owner<H> {
    fn drop(&mut self) {
        self.0.stop();
    }
}

impl<H: Handler> Queues<H> {
    /// Asks the device for `count` virtqueues, with interrupts as `interrupts` says of each.
    ///
    /// None of them is used before [`Self::start`]. May sleep.
    pub(crate) fn find(
        vdev: &Device<device::Core<'_>>,
        count: usize,
        interrupts: impl Fn(usize) -> Interrupts,
    ) -> Result<Owner<H>> {
        // SAFETY: `vdev` is a bound device, and only this function and `stop()` touch `priv`.
        if !unsafe { (*vdev.as_raw()).priv_ }.is_null() {
            return Err(EBUSY);
        }

        let set = Arc::pin_init(
            pin_init!(Self {
                vdev: ARef::from(&**vdev),
                stopped <- new_mutex!(false, "Queues::stopped"),
                handler: UnsafeCell::new(None),
                queues: UnsafeCell::new(KVec::new()),
                notifications: Atomic::new(0),
                interrupts: Atomic::new(0),
            }),
            GFP_KERNEL,
        )?;

        let mut names = KVec::with_capacity(count, GFP_KERNEL)?;
        let mut vqs = KVec::with_capacity(count, GFP_KERNEL)?;
        for _ in 0..count {
            names.push(
                bindings::virtqueue_info {
                    name: c"virtio_tmem".as_char_ptr(),
                    callback: Some(Self::callback),
                    ctx: false,
                },
                GFP_KERNEL,
            )?;
            vqs.push(ptr::null_mut(), GFP_KERNEL)?;
        }

        // SAFETY: `vdev` is a bound device, and both arrays have `count` members.
        to_result(unsafe {
            bindings::tmem_virtio_find_vqs(
                vdev.as_raw(),
                count as c_uint,
                vqs.as_mut_ptr(),
                names.as_mut_ptr(),
            )
        })?;

        // From here on the virtqueues must be deleted, which is what dropping the owner does.
        // SAFETY: As above. The reference is given back by `stop()`.
        unsafe { (*vdev.as_raw()).priv_ = Arc::into_raw(set.clone()).cast_mut().cast() };
        let owner = Owner(set);

        for (index, &vq) in vqs.iter().enumerate() {
            let interrupts = interrupts(index);
            let queue = KBox::pin_init(
                pin_init!(Queue {
                    index,
                    interrupts,
                    // INVARIANT: `tmem_virtio_find_vqs()` returned `vq`, and only `stop()`
                    // deletes it.
                    open: Atomic::new(true),
                    // SAFETY: As above.
                    used_index: unsafe { bindings::tmem_virtqueue_used_index(vq) },
                    added: Atomic::new(0),
                    used: Atomic::new(0),
                    ring <- new_spinlock_irq!(
                        Ring { vq, pollers: 0 },
                        "Queue::ring"
                    ),
                }),
                GFP_KERNEL,
            )?;

            // SAFETY: Nobody else has the virtqueues yet: no callback comes before the device is
            // live.
            unsafe { &mut *owner.0.queues.get() }.push(queue, GFP_KERNEL)?;
        }
        Ok(owner)
    }

    /// Brings the device to life; from here on `handler` gets tokens back.
    ///
    /// To be called once, from probe. May sleep.
    pub(crate) fn start(&self, handler: Arc<H>) {
        // INVARIANT: No callback can come before the device is ready.
        // SAFETY: The device is not ready, so that nobody reads `handler`.
        unsafe { *self.handler.get() = Some(handler) };
        // SAFETY: The device is bound, and its virtqueues are set up.
        unsafe { bindings::tmem_virtio_device_ready(self.vdev.as_raw()) };
    }

    /// Returns how often the device was notified.
    pub(crate) fn notifications(&self) -> &Atomic<u64> {
        &self.notifications
    }

    /// Returns how often a virtqueue's interrupt came.
    pub(crate) fn interrupts(&self) -> &Atomic<u64> {
        &self.interrupts
    }

    fn queues(&self) -> &[Pin<KBox<Queue>>] {
        // SAFETY: Only `find()` writes it, before anybody else has `self`.
        unsafe { &*self.queues.get() }
    }

    /// Gives a token to the device, and tells the device of it if `notify` says so.
    ///
    /// As [`Self::kick`] it does that, and may take tokens back then. Does not sleep. May allocate a table of descriptors, without sleeping and
    /// without touching the reserves; where that fails, the descriptors go into the ring itself.
    pub(crate) fn submit(
        &self,
        queue: usize,
        mut token: KBox<H::Token>,
        notify: Notify,
    ) -> Result<(), Rejected<H::Token>> {
        let Some(queue) = self.queues().get(queue) else {
            return Err(Rejected::Stopped(token));
        };
        let (out, answer) = token.frame().map();
        let mut lists = [out, answer];
        let (first, outs) = if out.is_null() { (1, 0) } else { (0, 1) };
        let token = KBox::into_raw(token);

        // The notification is an exit, and so made without the lock; RCU keeps the virtqueue.
        let _guard = rcu::read_lock();
        let ring = queue.ring.lock();
        let result = if !queue.is_open() {
            Err(ENODEV)
        } else {
            // SAFETY: The ring is open, so that the virtqueue is valid, and its lock is held. The
            // lists are those of the token's frame, which nobody touches until the virtqueue gives
            // the token back.
            to_result(unsafe {
                bindings::virtqueue_add_sgs(
                    ring.vq,
                    lists.as_mut_ptr().add(first),
                    outs,
                    1,
                    token.cast(),
                    bindings::GFP_NOWAIT | (1 << bindings::___GFP_NOMEMALLOC_BIT),
                )
            })
        };
        if result.is_ok() {
            queue.added.add(1, Relaxed);
            if notify == Notify::Now {
                self.notify(queue, ring);
            }
            return Ok(());
        }
        drop(ring);

        result.map_err(|error| {
            // SAFETY: It comes from `KBox::into_raw()` above, and the virtqueue did not take it.
            let token = unsafe { KBox::from_raw(token) };

            if error == ENOSPC || error == ENOMEM {
                Rejected::Full(token)
            } else {
                Rejected::Stopped(token)
            }
        })
    }

    /// Tells the device of what was submitted, unless it said that it is looking anyway.
    ///
    /// Where interrupts come [late](Interrupts::Late), takes back what the device has used. Any
    /// context in which the [`Handler`] may be called; does not sleep.
    pub(crate) fn kick(&self, queue: usize) {
        let Some(queue) = self.queues().get(queue) else {
            return;
        };

        let _guard = rcu::read_lock();
        let ring = queue.ring.lock();
        if queue.is_open() {
            self.notify(queue, ring);
        }
    }

    /// Notifies the device of a virtqueue that is open, within an RCU read-side critical section.
    fn notify(&self, queue: &Queue, ring: Guard<'_, Ring, SpinLockIrqBackend>) {
        let vq = ring.vq;
        // SAFETY: The ring is open, and its lock is held.
        let wanted = unsafe { bindings::virtqueue_kick_prepare(vq) };
        drop(ring);

        if wanted {
            self.notifications.add(1, Relaxed);
            // SAFETY: The virtqueue is valid until a grace period after the ring was open.
            unsafe { bindings::virtqueue_notify(vq) };
        }
        if queue.interrupts == Interrupts::Late {
            // Also for what is late now to be that of more tokens.
            self.reap(queue);
        }
    }

    /// Returns how many tokens the device has. Any context.
    pub(crate) fn outstanding(&self, queue: usize) -> u64 {
        self.queues().get(queue).map_or(0, |queue| {
            // Used before added: what is used in between has been added before.
            let used = queue.used.load(Relaxed);

            queue.added.load(Relaxed).saturating_sub(used)
        })
    }

    extern "C" fn callback(vq: *mut bindings::virtqueue) {
        // SAFETY: The virtio core calls back with a valid virtqueue of the device, whose `priv` was
        // set to the `Queues<H>` that lives longer than its virtqueues. (That of the virtqueue
        // belongs to the transport.)
        let (set, index) = unsafe { (&*(*(*vq).vdev).priv_.cast::<Self>(), (*vq).index) };

        set.interrupts.add(1, Relaxed);
        if let Some(queue) = set.queues().get(index as usize) {
            set.reap(queue);
        }
    }

    /// Gives all used tokens to the handler, and has the device interrupt again after that.
    fn reap(&self, queue: &Queue) {
        loop {
            {
                let ring = queue.ring.lock();
                if !queue.is_open() {
                    return;
                }
                // SAFETY: The ring is open, and its lock is held.
                unsafe { bindings::virtqueue_disable_cb(ring.vq) };
            }
            self.take_back(queue);
            if queue.enable_interrupts(&queue.ring.lock()) {
                return;
            }
        }
    }

    /// Gives the tokens that are used now to the handler.
    fn take_back(&self, queue: &Queue) {
        // `stop()` waits for this before it takes the handler away.
        let _guard = rcu::read_lock();

        while let Some((token, written)) = Self::pop(queue) {
            // SAFETY: By the type invariants nobody writes `handler` while the ring is open, which
            // it was just now, nor until a grace period after that.
            if let Some(handler) = unsafe { &*self.handler.get() } {
                handler.done(queue.index, token, Some(written));
            }
        }
    }

    fn pop(queue: &Queue) -> Option<(KBox<H::Token>, usize)> {
        let ring = queue.ring.lock();
        if !queue.is_open() {
            return None;
        }

        let mut len: c_uint = 0;
        // SAFETY: The ring is open, and its lock is held.
        let token = unsafe { bindings::virtqueue_get_buf(ring.vq, &mut len) };
        drop(ring);
        if token.is_null() {
            return None;
        }
        queue.used.add(1, Relaxed);

        // SAFETY: It comes from `KBox::into_raw()` in `submit()`, and the virtqueue gives it back
        // only once.
        let mut token = unsafe { KBox::<H::Token>::from_raw(token.cast()) };
        let written = (len as usize).min(token.frame().writable());
        Some((token, written))
    }

    /// Stops the virtqueues: resets the device, gives all tokens back, and deletes them.
    ///
    /// After it the device does not touch any token's memory. Does nothing the second time.
    /// May sleep.
    pub(crate) fn stop(&self) {
        let mut stopped = self.stopped.lock();
        if *stopped {
            return;
        }
        *stopped = true;

        for queue in self.queues() {
            let _ring = queue.ring.lock();

            queue.open.store(false, Relaxed);
        }

        // SAFETY: The device is bound: it is not unbound before this function has returned once.
        unsafe { bindings::virtio_reset_device(self.vdev.as_raw()) };
        // Whoever saw a ring open may still be about to notify the device, or to call the handler.
        rcu::synchronize_rcu();

        // INVARIANT: All rings were closed before the grace period.
        // SAFETY: As above.
        let handler = unsafe { (*self.handler.get()).take() };
        for queue in self.queues() {
            // The lock is not held over `done()`, which may take others.
            let vq = queue.ring.lock().vq;

            loop {
                // SAFETY: The virtqueue is valid, and nobody else uses it: the ring is closed.
                let token = unsafe { bindings::virtqueue_detach_unused_buf(vq) };
                if token.is_null() {
                    break;
                }
                // SAFETY: It comes from `KBox::into_raw()` in `submit()`.
                let token = unsafe { KBox::<H::Token>::from_raw(token.cast()) };

                if let Some(handler) = &handler {
                    handler.done(queue.index, token, None);
                }
            }
        }

        let vdev = self.vdev.as_raw();
        // SAFETY: The device is reset, and nobody uses its virtqueues any more.
        unsafe { bindings::tmem_virtio_del_vqs(vdev) };

        // SAFETY: Only `find()` and this function touch `priv`, and `find()` set it to a reference.
        unsafe {
            let set = (*vdev).priv_;

            (*vdev).priv_ = ptr::null_mut();
            if !set.is_null() {
                drop(Arc::from_raw(set.cast::<Self>().cast_const()));
            }
        }
    }
}

/// Stops the virtqueues of a device, if it has any left.
pub(super) fn stop_all<H: Handler>(vdev: &Device<device::CoreInternal<'_>>) {
    // SAFETY: `vdev` is a bound device, and `priv` is null or what `Queues::find()` set it to.
    let set = unsafe { (*vdev.as_raw()).priv_ }.cast::<Queues<H>>();
    if set.is_null() {
        return;
    }

    // SAFETY: As above; a second reference is taken, so that it outlives `stop()`.
    let set = unsafe {
        let set = core::mem::ManuallyDrop::new(Arc::from_raw(set.cast_const()));
        Arc::clone(&set)
    };
    set.stop();
}
