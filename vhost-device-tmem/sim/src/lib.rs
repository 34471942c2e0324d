// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How the daemon's policy shares memory among guests that are made up, or recorded.
//!
//! ```text
//! synthetic ─┐
//! trace ─────┴─ reuse ── workload ── guest ─┐
//!                                           ├─ world: second by second
//!                             sharing ──────┤     │
//!         the policy, equal parts, one LRU  │     measure
//!                            balloons ──────┘     │
//!                                    optimum ─────┘
//! ```
//!
//! A trace is looked through once, for how much memory each access would have been served by
//! ([`reuse`]); of a guest, a second then costs the same however many pages it reads ([`guest`]).

pub mod balloons;
pub mod guest;
pub mod measure;
pub mod optimum;
pub mod reuse;
pub mod scenario;
pub mod sharing;
pub mod synthetic;
pub mod trace;
pub mod workload;
pub mod world;
