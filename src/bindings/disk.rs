// SPDX-License-Identifier: GPL-2.0

//! Block devices of the module's own, each stacked on another one, with the same pages in the same
//! places.

use core::ptr::NonNull;

use kernel::{
    error::{
        from_err_ptr,
        to_result, //
    },
    prelude::*,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            Release, //
        },
        Arc,
        SetOnce, //
    }, //
};

use super::{
    bio::Bio,
    block::BlockDevice,
    raw, //
};

/// What devices of the module's own are called, before their number.
pub(crate) const NAME: &CStr = c"tmswap";

/// What a device does.
pub(crate) trait Driver: Send + Sync + 'static {
    /// Takes a bio. What it submits meanwhile is not begun before it returns, so it may not wait for
    /// that. Sleeps, where reclaim waits for it.
    fn submit(&self, bio: Bio);

    /// Takes note that nobody wants a page of a swap area any more, which is the whole device.
    ///
    /// Any context, with locks held.
    fn slot_free(&self, page: u64);
}

/// The kernel's table of what devices do.
struct Operations(raw::block_device_operations);

// SAFETY: Nobody changes it once it is made, from whatever thread.
unsafe impl Send for Operations {}
// SAFETY: Nobody changes it once it is made, so that several may read it at once.
unsafe impl Sync for Operations {}

/// A static, because the kernel looks at it until the last reference to a device is gone.
static OPERATIONS: SetOnce<Operations> = SetOnce::new();

/// The right to make devices: a range of device numbers.
///
/// # Invariants
///
/// The number is that of a range that was registered, and [`OPERATIONS`] are there.
pub(crate) struct Major(c_uint);

impl Major {
    /// Registers the devices of `module`. Sleeps.
    pub(crate) fn new(module: &'static ThisModule) -> Result<Self> {
        OPERATIONS.populate(Operations(raw::block_device_operations {
            owner: module.as_ptr(),
            submit_bio: Some(submit),
            open: Some(open),
            swap_slot_free_notify: Some(slot_free),
            ..Default::default()
        }));
        // SAFETY: The name is a string, of which a copy is made.
        let major = unsafe { raw::__register_blkdev(0, NAME.as_char_ptr(), None) };

        to_result(major.min(0))?;
        // CAST: It is positive.
        // INVARIANT: It was just registered; the others were set above, or before.
        Ok(Self(major as c_uint))
    }

    /// Returns the number by which devices are told from others.
    pub(crate) fn number(&self) -> u32 {
        self.0
    }
}

impl Drop for Major {
    fn drop(&mut self) {
        // SAFETY: By the type invariants it is registered.
        unsafe { raw::unregister_blkdev(self.0, NAME.as_char_ptr()) };
    }
}

/// A block device that is held by one who holds it alone.
///
/// # Invariants
///
/// The pointer is an open block device's file that belongs to the instance.
pub(crate) struct Lower(NonNull<raw::file>);

// SAFETY: The file may be closed from any thread.
unsafe impl Send for Lower {}
// SAFETY: What is done by a reference only reads what an open device does not change.
unsafe impl Sync for Lower {}

impl Lower {
    /// Opens a device. Sleeps.
    ///
    /// `holder` tells who holds it from all others who do. `EBUSY` if somebody else does.
    pub(crate) fn open(path: &CStr, holder: *const c_void) -> Result<Self> {
        // SAFETY: The path is a string; the holder is only compared.
        let file = unsafe { raw::tmem_bdev_open(path.as_char_ptr(), holder.cast_mut()) };
        let file = from_err_ptr(file)?;

        // INVARIANT: It was just opened.
        Ok(Self(NonNull::new(file).ok_or(ENODEV)?))
    }

    /// Returns the device.
    pub(crate) fn device(&self) -> BlockDevice<'_> {
        // SAFETY: By the type invariants it is the file of a block device.
        let device = unsafe { raw::file_bdev(self.0.as_ptr()) };

        // SAFETY: An open device is there, until it is closed, for which `self` is not borrowed any
        // more.
        unsafe { BlockDevice::new(NonNull::new_unchecked(device)) }
    }

    /// Returns whether another device of whole pages can be stacked on it.
    pub(crate) fn is_stackable(&self) -> bool {
        // SAFETY: By the type invariants of `BlockDevice`.
        unsafe { raw::tmem_bdev_stackable(self.device().as_ptr()) }
    }
}

impl Drop for Lower {
    fn drop(&mut self) {
        // SAFETY: By the type invariants it is open, and nobody else closes it.
        unsafe { raw::bdev_fput(self.0.as_ptr()) };
    }
}

/// What is known of a device.
struct Data {
    closed: Atomic<bool>,
    driver: Arc<dyn Driver>,
}

