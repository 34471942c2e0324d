// SPDX-License-Identifier: GPL-2.0

//! Keeps the module loaded while something must not be lost.

use kernel::{
    new_spinlock_irq,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        SpinLockIrq, //
    },
    ThisModule, //
};

use super::raw;

/// A count that holds a reference to the module while it is not zero.
///
/// # Invariants
///
/// A reference to the module is held whenever `count` is not zero; `count` goes from and to zero
/// only under `edge`.
#[pin_data]
pub(crate) struct ModulePin {
    module: &'static ThisModule,
    count: Atomic<u64>,
    #[pin]
    edge: SpinLockIrq<()>,
}

impl ModulePin {
    /// Returns a pin with a count of zero.
    pub(crate) fn new(module: &'static ThisModule) -> impl PinInit<Self> {
        pin_init!(Self {
            module,
            count: Atomic::new(0),
            edge <- new_spinlock_irq!((), "ModulePin::edge"),
        })
    }

    /// Adds `n` to the count, or returns false if the module is on its way out.
    ///
    /// Any context.
    pub(crate) fn add(&self, n: u64) -> bool {
        let mut old = self.count.load(Relaxed);
        while old != 0 {
            match self.count.cmpxchg(old, old.wrapping_add(n), Relaxed) {
                Ok(_) => return true,
                Err(now) => old = now,
            }
        }

        let _guard = self.edge.lock();
        if n > 0 && self.count.load(Relaxed) == 0 {
            // SAFETY: The module is valid: its code is running.
            if !unsafe { raw::try_module_get(self.module.as_ptr()) } {
                return false;
            }
        }
        // INVARIANT: A reference is held, and `edge` too.
        self.count.add(n, Relaxed);
        true
    }

    /// Subtracts `n` from the count, to which [`Self::add`] added them.
    ///
    /// Any context.
    pub(crate) fn sub(&self, n: u64) {
        let mut old = self.count.load(Relaxed);
        while old > n {
            match self.count.cmpxchg(old, old.wrapping_sub(n), Relaxed) {
                Ok(_) => return,
                Err(now) => old = now,
            }
        }

        let _guard = self.edge.lock();
        // INVARIANT: `edge` is held, and the reference given back if these were the last.
        if n > 0 && self.count.fetch_sub(n, Relaxed) == n {
            // SAFETY: `add()` took the reference.
            unsafe { raw::module_put(self.module.as_ptr()) };
        }
    }
}
