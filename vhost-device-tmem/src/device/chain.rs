// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The two parts of a descriptor chain, however they are spread over descriptors.

use virtio_queue::DescriptorChain;
use vm_memory::{GuestMemory, GuestMemoryBackend, GuestMemoryMmap, Permissions, VolatileSlice};

use crate::prefetch::{prefetch, LINE};

/// The most pieces of guest memory that a request may consist of: as many as the largest virtqueue
/// has descriptors, which is four for each page and more. Indirect tables could lead to far more,
/// and each takes memory of ours.
pub(super) const MAX_PIECES: usize = 1024;

/// A piece of one part of a request.
#[derive(Clone, Debug)]
enum Piece<'m> {
    /// Guest memory.
    Memory(VolatileSlice<'m>),
    /// So many bytes of a descriptor that leads out of the memory which the front-end shares.
    Hole(usize),
}

impl Piece<'_> {
    fn len(&self) -> usize {
        match self {
            Self::Memory(slice) => slice.len(),
            Self::Hole(len) => *len,
        }
    }
}

/// The readable and the writable part of one request, as pieces of guest memory.
///
/// The descriptors are read once. What of a descriptor leads out of guest memory counts in the
/// lengths, and cannot be read or written.
///
/// # Invariants
///
/// Each length is the sum of that of the part's pieces.
#[derive(Debug, Default)]
pub(super) struct Parts<'m> {
    readable: Vec<Piece<'m>>,
    writable: Vec<Piece<'m>>,
    readable_len: usize,
    writable_len: usize,
    /// The chain goes on where it could not be followed, or was not.
    cut: bool,
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
        // Until there is a descriptor, it is the first one that could not be had.
        self.cut = true;
        for descriptor in chain {
            if self.readable.len() + self.writable.len() >= MAX_PIECES {
                self.cut = true;
                return;
            }
            self.cut = descriptor.has_next();
            let (pieces, len, access) = if descriptor.is_write_only() {
                let part = (&mut self.writable, &mut self.writable_len);
                (part.0, part.1, Permissions::Write)
            } else {
                let part = (&mut self.readable, &mut self.readable_len);
                (part.0, part.1, Permissions::Read)
            };
            let (addr, size) = (descriptor.addr(), descriptor.len() as usize);
            *len += size;
            // It lies in one region as good as always, and this is the shorter way.
            if let Ok(slice) = mem.get_slice(addr, size) {
                pieces.push(Piece::Memory(slice));
                continue;
            }
            let mut left = size;
            if let Ok(slices) = GuestMemory::get_slices(mem, addr, size, access) {
                for slice in slices.map_while(Result::ok) {
                    left -= slice.len();
                    pieces.push(Piece::Memory(slice));
                }
            }
            if left > 0 {
                pieces.push(Piece::Hole(left));
            }
        }
    }

    /// Gives the memory back, to be used for parts in other guest memory.
    pub(super) fn recycle<'n>(self) -> Parts<'n> {
        Parts {
            readable: recycle(self.readable),
            writable: recycle(self.writable),
            ..Parts::default()
        }
    }

    /// Returns whether the chain goes on where it could not be followed, or is longer than any
    /// request has to be: then the lengths say nothing of the request.
    pub(super) fn is_cut(&self) -> bool {
        self.cut
    }

    /// Says that the request will be carried out soon.
    pub(super) fn prefetch(&self) {
        let pieces = self.readable.iter().take(2).chain(self.writable.first());
        for piece in pieces {
            let Piece::Memory(piece) = piece else {
                continue;
            };
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

/// Empties a vector. Collecting nothing into one of elements of the same layout takes the memory
/// over (and would be correct if it did not).
fn recycle<'n>(mut pieces: Vec<Piece<'_>>) -> Vec<Piece<'n>> {
    pieces.clear();
    pieces.into_iter().map(|_| Piece::Hole(0)).collect()
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
    pieces: &'a [Piece<'m>],
    /// Bytes of the first piece that are behind.
    offset: usize,
}

impl<'a, 'm> Cursor<'a, 'm> {
    fn new(pieces: &'a [Piece<'m>]) -> Self {
        Self { pieces, offset: 0 }
    }

    /// Fills `buf`; false if that many bytes are not there, or not all within reach. The cursor is
    /// behind them all the same.
    pub(super) fn read(&mut self, buf: &mut [u8]) -> bool {
        let mut done = 0;
        let read = self.advance(buf.len(), |piece| {
            done += piece.copy_to(&mut buf[done..]);
        });
        read == Advance::Whole
    }

    /// Writes all of `buf`; false as for [`Self::read`].
    pub(super) fn write(&mut self, buf: &[u8]) -> bool {
        let mut done = 0;
        let written = self.advance(buf.len(), |piece| {
            piece.copy_from(&buf[done..done + piece.len()]);
            done += piece.len();
        });
        written == Advance::Whole
    }

    /// Leaves out `len` bytes, within reach or not; false if the part ends before.
    pub(super) fn skip(&mut self, len: usize) -> bool {
        self.advance(len, |_| ()) != Advance::Ended
    }

    /// Returns whether the next `len` bytes are there, and within reach.
    pub(super) fn reaches(&self, len: usize) -> bool {
        self.clone().advance(len, |_| ()) == Advance::Whole
    }

    /// Goes over `len` bytes. `visit` is told of them as far as they are within reach without a
    /// gap.
    fn advance(&mut self, mut len: usize, mut visit: impl FnMut(&VolatileSlice<'m>)) -> Advance {
        let mut done = Advance::Whole;
        while len > 0 {
            let Some(piece) = self.pieces.first() else {
                return Advance::Ended;
            };
            let step = len.min(piece.len() - self.offset);
            match piece {
                Piece::Memory(slice) if done == Advance::Whole => {
                    match slice.subslice(self.offset, step) {
                        Ok(slice) => visit(&slice),
                        Err(_) => return Advance::Ended,
                    }
                }
                Piece::Memory(_) => {}
                Piece::Hole(_) => done = Advance::OutOfReach,
            }
            len -= step;
            self.offset += step;
            if self.offset == piece.len() {
                self.pieces = &self.pieces[1..];
                self.offset = 0;
            }
        }
        done
    }
}

/// How far it went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Advance {
    /// Over all of the bytes, which are within reach.
    Whole,
    /// Over all of the bytes, some of which are not.
    OutOfReach,
    /// To the end of the part.
    Ended,
}
