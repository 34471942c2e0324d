// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Which spans of memory are in use, and which take memory.

use super::{id::SpanId, PAGE_SIZE};

/// The size of a span in bytes: a few pages, so that slots of many sizes fill it well.
pub(super) const SPAN_SIZE: usize = 8 * PAGE_SIZE;

/// Spans in a chunk, the unit in which memory goes back to the operating system (2 MiB).
pub(super) const CHUNK_SPANS: usize = 64;

/// Empty chunks that keep their memory, so that one page put and flushed in turn costs no system
/// call.
const IDLE_CHUNKS: usize = 2;

/// Chunks with free spans among which the next is looked for that has no memory yet.
const AHEAD: usize = 4;

#[derive(Clone, Copy, Debug, Default)]
struct Chunk {
    /// A bit for each span.
    used: u64,
    /// Spans that take memory. All that are used do.
    touched: u64,
    idle: bool,
    draining: bool,
    /// Its spans take memory one by one. Otherwise all do as soon as one does: it is a huge page.
    piecemeal: bool,
}

impl Chunk {
    /// Returns a free span, one that takes memory if there is one.
    fn free(&self) -> Option<u32> {
        self.spare().or_else(|| first(!self.used))
    }

    /// Returns a free span that takes memory.
    fn spare(&self) -> Option<u32> {
        first(self.touched & !self.used)
    }
}

fn first(word: u64) -> Option<u32> {
    (word != 0).then(|| word.trailing_zeros())
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
        let bit = 1 << (chunk % 64);
        let word = &mut self.words[chunk / 64];
        if member {
            *word |= bit;
            self.first = self.first.min(chunk / 64);
        } else {
            *word &= !bit;
        }
    }

    fn lowest(&mut self) -> Option<usize> {
        while *self.words.get(self.first)? == 0 {
            self.first += 1;
        }
        Some(self.first * 64 + self.words[self.first].trailing_zeros() as usize)
    }
}

/// What the allocator itself takes for each span, in bytes, rounded up: the chunk, its bits in two
/// sets, and its place in the list of idle ones.
pub(super) const SPAN_BITS: usize = (size_of::<Chunk>() + 5).div_ceil(CHUNK_SPANS);

/// The allocator of spans. It hands out low ones first, so that chunks at the end become empty and
/// can be released.
///
/// # Invariants
///
/// - `used` and `resident` are the numbers of bits set in all chunks' `used` and `touched`, less
///   those past the end.
/// - A chunk is in `roomy` exactly where it has a free span, and in `spare` exactly where it has
///   one that takes memory; one that is draining is in neither.
/// - `idle` lists exactly the chunks whose `idle` is set: empty ones that took memory.
/// - Of a chunk that is not piecemeal all spans take memory, or none.
#[derive(Debug)]
pub(super) struct Spans {
    chunks: Vec<Chunk>,
    roomy: ChunkSet,
    spare: ChunkSet,
    idle: Vec<u32>,
    /// The bits of the last chunk that lie past the end, which are in use for ever.
    past: (usize, u64),
    /// Chunks take memory whole where that is possible.
    huge: bool,
    /// Of the last empty chunk with memory a span was taken since [`Self::prepare`] was asked last.
    opened: bool,
    used: usize,
    resident: usize,
}

impl Spans {
    /// Starts with `spans` spans, all free. With `huge`, each whole chunk takes memory at once.
    pub(super) fn new(spans: usize, huge: bool) -> Self {
        let count = spans.div_ceil(CHUNK_SPANS);
        let past = match spans % CHUNK_SPANS {
            0 => 0,
            last => u64::MAX << last,
        };
        let mut this = Self {
            chunks: vec![Chunk::default(); count],
            roomy: ChunkSet::new(count),
            spare: ChunkSet::new(count),
            idle: Vec::with_capacity(count),
            past: (count.wrapping_sub(1), past),
            huge,
            opened: false,
            used: 0,
            resident: 0,
        };
        if let Some(last) = this.chunks.last_mut() {
            last.used = past;
        }
        for at in 0..count {
            this.chunks[at].piecemeal = this.is_piecemeal(at);
            this.file(at);
        }
        this
    }

