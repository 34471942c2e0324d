// SPDX-License-Identifier: GPL-2.0

//! The operator's files: in the folder `tmem` of the device in sysfs, and of the module's own devices in
//! `/sys/devices/faux/virtio_tmem/tmswap/`.

use core::fmt::Write;

use kernel::{
    device::{
        Bound,
        Device, //
    },
    prelude::*,
    sync::Arc, //
};

use crate::{
    bindings::sysfs::{
        File,
        Folder,
        Group,
        Text, //
    },
    hooks::{
        Client,
        Devices,
        Drain, //
    },
};

/// What the files are about.
pub(crate) struct About {
    client: Arc<Client>,
}

static FILES: [File<About>; 4] = [
    File {
        name: c"state",
        show: Some(show_state),
        store: None,
    },
    File {
        name: c"drain",
        show: Some(show_drain),
        store: Some(store_drain),
    },
    File {
        name: c"window",
        show: Some(show_window),
        store: None,
    },
    File {
        name: c"give_up",
        show: None,
        store: Some(store_give_up),
    },
];

/// Adds the files to the folder of a device, for as long as the result lives. May sleep.
pub(crate) fn add(device: &Device<Bound>, client: Arc<Client>) -> Result<Group<'_, About>> {
    Group::new(device, c"tmem", &FILES, About { client })
}

/// Says how the driver stands with the device, in one word.
fn show_state(about: &About, text: &mut Text<'_>) -> Result {
    writeln!(text, "{}", about.client.standing().name()).map_err(|_| EOVERFLOW)
}

/// Says what there is of the window, in pages: of clean ones and of swapped ones.
fn show_window(about: &About, text: &mut Text<'_>) -> Result {
    let Some([ephemeral, persistent]) = about.client.window_shares() else {
        return writeln!(text, "none").map_err(|_| EOVERFLOW);
    };

    for (name, share) in [("ephemeral", ephemeral), ("persistent", persistent)] {
        writeln!(
            text,
            "{name} granted {} leaving {} free {} used {}",
            share.granted, share.leaving, share.free, share.used
        )
        .map_err(|_| EOVERFLOW)?;
    }
    Ok(())
}

/// Gives the device up.
fn store_give_up(about: &About, text: &str) -> Result {
    if text != "1" {
        pr_err!("give_up: {text:?} makes no sense: write 1, and what only the host has is lost\n");
        return Err(EINVAL);
    }
    Client::give_up(&about.client, format_args!("the operator says so"));
    Ok(())
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

/// The files of the module's own devices; those go with it.
pub(crate) struct Tmswap {
    _files: Folder<Devices>,
}

static TMSWAP_FILES: [File<Devices>; 3] = [
    File {
        name: c"add",
        show: None,
        store: Some(|devices, path| devices.add(path)),
    },
    File {
        name: c"remove",
        show: None,
        store: Some(|devices, name| devices.remove(name)),
    },
    File {
        name: c"devices",
        show: Some(show_devices),
        store: None,
    },
];

/// Adds the files of the module's own devices, for as long as the result lives. May sleep.
pub(crate) fn add_module(module: &'static ThisModule) -> Result<Tmswap> {
    let devices = Devices::new(module)?;

    Ok(Tmswap {
        _files: Folder::new(c"virtio_tmem", c"tmswap", &TMSWAP_FILES, devices)?,
    })
}

/// Says of each device what it is stacked on.
fn show_devices(devices: &Devices, text: &mut Text<'_>) -> Result {
    devices.for_each(|name, number, path| {
        let path = path.to_str().map_err(|_| EINVAL)?;

        writeln!(text, "{name}{number} {path}").map_err(|_| EOVERFLOW)
    })
}
