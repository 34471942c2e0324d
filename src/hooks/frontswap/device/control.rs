// SPDX-License-Identifier: GPL-2.0

//! Making and removing devices.

use kernel::{
    new_mutex,
    prelude::*,
    str::CString,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc, //
    },
};

use crate::{
    bindings::{
        block::BlockDevice,
        disk::{
            Disk,
            Lower,
            Major,
            NAME, //
        },
        static_mutex::StaticMutex, //
    },
    client::{
        logic::standing::Access,
        Pool, //
    },
    hooks::{
        left_behind,
        Context, //
    },
    params,
};

use super::{
    super::areas,
    Device,
    MAX_DEVICES,
    MAX_PLACES, //
};

/// A device, or room for one.
struct Slot {
    /// Whether it is one, or is going to be.
    taken: bool,
    /// What it is stacked on, as it was named.
    path: Option<CString>,
    device: Option<Arc<Device>>,
    /// Taken out while it is removed.
    disk: Option<Disk>,
}

impl Slot {
    const FREE: Self = Self {
        taken: false,
        path: None,
        device: None,
        disk: None,
    };
}

/// All devices, by their numbers.
static SLOTS: StaticMutex<[Slot; MAX_DEVICES]> = StaticMutex::new();

/// What tells them from other block devices; 0: there are none.
static MAJOR: Atomic<u32> = Atomic::new(0);

/// Returns whether a block device is one of ours. Any context.
pub(in super::super) fn is_ours(device: BlockDevice<'_>) -> bool {
    let major = MAJOR.load(Relaxed);

    major != 0 && device.major() == major
}

/// Returns the device with this number. Sleeps.
pub(in super::super) fn at(number: usize) -> Option<Arc<Device>> {
    SLOTS.get()?.lock().get(number)?.device.clone()
}

/// Calls `f` with a slot, if there is such a one.
fn with<R>(number: usize, f: impl FnOnce(&mut Slot) -> R) -> Option<R> {
    SLOTS.get()?.lock().get_mut(number).map(f)
}

/// The right to make devices; all go when it is dropped, which nobody has open then.
pub(crate) struct Devices {
    major: Major,
}

impl Devices {
    /// Returns the right to make devices for the module. Sleeps.
    pub(crate) fn new(module: &'static ThisModule) -> Result<Self> {
        let major = Major::new(module)?;

        SLOTS.init(new_mutex!(
            [const { Slot::FREE }; MAX_DEVICES],
            "device::SLOTS"
        ));
        MAJOR.store(major.number(), Relaxed);
        Ok(Self { major })
    }

    /// Makes a device that is stacked on another one: `PATH`, or `PATH NAME` with the name that it is to
    /// have. Sleeps.
    pub(crate) fn add(&self, text: &str) -> Result {
        let (path, name) = match text.rsplit_once(' ') {
            Some((path, name)) => (path, Some(name)),
            None => (text, None),
        };
        let path = CString::try_from_fmt(fmt!("{path}"))?;
        let Some(number) = take(name.map(number_of)) else {
            pr_err!(
                "add: there is no such room: names are {0}0 to {0}{1}, and this one is taken, or all are\n",
                NAME.to_str()?,
                MAX_DEVICES - 1
            );
            return Err(ENOSPC);
        };
        let made = self.make(number, &path);

        if let Err(error) = &made {
            let _ = with(number, |slot| *slot = Slot::FREE);
            pr_err!(
                "add: no device can be made of {:?}: {}\n",
                &*path,
                reason(*error)
            );
            return made;
        }
        pr_info!(
            "{}{number}: what is swapped to it goes to the host, and the rest to {:?}\n",
            NAME.to_str()?,
            &*path
        );
        let _ = with(number, |slot| slot.path = Some(path));
        Ok(())
    }

    fn make(&self, number: usize, path: &CStr) -> Result {
        let area = areas::number_of_device(number);
        let lower = Lower::open(path, areas::identity(area))?;

        if is_ours(lower.device()) || !lower.is_stackable() {
            return Err(EINVAL);
        }
        if !params::device_mapper() && lower.device().is_device_mapper() {
            return Err(EPERM);
        }
        let device = Arc::new(Device::new(area, lower)?, GFP_KERNEL)?;

        // Before anybody can put a page there.
        let _ = with(number, |slot| slot.device = Some(device.clone()));
        let disk = Disk::new(
            &self.major,
            number,
            device.below(),
            // CAST: Both are small.
            (MAX_PLACES as u32, areas::OBJECT_PAGES as u32),
            device.clone(),
        )?;

        let _ = with(number, |slot| slot.disk = Some(disk));
        Ok(())
    }

