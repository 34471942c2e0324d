// SPDX-License-Identifier: GPL-2.0

//! The module's parameters, checked.

use kernel::{
    debugfs::ScopedDir,
    prelude::*, //
};

use crate::{
    client::{
        Limits,
        StagingSize,
        Wants, //
    },
    module_parameters, //
};

/// What is remembered of clean pages to compare them with when they come back.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Crc {
    /// Nothing.
    Never,
    /// A CRC, where the filesystem has checksums of its own.
    Checksummed,
    /// A CRC.
    Always,
}

/// Refuses to load with a parameter that makes no sense.
pub(crate) fn check() -> Result {
    within("crc", module_parameters::crc.value(), 0, 2)?;
    within("max_order", module_parameters::max_order.value(), 0, 9)?;
    if module_parameters::staging_pages.value() != 0 {
        within(
            "staging_pages",
            module_parameters::staging_pages.value(),
            32,
            65536,
        )?;
    }
    within(
        "timeout_ms",
        module_parameters::timeout_ms.value(),
        100,
        600_000,
    )?;
    let give_up = module_parameters::give_up_ms.value();
    if give_up != 0 {
        let timeout = module_parameters::timeout_ms.value();

        within("give_up_ms", give_up, timeout, u32::MAX)?;
    }
    within("poll_us", module_parameters::poll_us.value(), 0, 10_000)?;
    Ok(())
}

fn within(name: &str, value: u32, min: u32, max: u32) -> Result {
    if (min..=max).contains(&value) {
        return Ok(());
    }
    pr_err!("{name}={value} makes no sense: give a number from {min} to {max}\n");
    Err(EINVAL)
}

/// Returns whether swapped pages are put.
pub(crate) fn frontswap() -> bool {
    module_parameters::frontswap.value()
}

/// Returns whether swapped pages that are put are written to their swap area too.
pub(crate) fn write_through() -> bool {
    module_parameters::write_through.value()
}

/// Returns whether pages of swap areas on device-mapper's devices are put.
pub(crate) fn device_mapper() -> bool {
    module_parameters::dm.value()
}

/// Returns whether clean pages are put.
pub(crate) fn cleancache() -> bool {
    module_parameters::cleancache.value()
}

/// Returns whether clean pages of the filesystem with this name are put.
pub(crate) fn filesystem(name: &CStr) -> bool {
    match name.to_bytes() {
        b"ext4" => module_parameters::ext4.value(),
        b"xfs" => module_parameters::xfs.value(),
        b"btrfs" => module_parameters::btrfs.value(),
        _ => false,
    }
}

/// Returns whether memory that the host lends is used.
pub(crate) fn window() -> bool {
    module_parameters::window.value()
}

/// Returns whether clean pages that come from the host are compared with what the disk has.
pub(crate) fn verify() -> bool {
    module_parameters::verify.value()
}

/// Returns what is remembered of clean pages.
pub(crate) fn crc() -> Crc {
    match module_parameters::crc.value() {
        0 => Crc::Never,
        1 => Crc::Checksummed,
        _ => Crc::Always,
    }
}

/// Returns the order of the largest folio to put.
pub(crate) fn max_order() -> u32 {
    module_parameters::max_order.value()
}

/// Returns the limits of the client, for a guest with so many pages of memory.
pub(crate) fn limits(wants: Wants, total_pages: u64) -> Limits {
    let max_pages = match module_parameters::max_pages.value() {
        0 => total_pages.saturating_mul(8),
        pages => pages,
    };
    let staging = match module_parameters::staging_pages.value() {
        _ if !wants.cleancache => StagingSize::Nothing,
        0 => StagingSize::OfMemory,
        pages => StagingSize::Pages(pages),
    };

    Limits {
        // An index for fewer would not have memory to begin with.
        max_pages: max_pages.clamp(1024, 1 << 36),
        staging,
        timeout_ms: module_parameters::timeout_ms.value(),
        give_up_ms: Some(module_parameters::give_up_ms.value()).filter(|&ms| ms > 0),
        poll_us: module_parameters::poll_us.value(),
        window: window(),
        shared: wants.cleancache && module_parameters::shared.value(),
        written_through: write_through(),
        admission: module_parameters::admission.value().then_some(total_pages),
    }
}

fn number(value: impl Copy + Into<u64>) -> u64 {
    value.into()
}

macro_rules! in_force {
    ($($name:ident,)*) => {
        /// The parameters in force, as numbers.
        pub(crate) struct InForce {
            $($name: u64,)*
        }

        impl InForce {
            /// Returns them.
            pub(crate) fn new() -> Self {
                Self { $($name: number(module_parameters::$name.value()),)* }
            }

            /// Shows each in a file of a folder.
            pub(crate) fn show<'a>(&'a self, folder: &ScopedDir<'a, '_>) {
                $(
                    // CAST: A string without a zero in it, with one after it.
                    if let Ok(name) = CStr::from_bytes_with_nul(
                        concat!(stringify!($name), "\0").as_bytes(),
                    ) {
                        folder.read_only_file(name, &self.$name);
                    }
                )*
            }
        }
    };
}

in_force! {
    frontswap,
    cleancache,
    write_through,
    dm,
    ext4,
    xfs,
    btrfs,
    crc,
    window,
    shared,
    verify,
    admission,
    max_order,
    max_pages,
    staging_pages,
    timeout_ms,
    give_up_ms,
    poll_us,
}
