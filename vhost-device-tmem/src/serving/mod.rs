// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Serving whoever connects to a socket, in one thread, so that nobody has to wait because of
//! another one who is slow, silent or hostile.
//!
//! ```text
//! socket ── server (waits, accepts) ── conversation (bytes in, bytes out) ── protocol (answers)
//! ```

mod conversation;
mod server;
mod socket;

pub(crate) use conversation::Limits;
#[cfg(feature = "fuzzing")]
pub(crate) use conversation::{Conversation, Request};
pub(crate) use server::{Answer, Protocol, Server};
pub use socket::Listener;
pub(crate) use socket::Stream;
