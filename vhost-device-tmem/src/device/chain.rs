// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The two parts of a descriptor chain, however they are spread over descriptors.

use virtio_queue::DescriptorChain;
use vm_memory::{GuestMemory, GuestMemoryMmap, Permissions, VolatileSlice};

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
            let Ok(slices) = mem.get_slices(descriptor.addr(), descriptor.len() as usize, access)
            else {
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
