// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The ways into a file that the standard library does not have.

mod aligned;
mod exchange;
mod mapping;
mod mark;
mod schedule;
mod uring;

pub use aligned::Aligned;
pub use exchange::{exchange_range, move_extents};
pub use mapping::Mapping;
pub use mark::mark;
pub use schedule::{cpus, real_time, run_on};
pub use uring::write_direct_async;
