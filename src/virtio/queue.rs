// SPDX-License-Identifier: GPL-2.0

//! Virtqueues that own what they carry.
//!
//! What goes into a virtqueue is a [`Token`] in a box. [`Queues::submit`] takes the box, and the
//! [`Handler`] gets it back when the device has used it; what the device still has when the
//! virtqueues are stopped, whoever stops them gets. So nobody can touch memory that the device
//! owns, and no token can be lost.
//!
//! A device's virtqueues are [`Stopped`], [`Found`] or [`Live`], and each of these types has only
//! what can be done then:
//!
//! ```text
//! Stopped::new() ─► Stopped ── find() ─► Found ── start() ─► Live
//!                      ▲                   │                   │
//!                      └────── drop ───────┴────── stop() ─────┘
//! ```
//!
//! The [`Queues`] are shared by all who submit tokens, and are the same in all states: unless they
//! are live, tokens are [rejected](Rejected::Stopped). However the owner of a state goes about it,
//! the device is reset and its virtqueues are deleted before the driver is unbound from it.
//!
//! An interrupt costs several exits, a look at the ring none. So whoever waits for the device may
//! look for a while himself, as a [`Poller`], and meanwhile the device does not interrupt because of
//! his tokens; and a virtqueue whose tokens nobody waits for is looked at whenever something is
//! added to it, and the device interrupts only when it is done with most of what there is: see
//! [`Interrupts`].
//!
//! C header: [`include/linux/virtio.h`](srctree/include/linux/virtio.h)

mod attachment;
mod buffers;
mod poll;
mod state;
mod token;
mod virtqueue;
mod watchers;

use core::ptr::NonNull;

use kernel::{
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

use self::{
    attachment::Attachment,
    virtqueue::Virtqueue,
    watchers::{
        Kind,
        Watchers, //
    },
};

use super::Device;

pub(super) use self::attachment::{
    release,
    stop_all, //
};

pub(crate) use self::{
    buffers::Buffers,
    poll::Poller,
    state::{
        FindError,
        Found,
        Live,
        Stopped, //
    },
    token::Token,
};

/// What takes tokens back.
pub(crate) trait Handler: Send + Sync + Sized + 'static {
    /// The type of the tokens.
    type Token: Token;

    /// Takes back a token that the device has used.
    ///
    /// `written` is how many bytes the device claims to have written. Nobody has checked that: it
    /// may be more than the device was given to write, and it may have written less.
    ///
    /// Hard interrupt context, or the context of whoever submits, kicks or polls; may not sleep.
    /// No lock of the virtqueue is held, so that other tokens may be submitted.
    fn done(&self, queue: usize, token: KBox<Self::Token>, written: usize);
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

/// What a virtqueue is to be like.
#[derive(Clone, Copy)]
pub(crate) struct Spec {
    /// What the interrupt is called.
    pub(crate) name: &'static CStr,
    /// When it comes.
    pub(crate) interrupts: Interrupts,
    /// Of how many pieces of memory a token consists at most.
    pub(crate) pieces: usize,
}

/// Why a token was not taken; the token comes back with it.
pub(crate) enum Rejected<T> {
    /// The ring is full: the device has to use other tokens first (`ENOSPC`).
    Full(KBox<T>),
    /// There is no memory to map the token, or none for its descriptors where the ring itself has
    /// too few (`ENOMEM`). That the device uses other tokens need not help.
    NoMemory(KBox<T>),
    /// The token consists of more pieces than it may, or of none, or of memory that a device cannot
    /// be given: see [`Buffers`] (`EINVAL`).
    Invalid(KBox<T>),
    /// The virtqueues are not live, or the device is broken (`ENODEV`).
    Stopped(KBox<T>),
}

/// One virtqueue.
///
/// # Invariants
///
/// What `used_index` points to is valid while it is not null, and until an RCU grace period after
/// that.
#[pin_data]
struct Queue<H: Handler> {
    index: usize,
    spec: Spec,
    /// Where the device counts what it has used, if it is live and the virtqueue a split one;
    /// otherwise null. Changed with the lock of the ring held.
    used_index: Atomic<*const u16>,
    #[pin]
    ring: SpinLockIrq<Ring<H>>,
}

/// What is behind the lock of a virtqueue.
///
/// # Invariants
///
/// - `vq` is a virtqueue that is used only with the lock held, other than to notify the device,
///   which happens within an RCU read-side critical section that was entered before the lock.
/// - All data that `vq` remembers is of tokens, as [`token::into_data`] returns it.
/// - While `handler` is not [`None`], and until an RCU grace period after that, `vq` stays, and so
///   does the handler. It is [`None`] if `vq` is.
struct Ring<H: Handler> {
    vq: Option<Virtqueue>,
    handler: Option<Arc<H>>,
    /// Where the memory of a token is listed.
    table: KVec<bindings::scatterlist>,
    watchers: Watchers,
    /// How many tokens were added.
    added: u64,
    /// How many of them came back.
    used: u64,
    /// How many had come back when the virtqueue became live.
    used_before: u64,
    /// How many had been added when the device last learned of them.
    notified: u64,
}

type RingGuard<'a, H> = Guard<'a, Ring<H>, SpinLockIrqBackend>;

/// Whether interrupts are changed where tokens are taken back.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rearm {
    /// They are not.
    Never,
    /// They are off while the handler runs, which is not interrupted for long.
    AtLast,
    /// They are only off while the lock is held.
    AtOnce,
}

