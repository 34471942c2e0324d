// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a front-end says, carried out.

use std::{
    fs::File,
    io,
    sync::{
        atomic::{AtomicBool, Ordering},
        Arc,
    },
};

use vhost::{
    vhost_user::{
        message::{
            VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags,
            VhostUserInflight, VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures,
            VhostUserShMemConfig, VhostUserSharedMsg, VhostUserSingleMemoryRegion,
            VhostUserVringAddrFlags, VhostUserVringState,
        },
        Error, GpuBackend, Result, VhostUserBackendReqHandlerMut,
    },
    VhostUserMemoryRegionBase,
};

use super::{
    checks,
    guest::{GuestError, Order, RingAddress, Slot},
    hub::{Connection, Hub},
    share,
};
use crate::{
    device::{protocol_features, queue_count, read_config, Limits, FEATURES},
    link::{GuestId, MemoryRegion},
};

/// The length of the configuration space, in bytes.
const CONFIG_SIZE: u32 = size_of::<virtio_tmem_abi::Config>() as u32;

/// What the front-end asks for is refused.
fn refuse(why: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::ReqHandlerError(io::Error::other(why))
}

/// Nobody asks for what the device does not offer.
fn not_offered<T>(what: &'static str) -> Result<T> {
    Err(Error::InvalidOperation(what))
}

/// One end of a connection, for the framework that reads the messages.
///
/// An error is told to the front-end where it wanted an answer, and to the log; the connection stays
/// open, since the end of it is the end of the virtual machine.
#[derive(Debug)]
pub(super) struct FrontEnd {
    hub: Arc<Hub>,
    guest: GuestId,
    limits: Limits,
    /// The log was told that the configuration space does not fit.
    told: AtomicBool,
    /// Virtqueues that the front-end has told of.
    rings: u16,
    /// The log was told that these are too few.
    warned: bool,
    /// Messages are those of an earlier connection of the same front-end, of which all is known.
    replayed: Arc<AtomicBool>,
}

impl FrontEnd {
    /// Makes the end for a guest that the hub knows to be connected. As long as `replayed` is set,
    /// nothing that is said changes anything.
    pub(super) fn new(
        hub: Arc<Hub>,
        guest: GuestId,
        limits: Limits,
        replayed: Arc<AtomicBool>,
    ) -> Self {
        Self {
            hub,
            guest,
            limits,
            told: AtomicBool::new(false),
            rings: 0,
            warned: false,
            replayed,
        }
    }

    fn is_replayed(&self) -> bool {
        self.replayed.load(Ordering::Relaxed)
    }

    fn change<R>(
        &self,
        change: impl FnOnce(&mut Connection) -> std::result::Result<(Vec<Order>, R), GuestError>,
    ) -> Result<R> {
        let changed = self.hub.change(self.guest, change);
        let changed = changed.ok_or(Error::Disconnected)?.map_err(refuse);
        if let Some(asking) = self.hub.begin_sharing(self.guest) {
            share::start(&self.hub, asking);
        }
        changed
    }

    /// Changes something that the worker is not told of at once.
    fn note(
        &self,
        change: impl FnOnce(&mut Connection) -> std::result::Result<(), GuestError>,
    ) -> Result<()> {
        self.change(|connection| change(connection).map(|()| (Vec::new(), ())))
    }

    /// Changes something, and tells the worker.
    fn order(
        &self,
        change: impl FnOnce(&mut Connection) -> std::result::Result<Vec<Order>, GuestError>,
    ) -> Result<()> {
        self.change(|connection| change(connection).map(|orders| (orders, ())))
    }

    /// Says so if there are fewer virtqueues than the driver will look for. QEMU tells of each
    /// before it reads the configuration space; who tells of none has not come so far.
    fn warn_of_few(&mut self) {
        let (told, count) = (self.rings, queue_count(&self.limits));
        if told == 0 || told >= count || std::mem::replace(&mut self.warned, true) {
            return;
        }
        tracing::warn!(
            "guest {:?} has {told} virtqueues, and its driver needs {count}; give QEMU's device \
             num_vqs={count}",
            self.hub.name(self.guest)
        );
    }

    /// Returns the number of a virtqueue that nobody is at any more.
    fn stop(&self, ring: u32) -> Result<u16> {
        let ring = self.change(|connection| Ok((Vec::new(), connection.state.ring(ring)?)))?;
        self.hub.stop_ring(self.guest, ring);
        Ok(ring)
    }
}

