// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The operator's socket: lines of JSON, one answer for each request.

mod client;
mod protocol;
mod report;
mod server;

pub use client::{Client, ClientError};
pub use protocol::{GuestStat, Reply, Request, Stat, VERSION};
pub use server::{ControlError, ControlServer};
