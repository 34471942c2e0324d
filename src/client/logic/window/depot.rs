// SPDX-License-Identifier: GPL-2.0

//! Chunks, and their free slots.

use super::{
    super::mem::{
        NoMemory,
        Table, //
    },
    by_chunk,
    chunk_of,
    first_slot,
    Each,
    Kind,
    FIRST_CHUNK,
    MAX_CHUNKS,
    SLOTS_PER_CHUNK, //
};

const WORDS: usize = (SLOTS_PER_CHUNK / u64::BITS) as usize;

/// The end of a list.
const NIL: u32 = u32::MAX;

/// The device does not keep to the rules, or the driver does not: nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken;

/// What giving a slot back has brought about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Given {
    /// The slot can be handed out again.
    Free,
    /// The slot is of a chunk that is to leave, and that has others in use.
    Leaving,
    /// It was the last one of this chunk that is to leave: see [`Depot::collect()`].
    Complete(u32),
}

/// What a chunk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The driver does not have it.
    Absent,
    /// Its free slots are handed out.
    Granted(Kind),
    /// Its slots come back, and stay.
    Leaving(Kind),
}

/// A chunk.
///
/// # Invariants
///
/// - `free` has a bit for each slot that is in the depot, and `count` is their number.
/// - The chunk is on the list of its kind if and only if it is granted and `count` is not zero.
#[derive(Clone, Copy)]
struct Chunk {
    free: [u64; WORDS],
    generation: u32,
    before: u32,
    after: u32,
    count: u16,
    state: State,
}

const _: () = assert!(size_of::<Chunk>() <= 88);

impl Chunk {
    const ABSENT: Self = Self {
        free: [0; WORDS],
        generation: 0,
        before: NIL,
        after: NIL,
        count: 0,
        state: State::Absent,
    };

    const fn is_complete(&self) -> bool {
        // CAST: It is 512.
        self.count == SLOTS_PER_CHUNK as u16
    }

    /// Takes free slots out, into the first of `slots`; returns how many. `first` is that of the
    /// chunk.
    fn take(&mut self, first: u32, slots: &mut [u32]) -> usize {
        let mut taken = 0usize;
        let mut places = slots.iter_mut();
        let bases = (first..).step_by(u64::BITS as usize);
        for (word, base) in self.free.iter_mut().zip(bases) {
            while *word != 0 {
                let Some(place) = places.next() else {
                    return taken;
                };
                *place = base.wrapping_add(word.trailing_zeros());
                *word &= word.wrapping_sub(1);
                self.count = self.count.wrapping_sub(1);
                taken = taken.wrapping_add(1);
            }
        }
        taken
    }

    /// Puts slots of the chunk in that were in use; returns how many.
    fn give(&mut self, slots: &[u32]) -> u16 {
        let mut given = 0u16;
        if self.state == State::Absent {
            return 0;
        }
        for slot in slots {
            // The compiler sees that this is in bounds.
            let word = &mut self.free[(slot % SLOTS_PER_CHUNK / u64::BITS) as usize];
            let bit = 1u64 << (slot % u64::BITS);
            given = given.wrapping_add((*word & bit == 0).into());
            *word |= bit;
        }
        self.count = self.count.wrapping_add(given);
        given
    }
}

/// The chunks of one kind with free slots: those with some in use first.
#[derive(Clone, Copy, Debug)]
struct List {
    first: u32,
    last: u32,
}

/// The numbers of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Level {
    /// Chunks of which free slots are handed out.
    pub chunks: u32,
    /// Chunks that are to leave.
    pub leaving: u32,
    /// Free slots in the depot that can be handed out.
    pub free: u32,
}

/// The chunks of a window, and their free slots.
///
/// Slots are handed out of the chunk that one came back to last, and out of a chunk in which none is
/// in use only if there is no other: so chunks come to be empty, and can be given back. A chunk costs
/// 88 bytes, a tenth of a bit of them for each byte of a page.
pub struct Depot {
    chunks: Table<Chunk>,
    lists: Each<List>,
    levels: Each<Level>,
}

impl Depot {
    /// Makes a depot for a window of so many chunks, none of which has been granted.
    ///
    /// May sleep.
    pub fn new(chunks: u32) -> Result<Self, NoMemory> {
        let empty = List {
            first: NIL,
            last: NIL,
        };
        Ok(Self {
            // INVARIANT: All are absent.
            chunks: Table::filled(Chunk::ABSENT, chunks.min(MAX_CHUNKS) as usize)?,
            lists: Each::new(empty, empty),
            levels: Each::default(),
        })
    }

    /// Returns the numbers of a kind.
    #[inline]
    pub fn level(&self, kind: Kind) -> Level {
        *self.levels.of(kind)
    }

