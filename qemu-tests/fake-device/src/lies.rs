// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The ways to lie.

use clap::Args;
use virtio_tmem_abi::{cap, Config, ABI_MAJOR, ABI_MINOR, MAGIC};

/// What the device says of itself, and how often it answers wrongly.
#[derive(Args, Clone, Debug)]
pub(crate) struct Lies {
    #[arg(long, default_value_t = MAGIC)]
    magic: u32,
    #[arg(long, default_value_t = ABI_MAJOR)]
    abi_major: u16,
    #[arg(long, default_value_t = cap::EPHEMERAL | cap::PERSISTENT)]
    capabilities: u64,
    #[arg(long, default_value_t = 12)]
    page_shift: u8,
    #[arg(long, default_value_t = 2)]
    data_queues: u16,
    #[arg(long, default_value_t = 256)]
    max_pages: u32,
    #[arg(long, default_value_t = 1024)]
    max_flushes: u32,
    #[arg(long, default_value_t = 64)]
    max_pools: u32,
    /// The configuration space has no bytes from this one on.
    #[arg(long, default_value_t = 64)]
    pub(crate) config_bytes: usize,
    /// What is read past the end of the configuration space.
    #[arg(long, default_value_t = 0)]
    pub(crate) config_fill: u8,
    /// Never use a buffer of the control virtqueue.
    #[arg(long)]
    pub(crate) silent_control: bool,
    /// Never use a buffer of the data virtqueues after so many.
    #[arg(long)]
    pub(crate) silent_after: Option<u64>,
    /// Make nonsense of the header of so many answers in a hundred.
    #[arg(long, default_value_t = 0)]
    pub(crate) garbage_header_percent: u8,
    /// Make nonsense of the results of so many answers in a hundred.
    #[arg(long, default_value_t = 0)]
    pub(crate) garbage_result_percent: u8,
    /// Give a wrong used length with so many answers in a hundred.
    #[arg(long, default_value_t = 0)]
    pub(crate) garbage_length_percent: u8,
    /// Name another epoch in so many answers in a hundred.
    #[arg(long, default_value_t = 0)]
    pub(crate) garbage_epoch_percent: u8,
    /// Use a buffer that the driver did not make available, with so many answers in a hundred.
    #[arg(long, default_value_t = 0)]
    pub(crate) wrong_head_percent: u8,
    /// Say "miss" of a page that is there, so many times in a hundred.
    #[arg(long, default_value_t = 0)]
    pub(crate) false_miss_percent: u8,
    /// Change a byte of so many pages in a hundred that are got.
    #[arg(long, default_value_t = 0)]
    pub(crate) corrupt_percent: u8,
    /// Answer rightly so many times before the first lie, and before the behaviours.
    #[arg(long, default_value_t = 0)]
    pub(crate) honest_answers: u64,
    /// What decides when to lie.
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
}

/// The epoch that the device begins with.
pub(crate) const EPOCH: u64 = 0x0123_4567_89ab_cdef;

impl Lies {
    /// The configuration space.
    pub(crate) fn config(&self, epoch: u64) -> Config {
        Config {
            magic: self.magic.into(),
            abi_major: self.abi_major.into(),
            abi_minor: ABI_MINOR.into(),
            capabilities: self.capabilities.into(),
            page_shift: self.page_shift,
            reserved0: 0,
            data_queues: self.data_queues.into(),
            max_pages: self.max_pages.into(),
            max_flushes: self.max_flushes.into(),
            max_pools: self.max_pools.into(),
            epoch: epoch.into(),
            window: [0; 16],
            reserved1: [0; 7],
            end: 0,
        }
    }
}
