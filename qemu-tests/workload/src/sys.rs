// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The ways into a file that the standard library does not have.

mod aligned;
mod mapping;
mod mark;
mod uring;

pub use aligned::Aligned;
pub use mapping::Mapping;
pub use mark::mark;
pub use uring::write_direct_async;
