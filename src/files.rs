// SPDX-License-Identifier: GPL-2.0

//! The operator's files, in the folder `tmem` of the device in sysfs.

use core::fmt::Write;

use kernel::{
    device::{
        Bound,
        Device, //
    },
    prelude::*, //
};

use crate::{
    bindings::sysfs::{
        File,
        Group,
        Text, //
    },
    hooks::Drain, //
};

/// What the files are about: the one device that there can be.
pub(crate) struct About;

static FILES: [File<About>; 1] = [File {
    name: c"drain",
    show: Some(show_drain),
    store: Some(store_drain),
}];

/// Adds the files to the folder of a device, for as long as the result lives. May sleep.
pub(crate) fn add(device: &Device<Bound>) -> Result<Group<'_, About>> {
    Group::new(device, c"tmem", &FILES, About)
}

/// Says how far the drain is, and whether swapped pages are put.
fn show_drain(_: &About, text: &mut Text<'_>) -> Result {
    let drain = Drain::get().ok_or(ENODEV)?;
    let progress = drain.progress();
    let state = if progress.running {
        "running"
    } else if drain.is_closed() {
        "over"
    } else {
        "off"
    };

    writeln!(
        text,
        "left {} written {} failed {} {state}",
        progress.left, progress.written, progress.failed
    )
    .map_err(|_| EOVERFLOW)
}

/// Starts a drain, or stops it and lets swapped pages be put again.
fn store_drain(_: &About, text: &str) -> Result {
    let drain = Drain::get().ok_or(ENODEV)?;

    match text {
        "1" => drain.start(),
        "0" => drain.stop(),
        _ => {
            pr_err!("drain: {text:?} makes no sense: write 1 to start it, 0 to stop it\n");
            return Err(EINVAL);
        }
    }
    Ok(())
}
