// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a vhost-user front-end says, as calls of the engine.

use std::{fs::File, os::fd::OwnedFd, sync::Arc};

use vhost::{
    vhost_user::{
        message::{
            VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags,
            VhostUserInflight, VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures,
            VhostUserShMemConfig, VhostUserSharedMsg, VhostUserSingleMemoryRegion,
            VhostUserVirtioFeatures, VhostUserVringAddrFlags, VhostUserVringState,
        },
        Error, GpuBackend, Result, VhostUserBackendReqHandlerMut,
    },
    VhostUserMemoryRegionBase,
};

use super::{
    config::{protocol_features, queue_count, read_config, FEATURES, MAX_QUEUE_SIZE},
    engine::{Engine, EngineError, GuestId},
    memory::MemoryRegion,
    ring::RingLayout,
    slot::Slot,
};

/// The length of the configuration space.
const CONFIG: u32 = size_of::<virtio_tmem_abi::Config>() as u32;

/// What is known of a virtqueue.
#[derive(Default)]
struct Vring {
    size: u16,
    /// Descriptor table, available ring and used ring, by the front-end's addresses.
    addresses: Option<(u64, u64, u64)>,
    base: u16,
    /// [`None`] until there was a message about it; then the descriptor, if it had one.
    kick: Option<Option<OwnedFd>>,
    call: Option<OwnedFd>,
    enabled: bool,
    running: bool,
}

/// One connection.
pub(super) struct Frontend {
    engine: Arc<Engine>,
    guest: GuestId,
    slot: Arc<Slot>,
    epoch: u64,
    vrings: Vec<Vring>,
    /// Virtqueues that the front-end has told of.
    told: u16,
    warned: bool,
}

impl Frontend {
    /// The connection of a guest that the engine knows.
    pub(super) fn new(engine: &Arc<Engine>, guest: GuestId, slot: Arc<Slot>, epoch: u64) -> Self {
        let count = queue_count(engine.limits());
        Self {
            engine: Arc::clone(engine),
            guest,
            slot,
            epoch,
            vrings: (0..count).map(|_| Vring::default()).collect(),
            told: 0,
            warned: false,
        }
    }

    /// Refuses what the front-end wants, and says why. The connection goes on: where it ends, QEMU
    /// ends the machine.
    fn refuse(&self, error: &EngineError) -> Error {
        if self.slot.may_tell_fault() {
            tracing::warn!("guest {:?} cannot be served: {error}", self.slot.name());
        }
        Error::InvalidParam
    }

    fn vring(&mut self, index: u32) -> Result<&mut Vring> {
        let count = self.vrings.len();
        if index as usize >= count {
            let (ring, count) = (index as u16, count as u16);
            return Err(self.refuse(&EngineError::NoRing { ring, count }));
        }
        Ok(&mut self.vrings[index as usize])
    }

    /// Starts a virtqueue if all that it takes is known.
    fn start(&mut self, index: u32) -> Result<()> {
        let (engine, guest) = (Arc::clone(&self.engine), self.guest);
        let vring = self.vring(index)?;
        let (Some(kick), Some((desc, avail, used)), true, false) =
            (&vring.kick, vring.addresses, vring.enabled, vring.running)
        else {
            return Ok(());
        };
        let layout = RingLayout {
            size: vring.size,
            desc,
            avail,
            used,
        };
        let copy = |fd: &Option<OwnedFd>| fd.as_ref().map(OwnedFd::try_clone).transpose();
        let started = copy(kick).and_then(|kick| Ok((kick, copy(&vring.call)?)));
        let started = started.map_err(EngineError::from).and_then(|(kick, call)| {
            engine.start_ring(guest, index as u16, layout, Some(vring.base), kick, call)
        });
        vring.running = started.is_ok();
        started.map_err(|error| self.refuse(&error))
    }

    /// Stops a virtqueue if it runs.
    fn stop(&mut self, index: u32) -> Result<()> {
        let (engine, guest) = (Arc::clone(&self.engine), self.guest);
        let vring = self.vring(index)?;
        if std::mem::take(&mut vring.running) {
            if let Ok(Some(base)) = engine.stop_ring(guest, index as u16) {
                vring.base = base;
            }
        }
        Ok(())
    }

    /// Changes something of a virtqueue, which is stopped for that.
    fn change(&mut self, index: u32, change: impl FnOnce(&mut Vring)) -> Result<()> {
        self.stop(index)?;
        change(self.vring(index)?);
        self.start(index)
    }

    /// Says so if there are fewer virtqueues than the driver will look for. QEMU tells of each
    /// before it reads the configuration space; who tells of none has not come so far.
    fn warn_of_few(&mut self) {
        let (told, count) = (self.told, self.vrings.len());
        if told == 0 || usize::from(told) >= count || std::mem::replace(&mut self.warned, true) {
            return;
        }
        tracing::warn!(
            "guest {:?} has {told} virtqueues, and its driver needs {count}; give QEMU \
             num_vqs={count}",
            self.slot.name(),
        );
    }

    fn tell(&mut self, index: u8) {
        self.told = self.told.max(u16::from(index) + 1);
    }
}

/// What the device does not offer, and no front-end asks for.
fn not_offered<T>() -> Result<T> {
    Err(Error::InvalidOperation("it is not offered"))
}

