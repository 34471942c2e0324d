// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The two parts of a descriptor chain, however they are spread over descriptors.

use virtio_queue::DescriptorChain;
use vm_memory::{GuestMemory, GuestMemoryBackend, GuestMemoryMmap, Permissions, VolatileSlice};

use crate::prefetch::{prefetch, LINE};

/// The readable and the writable part of one request, as pieces of guest memory.
///
/// The descriptors are read once. A part ends before the first descriptor that leads out of guest
/// memory, so that a request which has one is too short.
///
/// # Invariants
///
/// Each length is the sum of that of the part's pieces.
#[derive(Debug, Default)]
pub(super) struct Parts<'m> {
    readable: Vec<VolatileSlice<'m>>,
    writable: Vec<VolatileSlice<'m>>,
    readable_len: usize,
    writable_len: usize,
}

impl<'m> Parts<'m> {
    /// Replaces the parts by those of another chain.
    pub(super) fn collect(
        &mut self,
        chain: DescriptorChain<&'m GuestMemoryMmap>,
        mem: &'m GuestMemoryMmap,
    ) {
        self.readable.clear();
        self.writable.clear();
        (self.readable_len, self.writable_len) = (0, 0);
        let (mut readable_ends, mut writable_ends) = (false, false);
        for descriptor in chain {
            let (pieces, len, ends, access) = if descriptor.is_write_only() {
                let part = (&mut self.writable, &mut self.writable_len);
                (part.0, part.1, &mut writable_ends, Permissions::Write)
            } else {
                let part = (&mut self.readable, &mut self.readable_len);
                (part.0, part.1, &mut readable_ends, Permissions::Read)
            };
            if *ends {
                continue;
            }
            let (addr, size) = (descriptor.addr(), descriptor.len() as usize);
            // It lies in one region as good as always, and this is the shorter way.
            if let Ok(slice) = mem.get_slice(addr, size) {
                *len += size;
                pieces.push(slice);
                continue;
            }
            let Ok(slices) = GuestMemory::get_slices(mem, addr, size, access) else {
                *ends = true;
                continue;
            };
            for slice in slices {
                let Ok(slice) = slice else {
                    *ends = true;
                    break;
                };
                *len += slice.len();
                pieces.push(slice);
            }
        }
    }

    /// Says that the request will be carried out soon.
    pub(super) fn prefetch(&self) {
        let pieces = self.readable.iter().take(2).chain(self.writable.first());
        for piece in pieces {
            if let Ok(start) = piece.subslice(0, piece.len().min(AHEAD)) {
                will_read(&start);
            }
        }
    }

    /// Returns the length of the readable part in bytes.
    pub(super) fn readable_len(&self) -> usize {
        self.readable_len
    }

    /// Returns the length of the writable part in bytes.
    pub(super) fn writable_len(&self) -> usize {
        self.writable_len
    }

    /// Returns the start of the readable part.
    pub(super) fn reader(&self) -> Cursor<'_, 'm> {
        Cursor::new(&self.readable)
    }

    /// Returns the start of the writable part.
    pub(super) fn writer(&self) -> Cursor<'_, 'm> {
        Cursor::new(&self.writable)
    }
}

/// Bytes at the start of a piece that are looked at ahead.
const AHEAD: usize = 128;

/// Says that memory will be read, so that the processor need not be waited for it then.
pub(super) fn will_read(slice: &VolatileSlice<'_>) {
    let guard = slice.ptr_guard();
    for offset in (0..slice.len()).step_by(LINE) {
        prefetch(guard.as_ptr().wrapping_add(offset));
    }
}

/// A place in one part of a request.
#[derive(Clone, Debug)]
pub(super) struct Cursor<'a, 'm> {
    pieces: &'a [VolatileSlice<'m>],
    /// Bytes of the first piece that are behind.
    offset: usize,
}

impl<'a, 'm> Cursor<'a, 'm> {
    fn new(pieces: &'a [VolatileSlice<'m>]) -> Self {
        Self { pieces, offset: 0 }
    }

    /// Fills `buf`; false if the part ends before.
    pub(super) fn read(&mut self, buf: &mut [u8]) -> bool {
        let mut done = 0;
        self.advance(buf.len(), |piece| {
            done += piece.copy_to(&mut buf[done..]);
        })
    }

    /// Writes all of `buf`; false if the part ends before.
    pub(super) fn write(&mut self, buf: &[u8]) -> bool {
        let mut done = 0;
        self.advance(buf.len(), |piece| {
            piece.copy_from(&buf[done..done + piece.len()]);
            done += piece.len();
        })
    }

    /// Leaves out `len` bytes; false if the part ends before.
    pub(super) fn skip(&mut self, len: usize) -> bool {
        self.advance(len, |_| ())
    }

    fn advance(&mut self, mut len: usize, mut visit: impl FnMut(&VolatileSlice<'m>)) -> bool {
        while len > 0 {
            let Some(piece) = self.pieces.first() else {
                return false;
            };
            let step = len.min(piece.len() - self.offset);
            match piece.subslice(self.offset, step) {
                Ok(slice) => visit(&slice),
                Err(_) => return false,
            }
            len -= step;
            self.offset += step;
            if self.offset == piece.len() {
                self.pieces = &self.pieces[1..];
                self.offset = 0;
            }
        }
        true
    }
}
