// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The vhost-user device: from descriptor chains to the store and back.
//!
//! ```text
//! calls with plain data ── engine ─ worker ─ ring ─ execute ─ store
//! and descriptors                   turns    chain   pages
//!                                   polling  request pools
//!                                            chunks ─ lender ─ window
//! ```
//!
//! The [`Engine`] serves virtqueues and knows nothing of connections. What a guest, or who has it
//! in hand, gives to it is not to be trusted: memory that goes away (`fault`, `memory`),
//! descriptors that are something else (`eventfd`), rings and requests of any bytes.

mod chain;
mod chunks;
mod config;
mod engine;
mod eventfd;
mod execute;
mod fault;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod lender;
mod lenders;
mod lending;
mod loglimit;
mod memory;
mod meter;
mod operate;
mod pages;
mod place;
mod polling;
mod pools;
mod request;
mod restoring;
mod ring;
mod saving;
mod session;
mod slot;
#[cfg(test)]
mod tests;
mod turns;
mod worker;

pub use config::{
    protocol_features, queue_count, random_epoch, read_config, FEATURES, MAX_QUEUE_SIZE,
};
pub use engine::{Engine, EngineConfig, EngineError, GuestId, Observer};
pub use eventfd::EventFdError;
pub(crate) use eventfd::{check_eventfd, never_wait};
pub(crate) use fault::Watch;
pub use lender::WindowState;
pub use lenders::Lenders;
pub(crate) use memory::check as check_memory;
pub use memory::{MemoryError, MemoryRegion, MAX_REGIONS};
pub use operate::{Destruction, Flushed, OperateError};
pub use restoring::{RestoreError, Restored};
pub use ring::{RingError, RingLayout};
pub use saving::{SaveError, Saving};
pub use session::{Counter, Counters, Session};
pub use slot::{Slot, SlotState};

/// What a driver may ask for at most; the configuration space tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Data virtqueues, 1 to [`Limits::MAX_DATA_QUEUES`].
    pub data_queues: u16,
    /// Pages in a put or get request.
    pub max_pages: u32,
    /// Table entries in a flush request.
    pub max_flushes: u32,
    /// Pools of one guest.
    pub max_pools: u32,
}

impl Limits {
    /// The most data virtqueues: a mask of 64 bits names all virtqueues.
    pub const MAX_DATA_QUEUES: u16 = 62;

    /// The limits with so many data virtqueues.
    pub const fn new(data_queues: u16) -> Self {
        Self {
            data_queues,
            max_pages: 256,
            max_flushes: 1024,
            max_pools: 64,
        }
    }
}
