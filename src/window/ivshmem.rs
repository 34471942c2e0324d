// SPDX-License-Identifier: GPL-2.0

//! Windows that are devices of their own: QEMU's `ivshmem-plain`.
//!
//! It is a PCI device whose BAR 2 is a file in the host's memory. What it is for, nobody but the file
//! says: so the driver leaves each alone in which there is no header of a tmem device's, and looks
//! again when a tmem device says that it has written one.

use core::pin::Pin;

use kernel::{
    device::Core,
    device_id::IdArray,
    driver,
    page::PAGE_SIZE,
    pci,
    prelude::*,
    sync::atomic::{
        Atomic,
        Relaxed, //
    }, //
};
use virtio_tmem_abi::{
    WindowHeader,
    WINDOW_MAGIC, //
};
use zerocopy::{
    FromZeros,
    IntoBytes, //
};

use crate::bindings::{
    self,
    mapping, //
};

use super::{
    Lent,
    Origin, //
};

/// The device ID of `ivshmem-plain`, and of `ivshmem-doorbell`, whose BAR 2 is the same.
const IVSHMEM: u32 = 0x1110;

/// The BAR that is the memory.
const BAR: u32 = 2;

/// How many devices there were without a header when they were looked at last.
static WITHOUT_HEADER: Atomic<i32> = Atomic::new(0);

/// Looks at the devices that no driver has, and takes those with a header. May sleep.
pub(super) fn look_again() {
    WITHOUT_HEADER.store(0, Relaxed);
    bindings::pci::offer_devices(<crate::TmemModule as kernel::ModuleMetadata>::NAME);
}

/// Returns how many devices there were without a header when they were looked at last.
pub(super) fn without_header() -> i32 {
    WITHOUT_HEADER.load(Relaxed)
}

/// The driver of devices that lend memory.
pub(crate) struct WindowDriver;

/// Without an alias: what the module is for is the tmem device, and udev does not load it for each
/// ivshmem device.
static IVSHMEM_TABLE: IdArray<pci::DeviceId, (), 1> =
    IdArray::new_without_index([pci::DeviceId::from_id(
        pci::Vendor::REDHAT_QUMRANET,
        IVSHMEM,
    )]);

impl pci::Driver for WindowDriver {
    type IdInfo = ();
    type Data<'bound> = Lent;
    const ID_TABLE: pci::IdTable<Self::IdInfo> = &IVSHMEM_TABLE;

    fn probe<'bound>(
        pdev: &'bound pci::Device<Core<'_>>,
        _info: Option<&'bound Self::IdInfo>,
    ) -> impl PinInit<Self::Data<'bound>, Error> + 'bound {
        take(pdev)
    }
}

/// Takes a device, if there is a header in its memory.
fn take(pdev: &pci::Device<Core<'_>>) -> Result<Lent> {
    let start = pdev.resource_start(BAR)?;
    let len = usize::try_from(pdev.resource_len(BAR)?)?;
    if len < PAGE_SIZE {
        return Err(ENODEV);
    }

    bindings::pci::enable(pdev)?;

    // Before it is claimed: most ivshmem devices are somebody else's, and are left alone.
    let mut header = WindowHeader::new_zeroed();
    mapping::peek(start, header.as_mut_bytes())?;
    if header.magic.get() != WINDOW_MAGIC {
        WITHOUT_HEADER.fetch_add(1, Relaxed);
        return Err(ENODEV);
    }

    super::lend(start, len, Origin::Ivshmem)
}

/// The registration of the driver.
pub(crate) type Registration = driver::Registration<pci::Adapter<WindowDriver>>;

/// Registers the driver. May sleep.
pub(super) fn register(module: &'static ThisModule) -> Result<Pin<KBox<Registration>>> {
    KBox::pin_init(
        driver::Registration::new(<crate::TmemModule as kernel::ModuleMetadata>::NAME, module),
        GFP_KERNEL,
    )
}
