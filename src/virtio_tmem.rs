// SPDX-License-Identifier: GPL-2.0

//! Transcendent memory over virtio: memory that the host has idle serves a guest that runs short.
//!
//! Clean page-cache pages that are evicted, and pages that are swapped out, go to the host if it
//! takes them, and come back when they are needed. From top to bottom:
//!
//! - [`hooks`]: where in the kernel pages come from and go to;
//! - [`client`]: what the host has, and how to put, get and flush it;
//! - [`window`]: memory of the host's that pages are copied to and from, where there is such;
//! - [`virtio`]: the virtio bus and virtqueues, which know nothing of all that;
//! - [`bindings`]: what the `kernel` crate lacks.
//!
//! [`driver`] puts them together when there is a device.

mod bindings;
mod client;
mod driver;
mod files;
mod hooks;
mod params;
mod stats;
#[allow(
    dead_code,
    unused_imports,
    reason = "it is whole, whatever this driver needs of it"
)]
mod virtio;
mod window;

use core::pin::Pin;

use kernel::prelude::*;

/// Returns the module.
fn this_module() -> &'static ThisModule {
    kernel::module::this_module::<TmemModule>()
}

/// The module.
#[pin_data]
struct TmemModule {
    // Before all else: what the host has of them is drained as long as there is one.
    _tmswap: files::Tmswap,
    #[pin]
    registration: kernel::driver::Registration<virtio::Adapter<driver::TmemDriver>>,
    // Windows are there before the devices that they belong to, and go after them.
    _window: Option<Pin<KBox<window::Registration>>>,
    // Dropped last, when there is no device any more: hooks may outlive it.
    _hooks: hooks::Teardown,
}

impl kernel::InPlaceModule for TmemModule {
    fn init(module: &'static ThisModule) -> impl PinInit<Self, Error> {
        pin_init::pin_init_scope(move || {
            params::check()?;
            Ok(try_pin_init!(Self {
                _tmswap: files::add_module(module)?,
                _window: window::register(module)?,
                registration <- kernel::driver::Registration::new(
                    <Self as kernel::ModuleMetadata>::NAME,
                    module,
                ),
                _hooks: hooks::Teardown,
            }))
        })
    }
}

module! {
    type: TmemModule,
    name: "virtio_tmem",
    authors: ["The virtio-tmem developers"],
    description: "Transcendent memory over virtio: cleancache and frontswap in the host",
    license: "GPL",
    params: {
        frontswap: bool {
            default: true,
            description: "Put swapped pages (default: on)",
        },
        cleancache: bool {
            default: true,
            description: "Put clean page-cache pages when they are evicted (default: on)",
        },
        write_through: bool {
            default: false,
            description: "Write swapped pages that are put to their swap area too, so that nothing is lost with the host (default: off)",
        },
        dm: bool {
            default: true,
            description: "Put pages of swap areas on device-mapper devices, which the host sees in plain text even where dm-crypt encrypts the area (default: on)",
        },
        ext4: bool {
            default: true,
            description: "Put pages of ext4 files (default: on)",
        },
        xfs: bool {
            default: true,
            description: "Put pages of xfs files (default: on)",
        },
        btrfs: bool {
            default: true,
            description: "Put pages of btrfs files (default: on)",
        },
        crc: u32 {
            default: 1,
            description: "Compare clean pages that come back with what was put: 0 never, 1 where the filesystem checks sums itself, 2 always (default: 1)",
        },
        window: bool {
            default: true,
            description: "Use memory that the host lends, by ivshmem-plain devices or by the tmem device itself (default: on)",
        },
        shared: bool {
            default: true,
            description: "Put pages of volumes that nobody can write to where other guests that have them find them, too, if the host's operator allows it (default: on)",
        },
        verify: bool {
            default: false,
            description: "Read each clean page that comes from the host from the disk, too, and compare them; the disk's is used (default: off)",
        },
        admission: bool {
            default: true,
            description: "Put clean pages of files only as long as such pages come back, and a sample of the others (default: on)",
        },
        max_order: u32 {
            default: 9,
            description: "Largest folio of the page cache to put, as a power of two of pages, 0 to 9; it is copied with interrupts off (default: 9)",
        },
        max_pages: u64 {
            default: 0,
            description: "Most pages to have in the host, of each kind; 0: as many as eight times the guest's memory (default: 0)",
        },
        staging_pages: u32 {
            default: 0,
            description: "Pages of memory for clean pages on their way to the host, 32 to 65536; 0: a 32nd of the memory that the guest has at the time, from 256 to 16384 pages (default: 0)",
        },
        timeout_ms: u32 {
            default: 3000,
            description: "How long the host may take to answer before everything that can goes on without it, 100 to 600000 (default: 3000)",
        },
        give_up_ms: u32 {
            default: 0,
            description: "How long the host may take to answer before it is given up, and what only it has is lost; at least timeout_ms; 0: never (default: 0)",
        },
        poll_us: u32 {
            default: 200,
            description: "For how long at most whoever wants a page looks for it, before the host has to interrupt, 0 to 10000; less where pages come sooner, not at all where they take longer (default: 200)",
        },
    },
}
