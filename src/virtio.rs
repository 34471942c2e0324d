// SPDX-License-Identifier: GPL-2.0

//! Abstractions for the virtio bus.
//!
//! Nothing here knows what the driver above it is for. A driver implements [`Driver`], asks its
//! [`Device`] for virtqueues with [`queue::Stopped::find`], and gives them [tokens](queue::Token).
//!
//! C header: [`include/linux/virtio.h`](srctree/include/linux/virtio.h)

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

/// The feature of a device that keeps to version 1 of the specification, or a later one.
pub(crate) const VIRTIO_F_VERSION_1: u32 = 32;

/// The feature of a device that takes tables of descriptors outside of the ring.
pub(crate) const VIRTIO_RING_F_INDIRECT_DESC: u32 = 28;

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
        let features = T::FEATURES;

        // SAFETY: It's safe to set the fields of `struct virtio_driver` on initialization.
        unsafe {
            (*vdrv.get()).driver.name = name.as_char_ptr();
            (*vdrv.get()).id_table = T::ID_TABLE.as_ptr();
            (*vdrv.get()).feature_table = features.as_ptr();
            (*vdrv.get()).feature_table_size = c_uint::try_from(features.len())?;
            (*vdrv.get()).probe = Some(Self::probe_callback);
            (*vdrv.get()).remove = Some(Self::remove_callback);
            (*vdrv.get()).config_changed = Some(Self::config_changed_callback);
            (*vdrv.get()).freeze = Some(Self::freeze_callback);
            (*vdrv.get()).restore = Some(Self::restore_callback);
            (*vdrv.get()).reset_prepare = Some(Self::freeze_callback);
            (*vdrv.get()).reset_done = Some(Self::restore_callback);
            (*vdrv.get()).shutdown = Some(Self::shutdown_callback);
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

            vdev.as_ref()
                .set_drvdata(data)
                .inspect_err(|_| queue::release(vdev))?;
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
        queue::release(vdev);
        if vdev.status() != 0 {
            // SAFETY: `vdev` is a bound device, and it has no virtqueues.
            unsafe { vdev.reset() };
        }
    }

    extern "C" fn config_changed_callback(vdev: *mut bindings::virtio_device) {
        // SAFETY: The virtio core only ever calls the callback with a valid pointer to a `struct
        // virtio_device`.
        //
        // INVARIANT: `vdev` is valid, and bound, for the duration of `config_changed_callback()`:
        // the core does not call it before `probe()` has returned, nor after `remove()` is called.
        let vdev = unsafe { &*vdev.cast::<Device<device::BoundInternal>>() };

        // SAFETY: The core only calls it after a successful call to `probe_callback`, hence it's
        // guaranteed that `Device::set_drvdata()` has been called and stored a
        // `Pin<KBox<T::Data<'_>>>`.
        let data = unsafe { vdev.as_ref().drvdata_borrow::<T::Data<'_>>() };

        T::config_changed(vdev, data);
    }

    extern "C" fn freeze_callback(vdev: *mut bindings::virtio_device) -> c_int {
        // SAFETY: The virtio core only ever calls the callback with a valid pointer to a `struct
        // virtio_device` that is bound to the driver.
        //
        // INVARIANT: `vdev` is valid for the duration of `freeze_callback()`.
        let vdev = unsafe { &*vdev.cast::<Device<device::CoreInternal<'_>>>() };

        // SAFETY: The device is not being probed while it is frozen or reset, hence it's guaranteed
        // that `Device::set_drvdata()` has been called and stored a `Pin<KBox<T::Data<'_>>>`.
        let data = unsafe { vdev.as_ref().drvdata_borrow::<T::Data<'_>>() };

        from_result(|| {
            T::freeze(vdev, data)?;
            // The core resets the device when it wakes up, under virtqueues that are still there.
            queue::stop_all(vdev);
            Ok(0)
        })
    }

    extern "C" fn restore_callback(vdev: *mut bindings::virtio_device) -> c_int {
        // SAFETY: The virtio core only ever calls the callback with a valid pointer to a `struct
        // virtio_device` that is bound to the driver.
        //
        // INVARIANT: `vdev` is valid for the duration of `restore_callback()`.
        let vdev = unsafe { &*vdev.cast::<Device<device::CoreInternal<'_>>>() };

        // SAFETY: The device was frozen, or was about to be reset, before, hence it's guaranteed
        // that `Device::set_drvdata()` has been called and stored a `Pin<KBox<T::Data<'_>>>`.
        let data = unsafe { vdev.as_ref().drvdata_borrow::<T::Data<'_>>() };

        from_result(|| {
            T::restore(vdev, data).inspect_err(|_| queue::stop_all(vdev))?;
            Ok(0)
        })
    }

    extern "C" fn shutdown_callback(vdev: *mut bindings::virtio_device) {
        // SAFETY: The virtio bus only ever calls the callback with a valid pointer to a `struct
        // virtio_device` that is bound to the driver.
        //
        // INVARIANT: `vdev` is valid for the duration of `shutdown_callback()`.
        let vdev = unsafe { &*vdev.cast::<Device<device::CoreInternal<'_>>>() };

        // SAFETY: The driver core holds the device's lock, so that the device is not being probed,
        // hence it's guaranteed that `Device::set_drvdata()` has been called and stored a
        // `Pin<KBox<T::Data<'_>>>`.
        let data = unsafe { vdev.as_ref().drvdata_borrow::<T::Data<'_>>() };

        T::shutdown(vdev, data);

        // What the core does for a driver that has no say in it.
        // SAFETY: `vdev` is a bound device.
        unsafe { bindings::virtio_device_shutdown(vdev.as_raw()) };
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
/// The bus calls the functions of one device one after the other, other than
/// [`config_changed`](Self::config_changed).
pub(crate) trait Driver {
    /// The type of the driver's device private data.
    type Data<'bound>: Send + Sync + 'bound;

    /// The table of device IDs supported by the driver.
    const ID_TABLE: IdTable;

    /// The features of the kind of device that the driver knows of; those of the transport and the
    /// virtqueues are none of its business.
    const FEATURES: &'static [c_uint] = &[];

    /// Binds the driver to a device.
    ///
    /// The features are negotiated. The device becomes ready when the driver
    /// [starts](queue::Found::start) its virtqueues, or else after this. May sleep.
    fn probe<'bound>(
        vdev: &'bound Device<device::Core<'_>>,
    ) -> impl PinInit<Self::Data<'bound>, Error> + 'bound;

    /// Unbinds the driver from a device, while its virtqueues still work.
    ///
    /// Those that are left are stopped after it, and the device is reset. May sleep.
    fn unbind<'bound>(vdev: &'bound Device<device::Core<'_>>, this: Pin<&Self::Data<'bound>>) {
        let _ = (vdev, this);
    }

    /// Takes note of a change of the device's configuration space.
    ///
    /// Called in hard interrupt context, or otherwise with interrupts off, and with the device's
    /// `config_lock` held: to read what has changed takes a context that may sleep. Not called
    /// before [`probe`](Self::probe) and [`restore`](Self::restore) are over, when one call stands
    /// for all changes meanwhile, nor from the moment when the device is about to be unbound or
    /// frozen.
    fn config_changed<'bound>(vdev: &'bound Device<device::Bound>, this: Pin<&Self::Data<'bound>>) {
        let _ = (vdev, this);
    }

    /// Prepares for the device to lose its state: the guest is suspended, or written to a
    /// hibernation image, or the transport resets the device.
    ///
    /// The virtqueues that are left are stopped after it. If it fails, the guest is not suspended
    /// and the device goes on. Tasks are frozen already if the guest is suspended. May sleep.
    fn freeze<'bound>(
        vdev: &'bound Device<device::Core<'_>>,
        this: Pin<&Self::Data<'bound>>,
    ) -> Result {
        let _ = (vdev, this);
        Ok(())
    }

    /// Brings a device back that was [frozen](Self::freeze): the guest wakes up, or was not
    /// suspended after all, or the transport has reset the device.
    ///
    /// The core has reset the device and negotiated the features that it had again; virtqueues have
    /// to be [found](queue::Stopped::find) and started anew. If it fails, those that are there
    /// are stopped, and the device stays bound without any. May sleep.
    fn restore<'bound>(
        vdev: &'bound Device<device::Core<'_>>,
        this: Pin<&Self::Data<'bound>>,
    ) -> Result {
        let _ = (vdev, this);
        Ok(())
    }

    /// Prepares for the guest to be switched off or to start another kernel.
    ///
    /// After it nothing goes into or comes out of the virtqueues any more, and the device is reset;
    /// the driver stays bound. May sleep.
    fn shutdown<'bound>(vdev: &'bound Device<device::Core<'_>>, this: Pin<&Self::Data<'bound>>) {
        let _ = (vdev, this);
    }
}

/// A range of physical memory that a device shares with its driver.
///
/// What is there, and whether anything is, is up to the device at any time.
pub(crate) struct SharedMemory {
    /// Where it begins.
    pub(crate) start: u64,
    /// How many bytes it has.
    pub(crate) len: u64,
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

impl Device {
    /// Makes the device ready, unless it is.
    ///
    /// # Safety
    ///
    /// The device must be bound.
    unsafe fn ready(&self) {
        // SAFETY: By the safety requirements.
        unsafe {
            let status = bindings::tmem_virtio_get_status(self.as_raw());

            if u32::from(status) & bindings::VIRTIO_CONFIG_S_DRIVER_OK == 0 {
                bindings::tmem_virtio_device_ready(self.as_raw());
            }
        }
    }

    /// Resets the device: it does not touch any memory, nor interrupt, after this. May sleep.
    ///
    /// # Safety
    ///
    /// The device must be bound, and nobody may be about to notify it.
    unsafe fn reset(&self) {
        // SAFETY: By the safety requirements.
        unsafe { bindings::virtio_reset_device(self.as_raw()) };
    }
}

impl Device<device::Core<'_>> {
    /// Returns the device's status.
    fn status(&self) -> u32 {
        // SAFETY: `self` is a device that is bound to a driver which the bus has called.
        unsafe { bindings::tmem_virtio_get_status(self.as_raw()) }.into()
    }

    /// Negotiates the features that were negotiated before, if the device was reset since.
    ///
    /// As the core does before it calls the driver. May sleep.
    fn negotiate(&self) -> Result {
        let driver = bindings::VIRTIO_CONFIG_S_ACKNOWLEDGE | bindings::VIRTIO_CONFIG_S_DRIVER;
        let features_ok = bindings::VIRTIO_CONFIG_S_FEATURES_OK;

        if self.status() & driver == driver {
            return Ok(());
        }
        let vdev = self.as_raw();
        // SAFETY: `self` is a device that is bound to a driver which the bus has called.
        unsafe {
            bindings::virtio_add_status(vdev, driver);
            to_result(bindings::tmem_virtio_finalize_features(vdev))?;
        }
        // A legacy device knows of no such status.
        if !self.has_feature(VIRTIO_F_VERSION_1) {
            return Ok(());
        }
        // SAFETY: `self` is a device that is bound to a driver which the bus has called.
        unsafe { bindings::virtio_add_status(vdev, features_ok) };
        if self.status() & features_ok == 0 {
            dev_err!(
                self,
                "the device does not offer the features any more that it had\n"
            );
            return Err(ENODEV);
        }
        Ok(())
    }
}

impl Device<device::Bound> {
    /// Reads the device configuration space from its beginning.
    ///
    /// The bytes are of one generation: they are read again if the device changed them meanwhile.
    /// May sleep.
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

    /// Returns where the device's shared memory region of this number is, if it has one. May sleep.
    pub(crate) fn shared_memory(&self, id: u8) -> Option<SharedMemory> {
        let mut region = bindings::virtio_shm_region::default();

        // SAFETY: `self` is a bound device, and `region` is valid for writes.
        unsafe { bindings::tmem_virtio_get_shm_region(self.as_raw(), &mut region, id) }.then_some(
            SharedMemory {
                start: region.addr,
                len: region.len,
            },
        )
    }

    /// Returns whether the feature `bit` was negotiated. Any context.
    pub(crate) fn has_feature(&self, bit: u32) -> bool {
        // SAFETY: `self` is a bound device.
        unsafe { bindings::tmem_virtio_has_feature(self.as_raw(), bit) }
    }

    /// Returns whether one of the device's virtqueues does not work any more. Process context.
    pub(crate) fn is_broken(&self) -> bool {
        // SAFETY: `self` is a bound device.
        unsafe { bindings::tmem_virtio_is_broken(self.as_raw()) }
    }

    /// Has nothing go into or come out of the device's virtqueues any more. Process context.
    ///
    /// See [`queue::Queues::break_device`] for other contexts.
    pub(crate) fn break_device(&self) {
        // SAFETY: `self` is a bound device.
        unsafe { bindings::virtio_break_device(self.as_raw()) };
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
