// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Memory that the operating system fills in on first touch: of the process alone, or of a file in
//! memory that outlives it.

use std::{
    fs::File,
    io,
    marker::PhantomData,
    ops::{Index, IndexMut},
    os::fd::AsRawFd,
    ptr::NonNull,
    sync::Arc,
};

use rustix::fs::{fallocate, FallocateFlags};
use zerocopy::FromZeros;

use super::PAGE_SIZE;
use crate::prefetch::prefetch;

/// A mapping, anonymous or of a part of a file in memory. It reads as zeros until written, takes
/// memory only where it was touched, and is left out of core dumps because it holds what guests
/// stored.
///
/// # Invariants
///
/// - `addr` is the start of a mapping of `len` bytes that nobody else unmaps.
/// - `file` is what is mapped, and from where on; it is sealed against becoming shorter.
#[derive(Debug)]
pub(super) struct Mapping {
    addr: NonNull<u8>,
    len: usize,
    file: Option<(Arc<File>, u64)>,
}

// SAFETY: The mapping is plain memory that belongs to no thread.
unsafe impl Send for Mapping {}
// SAFETY: A shared reference hands out addresses only; whoever dereferences them answers for that.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Reserves `len` bytes of address space, at least one.
    ///
    /// # Errors
    ///
    /// The operating system's, where it has no address space left.
    pub(super) fn new(len: usize) -> io::Result<Self> {
        let len = len.max(1);
        // SAFETY: A new anonymous mapping overlaps nothing.
        let addr = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if addr == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let addr = NonNull::new(addr.cast::<u8>()).ok_or_else(io::Error::last_os_error)?;
        let mapping = Self {
            addr,
            len,
            file: None,
        };
        mapping.advise(0, len, libc::MADV_DONTDUMP)?;
        Ok(mapping)
    }

    /// As [`Self::new`], at a multiple of `align`, which is one of the page size.
    ///
    /// # Errors
    ///
    /// The operating system's, where it has no address space left.
    pub(super) fn aligned(len: usize, align: usize) -> io::Result<Self> {
        let len = len.max(1).next_multiple_of(PAGE_SIZE);
        let all = len.checked_add(align).ok_or(io::ErrorKind::OutOfMemory)?;
        let mut map = Self::new(all)?;
        let before = map.addr.align_offset(align);
        for (offset, len) in [(0, before), (before + len, all - before - len)] {
            if len > 0 {
                // SAFETY: The range lies within the mapping, and nobody has seen its address.
                unsafe { libc::munmap(map.addr.as_ptr().add(offset).cast(), len) };
            }
        }
        // SAFETY: The offset is within the mapping.
        map.addr = unsafe { map.addr.add(before) };
        map.len = len;
        Ok(map)
    }

    /// Maps `len` bytes of a file in memory from `offset` on, at a multiple of `align`. All three are
    /// multiples of the page size, and the file has so many bytes and keeps them.
    ///
    /// # Errors
    ///
    /// The operating system's, where it has no address space left.
    pub(super) fn shared(
        file: &Arc<File>,
        offset: u64,
        len: usize,
        align: usize,
    ) -> io::Result<Self> {
        let mut map = Self::aligned(len, align)?;
        let start = libc::off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
        // SAFETY: The range is a mapping of ours that nobody has seen, and is replaced whole.
        let addr = unsafe {
            libc::mmap(
                map.addr.as_ptr().cast(),
                map.len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_NORESERVE | libc::MAP_FIXED,
                file.as_raw_fd(),
                start,
            )
        };
        if addr == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        map.file = Some((Arc::clone(file), offset));
        map.advise(0, map.len, libc::MADV_DONTDUMP)?;
        Ok(map)
    }

    /// Keeps what is touched from now on out of the host's swap.
    ///
    /// # Errors
    ///
    /// The operating system's, above all where the process may not lock so much.
    pub(super) fn lock(&self) -> io::Result<()> {
        let flags = libc::MLOCK_ONFAULT as libc::c_uint;
        // SAFETY: The range is the mapping.
        match unsafe { libc::mlock2(self.addr.as_ptr().cast(), self.len, flags) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Returns the bytes of memory that an anonymous mapping takes.
    pub(super) fn taken(&self) -> u64 {
        const PAGES: usize = 1 << 14;
        let mut pages = [0_u8; PAGES];
        let mut taken = 0;
        for at in (0..self.len).step_by(PAGES * PAGE_SIZE) {
            let len = (self.len - at).min(PAGES * PAGE_SIZE);
            // SAFETY: The range lies within the mapping, and there is a byte for each of its pages.
            let ret = unsafe {
                let addr = self.addr.as_ptr().add(at);
                libc::mincore(addr.cast(), len, pages.as_mut_ptr())
            };
            if ret == 0 {
                let of = &pages[..len.div_ceil(PAGE_SIZE)];
                taken += of.iter().filter(|page| **page & 1 != 0).count();
            }
        }
        (taken * PAGE_SIZE) as u64
    }

    /// Returns the address of the first byte.
    pub(super) fn addr(&self) -> NonNull<u8> {
        self.addr
    }

    /// Gives the memory behind a range back to the operating system; it reads as zeros after.
    ///
    /// # Safety
    ///
    /// No reference into the range may exist.
    pub(super) unsafe fn release(&self, offset: usize, len: usize) -> io::Result<()> {
        let Some((file, start)) = &self.file else {
            return self.advise(offset, len, libc::MADV_DONTNEED);
        };
        assert!(offset.checked_add(len).is_some_and(|end| end <= self.len));
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fallocate(file, flags, start + offset as u64, len as u64).map_err(io::Error::from)
    }

    /// Asks for huge pages. What is touched then takes up to 2 MiB, within the mapping.
    pub(super) fn prefer_huge_pages(&self) {
        // A kernel without them is none the worse.
        let _ = self.advise(0, self.len, libc::MADV_HUGEPAGE);
    }

    /// Says whether a range is to consist of huge pages.
    ///
    /// # Errors
    ///
    /// The operating system's.
    pub(super) fn advise_huge_pages(
        &self,
        offset: usize,
        len: usize,
        huge: bool,
    ) -> io::Result<()> {
        let advice = if huge {
            libc::MADV_HUGEPAGE
        } else {
            libc::MADV_NOHUGEPAGE
        };
        self.advise(offset, len, advice)
    }

    /// Takes the memory behind a range, which is as it was after. Where that cannot be had, it is for
    /// who touches it to find out.
    pub(super) fn populate(&self, offset: usize, len: usize) {
        let _ = self.advise(offset, len, libc::MADV_POPULATE_WRITE);
    }

    fn advise(&self, offset: usize, len: usize, advice: libc::c_int) -> io::Result<()> {
        assert!(offset.checked_add(len).is_some_and(|end| end <= self.len));
        // SAFETY: The range lies within the mapping.
        let ret = unsafe { libc::madvise(self.addr.as_ptr().add(offset).cast(), len, advice) };
        if ret == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: The mapping is ours, and nothing borrows from it any more.
        unsafe { libc::munmap(self.addr.as_ptr().cast(), self.len) };
    }
}

/// A table of fixed length whose entries are zero until written.
///
/// # Invariants
///
/// `map` has room for `len` entries of type `T`.
#[derive(Debug)]
pub(super) struct Table<T> {
    map: Mapping,
    len: usize,
    entries: PhantomData<T>,
}

impl<T: FromZeros + Copy> Table<T> {
    /// Reserves room for `len` entries.
    ///
    /// # Errors
    ///
    /// The operating system's, where it has no address space left.
    pub(super) fn new(len: usize) -> io::Result<Self> {
        let bytes = len
            .checked_mul(size_of::<T>())
            .ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self {
            map: Mapping::new(bytes)?,
            len,
            entries: PhantomData,
        })
    }

    /// As [`Self::new`], with what a file in memory has from `offset` on.
    ///
    /// # Safety
    ///
    /// The file holds zeros there, or what another table of the same type wrote, and nobody else
    /// writes to it. Any bytes are a valid `T`.
    ///
    /// # Errors
    ///
    /// The operating system's, where it has no address space left.
    pub(super) unsafe fn shared(file: &Arc<File>, offset: u64, len: usize) -> io::Result<Self> {
        let bytes = len
            .checked_mul(size_of::<T>())
            .ok_or(io::ErrorKind::OutOfMemory)?;
        let bytes = bytes.max(1).next_multiple_of(PAGE_SIZE);
        Ok(Self {
            map: Mapping::shared(file, offset, bytes, PAGE_SIZE)?,
            len,
            entries: PhantomData,
        })
    }

    /// As [`Mapping::lock`].
    pub(super) fn lock(&self) -> io::Result<()> {
        self.map.lock()
    }

    /// As [`Mapping::taken`].
    pub(super) fn taken(&self) -> u64 {
        self.map.taken()
    }

    /// Asks for huge pages, for a table all of whose memory is accounted for from the start.
    pub(super) fn prefer_huge_pages(&self) {
        self.map.prefer_huge_pages();
    }

    /// Returns how many entries there are.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Lets the processor fetch an entry that will be asked for.
    pub(super) fn prefetch(&self, index: usize) {
        prefetch(&raw const self.as_slice()[index]);
    }

    /// Makes entries zero again that lie on pages of memory of their own, and gives that memory
    /// back to the operating system.
    pub(super) fn forget(&mut self, first: usize, count: usize) {
        assert!(first + count <= self.len);
        let start = (first * size_of::<T>()).next_multiple_of(PAGE_SIZE);
        let end = (first + count) * size_of::<T>() / PAGE_SIZE * PAGE_SIZE;
        if start < end {
            // SAFETY: Within the mapping. The table is borrowed mutably, and zeros are valid.
            let released = unsafe { self.map.release(start, end - start) };
            if let Err(error) = released {
                // They can be used again all the same.
                tracing::warn!("cannot give memory of a table back: {error}");
            }
        }
    }

    fn as_slice(&self) -> &[T] {
        // SAFETY: A page-aligned mapping of `len` entries; zeros and what was written over them
        // are valid values of `T`.
        unsafe { std::slice::from_raw_parts(self.map.addr().cast().as_ptr(), self.len) }
    }

    fn as_mut_slice(&mut self) -> &mut [T] {
        // SAFETY: As above, and the table is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.map.addr().cast().as_ptr(), self.len) }
    }
}

