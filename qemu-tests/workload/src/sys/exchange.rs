// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Ways to give the blocks of one file to another that no library has.

use std::{fs::File, io, os::fd::AsRawFd};

/// `EXT4_IOC_MOVE_EXT`, of `linux/ext4.h`.
const MOVE_EXTENTS: libc::Ioctl = request::<MoveExtents>(READ | WRITE, b'f', 15);

/// `XFS_IOC_EXCHANGE_RANGE`, of `xfs/xfs_fs.h`.
const EXCHANGE_RANGE: libc::Ioctl = request::<ExchangeRange>(WRITE, b'X', 129);

const WRITE: u32 = 1;
const READ: u32 = 2;

/// The number of an ioctl, as the kernel's macros make it.
const fn request<T>(direction: u32, kind: u8, number: u8) -> libc::Ioctl {
    let number =
        (direction << 30) | ((size_of::<T>() as u32) << 16) | ((kind as u32) << 8) | number as u32;
    number as libc::Ioctl
}

#[repr(C)]
struct MoveExtents {
    reserved: u32,
    donor: i32,
    origin_start: u64,
    donor_start: u64,
    /// Blocks of the filesystem.
    len: u64,
    moved: u64,
}

#[repr(C)]
struct ExchangeRange {
    other: i32,
    reserved: u32,
    other_start: u64,
    start: u64,
    /// Bytes.
    len: u64,
    flags: u64,
}

/// Has ext4 give the first `blocks` blocks of `origin` to `donor`, as unwritten ones; the content of
/// `origin` moves to the blocks that were the donor's.
///
/// Returns how many blocks it has done that with.
pub fn move_extents(origin: &File, donor: &File, blocks: u64) -> io::Result<u64> {
    let mut argument = MoveExtents {
        reserved: 0,
        donor: donor.as_raw_fd(),
        origin_start: 0,
        donor_start: 0,
        len: blocks,
        moved: 0,
    };
    // SAFETY: The argument is what the request takes, and lives until the call returns.
    let result = unsafe { libc::ioctl(origin.as_raw_fd(), MOVE_EXTENTS, &raw mut argument) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(argument.moved)
}

/// Has xfs exchange the first `len` bytes of two files.
pub fn exchange_range(file: &File, other: &File, len: u64) -> io::Result<()> {
    let argument = ExchangeRange {
        other: other.as_raw_fd(),
        reserved: 0,
        other_start: 0,
        start: 0,
        len,
        flags: 0,
    };
    // SAFETY: The argument is what the request takes, and lives until the call returns.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), EXCHANGE_RANGE, &raw const argument) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_are_the_kernels() {
        assert_eq!(MOVE_EXTENTS, 0xc028_660f);
        assert_eq!(EXCHANGE_RANGE, 0x4028_5881);
    }
}
