// SPDX-License-Identifier: GPL-2.0

//! Virtqueues that own what they carry.
//!
//! What goes into a virtqueue is a token: a box with a [`Frame`] in it. [`Queues::submit`] takes
//! the token, and the [`Handler`] gets it back when the device has used it, or when the virtqueues
//! are stopped. So nobody can touch memory that the device owns, and no token can be lost.
//!
//! C header: [`include/linux/virtio.h`](srctree/include/linux/virtio.h)

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

/// One virtqueue.
#[pin_data]
struct Queue {
    index: usize,
    #[pin]
    ring: SpinLockIrq<Ring>,
}

/// A virtqueue of the C portion of the kernel.
///
/// # Invariants
///
/// `vq` is a valid virtqueue while `open` is true, and until an RCU grace period after that.
struct Ring {
    vq: *mut bindings::virtqueue,
    open: bool,
}

// SAFETY: A virtqueue may be used from any thread.
unsafe impl Send for Ring {}

/// The virtqueues of a device.
///
/// # Invariants
///
/// `handler` is written once, before any callback can come, and taken once no callback can come
/// any more; in between it is only read.
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
    /// Asks the device for `count` virtqueues.
    ///
    /// None of them is used before [`Self::start`]. May sleep.
    pub(crate) fn find(vdev: &Device<device::Core<'_>>, count: usize) -> Result<Owner<H>> {
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
            let queue = KBox::pin_init(
                pin_init!(Queue {
                    index,
                    // INVARIANT: `tmem_virtio_find_vqs()` returned `vq`, and only `stop()`
                    // deletes it.
                    ring <- new_spinlock_irq!(Ring { vq, open: true }, "Queue::ring"),
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

    /// Returns how many virtqueues there are.
    pub(crate) fn len(&self) -> usize {
        self.queues().len()
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

    /// Gives a token to the device; [`Self::kick`] tells the device of it.
    ///
    /// Any context; does not sleep. May allocate a table of descriptors, without sleeping and
    /// without touching the reserves; where that fails, the descriptors go into the ring itself.
    pub(crate) fn submit(
        &self,
        queue: usize,
        mut token: KBox<H::Token>,
    ) -> Result<(), Rejected<H::Token>> {
        let Some(queue) = self.queues().get(queue) else {
            return Err(Rejected::Stopped(token));
        };
        let (out, answer) = token.frame().map();
        let mut lists = [out, answer];
        let (first, outs) = if out.is_null() { (1, 0) } else { (0, 1) };
        let token = KBox::into_raw(token);

        let ring = queue.ring.lock();
        let result = if !ring.open {
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
    /// Any context; does not sleep.
    pub(crate) fn kick(&self, queue: usize) {
        let Some(queue) = self.queues().get(queue) else {
            return;
        };

        // The notification is an exit, and so made without the lock; RCU keeps the virtqueue.
        let _guard = rcu::read_lock();
        let ring = queue.ring.lock();
        if !ring.open {
            return;
        }
        let vq = ring.vq;
        // SAFETY: The ring is open, and its lock is held.
        let wanted = unsafe { bindings::virtqueue_kick_prepare(vq) };
        drop(ring);

        if wanted {
            self.notifications.add(1, Relaxed);
            // SAFETY: The virtqueue is valid until a grace period after the ring was open.
            unsafe { bindings::virtqueue_notify(vq) };
        }
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

    /// Gives all used tokens to the handler.
    fn reap(&self, queue: &Queue) {
        // SAFETY: By the type invariants nobody writes `handler` while the ring is open, which is
        // checked for each token.
        let Some(handler) = (unsafe { &*self.handler.get() }) else {
            return;
        };

        loop {
            {
                let ring = queue.ring.lock();
                if !ring.open {
                    return;
                }
                // SAFETY: The ring is open, and its lock is held.
                unsafe { bindings::virtqueue_disable_cb(ring.vq) };
            }
            while let Some((token, written)) = Self::pop(queue) {
                handler.done(queue.index, token, Some(written));
            }

            let ring = queue.ring.lock();
            // SAFETY: The ring is open, and its lock is held.
            if !ring.open || unsafe { bindings::virtqueue_enable_cb(ring.vq) } {
                return;
            }
        }
    }

    fn pop(queue: &Queue) -> Option<(KBox<H::Token>, usize)> {
        let ring = queue.ring.lock();
        if !ring.open {
            return None;
        }

        let mut len: c_uint = 0;
        // SAFETY: The ring is open, and its lock is held.
        let token = unsafe { bindings::virtqueue_get_buf(ring.vq, &mut len) };
        drop(ring);
        if token.is_null() {
            return None;
        }

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
            queue.ring.lock().open = false;
        }

        // SAFETY: The device is bound: it is not unbound before this function has returned once.
        unsafe { bindings::virtio_reset_device(self.vdev.as_raw()) };
        // Whoever saw a ring open may still be about to notify the device.
        rcu::synchronize_rcu();

        // INVARIANT: The device is reset, so that no callback comes any more.
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