impl VhostUserBackendReqHandlerMut for Frontend {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn reset_device(&mut self) -> Result<()> {
        for index in 0..self.vrings.len() as u32 {
            self.stop(index)?;
            self.vrings[index as usize].enabled = false;
        }
        let reset = self.engine.reset_guest(self.guest);
        reset.map_err(|error| self.refuse(&error))
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(FEATURES)
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        if features & !FEATURES != 0 {
            return Err(Error::InvalidParam);
        }
        let set = self.engine.set_features(self.guest, features);
        set.map_err(|error| self.refuse(&error))?;
        // Who does not know of enabling has them enabled.
        if features & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() == 0 {
            for index in 0..self.vrings.len() as u32 {
                self.vrings[index as usize].enabled = true;
                self.start(index)?;
            }
        }
        Ok(())
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy_listening: Option<bool>,
    ) -> Result<Option<Vec<VhostUserMemoryRegionBase>>> {
        // The message has no alignment.
        let region = |region: &VhostUserMemoryRegion| MemoryRegion {
            guest_addr: region.guest_phys_addr,
            size: region.memory_size,
            user_addr: region.user_addr,
            offset: region.mmap_offset,
        };
        let regions = regions.iter().map(region).collect();
        let fds = files.into_iter().map(OwnedFd::from).collect();
        let set = self.engine.set_memory(self.guest, regions, fds);
        set.map(|()| None).map_err(|error| self.refuse(&error))
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        let vring = self.vring(index)?;
        match u16::try_from(num) {
            Ok(size) if size <= MAX_QUEUE_SIZE && size.is_power_of_two() => vring.size = size,
            _ => {
                let error = super::ring::RingError::Size(num.min(u32::from(u16::MAX)) as u16);
                let ring = index as u16;
                return Err(self.refuse(&EngineError::Ring { ring, error }));
            }
        }
        Ok(())
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        _flags: VhostUserVringAddrFlags,
        descriptor: u64,
        used: u64,
        available: u64,
        _log: u64,
    ) -> Result<()> {
        let addresses = Some((descriptor, available, used));
        self.change(index, |vring| vring.addresses = addresses)
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        self.change(index, |vring| vring.base = base as u16)
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        // It is answered in any case: the front-end waits.
        if self.stop(index).is_err() {
            return Ok(VhostUserVringState::new(index, 0));
        }
        let vring = self.vring(index)?;
        (vring.kick, vring.call) = (None, None);
        Ok(VhostUserVringState::new(index, vring.base.into()))
    }

    fn set_vring_kick(&mut self, index: u8, file: Option<File>) -> Result<()> {
        self.tell(index);
        let kick = file.map(OwnedFd::from);
        self.change(index.into(), |vring| vring.kick = Some(kick))
    }

    fn set_vring_call(&mut self, index: u8, file: Option<File>) -> Result<()> {
        self.tell(index);
        let call = file.map(OwnedFd::from);
        let (engine, guest) = (Arc::clone(&self.engine), self.guest);
        let vring = self.vring(index.into())?;
        let set = if vring.running {
            let copy = call.as_ref().map(OwnedFd::try_clone).transpose();
            let copy = copy.map_err(EngineError::from);
            copy.and_then(|call| engine.set_call(guest, index.into(), call))
        } else {
            Ok(())
        };
        vring.call = call;
        set.map_err(|error| self.refuse(&error))
    }

    fn set_vring_err(&mut self, _index: u8, _file: Option<File>) -> Result<()> {
        // Nothing is ever told by it.
        Ok(())
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        Ok(protocol_features())
    }

    fn set_protocol_features(&mut self, _features: u64) -> Result<()> {
        Ok(())
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(self.vrings.len() as u64)
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        if !enable {
            self.stop(index)?;
        }
        self.vring(index)?.enabled = enable;
        self.start(index)
    }

    fn get_config(
        &mut self,
        offset: u32,
        size: u32,
        _flags: VhostUserConfigFlags,
    ) -> Result<Vec<u8>> {
        self.warn_of_few();
        // QEMU asks for all that its device has; one that reads a field asks for a few bytes.
        if offset == 0 && (CONFIG / 4..CONFIG).contains(&size) && self.slot.may_tell_fault() {
            tracing::warn!(
                "guest {:?} has only {size} bytes of the configuration space, and its driver needs \
                 {CONFIG}; give QEMU config_size={CONFIG}",
                self.slot.name()
            );
        }
        Ok(read_config(self.engine.limits(), self.epoch, offset, size))
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
        not_offered()
    }

    fn get_shared_object(&mut self, _uuid: VhostUserSharedMsg) -> Result<File> {
        not_offered()
    }

    fn get_inflight_fd(
        &mut self,
        _inflight: &VhostUserInflight,
    ) -> Result<(VhostUserInflight, File)> {
        not_offered()
    }

    fn set_inflight_fd(&mut self, _inflight: &VhostUserInflight, _file: File) -> Result<()> {
        not_offered()
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        not_offered()
    }

    fn add_mem_region(
        &mut self,
        _region: &VhostUserSingleMemoryRegion,
        _fd: File,
        _postcopy_listening: Option<bool>,
    ) -> Result<Option<VhostUserMemoryRegionBase>> {
        not_offered()
    }

    fn remove_mem_region(&mut self, _region: &VhostUserSingleMemoryRegion) -> Result<()> {
        not_offered()
    }

    fn set_device_state_fd(
        &mut self,
        _direction: VhostTransferStateDirection,
        _phase: VhostTransferStatePhase,
        _fd: File,
    ) -> Result<Option<File>> {
        not_offered()
    }

    fn check_device_state(&mut self) -> Result<()> {
        not_offered()
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        not_offered()
    }

    fn set_log_base(&mut self, _log: &VhostUserLog, _file: File) -> Result<()> {
        not_offered()
    }
}
