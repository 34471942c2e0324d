// SPDX-License-Identifier: GPL-2.0

//! Being told that the machine is going to sleep.

use kernel::{
    error::to_result,
    prelude::*,
    types::Opaque, //
};

use super::raw;

/// What is about to happen, or has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// An image of memory is going to be made, from which the machine goes on after having been off.
    HibernationPrepare,
    /// It was not made; or it was, and this is where the machine goes on.
    HibernationOver,
    /// The machine is going to sleep with its memory powered.
    SuspendPrepare,
    /// It is awake.
    SuspendOver,
    /// An image is going to take the place of all that there is in memory.
    RestorePrepare,
    /// It did not.
    RestoreFailed,
}

impl Event {
    fn from_raw(event: c_ulong) -> Option<Self> {
        Some(match u32::try_from(event).ok()? {
            raw::PM_HIBERNATION_PREPARE => Self::HibernationPrepare,
            raw::PM_POST_HIBERNATION => Self::HibernationOver,
            raw::PM_SUSPEND_PREPARE => Self::SuspendPrepare,
            raw::PM_POST_SUSPEND => Self::SuspendOver,
            raw::PM_RESTORE_PREPARE => Self::RestorePrepare,
            raw::PM_POST_RESTORE => Self::RestoreFailed,
            _ => return None,
        })
    }
}

/// Who is told.
pub(crate) trait Handler: Send + Sync + 'static {
    /// Takes note of an event. An error keeps the machine from sleeping; of what is over, it is
    /// ignored.
    ///
    /// Before anything is frozen, or after it is thawed. Sleeps.
    fn notify(&self, event: Event) -> Result;
}

/// Has a [`Handler`] told for as long as the instance lives.
///
/// # Invariants
///
/// `block` is registered, and the first field.
#[pin_data(PinnedDrop)]
#[repr(C)]
pub(crate) struct Notifier<T: Handler> {
    #[pin]
    block: Opaque<raw::notifier_block>,
    handler: T,
}

// SAFETY: It can be unregistered from any thread.
unsafe impl<T: Handler> Send for Notifier<T> {}
// SAFETY: The handler can be shared, and nothing can be done with the rest through a reference.
unsafe impl<T: Handler> Sync for Notifier<T> {}

impl<T: Handler> Notifier<T> {
    /// Has `handler` told from now on. May sleep.
    pub(crate) fn new(handler: T) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            handler,
            // INVARIANT: It is registered below, or there is no instance.
            block <- Opaque::ffi_init(|block: *mut raw::notifier_block| {
                // SAFETY: `block` is memory for a block that nobody knows of yet. What calls it once it is
                // registered calls with it, and dropping the instance waits for that.
                unsafe {
                    block.write(raw::notifier_block {
                        notifier_call: Some(Self::call),
                        ..Default::default()
                    })
                };
            }),
        }? Error)
        .pin_chain(|this| {
            // SAFETY: The block was initialised above, stays where it is as it is pinned, and is
            // unregistered before it goes.
            to_result(unsafe { raw::register_pm_notifier(this.block.get()) })
        })
    }

    /// # Safety
    ///
    /// `block` must be that of an instance, which is not dropped before this returns.
    unsafe extern "C" fn call(
        block: *mut raw::notifier_block,
        event: c_ulong,
        _data: *mut c_void,
    ) -> c_int {
        // SAFETY: By the safety requirements, and as the block is the first field of the instance.
        let this = unsafe { &*block.cast::<Self>() };

        match Event::from_raw(event).map(|event| this.handler.notify(event)) {
            Some(Err(error)) => raw::NOTIFY_STOP_MASK as c_int | (1 - error.to_errno()),
            _ => raw::NOTIFY_OK as c_int,
        }
    }
}

#[pinned_drop]
impl<T: Handler> PinnedDrop for Notifier<T> {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: By the type invariants the block is registered. This waits for calls of it.
        unsafe { raw::unregister_pm_notifier(self.block.get()) };
    }
}
