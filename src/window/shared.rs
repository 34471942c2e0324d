// SPDX-License-Identifier: GPL-2.0

//! Windows that are a shared memory region of the tmem device.
//!
//! The region is there from the start. What is in it comes when the host has put it there, goes with a
//! reset of the device, and comes again: in between, what is read is no window, by its generations.

use kernel::{
    device::Bound,
    prelude::*, //
};

use crate::virtio;

use super::{
    Lent,
    Origin,
    REGIONS, //
};

/// The number of the region.
const REGION: u8 = 0;

/// Has a window looked for in the memory region of a tmem device, if it has one. May sleep.
pub(crate) fn lend(vdev: &virtio::Device<Bound>) -> Option<Lent> {
    // Without it, windows are not wanted.
    REGIONS.get()?;
    let memory = vdev.shared_memory(REGION)?;

    usize::try_from(memory.len)
        .map_err(Error::from)
        .and_then(|len| super::lend(memory.start, len, Origin::Device))
        .inspect_err(|error| {
            dev_warn!(
                vdev,
                "the device's memory region cannot be mapped ({error:?}), and is no window\n"
            );
        })
        .ok()
}
