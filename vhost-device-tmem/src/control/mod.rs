// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The operator's socket: lines of JSON, one answer for each request.

mod client;
mod freeable;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod passed;
mod peer;
mod protocol;
mod report;
mod server;
mod usage;

pub use client::{Client, ClientError};
pub use freeable::Freeable;
pub use passed::{answer as answer_passed, say_ready};
pub use peer::Admitted;
pub use protocol::{
    GuestStat, KindState, PartState, Reply, Request, SharedMember, SharedStat, Stat, VERSION,
};
pub use report::{shared, stat};
pub use server::{ControlServer, Operated};
pub(crate) use usage::counters_of;
pub use usage::{part, Usage};

/// Where tmemctl looks for the daemon unless it is told otherwise.
pub const DEFAULT_PATH: &str = "/run/vhost-device-tmem/control.sock";