    /// Returns how many spans are in use.
    pub(super) fn used(&self) -> usize {
        self.used
    }

    /// Returns how many spans there are.
    pub(super) fn count(&self) -> usize {
        self.chunks.len() * CHUNK_SPANS - self.past.1.count_ones() as usize
    }

    /// Returns whether a span is in use.
    pub(super) fn is_used(&self, span: SpanId) -> bool {
        self.chunks[span.index() / CHUNK_SPANS].used & (1 << (span.index() % CHUNK_SPANS)) != 0
    }

    /// Returns whether a span takes memory.
    pub(super) fn takes_memory(&self, span: SpanId) -> bool {
        let chunk = &self.chunks[span.index() / CHUNK_SPANS];
        !chunk.draining && chunk.touched & (1 << (span.index() % CHUNK_SPANS)) != 0
    }

    /// Returns how many spans take memory.
    pub(super) fn resident(&self) -> usize {
        self.resident
    }

    /// Returns whether a chunk takes memory span by span from the start.
    fn is_piecemeal(&self, at: usize) -> bool {
        !self.huge || (at == self.past.0 && self.past.1 != 0)
    }

    /// Takes a free span, such that no more than `limit` take memory; [`None`] if there is none.
    ///
    /// Where the limit leaves no room for a whole chunk, one becomes piecemeal. `split` is told of
    /// it before it takes memory.
    pub(super) fn alloc(&mut self, limit: usize, split: impl FnOnce(usize)) -> Option<SpanId> {
        let left = limit.saturating_sub(self.resident);
        let at = if left >= CHUNK_SPANS {
            self.roomy.lowest()?
        } else {
            match self.spare.lowest() {
                None if left > 0 => self.roomy.lowest()?,
                spare => spare?,
            }
        };
        let chunk = &mut self.chunks[at];
        let bit = chunk.free()?;
        if chunk.touched & (1 << bit) == 0 {
            if !chunk.piecemeal && left < CHUNK_SPANS {
                chunk.piecemeal = true;
                split(at);
            }
            let more = if chunk.piecemeal { 1 << bit } else { u64::MAX };
            self.resident += more.count_ones() as usize;
            chunk.touched |= more;
        }
        let opened = chunk.used == 0;
        chunk.used |= 1 << bit;
        if std::mem::take(&mut chunk.idle) {
            self.idle.retain(|idle| *idle as usize != at);
        }
        self.opened |= opened && self.huge && self.idle.is_empty();
        self.used += 1;
        self.file(at);
        Some(SpanId::from_index(at * CHUNK_SPANS + bit as usize))
    }

    /// Takes a certain span, which is free. It takes memory already, and its chunk does span by
    /// span until that is empty.
    pub(super) fn claim(&mut self, span: SpanId) {
        let at = span.index() / CHUNK_SPANS;
        let bit = 1 << (span.index() % CHUNK_SPANS);
        let chunk = &mut self.chunks[at];
        debug_assert!(chunk.used & bit == 0, "taken twice");
        chunk.piecemeal = true;
        chunk.used |= bit;
        self.resident += usize::from(chunk.touched & bit == 0);
        chunk.touched |= bit;
        self.used += 1;
        self.file(at);
    }

    /// Returns the runs of spans that are free: the first of each, and how many.
    pub(super) fn free_runs(&self) -> Vec<(SpanId, usize)> {
        let mut runs: Vec<(usize, usize)> = Vec::new();
        for (at, chunk) in self.chunks.iter().enumerate() {
            for bit in (0..CHUNK_SPANS).filter(|bit| chunk.used & (1 << bit) == 0) {
                let span = at * CHUNK_SPANS + bit;
                match runs.last_mut() {
                    Some((first, count)) if *first + *count == span => *count += 1,
                    _ => runs.push((span, 1)),
                }
            }
        }
        let named = |(first, count)| (SpanId::from_index(first), count);
        runs.into_iter().map(named).collect()
    }

