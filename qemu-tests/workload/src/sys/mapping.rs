// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A file's pages as memory.

use std::{
    fs::File,
    io,
    ptr::{copy_nonoverlapping, null_mut, NonNull},
};

use rustix::mm::{madvise, mmap, msync, munmap, Advice, MapFlags, MsyncFlags, ProtFlags};

use crate::page::PAGE_SIZE;

/// A shared mapping of the first bytes of a file.
///
/// Its bytes are only ever copied in or out, because a file may change under a reference.
pub struct Mapping {
    start: NonNull<u8>,
    len: usize,
}

impl Mapping {
    /// Maps the first `len` bytes of `file`, which must be as long.
    pub fn new(file: &File, len: usize) -> io::Result<Self> {
        // SAFETY: The kernel chooses the place, so no memory in use is replaced.
        let start = unsafe {
            mmap(
                null_mut(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                file,
                0,
            )
        }?;
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { start, len })
    }

    fn check(&self, offset: usize, len: usize) {
        assert!(offset.checked_add(len).is_some_and(|end| end <= self.len));
    }

    /// Copies `bytes` in.
    ///
    /// # Panics
    ///
    /// Panics if they reach beyond the mapping.
    pub fn write(&mut self, offset: usize, bytes: &[u8]) {
        self.check(offset, bytes.len());
        // SAFETY: The range lies within the mapping, which nothing else in this process refers to.
        unsafe { copy_nonoverlapping(bytes.as_ptr(), self.start.as_ptr().add(offset), bytes.len()) }
    }

    /// Copies bytes out.
    ///
    /// # Panics
    ///
    /// Panics if they reach beyond the mapping.
    pub fn read(&self, offset: usize, bytes: &mut [u8]) {
        self.check(offset, bytes.len());
        // SAFETY: As in `write()`.
        unsafe {
            copy_nonoverlapping(
                self.start.as_ptr().add(offset),
                bytes.as_mut_ptr(),
                bytes.len(),
            );
        }
    }

    /// Waits until what was written is in the file.
    pub fn sync(&self) -> io::Result<()> {
        // SAFETY: The range is this mapping's.
        unsafe { msync(self.start.as_ptr().cast(), self.len, MsyncFlags::SYNC) }?;
        Ok(())
    }

    /// Counts the pages that are in memory, without bringing any there.
    pub fn resident(&self) -> io::Result<usize> {
        let mut pages = vec![0u8; self.len.div_ceil(PAGE_SIZE)];
        // SAFETY: The range is this mapping's, and there is a byte for each of its pages.
        let result =
            unsafe { libc::mincore(self.start.as_ptr().cast(), self.len, pages.as_mut_ptr()) };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(pages.iter().filter(|&page| page & 1 != 0).count())
    }

    /// Asks the kernel to reclaim the pages, through the same code as under memory pressure.
    pub fn page_out(&self) -> io::Result<()> {
        let start = self.start.as_ptr().cast();
        // SAFETY: The range is this mapping's, and reclaiming its pages changes no content.
        unsafe { madvise(start, self.len, Advice::LinuxPageOut) }?;
        Ok(())
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: The range is this mapping's, and nothing refers to it any longer.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_the_file_itself() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(8192).unwrap();
        let mut mapping = Mapping::new(file.as_file(), 8192).unwrap();
        mapping.write(5000, b"hello");
        mapping.sync().unwrap();
        assert_eq!(&std::fs::read(file.path()).unwrap()[5000..5005], b"hello");
        let mut bytes = [0; 5];
        mapping.read(5000, &mut bytes);
        assert_eq!(&bytes, b"hello");
        assert_eq!(mapping.resident().unwrap(), 2);
        mapping.page_out().unwrap();
    }

    #[test]
    #[should_panic]
    fn nothing_beyond_it_is_touched() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(4096).unwrap();
        Mapping::new(&file, 4096).unwrap().write(4095, b"ab");
    }
}
