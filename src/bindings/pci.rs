// SPDX-License-Identifier: GPL-2.0

//! What the `kernel` crate lacks for PCI drivers.

use kernel::{
    device::Core,
    error::to_result,
    pci,
    prelude::*, //
};

use super::raw;

/// Enables a device until its driver is unbound, or does not bind after all. May sleep.
pub(crate) fn enable(pdev: &pci::Device<Core<'_>>) -> Result {
    // CAST: `pci::Device` is a transparent wrapper of `struct pci_dev`.
    let raw = core::ptr::from_ref(pdev).cast::<raw::pci_dev>().cast_mut();

    // SAFETY: `raw` is valid, and is being probed or bound.
    to_result(unsafe { raw::pcim_enable_device(raw) })
}

/// Offers a driver the devices that it is for and that have none. May sleep.
///
/// Returns when it has taken or refused each.
pub(crate) fn offer_devices(driver: &'static CStr) {
    // SAFETY: The name is a string, and the bus is always there. The driver stays registered, as
    // it is the module's, which is not unloaded while it is in this call.
    unsafe {
        let driver = raw::driver_find(driver.as_char_ptr(), &raw const raw::pci_bus_type);

        if !driver.is_null() {
            // It fails only for what is not there.
            let _ = raw::driver_attach(driver);
        }
    }
}
