// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! By which device guests reach their windows.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// The device of QEMU's that a guest has its window by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WindowSource {
    /// An `ivshmem-plain` device that QEMU is given for the file.
    #[default]
    Ivshmem,
    /// The tmem device itself, of which the window is a shared memory region: QEMU is handed the
    /// file, as the protocol feature `SHMEM` of vhost-user has it.
    Virtio,
}