impl<T: FromZeros + Copy> Index<usize> for Table<T> {
    type Output = T;

    fn index(&self, index: usize) -> &T {
        &self.as_slice()[index]
    }
}

impl<T: FromZeros + Copy> IndexMut<usize> for Table<T> {
    fn index_mut(&mut self, index: usize) -> &mut T {
        &mut self.as_mut_slice()[index]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_to_a_file_is_there_for_the_next_who_maps_it() {
        let file = rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let file = Arc::new(File::from(file));
        file.set_len(8 * PAGE_SIZE as u64).unwrap();
        let table = || {
            // SAFETY: Any bytes are numbers, and only one of the tables is written to.
            unsafe { Table::<u64>::shared(&file, PAGE_SIZE as u64, 2000) }.unwrap()
        };
        let mut first = table();
        (first[0], first[1999]) = (5, 6);
        drop(first);
        let mut next = table();
        assert_eq!((next[0], next[1], next[1999]), (5, 0, 6));
        assert!((0..2000).all(|at| [0, 1999].contains(&at) || next[at] == 0));
        next.forget(0, 600);
        assert_eq!(super::super::memory::taken(&file), 3 * PAGE_SIZE as u64);
        assert_eq!((next[0], next[1999]), (0, 6));
    }

    #[test]
    fn a_table_is_zero_until_written() {
        let mut table = Table::<u64>::new(1000).unwrap();
        assert_eq!(table[999], 0);
        table[999] = 7;
        assert_eq!((table[998], table[999]), (0, 7));
    }

    #[test]
    fn released_memory_reads_as_zeros() {
        let map = Mapping::new(8192).unwrap();
        // SAFETY: In bounds, and no reference is held.
        unsafe {
            map.addr().as_ptr().write(9);
            map.release(0, 4096).unwrap();
            assert_eq!(map.addr().as_ptr().read(), 0);
        }
    }

    #[test]
    fn an_aligned_mapping_is_as_long_as_it_should_be() {
        let map = Mapping::aligned(3 * PAGE_SIZE - 1, 2 << 20).unwrap();
        assert_eq!(map.addr().as_ptr() as usize % (2 << 20), 0);
        // SAFETY: In bounds, and no reference is held.
        unsafe { map.addr().as_ptr().add(3 * PAGE_SIZE - 1).write(9) };
        assert_eq!(map.len, 3 * PAGE_SIZE);
    }

    #[test]
    fn forgotten_entries_are_zero_and_their_neighbours_are_not() {
        let mut table = Table::<[u64; 3]>::new(4096).unwrap();
        for at in 0..4096 {
            table[at] = [7; 3];
        }
        table.forget(1024, 1024);
        assert_eq!((table[1023], table[2048]), ([7; 3], [7; 3]));
        assert!((1024..2048).all(|at| table[at] == [0; 3]));
    }

    #[test]
    #[should_panic]
    fn an_index_past_the_table_is_refused() {
        let table = Table::<u64>::new(10).unwrap();
        let _ = table[10];
    }
}
