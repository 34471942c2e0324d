// SPDX-License-Identifier: GPL-2.0

//! A mutex that a static has.

use core::{
    cell::UnsafeCell,
    mem::MaybeUninit, //
};

use kernel::{
    prelude::*,
    sync::{
        Mutex,
        SetOnce, //
    }, //
};

/// A [`Mutex`] for a static, which cannot be initialized before the module is.
///
/// # Invariants
///
/// `mutex` is initialized, and not changed any more, if `ready` is populated.
pub(crate) struct StaticMutex<T> {
    claimed: SetOnce<()>,
    ready: SetOnce<()>,
    mutex: UnsafeCell<MaybeUninit<Mutex<T>>>,
}

// SAFETY: Only the one who claims it writes to it, before it is shared as the mutex that it is.
unsafe impl<T: Send> Sync for StaticMutex<T> {}

impl<T> StaticMutex<T> {
    /// Returns one without anything in it.
    pub(crate) const fn new() -> Self {
        // INVARIANT: It is not ready.
        Self {
            claimed: SetOnce::new(),
            ready: SetOnce::new(),
            mutex: UnsafeCell::new(MaybeUninit::uninit()),
        }
    }

    /// Initializes it, unless it is.
    pub(crate) fn init(&'static self, init: impl PinInit<Mutex<T>>) {
        if !self.claimed.populate(()) {
            return;
        }
        // SAFETY: Nobody else is here, nor has a reference to it, as it is not ready; and a static
        // is never moved.
        unsafe { pin_init::raw_init(self.mutex.get().cast(), init) };
        // INVARIANT: It is initialized.
        self.ready.populate(());
    }

    /// Returns the mutex, if it is initialized.
    pub(crate) fn get(&'static self) -> Option<&'static Mutex<T>> {
        self.ready.as_ref()?;
        // SAFETY: By the type invariants it is initialized, and only shared from then on.
        Some(unsafe { (*self.mutex.get()).assume_init_ref() })
    }
}
