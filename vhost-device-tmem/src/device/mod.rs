// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The vhost-user device: from descriptor chains to the store and back.

mod backend;
mod chain;
mod execute;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod listen;
mod polling;
mod pools;
mod queue;
mod request;
mod session;
#[cfg(test)]
mod tests;

pub use listen::{ListenError, Listening, Slot, SlotState};
pub use session::{Counter, Counters, Session};

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
