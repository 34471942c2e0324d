// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Which page frames are in use, and which take memory.

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
    /// Frames that take memory. All that are used do.
    touched: [u64; WORDS],
    /// Bits set in `used`.
    count: u16,
    idle: bool,
    draining: bool,
}

impl Chunk {
    /// Returns a free frame, one that takes memory if there is one.
    fn free(&self) -> Option<usize> {
        self.spare().or_else(|| first(|word| !self.used[word]))
    }

    /// Returns a free frame that takes memory.
    fn spare(&self) -> Option<usize> {
        first(|word| self.touched[word] & !self.used[word])
    }
}

fn first(word: impl Fn(usize) -> u64) -> Option<usize> {
    let at = (0..WORDS).find(|at| word(*at) != 0)?;
    Some(at * 64 + word(at).trailing_zeros() as usize)
}

fn set(words: &mut [u64], bit: usize, on: bool) {
    if on {
        words[bit / 64] |= 1 << (bit % 64);
    } else {
        words[bit / 64] &= !(1 << (bit % 64));
    }
}

fn is_set(words: &[u64], bit: usize) -> bool {
    words[bit / 64] & (1 << (bit % 64)) != 0
}

/// A set of chunks of which the lowest is found fast.
///
/// # Invariants
///
/// No word before `first` is other than zero.
#[derive(Debug)]
struct ChunkSet {
    words: Vec<u64>,
    first: usize,
}

impl ChunkSet {
    fn new(chunks: usize) -> Self {
        Self {
            words: vec![0; chunks.div_ceil(64)],
            first: 0,
        }
    }

    fn put(&mut self, chunk: usize, member: bool) {
        set(&mut self.words, chunk, member);
        if member {
            self.first = self.first.min(chunk / 64);
        }
    }

    fn lowest(&mut self) -> Option<usize> {
        while *self.words.get(self.first)? == 0 {
            self.first += 1;
        }
        Some(self.first * 64 + self.words[self.first].trailing_zeros() as usize)
    }
}

/// What the allocator itself takes for each frame, in bytes, rounded up: the chunk, its bits in
/// two sets, and its place in the list of idle ones.
pub(super) const FRAME_OVERHEAD: usize = (size_of::<Chunk>() + 5).div_ceil(CHUNK_FRAMES);

/// The allocator of page frames. It hands out low ones first, so that chunks at the end become
/// empty and can be released.
///
/// # Invariants
///
/// - `used` and `resident` are the numbers of bits set in all chunks' `used` and `touched`, less
///   those past the end.
/// - A chunk is in `roomy` exactly where it has a free frame, and in `spare` exactly where it has
///   one that takes memory; one that is draining is in neither.
/// - `idle` lists exactly the chunks whose `idle` is set: empty ones that take memory.
#[derive(Debug)]
pub(super) struct Frames {
    chunks: Vec<Chunk>,
    roomy: ChunkSet,
    spare: ChunkSet,
    idle: Vec<u32>,
    used: usize,
    resident: usize,
}

impl Frames {
    /// Starts with `frames` frames, all free.
    pub(super) fn new(frames: usize) -> Self {
        let count = frames.div_ceil(CHUNK_FRAMES);
        let mut this = Self {
            chunks: vec![Chunk::default(); count],
            roomy: ChunkSet::new(count),
            spare: ChunkSet::new(count),
            idle: Vec::with_capacity(count),
            used: 0,
            resident: 0,
        };
        // What lies past the end is in use for ever.
        for past in frames..count * CHUNK_FRAMES {
            let chunk = &mut this.chunks[past / CHUNK_FRAMES];
            set(&mut chunk.used, past % CHUNK_FRAMES, true);
            chunk.count += 1;
        }
        for at in 0..count {
            this.file(at);
        }
        this
    }

    /// Returns how many frames are in use.
    pub(super) fn used(&self) -> usize {
        self.used
    }

    /// Returns how many frames take memory.
    pub(super) fn resident(&self) -> usize {
        self.resident
    }

    /// Takes a free frame, such that no more than `limit` take memory; [`None`] if there is none.
    pub(super) fn alloc(&mut self, limit: usize) -> Option<FrameId> {
        let at = if self.resident < limit {
            self.roomy.lowest()?
        } else {
            self.spare.lowest()?
        };
        let chunk = &mut self.chunks[at];
        let bit = chunk.free()?;
        if !is_set(&chunk.touched, bit) {
            self.resident += 1;
        }
        set(&mut chunk.touched, bit, true);
        set(&mut chunk.used, bit, true);
        chunk.count += 1;
        if std::mem::take(&mut chunk.idle) {
            self.idle.retain(|idle| *idle as usize != at);
        }
        self.used += 1;
        self.file(at);
        Some(FrameId::from_index(at * CHUNK_FRAMES + bit))
    }

