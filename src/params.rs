// SPDX-License-Identifier: GPL-2.0

//! The module's parameters, checked.

use kernel::prelude::*;

use crate::{
    client::Limits,
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

/// Returns the filesystems whose clean pages are put, and whether each checks sums itself.
pub(crate) fn filesystems() -> impl Iterator<Item = (&'static CStr, bool)> {
    [
        (module_parameters::ext4.value(), c"ext4", false),
        (module_parameters::xfs.value(), c"xfs", false),
        (module_parameters::btrfs.value(), c"btrfs", true),
    ]
    .into_iter()
    .filter(|(on, _, _)| *on)
    .map(|(_, name, checks)| (name, checks))
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
pub(crate) fn limits(total_pages: u64) -> Limits {
    let max_pages = match module_parameters::max_pages.value() {
        0 => total_pages.saturating_mul(8),
        pages => pages,
    };

    let staging_pages = match module_parameters::staging_pages.value() {
        // CAST: Clamped.
        0 => (total_pages / 32).clamp(1024, 16384) as u32,
        pages => pages,
    };

    Limits {
        // An index for fewer would not have memory to begin with.
        max_pages: max_pages.clamp(1024, 1 << 36),
        staging_pages,
        timeout_ms: module_parameters::timeout_ms.value(),
        poll_us: module_parameters::poll_us.value(),
        admission: module_parameters::admission.value().then_some(total_pages),
    }
}