    /// Gives a span back. It still takes memory.
    pub(super) fn free(&mut self, span: SpanId) {
        let at = span.index() / CHUNK_SPANS;
        let bit = 1 << (span.index() % CHUNK_SPANS);
        let empty = if at == self.past.0 { self.past.1 } else { 0 };
        let chunk = &mut self.chunks[at];
        debug_assert!(chunk.used & bit != 0, "freed twice");
        chunk.used &= !bit;
        self.used -= 1;
        if chunk.used == empty && !chunk.idle {
            chunk.idle = true;
            self.idle.push(at as u32);
        }
        self.file(at);
    }

    /// Chooses a free span that takes memory, which the caller releases at once. `split` is told
    /// before of the chunk that becomes piecemeal by this, if one does.
    pub(super) fn trim(&mut self, split: impl FnOnce(usize)) -> Option<SpanId> {
        // One that is empty will be whole again.
        let empty = self.idle.iter().map(|at| *at as usize);
        let at = empty
            .rev()
            .find(|at| self.chunks[*at].spare().is_some())
            .or_else(|| self.spare.lowest())?;
        let chunk = &mut self.chunks[at];
        let bit = chunk.spare()?;
        if !std::mem::replace(&mut chunk.piecemeal, true) {
            split(at);
        }
        chunk.touched &= !(1 << bit);
        self.resident -= 1;
        self.file(at);
        Some(SpanId::from_index(at * CHUNK_SPANS + bit as usize))
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
        let piecemeal = self.is_piecemeal(at);
        let chunk = &mut self.chunks[at];
        chunk.piecemeal = piecemeal;
        chunk.draining = false;
        self.resident -= chunk.touched.count_ones() as usize;
        chunk.touched = 0;
        self.file(at);
    }

    /// Returns whether it is worth asking [`Self::prepare`].
    pub(super) fn is_opened(&self) -> bool {
        self.opened
    }

    /// Takes the chunk out of use that will be wanted next, so that its memory can be had without a
    /// lock and before somebody waits for it; to be followed by [`Self::prepared`]. It counts as
    /// taken at once. [`None`] where an empty one has memory already, where no more than `limit`
    /// spans may, or where memory is not taken by whole chunks.
    pub(super) fn prepare(&mut self, limit: usize) -> Option<usize> {
        self.opened = false;
        if !self.idle.is_empty() || self.resident + 2 * CHUNK_SPANS > limit {
            return None;
        }
        let at = self.roomy.lowest()?;
        // Chunks in use are before those that are not, as the lowest is always taken.
        let next = (at..self.chunks.len()).take(AHEAD).find(|at| {
            let chunk = &self.chunks[*at];
            !chunk.draining && !chunk.piecemeal && chunk.used | chunk.touched == 0
        })?;
        let chunk = &mut self.chunks[next];
        chunk.draining = true;
        chunk.touched = u64::MAX;
        self.resident += CHUNK_SPANS;
        self.file(next);
        Some(next)
    }

    /// Puts a chunk that was prepared back into use.
    pub(super) fn prepared(&mut self, at: usize) {
        let chunk = &mut self.chunks[at];
        chunk.draining = false;
        chunk.idle = true;
        self.idle.push(at as u32);
        self.file(at);
    }

