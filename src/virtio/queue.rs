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
    time::{
        Delta,
        Instant,
        Monotonic, //
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

/// When the device is to interrupt.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Interrupts {
    /// As soon as there is something to take back.
    Soon,
    /// When most of what it has is done.
    Late,
}

/// One virtqueue.
#[pin_data]
struct Queue {
    index: usize,
    interrupts: Interrupts,
    /// How many tokens the device has used.
    used: Atomic<u64>,
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
    /// How many look for used tokens themselves; if any do, the device does not interrupt.
    pollers: u32,
    /// How many tokens were added.
    added: u64,
}

// SAFETY: A virtqueue may be used from any thread.
unsafe impl Send for Ring {}

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
                    used: Atomic::new(0),
                    // INVARIANT: `tmem_virtio_find_vqs()` returned `vq`, and only `stop()`
                    // deletes it.
                    ring <- new_spinlock_irq!(
                        Ring { vq, open: true, pollers: 0, added: 0 },
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

        let mut ring = queue.ring.lock();
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
        if result.is_ok() {
            ring.added = ring.added.wrapping_add(1);
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
        if queue.interrupts == Interrupts::Late {
            // Also for what is late now to be that of more tokens.
            self.reap(queue);
        }
    }

    /// Returns how many tokens the device has. Any context.
    pub(crate) fn outstanding(&self, queue: usize) -> u64 {
        self.queues().get(queue).map_or(0, |queue| {
            let added = queue.ring.lock().added;

            added.saturating_sub(queue.used.load(Relaxed))
        })
    }

    /// Looks for used tokens from now on, rather than have the device interrupt.
    ///
    /// Any context in which the [`Handler`] may be called; does not sleep.
    pub(crate) fn poll(&self, queue: usize) -> Option<Poller<'_, H>> {
        let queue = self.queues().get(queue)?;
        let mut ring = queue.ring.lock();

        if !ring.open {
            return None;
        }
        ring.pollers += 1;
        // SAFETY: The ring is open, and its lock is held.
        unsafe { bindings::virtqueue_disable_cb(ring.vq) };
        // INVARIANT: Counted now.
        Some(Poller { set: self, queue })
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
                if !ring.open {
                    return;
                }
                // SAFETY: The ring is open, and its lock is held.
                unsafe { bindings::virtqueue_disable_cb(ring.vq) };
            }
            self.take_back(queue);

            let ring = queue.ring.lock();
            if !ring.open || ring.pollers > 0 {
                // Whoever polls will look again.
                return;
            }
            // SAFETY: The ring is open, and its lock is held.
            let quiet = unsafe {
                match queue.interrupts {
                    Interrupts::Soon => bindings::virtqueue_enable_cb(ring.vq),
                    Interrupts::Late => bindings::virtqueue_enable_cb_delayed(ring.vq),
                }
            };
            if quiet {
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
            queue.ring.lock().open = false;
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

/// Somebody who looks for used tokens; until it is dropped, the device does not interrupt.
///
/// # Invariants
///
/// It is counted in the ring's `pollers`.
pub(crate) struct Poller<'a, H: Handler> {
    set: &'a Queues<H>,
    queue: &'a Queue,
}

impl<H: Handler> Poller<'_, H> {
    /// Spins until the device has used as many tokens as were added, but no longer than `limit`.
    ///
    /// What has been used is given to the handler. Any context in which that may be called; does
    /// not sleep.
    pub(crate) fn spin(&self, limit: Delta) {
        let added = self.queue.ring.lock().added;
        let start = Instant::<Monotonic>::now();

        loop {
            self.set.take_back(self.queue);
            // Others may have taken some of them back. That more are used than were added then, or
            // in another order, does no harm: it is only a matter of how long to spin.
            let left = added.wrapping_sub(self.queue.used.load(Relaxed)) as i64;
            if left <= 0 || start.elapsed() >= limit {
                return;
            }
            core::hint::spin_loop();
        }
    }
}

impl<H: Handler> Drop for Poller<'_, H> {
    fn drop(&mut self) {
        let mut ring = self.queue.ring.lock();

        ring.pollers -= 1;
        let last = ring.pollers == 0;
        drop(ring);
        if last {
            // Interrupts come again.
            self.set.reap(self.queue);
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
