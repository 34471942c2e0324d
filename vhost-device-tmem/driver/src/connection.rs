// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The connection to a device.

use std::{
    fs::File,
    io,
    os::{fd::AsRawFd, unix::net::UnixStream},
    path::Path,
};

use vhost::{
    vhost_user::{
        message::{VhostUserConfigFlags, VhostUserProtocolFeatures, VhostUserVirtioFeatures},
        Frontend, VhostUserFrontend,
    },
    VhostBackend, VhostUserMemoryRegionInfo,
};
use virtio_bindings::{
    virtio_config::VIRTIO_F_VERSION_1,
    virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC},
};
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap};

use crate::queue::Queue;

/// The feature bit of the event index.
pub const EVENT_IDX: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;

/// The feature bits that this driver knows.
pub const FEATURES: u64 = (1 << VIRTIO_F_VERSION_1)
    | (1 << VIRTIO_RING_F_INDIRECT_DESC)
    | EVENT_IDX
    | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();

/// Where a front-end has what it maps of a device's own memory.
const MAPPED_AT: u64 = 1 << 40;

/// The most virtqueues that a device may have.
const MAX_QUEUES: u64 = 64;

/// A device that another process serves. Dropping it ends the connection.
pub struct Connection {
    frontend: Frontend,
    mem: GuestMemoryMmap,
    offered: u64,
    features: u64,
    /// What is mapped of the device's own memory, and its size.
    mapped: Option<(File, u64)>,
}

impl Connection {
    /// Connects as a driver that knows of [`FEATURES`] those in `known`, and shares memory.
    ///
    /// # Errors
    ///
    /// What the operating system or the protocol says.
    pub fn open(socket: &Path, mem: &GuestMemoryMmap, known: u64) -> io::Result<Self> {
        Self::negotiate(socket, mem, known, None)
    }

    /// As [`Self::open`], as a front-end that maps memory of the device's own where it is asked to, on
    /// the other end of `channel`.
    ///
    /// # Errors
    ///
    /// As [`Self::open`], and where the device has no such memory.
    pub fn open_sharing(
        socket: &Path,
        mem: &GuestMemoryMmap,
        known: u64,
        channel: &UnixStream,
    ) -> io::Result<Self> {
        Self::negotiate(socket, mem, known, Some(channel))
    }

    fn negotiate(
        socket: &Path,
        mem: &GuestMemoryMmap,
        known: u64,
        channel: Option<&UnixStream>,
    ) -> io::Result<Self> {
        let mut frontend = Frontend::connect(socket, MAX_QUEUES).map_err(io::Error::other)?;
        frontend.set_owner().map_err(io::Error::other)?;
        let offered = frontend.get_features().map_err(io::Error::other)?;
        let features = offered & known & FEATURES;
        let protocol = frontend.get_protocol_features().map_err(io::Error::other)?;
        // Memory slots would change how memory is told.
        let mut wanted = VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::RESET_DEVICE
            | VhostUserProtocolFeatures::REPLY_ACK;
        if channel.is_some() {
            wanted |= VhostUserProtocolFeatures::BACKEND_REQ
                | VhostUserProtocolFeatures::BACKEND_SEND_FD
                | VhostUserProtocolFeatures::SHMEM;
        }
        frontend
            .set_protocol_features(protocol & wanted)
            .map_err(io::Error::other)?;
        if let Some(channel) = channel {
            let handed = frontend.set_backend_request_fd(channel);
            handed.map_err(io::Error::other)?;
        }
        frontend.set_features(features).map_err(io::Error::other)?;
        let mut this = Self {
            frontend,
            mem: mem.clone(),
            offered,
            features,
            mapped: None,
        };
        this.tell_memory()?;
        Ok(this)
    }

    /// Returns the memory that is shared with the device.
    pub fn mem(&self) -> &GuestMemoryMmap {
        &self.mem
    }

    /// Returns the feature bits that the device offers.
    pub fn offered(&self) -> u64 {
        self.offered
    }

    /// Returns whether the event index says when who wants to be notified.
    pub fn event_idx(&self) -> bool {
        self.features & EVENT_IDX != 0
    }

    /// Reads from the device's configuration space.
    ///
    /// # Errors
    ///
    /// What the protocol says, where the device refuses.
    pub fn read_config(&mut self, offset: u32, len: u32) -> io::Result<Vec<u8>> {
        let buffer = vec![0; len as usize];
        let flags = VhostUserConfigFlags::empty();
        let read = self.frontend.get_config(offset, len, flags, &buffer);
        read.map(|(_, bytes)| bytes).map_err(io::Error::other)
    }

    /// Tells the device where the memory is.
    ///
    /// # Errors
    ///
    /// What the protocol says.
    pub fn tell_memory(&mut self) -> io::Result<()> {
        let regions: Result<Vec<_>, _> = self
            .mem
            .iter()
            .map(VhostUserMemoryRegionInfo::from_guest_region)
            .collect();
        let mut regions = regions.map_err(io::Error::other)?;
        regions.extend(
            self.mapped
                .as_ref()
                .map(|(file, size)| VhostUserMemoryRegionInfo {
                    guest_phys_addr: MAPPED_AT,
                    memory_size: *size,
                    userspace_addr: MAPPED_AT,
                    mmap_offset: 0,
                    mmap_handle: file.as_raw_fd(),
                }),
        );
        let told = self.frontend.set_mem_table(&regions);
        told.map(|_| ()).map_err(io::Error::other)
    }

    /// Has memory of the device's own be mapped, of a size, or nothing, and tells the device.
    ///
    /// # Errors
    ///
    /// As [`Self::tell_memory`].
    pub fn map(&mut self, memory: Option<(File, u64)>) -> io::Result<()> {
        self.mapped = memory;
        self.tell_memory()
    }

    /// Sets a virtqueue up at the device, and enables it.
    ///
    /// # Errors
    ///
    /// What the protocol says.
    pub fn start(&mut self, queue: &Queue) -> io::Result<()> {
        let (frontend, number) = (&mut self.frontend, queue.number());
        let mut start = || {
            frontend.set_vring_num(number, queue.size())?;
            frontend.set_vring_addr(number, &queue.addresses())?;
            frontend.set_vring_base(number, queue.added())?;
            frontend.set_vring_call(number, queue.call())?;
            frontend.set_vring_kick(number, queue.kick())?;
            frontend.set_vring_enable(number, true)
        };
        start().map_err(io::Error::other)
    }

    /// Resets the device, whose virtqueues were stopped.
    ///
    /// # Errors
    ///
    /// What the protocol says, where the device cannot be told so.
    pub fn reset(&mut self) -> io::Result<()> {
        let reset = self.frontend.reset_device();
        // They are gone with it.
        let reset = reset.and_then(|()| self.frontend.set_features(self.features));
        reset.map_err(io::Error::other)
    }

    /// Stops a virtqueue, and returns how many chains the device took from it.
    ///
    /// # Errors
    ///
    /// What the protocol says.
    pub fn stop(&mut self, queue: &Queue) -> io::Result<u32> {
        let taken = self.frontend.get_vring_base(queue.number());
        taken.map_err(io::Error::other)
    }
}
