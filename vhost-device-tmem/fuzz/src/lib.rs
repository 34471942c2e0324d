// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What others send to the daemon: each target takes bytes that a fuzzer made up, and panics if the
//! daemon does something that it must not.
//!
//! A target has its name in [`TARGETS`], a program in `src/bin` for the fuzzer, and a folder of
//! inputs in `corpus`.

mod vhost_user;

pub use vhost_device_tmem::{
    control::fuzzing::control,
    device::fuzzing::{requests, rings},
    metrics::fuzzing::metrics,
    saved::saved,
};
pub use vhost_user::vhost_user;

/// A target: what it is called, and what it does with an input.
pub type Target = (&'static str, fn(&[u8]));

/// The targets.
pub const TARGETS: [Target; 6] = [
    ("control", control),
    ("metrics", metrics),
    ("requests", requests),
    ("rings", rings),
    ("saved", saved),
    ("vhost_user", vhost_user),
];
