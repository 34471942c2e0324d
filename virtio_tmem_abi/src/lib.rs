// SPDX-License-Identifier: GPL-2.0-only OR MIT OR Apache-2.0

//! The request layout of the virtio-tmem device, for both of its sides.
//!
//! The guest's kernel module and the host's daemon are built from this one crate: under Kbuild as
//! an object of the module, with the kernel's own `zerocopy`, and under Cargo as a dependency. It
//! holds no behaviour, only what goes over the virtqueues. `SPEC.md` beside it is the same
//! interface in words, as a chapter in the style of the VIRTIO standard; a test keeps the two
//! equal.
//!
//! Every type is plain bytes: all integers are little-endian and unaligned, there is no padding,
//! and every bit pattern is a valid value. What a field may *say* is checked by whoever reads it:
//! the enumerations here are read with `from_wire()`, which answers [`None`] for a number that has
//! no meaning.
//!
//! ```text
//! device-readable:  RequestHeader │ table: Key, Range or ObjectId × count │ pages × count (put)
//! device-writable:  ResponseHeader │ results: u8 × count │ pages × count (get)
//! ```

// Kbuild injects `no_std` itself and warns of a second one.
#![cfg_attr(not(CONFIG_RUST), no_std)]

mod config;
mod control;
mod event;
mod request;
mod response;
mod window;
mod wire;

pub use config::{
    cap,
    Config,
    ABI_MAJOR,
    ABI_MINOR,
    DEVICE_ID,
    EPOCH_NONE,
    FIRST_DATA_QUEUE,
    MAGIC,
    QUEUE_CONTROL,
    QUEUE_EVENT, //
};
pub use control::{
    pool_flags,
    PoolCreate,
    PoolStats, //
};
pub use event::{
    Event,
    EventKind, //
};
pub use request::{
    request_flags,
    Key,
    ObjectId,
    Opcode,
    Range,
    RequestHeader, //
};
pub use response::{
    Malformed,
    PageResult,
    ResponseHeader,
    Status,
    CREDITS_UNLIMITED, //
};
pub use window::{
    window_flags,
    Chunk,
    ChunkGrant,
    ChunkKind,
    ChunkReport,
    Chunks,
    SlotKey,
    WindowHeader,
    WindowOpen,
    WindowReport,
    CHUNK_REPORTS,
    CHUNK_SHIFT,
    FIRST_CHUNK,
    GENERATIONS,
    MAX_CHUNKS,
    MAX_GRANT,
    WINDOW_MAGIC,
    WINDOW_VERSION, //
};

/// A 16-bit little-endian integer of any alignment.
pub type Le16 = zerocopy::little_endian::U16;
/// A 32-bit little-endian integer of any alignment.
pub type Le32 = zerocopy::little_endian::U32;
/// A 64-bit little-endian integer of any alignment.
pub type Le64 = zerocopy::little_endian::U64;
