// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the supervisor and its worker say to each other.
//!
//! ```text
//! supervisor ── SOCK_SEQPACKET: a message of JSON and its descriptors, each a datagram ── worker
//!            ── a page of memory: whom each of the worker's threads serves right now ────
//! ```
//!
//! The two are the same program, but not always the same build of it: after an upgrade the
//! supervisor is older than its worker. So the worker speaks first and says which version of the
//! link it knows ([`FromWorker::Hello`]); nothing else is said to one of another version.

mod blame;
mod message;
mod transport;

pub use crate::device::{GuestId, MemoryRegion, RingLayout};
pub use blame::{BlamePage, Serving};
pub use message::{FromWorker, OperatorRequest, ToWorker, LINK_VERSION};
pub use transport::{Link, LinkError, Received, MAX_DESCRIPTORS, MAX_MESSAGE};
