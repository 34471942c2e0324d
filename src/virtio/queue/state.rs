// SPDX-License-Identifier: GPL-2.0

//! The states of a device's virtqueues, each a type.

use core::{
    marker::PhantomData,
    ptr::{
        self,
        NonNull, //
    },
};

use kernel::{
    device::Core,
    error::to_result,
    prelude::*,
    sync::{
        aref::ARef,
        atomic::{
            Relaxed,
            Release, //
        },
        rcu,
        Arc, //
    },
    types::NotThreadSafe, //
};

use crate::bindings;

use super::{
    super::Device,
    attachment::Attachment,
    token,
    virtqueue::Virtqueue,
    Handler,
    Link,
    Queues,
    Spec, //
};

/// Virtqueues that are not there: the device has none of their tokens.
pub(crate) struct Stopped<H: Handler>(Arc<Queues<H>>);

/// Virtqueues that are there, but not used yet.
///
/// They are deleted, and the device is reset, when it is dropped. It does not outlive the function
/// that the bus called, so that the device is not ready without them: the lifetime is that of the
/// call.
pub(crate) struct Found<'call, H: Handler> {
    claim: Claim<H>,
    vdev: ARef<Device>,
    _call: PhantomData<Core<'call>>,
    _not_send: NotThreadSafe,
}

/// Virtqueues that are used.
///
/// They are stopped when it is dropped, and the tokens that the device has are dropped then, too.
pub(crate) struct Live<H: Handler>(Claim<H>);

/// Stops virtqueues when it is dropped.
struct Claim<H: Handler>(Arc<Queues<H>>);

impl<H: Handler> Drop for Claim<H> {
    fn drop(&mut self) {
        self.0.stop_with(|_, token| drop(token));
    }
}

/// Why there are no virtqueues.
pub(crate) struct FindError<H: Handler> {
    /// What failed.
    pub(crate) error: Error,
    /// To try again.
    pub(crate) stopped: Stopped<H>,
}

impl<H: Handler> From<FindError<H>> for Error {
    fn from(error: FindError<H>) -> Self {
        error.error
    }
}

impl<H: Handler> Stopped<H> {
    /// Makes a set of virtqueues as `specs` say, for a device to have; it has none of them yet.
    ///
    /// May sleep.
    pub(crate) fn new(specs: impl IntoIterator<Item = Spec>) -> Result<Self> {
        Ok(Self(Queues::new(specs)?))
    }

    /// Returns the virtqueues.
    pub(crate) fn queues(&self) -> &Arc<Queues<H>> {
        &self.0
    }

    /// Asks the device for the virtqueues; `handler` gets their tokens back once they are live.
    ///
    /// A device that was reset since the bus called the driver is brought to agree to its features
    /// again first. Fails with `EBUSY` if the device has other virtqueues, and with what the
    /// transport says if it does not have these. May sleep.
    pub(crate) fn find<'call>(
        self,
        vdev: &Device<Core<'call>>,
        handler: Arc<H>,
    ) -> Result<Found<'call, H>, FindError<H>> {
        match self.0.find(vdev, handler) {
            Ok(vdev) => Ok(Found {
                claim: Claim(self.0),
                vdev,
                _call: PhantomData,
                _not_send: NotThreadSafe,
            }),
            Err(error) => Err(FindError {
                error,
                stopped: self,
            }),
        }
    }
}

impl<H: Handler> Found<'_, H> {
    /// Returns the virtqueues.
    pub(crate) fn queues(&self) -> &Arc<Queues<H>> {
        &self.claim.0
    }

    /// Returns how many descriptors a virtqueue has; 0 if there is no such virtqueue.
    pub(crate) fn ring_size(&self, queue: usize) -> u32 {
        let vq = self
            .queues()
            .queue(queue)
            .and_then(|queue| queue.ring.lock().vq);

        vq.map_or(0, Virtqueue::size)
    }

    /// Returns whether the feature `bit` was negotiated.
    pub(crate) fn has_feature(&self, bit: u32) -> bool {
        // SAFETY: The device is bound: the bus has not returned from the call that it was found in.
        unsafe { bindings::tmem_virtio_has_feature(self.vdev.as_raw(), bit) }
    }

    /// Has the device be ready, if it is not yet, and the virtqueues be used from now on.
    ///
    /// May sleep.
    pub(crate) fn start(self) -> Live<H> {
        self.claim.0.start();
        Live(self.claim)
    }
}

impl<H: Handler> Live<H> {
    /// Returns the virtqueues.
    pub(crate) fn queues(&self) -> &Arc<Queues<H>> {
        &self.0 .0
    }