/// A device; it goes when the instance is dropped, of which [`Self::close`] is to have made sure that
/// nobody has it open, unless the module itself goes.
///
/// # Invariants
///
/// `disk` was added, and `data` is its private data.
pub(crate) struct Disk {
    disk: NonNull<raw::gendisk>,
    data: KBox<Data>,
}

// SAFETY: The device may be taken away from any thread that may sleep.
unsafe impl Send for Disk {}
// SAFETY: What is done by a reference is done with the lock of the device held, or is one store of an
// atomic.
unsafe impl Sync for Disk {}

impl Disk {
    /// Makes the device with this number, stacked on `lower`, with bios of up to `max_pages` that do
    /// not go over a multiple of `align_pages`. Sleeps.
    ///
    /// `driver` may get bios at once.
    pub(crate) fn new(
        major: &Major,
        number: usize,
        lower: BlockDevice<'_>,
        (max_pages, align_pages): (u32, u32),
        driver: Arc<dyn Driver>,
    ) -> Result<Self> {
        let operations = OPERATIONS.as_ref().ok_or(ENODEV)?;
        let name = kernel::str::CString::try_from_fmt(fmt!("{}{number}", NAME.to_str()?))?;
        let data = KBox::new(
            Data {
                closed: Atomic::new(false),
                driver,
            },
            GFP_KERNEL,
        )?;
        // SAFETY: The lower device is there; the operations are static, and take the private data for
        // what it is, which stays for as long as the device may be used. A copy is made of the name.
        let disk = from_err_ptr(unsafe {
            raw::tmem_disk_alloc(
                lower.as_ptr(),
                &raw const operations.0,
                (&raw const *data).cast_mut().cast(),
                name.as_char_ptr(),
                // CAST: Both are small.
                major.0 as c_int,
                number as c_int,
                max_pages,
                align_pages,
            )
        })?;

        // SAFETY: It was just made, and is complete.
        let added = to_result(unsafe {
            raw::device_add_disk(core::ptr::null_mut(), disk, core::ptr::null_mut())
        });
        if let Err(error) = added {
            // SAFETY: It was not added, and nobody else knows of it.
            unsafe { raw::put_disk(disk) };
            return Err(error);
        }
        // INVARIANT: It was added, with this data.
        Ok(Self {
            disk: NonNull::new(disk).ok_or(ENOMEM)?,
            data,
        })
    }

    /// Has nobody be able to open the device any more. `EBUSY` if somebody has it open. Sleeps.
    pub(crate) fn close(&self) -> Result {
        let closed = self.data.closed.as_ptr();

        // SAFETY: By the type invariants the device is there, and so is the flag.
        if unsafe { raw::tmem_disk_close(self.disk.as_ptr(), closed) } {
            Ok(())
        } else {
            Err(EBUSY)
        }
    }

    /// Lets the device be opened again.
    pub(crate) fn reopen(&self) {
        self.data.closed.store(false, Release);
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // SAFETY: By the type invariants it was added. It has no users any more once the first function
        // returns, which is when the data may go.
        unsafe {
            raw::del_gendisk(self.disk.as_ptr());
            raw::put_disk(self.disk.as_ptr());
        }
    }
}

/// # Safety
///
/// To be called by the kernel, with a bio for a device of the module's own.
unsafe extern "C" fn submit(bio: *mut raw::bio) {
    let Some(bio) = NonNull::new(bio) else {
        return;
    };
    // SAFETY: By the safety requirements it is valid, and for a device with this data, which stays
    // while somebody is in here: the kernel waits for them before the device goes.
    let data = unsafe { &*raw::tmem_bdev_data((*bio.as_ptr()).bi_bdev).cast::<Data>() };
    // SAFETY: By the safety requirements.
    let bio = unsafe { Bio::new(bio) };

    data.driver.submit(bio);
}

/// # Safety
///
/// To be called by the kernel, with a device of the module's own.
unsafe extern "C" fn open(disk: *mut raw::gendisk, _mode: raw::blk_mode_t) -> c_int {
    // SAFETY: By the safety requirements it has this data, which stays until it cannot be opened any
    // more.
    let data = unsafe { &*(*disk).private_data.cast::<Data>() };

    if data.closed.load(Acquire) {
        EBUSY.to_errno()
    } else {
        0
    }
}

/// # Safety
///
/// To be called by the kernel, with a device of the module's own.
unsafe extern "C" fn slot_free(device: *mut raw::block_device, page: c_ulong) {
    // SAFETY: By the safety requirements it has this data; it is open, so that the device does not go.
    let data = unsafe { &*raw::tmem_bdev_data(device).cast::<Data>() };

    // CAST: To as many bits.
    data.driver.slot_free(page as u64);
}
