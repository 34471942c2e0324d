// SPDX-License-Identifier: GPL-2.0

//! Abstractions for the virtio bus.
//!
//! Nothing here knows what the driver above it is for. A driver implements [`Driver`], asks its
//! [`Device`] for virtqueues with [`queue::Queues`], and hands them [`frame::Frame`]s.
//!
//! C header: [`include/linux/virtio.h`](srctree/include/linux/virtio.h)

pub(crate) mod frame;
pub(crate) mod pages;
pub(crate) mod queue;

use core::{
    marker::PhantomData,
    mem::offset_of,
    ptr::NonNull, //
};

use kernel::{
    device,
    device_id::RawDeviceId,
    driver,
    error::{
        from_result,
        to_result, //
    },
    prelude::*,
    sync::aref::AlwaysRefCounted,
    types::Opaque,
    ThisModule, //
};
use zerocopy::{
    FromBytes,
    IntoBytes, //
};

use crate::bindings;

/// An adapter for the registration of virtio drivers.
pub(crate) struct Adapter<T: Driver>(T);

// SAFETY:
// - `bindings::virtio_driver` is a C type declared as `repr(C)`.
// - `T::Data` is the type of the driver's device private data.
// - `struct virtio_driver` embeds a `struct device_driver`.
// - `DEVICE_DRIVER_OFFSET` is the correct byte offset to the embedded `struct device_driver`.
unsafe impl<T: Driver> driver::DriverLayout for Adapter<T> {
    type DriverType = bindings::virtio_driver;
    type DriverData<'bound> = T::Data<'bound>;
    const DEVICE_DRIVER_OFFSET: usize = offset_of!(Self::DriverType, driver);
}

// SAFETY: A call to `unregister` for a given instance of `DriverType` is guaranteed to be valid if
// a preceding call to `register` has been successful.
unsafe impl<T: Driver> driver::RegistrationOps for Adapter<T> {
    unsafe fn register(
        vdrv: &Opaque<Self::DriverType>,
        name: &'static CStr,
        module: &'static ThisModule,
    ) -> Result {
        // SAFETY: It's safe to set the fields of `struct virtio_driver` on initialization.
        unsafe {
            (*vdrv.get()).driver.name = name.as_char_ptr();
            (*vdrv.get()).probe = Some(Self::probe_callback);
            (*vdrv.get()).remove = Some(Self::remove_callback);
            (*vdrv.get()).id_table = T::ID_TABLE.as_ptr();
        }

        // SAFETY: `vdrv` is guaranteed to be a valid `DriverType`.
        to_result(unsafe { bindings::__register_virtio_driver(vdrv.get(), module.as_ptr()) })
    }

    unsafe fn unregister(vdrv: &Opaque<Self::DriverType>) {
        // SAFETY: `vdrv` is guaranteed to be a valid `DriverType`.
        unsafe { bindings::unregister_virtio_driver(vdrv.get()) }
    }
}

