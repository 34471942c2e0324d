// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Anonymous memory that the operating system fills in on first touch.

use std::{
    io,
    marker::PhantomData,
    ops::{Index, IndexMut},
    ptr::NonNull,
};

use zerocopy::FromZeros;

use super::PAGE_SIZE;
use crate::prefetch::prefetch;

/// A private anonymous mapping. It reads as zeros until written, takes memory only where it was
/// touched, and is left out of core dumps because it holds what guests stored.
///
/// # Invariants
///
/// `addr` is the start of a mapping of `len` bytes that nobody else unmaps.
#[derive(Debug)]
pub(super) struct Mapping {
    addr: NonNull<u8>,
    len: usize,
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
        let mapping = Self { addr, len };
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
        self.advise(offset, len, libc::MADV_DONTNEED)
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

    /// Takes the huge page apart that a range is a part of, if it is. Otherwise none of it would go
    /// back to the operating system before all of it does.
    pub(super) fn split_huge_page(&self, offset: usize, len: usize) {
        // A kernel that does not know how has it take memory for longer.
        let _ = self.advise(offset, len, libc::MADV_COLD);
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

    /// Asks for huge pages, for a table all of whose memory is accounted for from the start.
    pub(super) fn prefer_huge_pages(&self) {
        self.map.prefer_huge_pages();
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
