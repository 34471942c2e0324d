// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The configuration space, and what the device offers. It takes nothing of a guest to tell them.

use std::hash::{BuildHasher, Hasher, RandomState};

use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use virtio_bindings::{
    virtio_config::{VIRTIO_F_IN_ORDER, VIRTIO_F_VERSION_1},
    virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC},
};
use virtio_tmem_abi::{cap, Config, ABI_MAJOR, ABI_MINOR, EPOCH_NONE, FIRST_DATA_QUEUE, MAGIC};
use zerocopy::IntoBytes;

use super::Limits;
use crate::store::PAGE_SHIFT;

/// The most descriptors that a virtqueue may have.
pub const MAX_QUEUE_SIZE: u16 = 1024;

/// The virtio features that the device offers.
pub const FEATURES: u64 = (1 << VIRTIO_F_VERSION_1)
    | (1 << VIRTIO_F_IN_ORDER)
    | (1 << VIRTIO_RING_F_INDIRECT_DESC)
    | (1 << VIRTIO_RING_F_EVENT_IDX)
    | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();

/// The vhost-user protocol features that the device offers.
///
/// Not `CONFIGURE_MEM_SLOTS`: QEMU then tells memory piece by piece, and of a machine whose memory
/// is not shared it tells nothing and starts the virtqueues all the same, so that nobody learns of
/// it. Without it QEMU refuses to start the device, and says what is missing. The price is that it
/// shares no more than eight pieces of memory.
///
/// `shares`: the window is a memory region of the device, for which the front-end is asked on a
/// socket of its own to map it.
pub fn protocol_features(shares: bool) -> VhostUserProtocolFeatures {
    let all = VhostUserProtocolFeatures::MQ
        | VhostUserProtocolFeatures::CONFIG
        | VhostUserProtocolFeatures::REPLY_ACK
        | VhostUserProtocolFeatures::RESET_DEVICE;
    if !shares {
        return all;
    }
    all | VhostUserProtocolFeatures::BACKEND_REQ
        | VhostUserProtocolFeatures::BACKEND_SEND_FD
        | VhostUserProtocolFeatures::SHMEM
}

/// Returns how many virtqueues a device has.
pub fn queue_count(limits: &Limits) -> u16 {
    FIRST_DATA_QUEUE + limits.data_queues
}

/// Returns `size` bytes of the configuration space, from `offset` on. What lies past its end reads
/// as zero, like the reserved bytes at the end. `window` is what the guest's window is known by, if
/// it has one.
pub fn read_config(
    limits: &Limits,
    epoch: u64,
    window: Option<[u8; 16]>,
    offset: u32,
    size: u32,
) -> Vec<u8> {
    let config = config(limits, epoch, window);
    let config = config.as_bytes();
    let byte = |at: u64| {
        usize::try_from(at)
            .ok()
            .and_then(|at| config.get(at))
            .copied()
    };
    (0..size.min(4096))
        .map(|at| byte(u64::from(offset) + u64::from(at)).unwrap_or(0))
        .collect()
}

fn config(limits: &Limits, epoch: u64, window: Option<[u8; 16]>) -> Config {
    // Whether a guest is authorised for a shared pool can change at any time, and this cannot.
    let capabilities = cap::EPHEMERAL | cap::PERSISTENT | cap::SHARED | cap::DURABLE | cap::KEEP;
    let with_window = window.map_or(0, |_| cap::WINDOW);
    Config {
        magic: MAGIC.into(),
        abi_major: ABI_MAJOR.into(),
        abi_minor: ABI_MINOR.into(),
        capabilities: (capabilities | with_window).into(),
        page_shift: PAGE_SHIFT,
        reserved0: 0,
        data_queues: limits.data_queues.into(),
        max_pages: limits.max_pages.into(),
        max_flushes: limits.max_flushes.into(),
        max_pools: limits.max_pools.into(),
        epoch: epoch.into(),
        window: window.unwrap_or_default(),
        reserved1: [0; 7],
        end: 0,
    }
}

/// Returns an epoch that no connection had before.
pub fn random_epoch() -> u64 {
    loop {
        let mut hasher = RandomState::new().build_hasher();
        hasher.write_u32(std::process::id());
        match hasher.finish() {
            0 | EPOCH_NONE => continue,
            epoch => return epoch,
        }
    }
}