/// A token that the device has used, and how much it claims to have written.
struct Used<T> {
    token: KBox<T>,
    written: usize,
}

/// How many tokens are taken back at once.
const BATCH: usize = 8;

impl<H: Handler> Ring<H> {
    /// Returns the virtqueue, if tokens go in and out.
    fn live(&self) -> Option<Virtqueue> {
        self.handler.as_ref().and(self.vq)
    }

    /// Takes note of a token that came back.
    fn note_used(&mut self, kind: Kind) {
        self.watchers.used(kind);
        self.used = self.used.wrapping_add(1);
    }

    /// Returns what a split virtqueue counts as used when all of that has been taken back.
    fn taken(&self) -> u16 {
        // CAST: The device counts modulo 2^16, from when it became live.
        self.used.wrapping_sub(self.used_before) as u16
    }

    /// Takes back tokens that are used, as many as there is room for.
    fn fill(&mut self, vq: Virtqueue, batch: &mut [Option<Used<H::Token>>]) {
        for place in batch {
            let Some((data, written)) = vq.used() else {
                return;
            };
            // SAFETY: By the type invariants of `Ring` it is that of a token, and the virtqueue
            // gives it back only once.
            let (token, kind) = unsafe { token::from_data(data) };

            self.note_used(kind);
            *place = Some(Used { token, written });
        }
    }
}

impl<H: Handler> Queue<H> {
    fn new(index: usize, spec: Spec) -> Result<Pin<KBox<Self>>> {
        // At least one, so that there is a last one.
        let pieces = spec.pieces.max(1);
        let mut table = KVec::with_capacity(pieces, GFP_KERNEL)?;
        table.resize(pieces, bindings::scatterlist::default(), GFP_KERNEL)?;
        // SAFETY: The table has so many entries.
        unsafe { bindings::sg_init_table(table.as_mut_ptr(), c_uint::try_from(pieces)?) };

        // INVARIANT: There is neither a virtqueue nor a handler.
        let ring = Ring {
            vq: None,
            handler: None,
            table,
            watchers: Watchers::new(),
            added: 0,
            used: 0,
            used_before: 0,
            notified: 0,
        };
        KBox::pin_init(
            pin_init!(Self {
                index,
                spec,
                used_index: Atomic::new(core::ptr::null()),
                ring <- new_spinlock_irq!(ring, "Queue::ring"),
            }),
            GFP_KERNEL,
        )
    }

    /// Has the device interrupt, unless all who wait poll.
    ///
    /// Returns false if there is something to take back already.
    fn arm(&self, ring: &Ring<H>) -> bool {
        let Some(vq) = ring.live().filter(|_| ring.watchers.want_interrupt()) else {
            return true;
        };

        (match self.spec.interrupts {
            Interrupts::Soon => vq.enable_callbacks(),
            Interrupts::Late => vq.enable_callbacks_delayed(),
        })
        // Nothing comes out of a broken one, whatever the device claims.
        || vq.is_broken()
    }
}

/// What virtqueues that are found belong to.
struct Link<H: Handler> {
    vdev: ARef<Device>,
    handler: Arc<H>,
}

/// The virtqueues of a device, in whatever state.
///
/// # Invariants
///
/// While `link` is not [`None`], the device is bound: it is reset, and its virtqueues are deleted,
/// before [`release`] lets the driver be unbound.
#[pin_data]
pub(crate) struct Queues<H: Handler> {
    #[pin]
    link: Mutex<Option<Link<H>>>,
    queues: KVec<Pin<KBox<Queue<H>>>>,
    notifications: Atomic<u64>,
    interrupts: Atomic<u64>,
}