    /// Takes a chunk in that the device has granted.
    ///
    /// [`Broken`] if there is no such chunk, the generation is none, or the driver has the chunk.
    pub fn grant(&mut self, chunk: u32, generation: u32, kind: Kind) -> Result<(), Broken> {
        let even = generation != 0 && generation % 2 == 0;
        if chunk < FIRST_CHUNK || !even {
            return Err(Broken);
        }
        let record = self.get_mut(chunk).ok_or(Broken)?;
        if record.state != State::Absent {
            return Err(Broken);
        }
        // INVARIANT: All slots are free, and it is put on the list below.
        *record = Chunk {
            free: [u64::MAX; WORDS],
            // CAST: It is 512.
            count: SLOTS_PER_CHUNK as u16,
            generation,
            state: State::Granted(kind),
            ..Chunk::ABSENT
        };
        self.link_last(kind, chunk);
        let level = self.levels.of_mut(kind);
        level.chunks = level.chunks.wrapping_add(1);
        level.free = level.free.wrapping_add(SLOTS_PER_CHUNK);
        Ok(())
    }

    /// Returns the generation with which a chunk was granted; zero, which none has, if the driver
    /// does not have it.
    #[inline]
    pub fn generation(&self, chunk: u32) -> u32 {
        self.get(chunk).map_or(0, |record| record.generation)
    }

    /// Returns whether slots of a chunk are handed out for pages of a kind.
    pub fn is_granted(&self, chunk: u32, kind: Kind) -> bool {
        self.get(chunk)
            .is_some_and(|record| record.state == State::Granted(kind))
    }

    /// Returns how many slots of a chunk are not in the depot; of one that the driver does not have,
    /// none.
    pub fn used(&self, chunk: u32) -> u32 {
        self.get(chunk).map_or(0, |record| match record.state {
            State::Absent => 0,
            _ => SLOTS_PER_CHUNK.wrapping_sub(record.count.into()),
        })
    }

    /// Returns whether a chunk is to leave.
    #[inline]
    pub fn is_leaving(&self, chunk: u32) -> bool {
        self.get(chunk)
            .is_some_and(|record| matches!(record.state, State::Leaving(_)))
    }

    /// Takes free slots of a kind out, into the first of `slots`; returns how many.
    pub fn take(&mut self, kind: Kind, slots: &mut [u32]) -> usize {
        let mut taken = 0usize;
        while let Some(rest) = slots.get_mut(taken..).filter(|rest| !rest.is_empty()) {
            let chunk = self.lists.of(kind).first;
            let Some(record) = self.get_mut(chunk) else {
                break;
            };
            taken = taken.wrapping_add(record.take(first_slot(chunk), rest));
            if record.count == 0 {
                // INVARIANT: It has no free slots any more.
                self.unlink(kind, chunk);
            }
        }
        let level = self.levels.of_mut(kind);
        // CAST: No more than the kind has.
        level.free = level.free.wrapping_sub(taken as u32);
        taken
    }

    /// Gives a slot back that is not in use any more.
    ///
    /// [`Broken`] if it was not in use.
    pub fn give(&mut self, slot: u32) -> Result<Given, Broken> {
        self.give_to(chunk_of(slot), &[slot])
    }

    /// Gives slots back that are not in use any more, and calls `f` with each chunk that can be
    /// collected.
    ///
    /// Neighbours that are of one chunk cost little more than one. Those that were not in use are
    /// left as they are.
    pub fn give_all(&mut self, slots: &[u32], mut f: impl FnMut(u32)) {
        for same in by_chunk(slots) {
            let chunk = same.first().map_or(NIL, |slot| chunk_of(*slot));
            if let Ok(Given::Complete(chunk)) = self.give_to(chunk, same) {
                f(chunk);
            }
        }
    }

    /// Gives slots of a chunk back; [`Broken`] if none of them was in use.
    fn give_to(&mut self, chunk: u32, slots: &[u32]) -> Result<Given, Broken> {
        let record = self.get_mut(chunk).ok_or(Broken)?;
        let given = record.give(slots);
        if given == 0 {
            return Err(Broken);
        }
        let (state, count, complete) = (record.state, record.count, record.is_complete());
        let kind = match state {
            State::Granted(kind) => kind,
            State::Leaving(_) if complete => return Ok(Given::Complete(chunk)),
            _ => return Ok(Given::Leaving),
        };
        if complete || self.lists.of(kind).first != chunk {
            if count != given {
                self.unlink(kind, chunk);
            }
            if complete {
                self.link_last(kind, chunk);
            } else {
                self.link_first(kind, chunk);
            }
        }
        let level = self.levels.of_mut(kind);
        level.free = level.free.wrapping_add(given.into());
        Ok(Given::Free)
    }