    /// Puts a chunk into the sets that it belongs to.
    fn file(&mut self, at: usize) {
        let chunk = &self.chunks[at];
        let roomy = !chunk.draining && chunk.used != u64::MAX;
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

    fn alloc(spans: &mut Spans, limit: usize) -> Option<SpanId> {
        spans.alloc(limit, |_| ())
    }

    #[test]
    fn every_span_is_handed_out_once() {
        let mut spans = Spans::new(1000, false);
        let all: BTreeSet<_> = std::iter::from_fn(|| alloc(&mut spans, ALL))
            .map(SpanId::index)
            .collect();
        assert_eq!(all, (0..1000).collect());
        assert_eq!((spans.used(), spans.resident()), (1000, 1000));
        spans.free(SpanId::from_index(777));
        assert_eq!(alloc(&mut spans, ALL).map(SpanId::index), Some(777));
        assert_eq!(alloc(&mut spans, ALL), None);
    }

    #[test]
    fn spans_that_were_claimed_are_not_handed_out() {
        let mut spans = Spans::new(3 * CHUNK_SPANS - 5, true);
        for index in [3, 4, 70] {
            spans.claim(SpanId::from_index(index));
        }
        assert_eq!((spans.used(), spans.resident()), (3, 3));
        let runs = [(0, 3), (5, 65), (71, 3 * CHUNK_SPANS - 5 - 71)];
        let named = |(first, count)| (SpanId::from_index(first), count);
        assert_eq!(spans.free_runs(), runs.map(named));
        let rest: BTreeSet<_> = std::iter::from_fn(|| alloc(&mut spans, ALL))
            .map(SpanId::index)
            .collect();
        assert_eq!(rest.len(), 3 * CHUNK_SPANS - 5 - 3);
        assert!([3, 4, 70].iter().all(|index| !rest.contains(index)));
    }

    #[test]
    fn the_lowest_free_span_comes_first() {
        let mut spans = Spans::new(100 * CHUNK_SPANS, false);
        while alloc(&mut spans, ALL).is_some() {}
        spans.free(SpanId::from_index(99 * CHUNK_SPANS));
        spans.free(SpanId::from_index(3));
        assert_eq!(alloc(&mut spans, ALL).map(SpanId::index), Some(3));
    }

    #[test]
    fn empty_chunks_are_drained_but_for_a_few() {
        for huge in [false, true] {
            drain(huge);
        }
    }

    fn drain(huge: bool) {
        // The last chunk is not a whole one.
        const SPANS: usize = 5 * CHUNK_SPANS - 7;
        let mut spans = Spans::new(SPANS, huge);
        while alloc(&mut spans, ALL).is_some() {}
        for index in 0..SPANS {
            spans.free(SpanId::from_index(index));
        }
        let drained: Vec<_> = std::iter::from_fn(|| spans.drain()).collect();
        assert_eq!(drained, [4, 3, 2]);
        let rest = std::iter::from_fn(|| alloc(&mut spans, ALL)).count();
        assert_eq!(rest, 2 * CHUNK_SPANS);
        for at in drained {
            spans.drained(at);
        }
        assert_eq!(spans.resident(), 2 * CHUNK_SPANS);
        let rest = std::iter::from_fn(|| alloc(&mut spans, ALL)).count();
        assert_eq!(rest, 3 * CHUNK_SPANS - 7);
    }

    #[test]
    fn no_more_spans_take_memory_than_the_limit() {
        let mut spans = Spans::new(4 * CHUNK_SPANS, false);
        let limit = 2 * CHUNK_SPANS;
        assert_eq!(
            std::iter::from_fn(|| alloc(&mut spans, limit)).count(),
            limit
        );
        for index in 0..CHUNK_SPANS {
            spans.free(SpanId::from_index(index));
        }
        for _ in 0..10 {
            spans.trim(|_| ()).unwrap();
        }
        assert_eq!(spans.resident(), limit - 10);
        let again = std::iter::from_fn(|| alloc(&mut spans, limit - 10)).count();
        assert_eq!(again, CHUNK_SPANS - 10);
        assert_eq!(spans.resident(), limit - 10);
        assert_eq!(spans.trim(|_| ()), None);
    }

    #[test]
    fn a_whole_chunk_takes_memory_at_once() {
        let mut spans = Spans::new(3 * CHUNK_SPANS + 5, true);
        let limit = 2 * CHUNK_SPANS + 3;
        let mut split = Vec::new();
        for (taken, resident) in [(1, 1), (CHUNK_SPANS, 1), (CHUNK_SPANS + 1, 2)] {
            while spans.used() < taken {
                spans.alloc(limit, |at| split.push(at)).unwrap();
            }
            assert_eq!(spans.resident(), resident * CHUNK_SPANS);
        }
        assert!(split.is_empty());
        // What is left is no whole chunk, and all of it is of use.
        while spans.alloc(limit, |at| split.push(at)).is_some() {}
        assert_eq!((spans.used(), spans.resident()), (limit, limit));
        assert_eq!(split, [2]);
    }

    #[test]
    fn the_next_chunk_is_prepared_once_one_is_begun() {
        let mut spans = Spans::new(4 * CHUNK_SPANS, true);
        assert!(!spans.is_opened());
        assert_eq!(spans.alloc(ALL, |_| ()).map(SpanId::index), Some(0));
        assert!(spans.is_opened());
        assert_eq!(spans.prepare(3 * CHUNK_SPANS), Some(1));
        assert_eq!(spans.resident(), 2 * CHUNK_SPANS);
        // Nobody gets it before it is there, and none is prepared beside it.
        assert!(!spans.is_opened());
        while spans.used() < CHUNK_SPANS {
            spans.alloc(ALL, |_| ()).unwrap();
        }
        assert_eq!(
            spans.alloc(ALL, |_| ()).map(SpanId::index),
            Some(2 * CHUNK_SPANS)
        );
        spans.prepared(1);
        assert_eq!(spans.prepare(ALL), None);
        assert_eq!(
            spans.alloc(ALL, |_| ()).map(SpanId::index),
            Some(CHUNK_SPANS)
        );
        assert_eq!(spans.resident(), 3 * CHUNK_SPANS);
        // There has to be room for it and another one.
        assert_eq!(spans.prepare(4 * CHUNK_SPANS), None);
        assert_eq!(spans.prepare(5 * CHUNK_SPANS), Some(3));
    }

    #[test]
    fn nothing_is_prepared_where_memory_is_taken_piecemeal() {
        let mut spans = Spans::new(4 * CHUNK_SPANS, false);
        alloc(&mut spans, ALL).unwrap();
        assert!(!spans.is_opened());
        assert_eq!(spans.prepare(ALL), None);
    }

    #[test]
    fn the_last_chunk_takes_memory_piecemeal() {
        let mut spans = Spans::new(CHUNK_SPANS + 5, true);
        while spans.used() <= CHUNK_SPANS {
            spans.alloc(ALL, |_| panic!("there is room")).unwrap();
        }
        assert_eq!(spans.resident(), CHUNK_SPANS + 1);
    }

    #[test]
    fn a_chunk_that_was_trimmed_is_whole_again_when_drained() {
        let mut spans = Spans::new(4 * CHUNK_SPANS, true);
        while alloc(&mut spans, ALL).is_some() {}
        for index in 0..3 * CHUNK_SPANS {
            spans.free(SpanId::from_index(index));
        }
        let mut split = Vec::new();
        for _ in 0..2 {
            let span = spans.trim(|at| split.push(at)).unwrap();
            assert_eq!(span.index() / CHUNK_SPANS, 2);
        }
        assert_eq!((split, spans.resident()), (vec![2], 4 * CHUNK_SPANS - 2));
        assert_eq!(spans.drain(), Some(2));
        spans.drained(2);
        assert_eq!(spans.resident(), 3 * CHUNK_SPANS);
        while spans.used() <= 3 * CHUNK_SPANS {
            spans.alloc(ALL, |_| panic!("there is room")).unwrap();
        }
        assert_eq!(spans.resident(), 4 * CHUNK_SPANS);
    }
}
