// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the standard library does not have: ways into a file, and into the scheduler.

mod aligned;
mod mapping;
mod mark;
mod schedule;
mod uring;

pub use aligned::Aligned;
pub use mapping::Mapping;
pub use mark::mark;
pub use schedule::{run_on, run_when_idle};
pub use uring::write_direct_async;
