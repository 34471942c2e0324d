// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The statistics for Prometheus, as OpenMetrics over HTTP.
//!
//! ```text
//! socket ── http (requests, answers) ── text (OpenMetrics) ── catalog (which metrics there are)
//! ```
//!
//! A worker serves them: what guests tell are numbers, and whoever sends requests may send anything,
//! neither of which the supervisor looks at.

mod address;
mod catalog;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod http;
mod text;

pub use address::{Address, AddressError};
pub use catalog::{names, reference};
pub use http::MetricsServer;