impl<H: Handler> Queues<H> {
    fn new(specs: impl IntoIterator<Item = Spec>) -> Result<Arc<Self>> {
        let mut queues = KVec::new();

        for (index, spec) in specs.into_iter().enumerate() {
            queues.push(Queue::new(index, spec)?, GFP_KERNEL)?;
        }
        Arc::pin_init(
            pin_init!(Self {
                // INVARIANT: There is no device.
                link <- new_mutex!(None, "Queues::link"),
                queues,
                notifications: Atomic::new(0),
                interrupts: Atomic::new(0),
            }),
            GFP_KERNEL,
        )
    }

    fn queue(&self, n: usize) -> Option<&Queue<H>> {
        self.queues.get(n).map(|queue| &**queue)
    }

    /// Returns how often the device was notified.
    pub(crate) fn notifications(&self) -> &Atomic<u64> {
        &self.notifications
    }

    /// Returns how often a virtqueue's interrupt came.
    pub(crate) fn interrupts(&self) -> &Atomic<u64> {
        &self.interrupts
    }

    /// Gives a token to the device, and tells the device of it if `notify` says so.
    ///
    /// As [`Self::kick`] it does that, and may take tokens back then. Somebody is expected to sleep
    /// until the token comes back, so that the device interrupts; see [`Poller::submit`] for a token
    /// that somebody looks for.
    ///
    /// Any context in which the [`Handler`] may be called; does not sleep. May allocate a table of
    /// descriptors, without sleeping and without touching the reserves; where that fails, the
    /// descriptors go into the ring itself.
    pub(crate) fn submit(
        &self,
        queue: usize,
        token: KBox<H::Token>,
        notify: Notify,
    ) -> Result<(), Rejected<H::Token>> {
        match self.queue(queue) {
            Some(queue) => self.submit_to(queue, Kind::SLEEPER, token, notify),
            None => Err(Rejected::Stopped(token)),
        }
    }

    fn submit_to(
        &self,
        queue: &Queue<H>,
        kind: Kind,
        mut token: KBox<H::Token>,
        notify: Notify,
    ) -> Result<(), Rejected<H::Token>> {
        // The notification is an exit, and so made without the lock; RCU keeps the virtqueue.
        let _guard = rcu::read_lock();
        let mut guard = queue.ring.lock();
        let ring = &mut *guard;
        let Some(vq) = ring.live() else {
            return Err(Rejected::Stopped(token));
        };

        let mut list = Buffers::new(&mut ring.table);
        token.buffers(&mut list);
        let Some(chain) = list.finish() else {
            return Err(Rejected::Invalid(token));
        };
        let data = token::into_data(token, kind);

        // SAFETY: The chain was just listed in the table. Its memory is that of the token, which
        // is kept as `data` and touched by nobody until it comes back, or that of pages, whose
        // content is raw memory to all.
        let result = unsafe { vq.add(&mut ring.table, &chain, data.as_ptr()) };
        if let Err(error) = result {
            let empty = vq.is_empty();
            drop(guard);
            // SAFETY: It was just made, and the virtqueue did not take it.
            let (token, _) = unsafe { token::from_data(data) };

            return Err(if error == ENOSPC && !empty {
                Rejected::Full(token)
            } else if error == ENOSPC || error == ENOMEM {
                Rejected::NoMemory(token)
            } else {
                Rejected::Stopped(token)
            });
        }

        ring.added = ring.added.wrapping_add(1);
        let quiet = !ring.watchers.added(kind) || queue.arm(ring);
        if notify == Notify::Now {
            self.notify(queue, vq, guard);
        } else {
            drop(guard);
        }
        if !quiet {
            self.reap(queue);
        }
        Ok(())
    }

    /// Tells the device of what was submitted, unless it said that it is looking anyway.
    ///
    /// Where interrupts come [late](Interrupts::Late), takes back what the device has used. Any
    /// context in which the [`Handler`] may be called; does not sleep.
    pub(crate) fn kick(&self, queue: usize) {
        let Some(queue) = self.queue(queue) else {
            return;
        };

        let _guard = rcu::read_lock();
        let ring = queue.ring.lock();
        if let Some(vq) = ring.live() {
            self.notify(queue, vq, ring);
        }
    }

    /// Notifies the device of a virtqueue that is live, within an RCU read-side critical section
    /// that was entered before the lock of the ring.
    fn notify(&self, queue: &Queue<H>, vq: Virtqueue, mut ring: RingGuard<'_, H>) {
        let wanted = vq.kick_prepare();

        ring.notified = ring.added;
        drop(ring);
        if wanted {
            self.notifications.add(1, Relaxed);
            vq.notify();
        }
        if queue.spec.interrupts == Interrupts::Late {
            // Also for what is late now to be that of more tokens.
            self.reap(queue);
        }
    }