impl<T: Driver> Adapter<T> {
    extern "C" fn probe_callback(vdev: *mut bindings::virtio_device) -> c_int {
        // SAFETY: The virtio bus only ever calls the probe callback with a valid pointer to a
        // `struct virtio_device`.
        //
        // INVARIANT: `vdev` is valid for the duration of `probe_callback()`.
        let vdev = unsafe { &*vdev.cast::<Device<device::CoreInternal<'_>>>() };

        from_result(|| {
            let data = T::probe(vdev);

            vdev.as_ref().set_drvdata(data)?;
            Ok(0)
        })
    }

    extern "C" fn remove_callback(vdev: *mut bindings::virtio_device) {
        // SAFETY: The virtio bus only ever calls the remove callback with a valid pointer to a
        // `struct virtio_device`.
        //
        // INVARIANT: `vdev` is valid for the duration of `remove_callback()`.
        let vdev = unsafe { &*vdev.cast::<Device<device::CoreInternal<'_>>>() };

        // SAFETY: `remove_callback` is only ever called after a successful call to
        // `probe_callback`, hence it's guaranteed that `Device::set_drvdata()` has been called
        // and stored a `Pin<KBox<T::Data<'_>>>`.
        let data = unsafe { vdev.as_ref().drvdata_borrow::<T::Data<'_>>() };

        T::unbind(vdev, data);

        // The virtio core wants the device reset, and its virtqueues gone, before `remove()`
        // returns; the driver's data is only dropped after that.
        queue::stop_all::<T::Handler>(vdev);
    }
}

/// Declares a kernel module that exposes a single virtio driver.
#[macro_export]
macro_rules! virtio_device_table {
    ($($tt:tt)*) => {
        ::kernel::module_device_table!("virtio", $crate::virtio::DeviceId, $($tt)*);
    };
}

/// The ID of a virtio device: what kind it is, from any vendor.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub(crate) struct DeviceId(bindings::virtio_device_id);

impl DeviceId {
    /// Returns the ID that matches every device of the kind `device`.
    pub(crate) const fn new(device: u32) -> Self {
        Self(bindings::virtio_device_id {
            device,
            vendor: u32::MAX,
        })
    }
}

// SAFETY: `DeviceId` is a `#[repr(transparent)]` wrapper of `virtio_device_id` and does not add
// additional invariants, so it's safe to transmute to `RawType`.
unsafe impl RawDeviceId for DeviceId {
    type RawType = bindings::virtio_device_id;
}

/// The table of IDs that a driver supports.
pub(crate) type IdTable = &'static dyn kernel::device_id::IdTable<DeviceId, ()>;

/// A virtio driver.
///
/// The device goes live when the driver calls [`queue::Queues::start`], which takes all that the
/// virtqueues' callbacks may need: no callback can come before it is there. Whatever the driver
/// does in [`unbind`](Self::unbind), its virtqueues are stopped and drained after it.
pub(crate) trait Driver {
    /// The type of the driver's device private data.
    type Data<'bound>: Send + 'bound;

    /// What takes back the tokens of the device's virtqueues.
    type Handler: queue::Handler;

    /// The table of device IDs supported by the driver.
    const ID_TABLE: IdTable;

    /// Binds the driver to a device.
    ///
    /// May sleep.
    fn probe<'bound>(
        vdev: &'bound Device<device::Core<'_>>,
    ) -> impl PinInit<Self::Data<'bound>, Error> + 'bound;

    /// Unbinds the driver from a device, while its virtqueues still work.
    ///
    /// May sleep.
    fn unbind<'bound>(vdev: &'bound Device<device::Core<'_>>, this: Pin<&Self::Data<'bound>>) {
        let _ = (vdev, this);
    }
}

/// The virtio device representation.
///
/// # Invariants
///
/// A [`Device`] instance represents a valid `struct virtio_device` created by the C portion of the
/// kernel.
#[repr(transparent)]
pub(crate) struct Device<Ctx: device::DeviceContext = device::Normal>(
    Opaque<bindings::virtio_device>,
    PhantomData<Ctx>,
);

impl<Ctx: device::DeviceContext> Device<Ctx> {
    fn as_raw(&self) -> *mut bindings::virtio_device {
        self.0.get()
    }
}

impl Device<device::Bound> {
    /// Reads the device configuration space from its beginning.
    ///
    /// The bytes are of one generation: they are read again if the device changed them meanwhile.
    pub(crate) fn read_config<T: FromBytes + IntoBytes>(&self) -> T {
        let mut config = T::new_zeroed();
        let bytes = config.as_mut_bytes();

        // SAFETY: `self` is a bound device, and `bytes` is valid for writes of its length.
        unsafe {
            bindings::tmem_virtio_cread_bytes(
                self.as_raw(),
                0,
                bytes.as_mut_ptr().cast(),
                bytes.len(),
            )
        };
        config
    }

    /// Returns whether the feature `bit` was negotiated.
    pub(crate) fn has_feature(&self, bit: u32) -> bool {
        // SAFETY: `self` is a bound device.
        unsafe { bindings::tmem_virtio_has_feature(self.as_raw(), bit) }
    }
}

// SAFETY: `virtio::Device` is a transparent wrapper of `struct virtio_device`. The offset is
// guaranteed to point to a valid device for any context.
kernel::impl_device_context_deref!(unsafe { Device });
kernel::impl_device_context_into_aref!(Device);

// SAFETY: Instances of `Device` are always reference-counted.
unsafe impl AlwaysRefCounted for Device {
    fn inc_ref(&self) {
        // SAFETY: The existence of a shared reference guarantees that the refcount is non-zero.
        unsafe { bindings::get_device(&raw mut (*self.as_raw()).dev) };
    }

    unsafe fn dec_ref(obj: NonNull<Self>) {
        // CAST: `Self` is a transparent wrapper of `struct virtio_device`.
        let vdev: *mut bindings::virtio_device = obj.cast().as_ptr();

        // SAFETY: The safety requirements guarantee that the refcount is non-zero.
        unsafe { bindings::put_device(&raw mut (*vdev).dev) }
    }
}

impl<Ctx: device::DeviceContext> AsRef<device::Device<Ctx>> for Device<Ctx> {
    fn as_ref(&self) -> &device::Device<Ctx> {
        // SAFETY: By the type invariant of `Self`, `self.as_raw()` is a pointer to a valid
        // `struct virtio_device`, and so is that to the `struct device` in it.
        unsafe { device::Device::from_raw(&raw mut (*self.as_raw()).dev) }
    }
}

// SAFETY: A `Device` is always reference-counted and can be released from any thread.
unsafe impl Send for Device {}

// SAFETY: `Device` can be shared among threads because all methods of `Device` (i.e.
// `Device<Normal>`) are thread safe.
unsafe impl Sync for Device {}