    /// Removes the device of this name, with what the host has of it on the one below. Sleeps, for as
    /// long as the disk and the host need.
    ///
    /// `EBUSY` if somebody has it open, or if some pages cannot be written.
    pub(crate) fn remove(&self, name: &str) -> Result {
        let found = number_of(name).and_then(|number| {
            with(number, |slot| {
                Some((number, slot.device.clone()?, slot.disk.take()?))
            })?
        });
        let Some((number, device, disk)) = found else {
            pr_err!("remove: there is no device {name:?}\n");
            return Err(ENODEV);
        };

        if let Err(error) = close(name, &device, &disk) {
            let _ = with(number, |slot| slot.disk = Some(disk));
            return Err(error);
        }
        take_away(number, &device, disk);
        Ok(())
    }

    /// Calls `f` with the name and number of each device, and with what it is stacked on. Sleeps.
    pub(crate) fn for_each(&self, mut f: impl FnMut(&str, usize, &CStr) -> Result) -> Result {
        let Some(slots) = SLOTS.get() else {
            return Ok(());
        };

        for (number, slot) in slots.lock().iter().enumerate() {
            if let (Some(path), Some(_)) = (&slot.path, &slot.device) {
                f(NAME.to_str()?, number, path)?;
            }
        }
        Ok(())
    }
}

impl Drop for Devices {
    fn drop(&mut self) {
        for number in 0..MAX_DEVICES {
            let found = with(number, |slot| {
                Some((slot.device.clone()?, slot.disk.take()?))
            });

            if let Some(Some((device, disk))) = found {
                if disk.close().is_ok() {
                    let _ = empty(&device);
                }
                take_away(number, &device, disk);
            }
        }
        MAJOR.store(0, Relaxed);
    }
}

/// Returns the number of a device by its name.
fn number_of(name: &str) -> Option<usize> {
    name.strip_prefix(NAME.to_str().ok()?)?.parse().ok()
}

/// Takes a slot that is free, or the one that is wanted if it is; a wanted one may be none. Sleeps.
fn take(wanted: Option<Option<usize>>) -> Option<usize> {
    let mut slots = SLOTS.get()?.lock();
    let number = match wanted {
        Some(wanted) => wanted?,
        None => slots.iter().position(|slot| !slot.taken)?,
    };
    let slot = slots.get_mut(number).filter(|slot| !slot.taken)?;

    slot.taken = true;
    Some(number)
}

/// Returns what an error means for a device that is to be stacked on.
fn reason(error: Error) -> &'static str {
    if error == EBUSY {
        "it is in use: as a swap area (swapoff it), by a filesystem, or below another such device"
    } else if error == ENOENT {
        "there is no such file"
    } else if error == ENOTBLK {
        "it is no block device"
    } else if error == EACCES {
        "it cannot be written to"
    } else if error == EINVAL {
        "it is such a device itself, a zoned one, or one whose blocks are larger than pages"
    } else if error == EPERM {
        "it is one of device-mapper's, and those are left alone (dm=0)"
    } else {
        "see what else the log says"
    }
}

/// Has a device not be opened any more, and leaves nothing of it in the host.
fn close(name: &str, device: &Device, disk: &Disk) -> Result {
    disk.close().inspect_err(|_| {
        pr_err!("remove: {name} is in use: swapoff it first, and end who else has it open\n");
    })?;
    empty(device).inspect_err(|_| {
        pr_err!(
            "remove: some pages of {name} are only in the host, and cannot be written to the device \
             below: see what the log says about the disk or the host\n"
        );
        disk.reopen();
    })
}

/// Has nothing be left in the host of a device that nobody has open. Sleeps.
fn empty(device: &Device) -> Result {
    let Some(context) = Context::get() else {
        return Ok(());
    };
    let client = &context.client;

    if areas::present(client, device.area) == 0 {
        return Ok(());
    }
    match client.access(Pool::Frontswap) {
        // Nobody can read them any more, wherever.
        Access::Never => Ok(()),
        Access::Wait => Err(EAGAIN),
        Access::Ask if context.drain.empty(&context, device.area) => Ok(()),
        Access::Ask => Err(EBUSY),
    }
}

/// Takes a device away that cannot be opened any more, and all that is known of it. Sleeps.
fn take_away(number: usize, device: &Device, disk: Disk) {
    drop(disk);
    device.settle();
    if let Some(context) = Context::get() {
        let lost = areas::present(&context.client, device.area);

        if lost > 0 {
            pr_err!(
                "{}{number}: {lost} pages are lost that only the host had\n",
                NAME.to_str().unwrap_or_default()
            );
        }
        areas::forget(&context.client, device.area);
        left_behind::unpin(&context);
    }
    let _ = with(number, |slot| *slot = Slot::FREE);
}
