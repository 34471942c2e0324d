// SPDX-License-Identifier: GPL-2.0

//! Where windows come from: memory of the host that the guest reaches by itself.
//!
//! QEMU's `ivshmem-plain` is a PCI device whose BAR 2 is a file in the host's memory. What it is
//! for, nobody but the file says: so the driver leaves each alone in which there is no header of a
//! tmem device's, and looks again when a tmem device says that it has written one.

use core::pin::Pin;

use kernel::{
    device::Core,
    device_id::IdArray,
    driver,
    new_mutex,
    page::{
        PAGE_SHIFT,
        PAGE_SIZE, //
    },
    pci,
    prelude::*,
    revocable::Revocable,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc, //
    }, //
};
use virtio_tmem_abi::{
    WindowHeader,
    CHUNK_SHIFT,
    FIRST_CHUNK,
    MAX_CHUNKS,
    WINDOW_MAGIC, //
};
use zerocopy::{
    FromZeros,
    IntoBytes, //
};

use crate::{
    bindings::{
        self,
        mapping::{
            self,
            Mapping, //
        },
        static_mutex::StaticMutex, //
    },
    params, //
};

/// The device ID of `ivshmem-plain`, and of `ivshmem-doorbell`, whose BAR 2 is the same.
const IVSHMEM: u32 = 0x1110;

/// The BAR that is the memory.
const BAR: u32 = 2;

/// The most devices that are looked at: a guest has one window, or a few.
const MAX_REGIONS: usize = 16;

/// The memory of the devices that are bound.
static REGIONS: StaticMutex<[Option<Arc<Region>>; MAX_REGIONS]> = StaticMutex::new();

/// How many devices there were without a header when they were looked at last.
static WITHOUT_HEADER: Atomic<i32> = Atomic::new(0);

/// The memory of a device, for as long as it is bound.
#[pin_data]
struct Region {
    #[pin]
    mapping: Revocable<Mapping>,
}

/// A window, as it was when it was found.
pub(crate) struct Source {
    region: Arc<Region>,
    chunks: u32,
}

impl Source {
    /// Returns how many chunks the window has, those included that cannot be granted.
    pub(crate) fn chunks(&self) -> u32 {
        self.chunks
    }

    /// Returns what the header is now, which may be anything. [`None`]: the memory is gone. Any context.
    pub(crate) fn header(&self) -> Option<WindowHeader> {
        self.with(raw_header).flatten()
    }

    /// Calls `f`, which must not sleep, with the memory; [`None`]: it is gone. Any context.
    #[inline]
    pub(crate) fn with<R>(&self, f: impl FnOnce(&Mapping) -> R) -> Option<R> {
        self.region.mapping.try_access_with(f)
    }
}

/// Returns the window with this identity, whose header the host has written before. May sleep.
pub(crate) fn find(identity: &[u8; 16]) -> Option<Arc<Source>> {
    let regions = REGIONS.get()?;

    WITHOUT_HEADER.store(0, Relaxed);
    bindings::pci::offer_devices(<crate::TmemModule as kernel::ModuleMetadata>::NAME);

    let regions = regions.lock();
    let mut found: Option<Source> = None;
    for region in regions.iter().flatten() {
        let Some(header) = region.mapping.try_access_with(header).flatten() else {
            continue;
        };
        if header.identity != *identity {
            continue;
        }
        if found.is_some() {
            pr_warn!(
                "two windows have the same identity, the first is taken: give each guest's QEMU one \
                 ivshmem-plain device for the file that the daemon made\n"
            );
            break;
        }
        found = usable(region, &header);
    }
    if found.is_none() {
        pr_notice!(
            "no window: of the ivshmem-plain devices that no other driver has, {} are without a tmem \
             header and none has this device's identity: give QEMU the file that the daemon made, as \
             memory-backend-file,share=on and ivshmem-plain\n",
            WITHOUT_HEADER.load(Relaxed)
        );
    }
    Arc::new(found?, GFP_KERNEL).ok()
}