    /// Stops the virtqueues: resets the device, and deletes them.
    ///
    /// `take` gets each token that the device had, with the number of its virtqueue; the device may
    /// or may not have done what it was asked to with it. When this returns the device does not
    /// touch any token's memory, and the [`Handler`] is not being called, nor will be before they
    /// are live again. So it is not to be called by the handler. May sleep, and so may `take`,
    /// which may submit to the virtqueues, in vain.
    pub(crate) fn stop(self, take: impl FnMut(usize, KBox<H::Token>)) -> Stopped<H> {
        let queues = self.queues().clone();

        queues.stop_with(take);
        Stopped(queues)
    }
}

impl<H: Handler> Queues<H> {
    fn find(self: &Arc<Self>, vdev: &Device<Core<'_>>, handler: Arc<H>) -> Result<ARef<Device>> {
        let count = self.queues.len();
        let mut infos = KVec::with_capacity(count, GFP_KERNEL)?;
        let mut vqs = KVec::with_capacity(count, GFP_KERNEL)?;
        for queue in &self.queues {
            infos.push(
                bindings::virtqueue_info {
                    name: queue.spec.name.as_char_ptr(),
                    callback: Some(Self::callback),
                    ctx: false,
                },
                GFP_KERNEL,
            )?;
            vqs.push(ptr::null_mut(), GFP_KERNEL)?;
        }

        vdev.negotiate()?;
        // From here on a callback may come; it finds that the rings are not live.
        Attachment::attach(vdev, self)?;
        let mut link = self.link.lock();

        // SAFETY: The device is bound, as it is given to a function that the bus called, and both
        // arrays have `count` members.
        to_result(unsafe {
            bindings::tmem_virtio_find_vqs(
                vdev.as_raw(),
                count as c_uint,
                vqs.as_mut_ptr(),
                infos.as_mut_ptr(),
            )
        })?;
        for (queue, &vq) in self.queues.iter().zip(&vqs) {
            // SAFETY: The transport has just returned it. Only `stop_with()` deletes it, after a
            // grace period in which no ring was live; and it is used with the lock of the ring
            // held.
            let vq = NonNull::new(vq).map(|vq| unsafe { Virtqueue::new(vq) });

            // INVARIANT: There is no handler.
            queue.ring.lock().vq = vq;
        }

        let vdev = ARef::<Device>::from(vdev);
        // INVARIANT: The device is bound, and remembers these virtqueues.
        *link = Some(Link {
            vdev: vdev.clone(),
            handler,
        });
        Ok(vdev)
    }

    fn start(&self) {
        let link = self.link.lock();
        let Some(link) = &*link else {
            return;
        };

        // The device is not to be notified before it is ready.
        // SAFETY: By the type invariants it is bound as long as there is a link.
        unsafe { link.vdev.ready() };
        for queue in &self.queues {
            let mut ring = queue.ring.lock();
            let Some(vq) = ring.vq else {
                continue;
            };

            ring.used_before = ring.used;
            // INVARIANT: It is part of the virtqueue, which `stop_with()` deletes after a grace
            // period in which this was null.
            queue.used_index.store(vq.used_index(), Release);
            // INVARIANT: `stop_with()` lets go of both after a grace period.
            ring.handler = Some(link.handler.clone());
        }
    }

    /// Stops the virtqueues, if they are found; `take` gets the tokens that the device had.
    pub(super) fn stop_with(&self, mut take: impl FnMut(usize, KBox<H::Token>)) {
        let mut link = self.link.lock();
        let Some(Link { vdev, handler }) = link.take() else {
            return;
        };

        for queue in &self.queues {
            let mut ring = queue.ring.lock();

            // The link's reference is kept, so that this is not the last one.
            ring.handler = None;
            queue.used_index.store(ptr::null(), Relaxed);
        }
        // Whoever saw a ring live may still be about to notify the device, or to call the handler.
        rcu::synchronize_rcu();
        // SAFETY: By the type invariants of `Queues` the device is bound: there was a link, and its
        // lock has been held since.
        unsafe { vdev.reset() };

        for queue in &self.queues {
            let vq = queue.ring.lock().vq.take();

            // The lock is not held over `take()`, which may take others.
            while let Some(vq) = vq {
                // SAFETY: The device was reset. Nobody else uses the virtqueue: it has just been
                // taken out of the ring.
                let Some(data) = (unsafe { vq.detach() }) else {
                    break;
                };
                // SAFETY: By the type invariants of `Ring` it is that of a token, and the
                // virtqueue gives it back only once.
                let (token, kind) = unsafe { token::from_data(data) };

                queue.ring.lock().note_used(kind);
                take(queue.index, token);
            }
        }

        // SAFETY: The device is bound, as it was when it was reset: the lock of the link is still
        // held. Nobody has its virtqueues any more.
        unsafe { bindings::tmem_virtio_del_vqs(vdev.as_raw()) };
        drop(link);
        drop(handler);
    }
}
