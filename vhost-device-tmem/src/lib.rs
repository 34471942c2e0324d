// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The host side of virtio-tmem: a vhost-user device that keeps pages for guests.
//!
//! ```text
//! front-ends ── supervisor ── link ── worker        supervisor: connections, what must live
//!                                        │          worker: what may die
//! guest ── virtqueues ── device ── store ── tier    device: rings, requests, bounds
//!   │                      ├─────────┤              store: pools, pages, capacity
//!   │                    window ─────┤              window: memory that guests use by themselves
//! operator ── socket ── control ─────┤              control: what the operator asks for
//! Prometheus ─ socket ── metrics ────┘              metrics: what there is to watch
//! ```
//!
//! The store knows nothing of virtqueues, and the device nothing of the operator. The [`policy`]
//! says how guests share memory, and knows nothing but figures; [`balance`] says how large their own
//! memory should be, which `tmemctl` sets by [`qmp`]. What is [`saved`] of a guest is a
//! stream of its pages. What the store has no room for may be in the [`tier`] below it. The [`supervisor`] looks into none
//! of the memory that it holds; a [`worker`] has a device, a store, and the operator's socket.
//!
//! Around them is [`pressure`] (how short of memory the host is), and what a process needs: [`args`]
//! and [`config`] (what it is told), [`identity`] (who it runs as), [`limits`] (what it may have),
//! [`log`], [`sandbox`], [`serving`] (who connects to a socket), [`signals`], [`socket`] (where it
//! listens), [`stop`] (how its threads end), and [`tmpfs`] (where its memory outlives it).

pub mod args;
pub mod backoff;
pub mod balance;
pub mod config;
pub mod control;
pub mod device;
pub mod identity;
pub mod limits;
pub mod link;
pub mod log;
pub mod metrics;
pub mod policy;
mod prefetch;
pub mod pressure;
pub mod qmp;
pub mod sandbox;
pub mod saved;
pub mod serving;
pub mod signals;
pub mod size;
pub mod socket;
pub mod stop;
pub mod stop_policy;
pub mod store;
pub mod supervisor;
pub mod tier;
pub mod tmpfs;
pub mod window;
pub mod worker;