/// Reads the header, if it is one.
fn header(mapping: &Mapping) -> Option<WindowHeader> {
    raw_header(mapping).filter(|header| header.magic.get() == WINDOW_MAGIC)
}

/// Reads what is where the header is to be.
fn raw_header(mapping: &Mapping) -> Option<WindowHeader> {
    let mut header = WindowHeader::new_zeroed();

    mapping.read(0, header.as_mut_bytes()).then_some(header)
}

/// Returns the window that is in a region, if it can be used.
fn usable(region: &Arc<Region>, header: &WindowHeader) -> Option<Source> {
    // CAST: It is a small number.
    if !header.is_known(PAGE_SHIFT as u8) {
        pr_err!(
            "the window has version {}, chunks of 2^{} and pages of 2^{} bytes, which the driver does \
             not know: use a daemon and a driver that belong together\n",
            header.version.get(),
            header.chunk_shift,
            header.page_shift
        );
        return None;
    }

    let (len, write_back) = region
        .mapping
        .try_access_with(|mapping| (mapping.len(), mapping.is_write_back()))?;
    let there = len >> CHUNK_SHIFT;
    let chunks = header
        .chunks
        .get()
        .min(u32::try_from(there).unwrap_or(u32::MAX))
        .min(MAX_CHUNKS);
    if chunks <= FIRST_CHUNK {
        pr_err!(
            "the window is too small, {} chunks of 2 MiB in {there} that the device has: give QEMU's \
             memory-backend-file the size that the file has\n",
            header.chunks.get()
        );
        return None;
    }
    if !write_back {
        pr_err!(
            "the window is not used, as it cannot be mapped write-back, and copies would be slower than \
             requests: give the guest a window of 4 GiB or more, which is put where that is the rule\n"
        );
        return None;
    }
    Some(Source {
        region: region.clone(),
        chunks,
    })
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

/// What there is for a device that is bound.
pub(crate) struct Lent(Arc<Region>);

impl Drop for Lent {
    fn drop(&mut self) {
        if let Some(regions) = REGIONS.get() {
            for slot in regions.lock().iter_mut() {
                if slot
                    .as_ref()
                    .is_some_and(|region| Arc::ptr_eq(region, &self.0))
                {
                    *slot = None;
                }
            }
        }
        self.0.mapping.revoke();
    }
}

impl pci::Driver for WindowDriver {
    type IdInfo = ();
    type Data<'bound> = Lent;
    const ID_TABLE: pci::IdTable<Self::IdInfo> = &IVSHMEM_TABLE;

    fn probe<'bound>(
        pdev: &'bound pci::Device<Core<'_>>,
        _info: Option<&'bound Self::IdInfo>,
    ) -> impl PinInit<Self::Data<'bound>, Error> + 'bound {
        lend(pdev)
    }
}

/// Takes a device, if there is a header in its memory.
fn lend(pdev: &pci::Device<Core<'_>>) -> Result<Lent> {
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

    let mapping = Mapping::new(start, len)?;
    let region = Arc::pin_init(
        try_pin_init!(Region {
            mapping <- Revocable::new(mapping),
        }),
        GFP_KERNEL,
    )?;
    let mut regions = REGIONS.get().ok_or(ENODEV)?.lock();
    let slot = regions
        .iter_mut()
        .find(|slot| slot.is_none())
        .ok_or(ENOSPC)?;

    *slot = Some(region.clone());
    Ok(Lent(region))
}

/// The registration of the driver.
pub(crate) type Registration = driver::Registration<pci::Adapter<WindowDriver>>;

/// Registers the driver, if windows are wanted. May sleep.
pub(crate) fn register(module: &'static ThisModule) -> Result<Option<Pin<KBox<Registration>>>> {
    if !params::window() {
        return Ok(None);
    }
    REGIONS.init(new_mutex!(
        [const { None }; MAX_REGIONS],
        "virtio_tmem::REGIONS"
    ));
    KBox::pin_init(
        driver::Registration::new(<crate::TmemModule as kernel::ModuleMetadata>::NAME, module),
        GFP_KERNEL,
    )
    .map(Some)
}