impl VhostUserBackendReqHandlerMut for FrontEnd {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> Result<()> {
        // Deprecated; who sends it means no more than that it goes.
        Ok(())
    }

    fn reset_device(&mut self) -> Result<()> {
        let running = self.change(|connection| Ok((Vec::new(), connection.state.running())))?;
        for ring in running {
            self.hub.stop_ring(self.guest, ring);
        }
        self.order(|connection| {
            let events = |slot: &Slot| matches!(slot, Slot::Kick(_) | Slot::Call(_));
            connection.files.retain(|slot, _| !events(slot));
            Ok(connection.state.reset())
        })?;
        self.hub.settle();
        Ok(())
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(FEATURES)
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        if self.is_replayed() {
            return Ok(());
        }
        if features & !FEATURES != 0 {
            let what = "the front-end accepts features that were not offered";
            return Err(refuse(io::Error::other(what)));
        }
        self.order(|connection| Ok(connection.state.set_features(features)))
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy: Option<bool>,
    ) -> Result<Option<Vec<VhostUserMemoryRegionBase>>> {
        let regions: Vec<_> = regions
            .iter()
            .map(|region| MemoryRegion {
                guest_addr: region.guest_phys_addr,
                size: region.memory_size,
                user_addr: region.user_addr,
                offset: region.mmap_offset,
            })
            .collect();
        checks::memory(&regions, &files).map_err(refuse)?;
        let window = self.hub.window_node(self.guest);
        let (regions, files, mapped) = checks::without_window(window, regions, files);
        self.order(|connection| {
            connection
                .files
                .retain(|slot, _| !matches!(slot, Slot::Memory(_)));
            let slots = (0..).map(Slot::Memory);
            connection.files.extend(slots.zip(files));
            Ok(connection.state.set_memory(regions, mapped))
        })?;
        // The driver may use memory that was just plugged in once it is answered.
        self.hub.settle();
        Ok(None)
    }

    fn set_vring_num(&mut self, ring: u32, num: u32) -> Result<()> {
        self.note(|connection| connection.state.set_size(ring, num))
    }

    fn set_vring_addr(
        &mut self,
        ring: u32,
        _flags: VhostUserVringAddrFlags,
        desc: u64,
        used: u64,
        avail: u64,
        _log: u64,
    ) -> Result<()> {
        let address = RingAddress { desc, avail, used };
        self.order(|connection| connection.state.set_address(ring, address))
    }

    fn set_vring_base(&mut self, ring: u32, base: u32) -> Result<()> {
        self.note(|connection| connection.state.set_base(ring, base))
    }

    fn get_vring_base(&mut self, ring: u32) -> Result<VhostUserVringState> {
        // The front-end waits for an answer, and so does its virtual machine: there is always one.
        let base = self.stop(ring).and_then(|number| {
            self.change(|connection| {
                connection.files.remove(&Slot::Kick(number));
                Ok((Vec::new(), connection.state.end_ring(ring)?))
            })
        });
        let base = base.unwrap_or_else(|error| {
            tracing::warn!("guest {:?}: {error}", self.hub.name(self.guest));
            0
        });
        Ok(VhostUserVringState::new(ring, base.into()))
    }

    fn set_vring_kick(&mut self, ring: u8, file: Option<File>) -> Result<()> {
        let ring = u32::from(ring);
        if let Some(file) = &file {
            checks::event("kick", ring, file).map_err(refuse)?;
        }
        self.order(|connection| {
            let slot = Slot::Kick(connection.state.ring(ring)?);
            let orders = |connection: &mut Connection, some| connection.state.set_kick(ring, some);
            put(connection, slot, file, orders)
        })
    }

    fn set_vring_call(&mut self, ring: u8, file: Option<File>) -> Result<()> {
        self.rings = self.rings.max(u16::from(ring) + 1);
        let ring = u32::from(ring);
        if let Some(file) = &file {
            checks::event("call", ring, file).map_err(refuse)?;
        }
        self.order(|connection| {
            let slot = Slot::Call(connection.state.ring(ring)?);
            let orders = |connection: &mut Connection, some| connection.state.set_call(ring, some);
            put(connection, slot, file, orders)
        })
    }

