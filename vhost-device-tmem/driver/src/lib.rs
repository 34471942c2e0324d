// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A vhost-user front-end without a virtual machine.
//!
//! It does what QEMU and a guest's driver do together: it shares memory with a device that another
//! process serves, sets virtqueues up, and puts requests on them. Tests use it to say what no
//! driver would, measurements to say it as fast as they can.
//!
//! Nothing in it is of tmem but [`TmemDevice`]; a [`Connection`] and its [`Queue`]s work with any
//! device.

mod connection;
mod queue;
mod tmem;

use std::{io, os::fd::FromRawFd};

use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap};

pub use connection::{Connection, EVENT_IDX, FEATURES};
pub use queue::{Part, Queue};
pub use tmem::{Response, TmemDevice};

/// Makes memory of `len` bytes that a device can share, from guest address 0 on.
///
/// # Errors
///
/// The operating system's.
pub fn memory(len: usize) -> io::Result<GuestMemoryMmap> {
    // SAFETY: A plain system call; the descriptor is new, and ours.
    let file = unsafe {
        let fd = libc::memfd_create(c"guest".as_ptr(), libc::MFD_CLOEXEC);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        std::fs::File::from_raw_fd(fd)
    };
    file.set_len(len as u64)?;
    let range = (GuestAddress(0), len, Some(FileOffset::new(file, 0)));
    GuestMemoryMmap::from_ranges_with_files([range]).map_err(io::Error::other)
}
