// SPDX-License-Identifier: GPL-2.0

//! The driver's decisions, apart from the kernel.
//!
//! What is here decides and remembers; it neither sleeps, nor locks, nor touches a device. All of
//! it is safe Rust on top of `core`, and everything that has to be different inside and outside
//! the kernel is in [`mem`]. So the same files are a module of the kernel module and a crate of
//! their own, which `cargo test` runs on the host.

// This file is the root of that crate as well as a module of the driver. That is why it is called
// `mod.rs`, against the habit of the rest of the tree: as `../logic.rs` it would lie outside of the
// folder that is the crate.

// Kbuild injects `no_std` itself. As a module of the driver this line says nothing.
#![cfg_attr(not(CONFIG_RUST), no_std)]
#![cfg_attr(
    CONFIG_RUST,
    allow(
        dead_code,
        unreachable_pub,
        unused_imports,
        reason = "the crate on the host exports, and tests, more than the driver has a use for"
    )
)]
#![forbid(unsafe_code)]

pub mod admission;
pub mod drain;
pub mod epoch;
pub mod index;
pub mod mem;
pub mod patience;
pub mod standing;
pub mod watchdog;
pub mod window;
pub mod wire;