    fn set_vring_err(&mut self, _ring: u8, _file: Option<File>) -> Result<()> {
        // Errors are in the log.
        Ok(())
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        let shares = self.hub.shared_size(self.guest).is_some();
        Ok(protocol_features(shares))
    }

    fn set_protocol_features(&mut self, features: u64) -> Result<()> {
        if self.is_replayed() {
            return Ok(());
        }
        self.note(|connection| {
            connection.state.set_protocol(features);
            Ok(())
        })
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(queue_count(&self.limits).into())
    }

    fn set_vring_enable(&mut self, ring: u32, enable: bool) -> Result<()> {
        if enable {
            return self.order(|connection| connection.state.enable(ring));
        }
        self.stop(ring)?;
        self.note(|connection| connection.state.disable(ring))
    }

    fn get_config(
        &mut self,
        offset: u32,
        size: u32,
        _flags: VhostUserConfigFlags,
    ) -> Result<Vec<u8>> {
        self.warn_of_few();
        // QEMU reads all that it has, always.
        if offset == 0 && size < CONFIG_SIZE && size > 8 && !self.told.swap(true, Ordering::Relaxed)
        {
            tracing::warn!(
                "guest {:?}: the front-end reads {size} bytes of the configuration space, which has \
                 {CONFIG_SIZE}; give QEMU's device config_size={CONFIG_SIZE} if the driver finds no \
                 host",
                self.hub.name(self.guest)
            );
        }
        let epoch = self.change(|connection| Ok((Vec::new(), connection.state.epoch())))?;
        let window = self.hub.window(self.guest);
        Ok(read_config(&self.limits, epoch, window, offset, size))
    }

    fn set_config(
        &mut self,
        _offset: u32,
        _buf: &[u8],
        _flags: VhostUserConfigFlags,
    ) -> Result<()> {
        // The driver may not write to it; what it writes has no effect.
        Ok(())
    }

    fn set_gpu_socket(&mut self, _gpu_backend: GpuBackend) -> Result<()> {
        not_offered("this device has no screen")
    }

    fn get_shared_object(&mut self, _uuid: VhostUserSharedMsg) -> Result<File> {
        not_offered("this device shares no objects")
    }

    fn get_inflight_fd(
        &mut self,
        _inflight: &VhostUserInflight,
    ) -> Result<(VhostUserInflight, File)> {
        not_offered("this device keeps no list of requests")
    }

    fn set_inflight_fd(&mut self, _inflight: &VhostUserInflight, _file: File) -> Result<()> {
        not_offered("this device keeps no list of requests")
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        not_offered("this device is told of all memory at once")
    }

    fn add_mem_region(
        &mut self,
        _region: &VhostUserSingleMemoryRegion,
        _fd: File,
        _postcopy: Option<bool>,
    ) -> Result<Option<VhostUserMemoryRegionBase>> {
        not_offered("this device is told of all memory at once")
    }

    fn remove_mem_region(&mut self, _region: &VhostUserSingleMemoryRegion) -> Result<()> {
        not_offered("this device is told of all memory at once")
    }

    fn set_device_state_fd(
        &mut self,
        _direction: VhostTransferStateDirection,
        _phase: VhostTransferStatePhase,
        _fd: File,
    ) -> Result<Option<File>> {
        not_offered("this device does not migrate")
    }

    fn check_device_state(&mut self) -> Result<()> {
        not_offered("this device does not migrate")
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        let size = self.hub.shared_size(self.guest);
        let size = size.ok_or(Error::InvalidOperation(
            "this device has no memory of its own",
        ))?;
        Ok(VhostUserShMemConfig::new(1, &[size]))
    }

    fn set_log_base(&mut self, _log: &VhostUserLog, _file: File) -> Result<()> {
        not_offered("this device does not migrate")
    }
}

/// Puts a descriptor into its slot, or empties that, and then makes the change that goes with it.
fn put(
    connection: &mut Connection,
    slot: Slot,
    file: Option<File>,
    orders: impl FnOnce(&mut Connection, bool) -> std::result::Result<Vec<Order>, GuestError>,
) -> std::result::Result<Vec<Order>, GuestError> {
    let some = file.is_some();
    match file {
        Some(file) => connection.files.insert(slot, file),
        None => connection.files.remove(&slot),
    };
    orders(connection, some)
}
