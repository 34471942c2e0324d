// SPDX-License-Identifier: GPL-2.0

//! Where windows come from: memory of the host that the guest reaches by itself.
//!
//! It is in a device [of its own](ivshmem), or in the [tmem device itself](shared). Whichever it is,
//! there is a header in it that says whose it is, once the host has written that.

mod ivshmem;
pub(crate) mod shared;

use core::pin::Pin;

use kernel::{
    fmt,
    new_mutex,
    page::PAGE_SHIFT,
    prelude::*,
    revocable::Revocable,
    sync::Arc, //
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
        mapping::Mapping,
        static_mutex::StaticMutex, //
    },
    params, //
};

/// The most devices that are looked at: a guest has one window, or a few.
const MAX_REGIONS: usize = 16;

/// The memory of the devices that are bound.
static REGIONS: StaticMutex<[Option<Arc<Region>>; MAX_REGIONS]> = StaticMutex::new();

/// By what a window is had.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Origin {
    /// By a shared memory region of the tmem device.
    Device,
    /// By an `ivshmem-plain` device.
    Ivshmem,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Device => "the tmem device itself",
            Self::Ivshmem => "an ivshmem device",
        })
    }
}

/// The memory of a device, for as long as it is bound.
#[pin_data]
struct Region {
    origin: Origin,
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

    ivshmem::look_again();

    let regions = regions.lock();
    // The device's own comes first, where both are given.
    let of = |origin| {
        regions
            .iter()
            .flatten()
            .filter(move |region| region.origin == origin)
    };
    let mut found: Option<Source> = None;
    for region in [Origin::Device, Origin::Ivshmem].into_iter().flat_map(of) {
        let Some(header) = region.mapping.try_access_with(header).flatten() else {
            continue;
        };
        if header.identity != *identity {
            continue;
        }
        if found.is_some() {
            pr_warn!(
                "two windows have the same identity, the first is taken: give each guest's QEMU the \
                 window that the daemon made once\n"
            );
            break;
        }
        found = usable(region, &header);
    }
    match &found {
        Some(source) => pr_info!(
            "the window is memory of {}, {} chunks of 2 MiB\n",
            source.region.origin,
            source.chunks
        ),
        None if of(Origin::Device).next().is_some() => pr_notice!(
            "no window: the device has a memory region for it, in which the host has put nothing; \
             its log says why\n"
        ),
        None => pr_notice!(
            "no window: of the ivshmem-plain devices that no other driver has, {} are without a tmem \
             header and none has this device's identity: give QEMU the file that the daemon made, as \
             memory-backend-file,share=on and ivshmem-plain\n",
            ivshmem::without_header()
        ),
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

/// What there is for a device that lends memory. Dropping it takes the memory back from all who use
/// it.
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

/// Maps the memory of a device, for windows to be looked for in it. May sleep.
fn lend(start: u64, len: usize, origin: Origin) -> Result<Lent> {
    let mapping = Mapping::new(start, len)?;
    let region = Arc::pin_init(
        try_pin_init!(Region {
            origin,
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

/// The registration of the driver of devices that are windows.
pub(crate) type Registration = ivshmem::Registration;

/// Gets ready for windows, if they are wanted. May sleep.
pub(crate) fn register(module: &'static ThisModule) -> Result<Option<Pin<KBox<Registration>>>> {
    if !params::window() {
        return Ok(None);
    }
    REGIONS.init(new_mutex!(
        [const { None }; MAX_REGIONS],
        "virtio_tmem::REGIONS"
    ));
    ivshmem::register(module).map(Some)
}
