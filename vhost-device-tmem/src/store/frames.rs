// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Which page frames are in use.

use super::id::FrameId;

/// Page frames in a chunk, the unit in which memory goes back to the operating system (2 MiB).
pub(super) const CHUNK_FRAMES: usize = 512;

/// Empty chunks that keep their memory, so that one page put and flushed in turn costs no system
/// call.
const IDLE_CHUNKS: usize = 2;

const WORDS: usize = CHUNK_FRAMES / 64;

#[derive(Clone, Copy, Debug, Default)]
struct Chunk {
    used: [u64; WORDS],
    count: u16,
    idle: bool,
    draining: bool,
}

/// What the allocator itself takes for each frame, in bytes, rounded up.
pub(super) const FRAME_OVERHEAD: usize = (size_of::<Chunk>() + 9).div_ceil(CHUNK_FRAMES);

/// The allocator of page frames. It hands out the lowest free one, so that chunks at the end
/// become empty and can be released.
///
/// # Invariants
///
/// - `used` is the number of bits set in all chunks, less those past the end.
/// - A chunk's bit in `roomy` is set exactly where it has a free frame and is not draining.
/// - No word of `roomy` before `first_roomy` is other than zero.
/// - `idle` lists exactly the chunks whose `idle` is set.
#[derive(Debug)]
pub(super) struct Frames {
    chunks: Vec<Chunk>,
    roomy: Vec<u64>,
    first_roomy: usize,
    idle: Vec<u32>,
    used: usize,
}

impl Frames {
    /// Starts with `frames` frames, all free.
    pub(super) fn new(frames: usize) -> Self {
        let count = frames.div_ceil(CHUNK_FRAMES);
        let mut chunks = vec![Chunk::default(); count];
        // What lies past the end is in use for ever.
        for past in frames..count * CHUNK_FRAMES {
            let chunk = &mut chunks[past / CHUNK_FRAMES];
            chunk.used[past % CHUNK_FRAMES / 64] |= 1 << (past % 64);
            chunk.count += 1;
        }
        let mut roomy = vec![0; count.div_ceil(64)];
        for chunk in 0..count {
            roomy[chunk / 64] |= 1 << (chunk % 64);
        }
        Self {
            chunks,
            roomy,
            first_roomy: 0,
            idle: Vec::with_capacity(count),
            used: 0,
        }
    }

    /// Returns how many frames are in use.
    pub(super) fn used(&self) -> usize {
        self.used
    }

    /// Takes a free frame, [`None`] if there is none.
    pub(super) fn alloc(&mut self) -> Option<FrameId> {
        while *self.roomy.get(self.first_roomy)? == 0 {
            self.first_roomy += 1;
        }
        let at = self.first_roomy * 64 + self.roomy[self.first_roomy].trailing_zeros() as usize;
        let chunk = &mut self.chunks[at];
        let word = chunk.used.iter().position(|word| *word != u64::MAX)?;
        let bit = chunk.used[word].trailing_ones() as usize;
        chunk.used[word] |= 1 << bit;
        chunk.count += 1;
        if usize::from(chunk.count) == CHUNK_FRAMES {
            self.roomy[at / 64] &= !(1 << (at % 64));
        }
        if std::mem::take(&mut chunk.idle) {
            self.idle.retain(|idle| *idle as usize != at);
        }
        self.used += 1;
        Some(FrameId::from_index(at * CHUNK_FRAMES + word * 64 + bit))
    }

    /// Gives a frame back.
    pub(super) fn free(&mut self, frame: FrameId) {
        let at = frame.index() / CHUNK_FRAMES;
        let bit = frame.index() % CHUNK_FRAMES;
        let chunk = &mut self.chunks[at];
        debug_assert!(chunk.used[bit / 64] & 1 << (bit % 64) != 0, "freed twice");
        chunk.used[bit / 64] &= !(1 << (bit % 64));
        chunk.count -= 1;
        self.used -= 1;
        let empty = chunk.count == 0;
        if empty && !chunk.idle {
            chunk.idle = true;
            self.idle.push(at as u32);
        }
        self.make_roomy(at);
    }

    /// Takes an empty chunk out of use, so that its memory can be released without a lock; to be
    /// followed by [`Self::drained`]. [`None`] while there are only a few.
    pub(super) fn drain(&mut self) -> Option<usize> {
        if self.idle.len() <= IDLE_CHUNKS {
            return None;
        }
        // The highest is the one that will be wanted last.
        let last = (0..self.idle.len()).max_by_key(|i| self.idle[*i])?;
        let at = self.idle.swap_remove(last) as usize;
        self.chunks[at].idle = false;
        self.chunks[at].draining = true;
        self.roomy[at / 64] &= !(1 << (at % 64));
        Some(at)
    }

    /// Puts a chunk whose memory was released back into use.
    pub(super) fn drained(&mut self, at: usize) {
        self.chunks[at].draining = false;
        self.make_roomy(at);
    }

    fn make_roomy(&mut self, at: usize) {
        if !self.chunks[at].draining {
            self.roomy[at / 64] |= 1 << (at % 64);
            self.first_roomy = self.first_roomy.min(at / 64);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_frame_is_handed_out_once() {
        let mut frames = Frames::new(1000);
        let all: BTreeSet<_> = std::iter::from_fn(|| frames.alloc())
            .map(FrameId::index)
            .collect();
        assert_eq!(all, (0..1000).collect());
        assert_eq!(frames.used(), 1000);
        frames.free(FrameId::from_index(777));
        assert_eq!(frames.alloc().map(FrameId::index), Some(777));
        assert_eq!(frames.alloc(), None);
    }

    #[test]
    fn the_lowest_free_frame_comes_first() {
        let mut frames = Frames::new(100 * CHUNK_FRAMES);
        while frames.alloc().is_some() {}
        frames.free(FrameId::from_index(99 * CHUNK_FRAMES));
        frames.free(FrameId::from_index(3));
        assert_eq!(frames.alloc().map(FrameId::index), Some(3));
    }

    #[test]
    fn empty_chunks_are_drained_but_for_a_few() {
        let mut frames = Frames::new(5 * CHUNK_FRAMES);
        while frames.alloc().is_some() {}
        for index in 0..5 * CHUNK_FRAMES {
            frames.free(FrameId::from_index(index));
        }
        let drained: Vec<_> = std::iter::from_fn(|| frames.drain()).collect();
        assert_eq!(drained, [4, 3, 2]);
        let rest = std::iter::from_fn(|| frames.alloc()).count();
        assert_eq!(rest, 2 * CHUNK_FRAMES);
        for at in drained {
            frames.drained(at);
        }
        let rest = std::iter::from_fn(|| frames.alloc()).count();
        assert_eq!(rest, 3 * CHUNK_FRAMES);
    }
}
