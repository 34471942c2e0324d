// SPDX-License-Identifier: GPL-2.0

//! What a device remembers of its virtqueues.
//!
//! It is there for two who know nothing of each other: callbacks, which are given a virtqueue and
//! nothing else, and the bus, which has to see to it that virtqueues are gone before their device
//! is, whatever the driver did with those who own them.

use core::ptr;

use kernel::{
    device::{
        Core,
        CoreInternal, //
    },
    prelude::*,
    sync::Arc, //
};

use crate::bindings;

use super::{
    super::Device,
    Handler,
    Queues, //
};

/// Virtqueues of whatever type.
trait Set: Send + Sync {
    /// Resets the device and deletes its virtqueues, if there are any.
    fn stop(&self);

    /// Returns whether there are virtqueues.
    fn is_found(&self) -> bool;
}

impl<H: Handler> Set for Queues<H> {
    fn stop(&self) {
        self.stop_with(|_, token| drop(token));
    }

    fn is_found(&self) -> bool {
        self.link.lock().is_some()
    }
}

/// What `priv` of a device points to, from the first time that virtqueues are looked for until the
/// driver is unbound.
///
/// `priv` is only written, and read other than by callbacks of virtqueues that are there, in
/// functions that the bus calls: one after the other.
///
/// # Invariants
///
/// `queues` points to the `Queues<H>` that `set` is; if they are found, their `H` is that of the
/// callback of the device's virtqueues.
pub(super) struct Attachment {
    set: Arc<dyn Set>,
    queues: *const c_void,
}

impl Attachment {
    /// Has a device remember virtqueues that it is about to be asked for.
    ///
    /// Fails with `EBUSY` if it has others. May sleep.
    pub(super) fn attach<H: Handler>(vdev: &Device<Core<'_>>, queues: &Arc<Queues<H>>) -> Result {
        let raw = vdev.as_raw();
        let new = Self {
            set: queues.clone(),
            // INVARIANT: They are the same.
            queues: Arc::as_ptr(queues).cast(),
        };

        // SAFETY: The bus calls one function at a time, so that nobody else writes `priv`.
        let old = unsafe { (*raw).priv_ }.cast::<Self>();
        if old.is_null() {
            let new = KBox::new(new, GFP_KERNEL)?;
            // SAFETY: The bus calls one function at a time, so that nobody else uses `priv`.
            unsafe { (*raw).priv_ = KBox::into_raw(new).cast() };
            return Ok(());
        }
        // SAFETY: It is not null, so that this function has set it, to what only `release()` frees.
        if unsafe { (*old).set.is_found() } {
            return Err(EBUSY);
        }
        // SAFETY: As it is not found, the device has no virtqueues, and there is no callback that
        // would use the old one.
        unsafe { *old = new };
        Ok(())
    }

    /// Returns the virtqueues of a device.
    ///
    /// # Safety
    ///
    /// To be called by a callback, of virtqueues that a `Queues<H>` has found, with their device.
    pub(super) unsafe fn set<'a, H: Handler>(vdev: *mut bindings::virtio_device) -> &'a Queues<H> {
        // SAFETY: By the safety requirements there are virtqueues, so that `priv` is set, and stays
        // as it is until callbacks do not come any more.
        let queues = unsafe { (*(*vdev).priv_.cast::<Self>()).queues };

        // SAFETY: By the type invariants and the safety requirements it is one of this type.
        unsafe { &*queues.cast() }
    }

    /// Returns the virtqueues that a device remembers.
    fn of(vdev: &Device<CoreInternal<'_>>) -> Option<Arc<dyn Set>> {
        // SAFETY: The bus calls one function at a time, so that nobody else writes `priv`.
        let attachment = unsafe { (*vdev.as_raw()).priv_ }.cast::<Self>();

        // SAFETY: It is null or what `attach()` has set it to, and only `release()` frees that.
        unsafe { attachment.as_ref() }.map(|attachment| attachment.set.clone())
    }
}

/// Stops the virtqueues of a device, if there are any. The tokens that the device has are dropped.
///
/// May sleep.
pub(in super::super) fn stop_all(vdev: &Device<CoreInternal<'_>>) {
    if let Some(set) = Attachment::of(vdev) {
        set.stop();
    }
}

/// Stops the virtqueues of a device, if there are any, and forgets them; whoever owns them cannot
/// do anything to the device any more.
///
/// May sleep.
pub(in super::super) fn release(vdev: &Device<CoreInternal<'_>>) {
    stop_all(vdev);

    let raw = vdev.as_raw();
    // SAFETY: The bus calls one function at a time, and there are no virtqueues whose callbacks
    // would use it.
    let attachment = unsafe { core::mem::replace(&mut (*raw).priv_, ptr::null_mut()) };
    if !attachment.is_null() {
        // SAFETY: `attach()` has set it, to what comes from a box.
        drop(unsafe { KBox::from_raw(attachment.cast::<Attachment>()) });
    }
}