    /// Returns how many tokens were added to a virtqueue so far. Any context.
    pub(crate) fn added(&self, queue: usize) -> u64 {
        self.queue(queue).map_or(0, |queue| queue.ring.lock().added)
    }

    /// Returns how many of the tokens came back so far, used or not. Any context.
    pub(crate) fn used(&self, queue: usize) -> u64 {
        self.queue(queue).map_or(0, |queue| queue.ring.lock().used)
    }

    /// Returns how many tokens had been added when the device was last notified, or said that it
    /// looks anyway; the notification itself may be a moment later. Any context.
    pub(crate) fn notified(&self, queue: usize) -> u64 {
        self.queue(queue)
            .map_or(0, |queue| queue.ring.lock().notified)
    }

    /// Returns how many tokens the device has. Any context.
    pub(crate) fn outstanding(&self, queue: usize) -> u64 {
        self.queue(queue).map_or(0, |queue| {
            let ring = queue.ring.lock();

            ring.added.wrapping_sub(ring.used)
        })
    }

    /// Takes back all that the device has used, whoever else may be about to.
    ///
    /// Any context in which the [`Handler`] may be called; does not sleep.
    pub(crate) fn look(&self) {
        for queue in &self.queues {
            self.look_at(queue);
        }
    }

    /// Returns whether virtqueues are found and one of them does not work any more, because the
    /// device is gone, or has broken the rules, or [`Self::break_device`] was called. Any context.
    pub(crate) fn is_broken(&self) -> bool {
        self.queues
            .iter()
            .any(|queue| queue.ring.lock().vq.is_some_and(Virtqueue::is_broken))
    }

    /// Has nothing go in or out any more, until the virtqueues are found again.
    ///
    /// The device may still touch the memory of the tokens that it has. They come back when the
    /// virtqueues are stopped. Any context.
    pub(crate) fn break_device(&self) {
        for queue in &self.queues {
            if let Some(vq) = queue.ring.lock().vq {
                vq.break_it();
            }
        }
    }

    extern "C" fn callback(vq: *mut bindings::virtqueue) {
        // SAFETY: The virtio core calls back with a valid virtqueue of a device that is bound.
        let (vdev, index) = unsafe { ((*vq).vdev, (*vq).index) };
        // SAFETY: This function is the callback only of virtqueues that a set of this type has
        // found, which is what the device is attached to for as long as they are there.
        let set = unsafe { Attachment::set::<H>(vdev) };

        set.interrupts.add(1, Relaxed);
        if let Some(queue) = set.queue(index as usize) {
            set.take_back(queue, Rearm::AtLast);
        }
    }

    /// Gives all used tokens to the handler, and has the device interrupt again after that, where
    /// it may take long until whoever does so gets to run again.
    fn reap(&self, queue: &Queue<H>) {
        self.take_back(queue, Rearm::AtOnce);
    }

    /// Gives all used tokens to the handler, and leaves interrupts as they are.
    fn look_at(&self, queue: &Queue<H>) {
        self.take_back(queue, Rearm::Never);
    }

    fn take_back(&self, queue: &Queue<H>, rearm: Rearm) {
        // Stopping waits for this before it lets go of the handler.
        let _guard = rcu::read_lock();

        loop {
            let mut batch = [const { None }; BATCH];
            let mut ring = queue.ring.lock();
            // No callback comes before there is a handler that would have anything to say to it.
            let Some(vq) = ring.live() else {
                return;
            };
            let Some(handler) = ring.handler.as_ref().map(|h| NonNull::from(&**h)) else {
                return;
            };

            if rearm != Rearm::Never {
                vq.disable_callbacks();
            }
            ring.fill(vq, &mut batch);
            let done = match rearm {
                Rearm::Never => batch.last().is_some_and(Option::is_none),
                Rearm::AtLast => batch.first().is_some_and(Option::is_none) && queue.arm(&ring),
                Rearm::AtOnce => queue.arm(&ring),
            };
            drop(ring);

            for place in &mut batch {
                let Some(Used { token, written }) = place.take() else {
                    break;
                };
                // SAFETY: By the type invariants of `Ring` the handler stays until the end of the
                // critical section, in which it was there.
                unsafe { handler.as_ref() }.done(queue.index, token, written);
            }
            if done {
                return;
            }
        }
    }
}