    /// Gives a frame back. It still takes memory.
    pub(super) fn free(&mut self, frame: FrameId) {
        let at = frame.index() / CHUNK_FRAMES;
        let bit = frame.index() % CHUNK_FRAMES;
        let chunk = &mut self.chunks[at];
        debug_assert!(is_set(&chunk.used, bit), "freed twice");
        set(&mut chunk.used, bit, false);
        chunk.count -= 1;
        self.used -= 1;
        if chunk.count == 0 && !chunk.idle {
            chunk.idle = true;
            self.idle.push(at as u32);
        }
        self.file(at);
    }

    /// Chooses a free frame that takes memory, which the caller releases at once.
    pub(super) fn trim(&mut self) -> Option<FrameId> {
        let at = self.spare.lowest()?;
        let chunk = &mut self.chunks[at];
        let bit = chunk.spare()?;
        set(&mut chunk.touched, bit, false);
        self.resident -= 1;
        self.file(at);
        Some(FrameId::from_index(at * CHUNK_FRAMES + bit))
    }

    /// Takes an empty chunk out of use, so that its memory can be released without a lock; to be
    /// followed by [`Self::drained`]. [`None`] while there are only a few.
    pub(super) fn drain(&mut self) -> Option<usize> {
        if !self.can_drain() {
            return None;
        }
        // The highest is the one that will be wanted last.
        let last = (0..self.idle.len()).max_by_key(|i| self.idle[*i])?;
        let at = self.idle.swap_remove(last) as usize;
        let chunk = &mut self.chunks[at];
        chunk.idle = false;
        chunk.draining = true;
        self.file(at);
        Some(at)
    }

    /// Returns whether [`Self::drain`] would find a chunk.
    pub(super) fn can_drain(&self) -> bool {
        self.idle.len() > IDLE_CHUNKS
    }

    /// Puts a chunk whose memory was released back into use.
    pub(super) fn drained(&mut self, at: usize) {
        let chunk = &mut self.chunks[at];
        chunk.draining = false;
        let touched: u32 = chunk.touched.iter().map(|word| word.count_ones()).sum();
        chunk.touched = [0; WORDS];
        self.resident -= touched as usize;
        self.file(at);
    }

    /// Puts a chunk into the sets that it belongs to.
    fn file(&mut self, at: usize) {
        let chunk = &self.chunks[at];
        let roomy = !chunk.draining && usize::from(chunk.count) < CHUNK_FRAMES;
        let spare = roomy && chunk.spare().is_some();
        self.roomy.put(at, roomy);
        self.spare.put(at, spare);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const ALL: usize = usize::MAX;

    #[test]
    fn every_frame_is_handed_out_once() {
        let mut frames = Frames::new(1000);
        let all: BTreeSet<_> = std::iter::from_fn(|| frames.alloc(ALL))
            .map(FrameId::index)
            .collect();
        assert_eq!(all, (0..1000).collect());
        assert_eq!((frames.used(), frames.resident()), (1000, 1000));
        frames.free(FrameId::from_index(777));
        assert_eq!(frames.alloc(ALL).map(FrameId::index), Some(777));
        assert_eq!(frames.alloc(ALL), None);
    }

    #[test]
    fn the_lowest_free_frame_comes_first() {
        let mut frames = Frames::new(100 * CHUNK_FRAMES);
        while frames.alloc(ALL).is_some() {}
        frames.free(FrameId::from_index(99 * CHUNK_FRAMES));
        frames.free(FrameId::from_index(3));
        assert_eq!(frames.alloc(ALL).map(FrameId::index), Some(3));
    }

    #[test]
    fn empty_chunks_are_drained_but_for_a_few() {
        let mut frames = Frames::new(5 * CHUNK_FRAMES);
        while frames.alloc(ALL).is_some() {}
        for index in 0..5 * CHUNK_FRAMES {
            frames.free(FrameId::from_index(index));
        }
        let drained: Vec<_> = std::iter::from_fn(|| frames.drain()).collect();
        assert_eq!(drained, [4, 3, 2]);
        let rest = std::iter::from_fn(|| frames.alloc(ALL)).count();
        assert_eq!(rest, 2 * CHUNK_FRAMES);
        for at in drained {
            frames.drained(at);
        }
        assert_eq!(frames.resident(), 2 * CHUNK_FRAMES);
        let rest = std::iter::from_fn(|| frames.alloc(ALL)).count();
        assert_eq!(rest, 3 * CHUNK_FRAMES);
    }

    #[test]
    fn no_more_frames_take_memory_than_the_limit() {
        let mut frames = Frames::new(4 * CHUNK_FRAMES);
        let limit = 2 * CHUNK_FRAMES;
        assert_eq!(std::iter::from_fn(|| frames.alloc(limit)).count(), limit);
        for index in 0..CHUNK_FRAMES {
            frames.free(FrameId::from_index(index));
        }
        for _ in 0..10 {
            frames.trim().unwrap();
        }
        assert_eq!(frames.resident(), limit - 10);
        let again = std::iter::from_fn(|| frames.alloc(limit - 10)).count();
        assert_eq!(again, CHUNK_FRAMES - 10);
        assert_eq!(frames.resident(), limit - 10);
        assert_eq!(frames.trim(), None);
    }
}
