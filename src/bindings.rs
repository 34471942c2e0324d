// SPDX-License-Identifier: GPL-2.0

//! What the `kernel` crate lacks: bindings, and safe wrappers of single facilities.

mod raw;

pub(crate) mod bio;
pub(crate) mod block;
pub(crate) mod disk;
pub(crate) mod mapping;
pub(crate) mod memory;
pub(crate) mod page;
pub(crate) mod pci;
pub(crate) mod pm;
pub(crate) mod random;
pub(crate) mod reserve;
pub(crate) mod shrinker;
pub(crate) mod static_mutex;
pub(crate) mod swap;
pub(crate) mod sysfs;
pub(crate) mod thread;
pub(crate) mod trace;
pub(crate) mod work;

pub(crate) use raw::*;