    /// Has a chunk leave: its free slots are not handed out any more, and those that come back stay.
    ///
    /// This is for a chunk that the device asks for, or has taken, or that is not needed. Returns how
    /// many slots are still in use; if none is, the chunk can be collected. [`Broken`] if the driver
    /// does not have it, or it is leaving already.
    pub fn withdraw(&mut self, chunk: u32) -> Result<u32, Broken> {
        let record = self.get_mut(chunk).ok_or(Broken)?;
        let State::Granted(kind) = record.state else {
            return Err(Broken);
        };
        let count = u32::from(record.count);
        record.state = State::Leaving(kind);
        if count != 0 {
            // INVARIANT: It was granted, and had free slots.
            self.unlink(kind, chunk);
        }
        let level = self.levels.of_mut(kind);
        level.chunks = level.chunks.wrapping_sub(1);
        level.leaving = level.leaving.wrapping_add(1);
        level.free = level.free.wrapping_sub(count);
        Ok(SLOTS_PER_CHUNK.wrapping_sub(count))
    }

    /// Has a chunk stay that was to leave.
    pub fn keep(&mut self, chunk: u32) -> Result<(), Broken> {
        let record = self.get_mut(chunk).ok_or(Broken)?;
        let State::Leaving(kind) = record.state else {
            return Err(Broken);
        };
        let (count, complete) = (u32::from(record.count), record.is_complete());
        record.state = State::Granted(kind);
        if complete {
            self.link_last(kind, chunk);
        } else if count != 0 {
            self.link_first(kind, chunk);
        }
        let level = self.levels.of_mut(kind);
        level.chunks = level.chunks.wrapping_add(1);
        level.leaving = level.leaving.wrapping_sub(1);
        level.free = level.free.wrapping_add(count);
        Ok(())
    }

    /// Takes a chunk out that was to leave, and of which no slot is in use, and returns its
    /// generation. It can be given back to the device, which can grant it again.
    pub fn collect(&mut self, chunk: u32) -> Result<u32, Broken> {
        let record = self.get_mut(chunk).ok_or(Broken)?;
        let State::Leaving(kind) = record.state else {
            return Err(Broken);
        };
        if !record.is_complete() {
            return Err(Broken);
        }
        let generation = record.generation;
        *record = Chunk::ABSENT;
        let level = self.levels.of_mut(kind);
        level.leaving = level.leaving.wrapping_sub(1);
        Ok(generation)
    }

    /// Returns the chunk of a kind that it costs least to give back: one in which no slot is in use
    /// if there is one, and otherwise the one with the fewest in use, of some.
    pub fn cheapest(&self, kind: Kind) -> Option<u32> {
        let mut best = (self.lists.of(kind).last, NIL);
        let mut chunk = best.0;
        for _ in 0..Self::LOOKED_AT {
            let Some(record) = self.get(chunk) else {
                break;
            };
            let used = SLOTS_PER_CHUNK.wrapping_sub(record.count.into());
            if used < best.1 {
                best = (chunk, used);
            }
            if used == 0 {
                break;
            }
            chunk = record.before;
        }
        (best.0 != NIL).then_some(best.0)
    }

    /// The most chunks that [`Depot::cheapest()`] looks at.
    const LOOKED_AT: usize = 64;

    #[inline]
    fn get(&self, chunk: u32) -> Option<&Chunk> {
        self.chunks.get(chunk as usize)
    }

    #[inline]
    fn get_mut(&mut self, chunk: u32) -> Option<&mut Chunk> {
        self.chunks.get_mut(chunk as usize)
    }

    fn link_first(&mut self, kind: Kind, chunk: u32) {
        let list = self.lists.of_mut(kind);
        let next = core::mem::replace(&mut list.first, chunk);
        if next == NIL {
            list.last = chunk;
        }
        if let Some(record) = self.get_mut(next) {
            record.before = chunk;
        }
        if let Some(record) = self.get_mut(chunk) {
            record.before = NIL;
            record.after = next;
        }
    }

    fn link_last(&mut self, kind: Kind, chunk: u32) {
        let list = self.lists.of_mut(kind);
        let previous = core::mem::replace(&mut list.last, chunk);
        if previous == NIL {
            list.first = chunk;
        }
        if let Some(record) = self.get_mut(previous) {
            record.after = chunk;
        }
        if let Some(record) = self.get_mut(chunk) {
            record.before = previous;
            record.after = NIL;
        }
    }

    fn unlink(&mut self, kind: Kind, chunk: u32) {
        let Some(record) = self.get_mut(chunk) else {
            return;
        };
        let (before, after) = (record.before, record.after);
        record.before = NIL;
        record.after = NIL;
        match self.get_mut(before) {
            Some(record) => record.after = after,
            None => self.lists.of_mut(kind).first = after,
        }
        match self.get_mut(after) {
            Some(record) => record.before = before,
            None => self.lists.of_mut(kind).last = before,
        }
    }
}
