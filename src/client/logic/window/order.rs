// SPDX-License-Identifier: GPL-2.0

//! Whose page is in a slot, and which page is to go first.
//!
//! # Ephemeral pages
//!
//! They are what the guest's page cache could not keep, and whoever gets one takes it away. So no page
//! here has ever been used, and what caches go by elsewhere, whether a page was used since it came,
//! says nothing: CLOCK and SIEVE are first-in-first-out under such gets, and so is LRU. What does tell
//! pages apart is whether one has come back: a page that was got, and is put again, is worth more than
//! one that nobody has asked for yet. Therefore there are two queues, as in S3-FIFO and 2Q:
//!
//! ```text
//!          new ───► probation ───► goes first while it is more than its share
//!   put ──┤            │ got: remembered, in a filter
//!          come back ─► proven ────► goes first otherwise
//! ```
//!
//! - The share of the probation follows where the hits are: a hit in either queue moves it in favour
//!   of that queue, by as much as the queue is small. After a change of what the guest does, hits are
//!   in the probation; while something is read once, in the other.
//! - Of the new pages one in [`PROBE`] counts as if it had come back. In a loop over more than there is
//!   room for no page would ever come back otherwise.
//!
//! `examples/replacement` compares this with what else could be done.
//!
//! # Persistent pages
//!
//! They are in one queue, in the order in which they were put, and the oldest go to the store. A get
//! does not change the order: the guest has the page in its own memory then, so that it is not the
//! window's copy that is needed next.

use super::{
    super::mem::{
        Block,
        NoMemory,
        Table, //
    },
    chunk_of,
    first_slot,
    hash_of,
    MAX_CHUNKS,
    SLOTS_PER_CHUNK, //
};

/// Of so many new pages one is treated as if it had come back.
pub const PROBE: u32 = 32;

const SIZE: usize = SLOTS_PER_CHUNK as usize;

/// The end of a queue.
const NIL: u32 = u32::MAX;

/// A page in a slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// The object that the page belongs to.
    pub tag: u64,
    /// The page's place in it.
    pub index: u64,
    /// When it was put, in seconds.
    pub put_at: u32,
    /// The CRC of its content, or whatever else the caller wants to know of it.
    pub crc: u32,
}

/// Where in the order a page is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Nowhere: there is no page in the slot, or it is somebody's who takes the slot over.
    Out,
    In(Queue),
}

impl Place {
    /// As it is kept in [`Slot::older`].
    const fn bits(self) -> u32 {
        let place = match self {
            Self::Out => 0u32,
            Self::In(Queue::Probation) => 1,
            Self::In(Queue::Proven) => 2,
        };
        place << PLACE_SHIFT
    }
}

/// Which queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
enum Queue {
    Probation,
    Proven,
}

#[derive(Clone, Copy)]
struct Slot {
    page: Page,
    newer: u32,
    /// The next older page; the place is in the upper two bits, which no slot has.
    older: u32,
}

const _: () = assert!(size_of::<Slot>() == 32);

const PLACE_SHIFT: u32 = 30;
const OLDER: u32 = (1 << PLACE_SHIFT) - 1;

impl Slot {
    const EMPTY: Self = Self {
        page: Page {
            tag: 0,
            index: 0,
            put_at: 0,
            crc: 0,
        },
        newer: NIL,
        older: OLDER,
    };

    /// Makes the record of a page that is the newest of its queue.
    fn new(page: Page, older: u32, place: Place) -> Self {
        Self {
            page,
            newer: NIL,
            older: (older & OLDER) | place.bits(),
        }
    }

    fn place(&self) -> Place {
        match self.older >> PLACE_SHIFT {
            0 => Place::Out,
            1 => Place::In(Queue::Probation),
            _ => Place::In(Queue::Proven),
        }
    }

    /// Has the page be in no queue; returns in which it was, and between which slots.
    #[inline]
    fn take_out(&mut self) -> Option<(Queue, u32, u32)> {
        let Place::In(queue) = self.place() else {
            return None;
        };
        let older = self.older();

        self.older = (self.older & OLDER) | Place::Out.bits();
        Some((queue, self.newer, older))
    }

    fn older(&self) -> u32 {
        match self.older & OLDER {
            OLDER => NIL,
            slot => slot,
        }
    }

    fn set_older(&mut self, slot: u32) {
        self.older = (self.older & !OLDER) | (slot & OLDER);
    }
}

/// What is to be known of the slots of one chunk, allocated outside of the lock: 16 KiB.
pub struct Slots(Block<Slot, SIZE>);

impl Slots {
    /// Allocates it.
    ///
    /// May sleep, and may enter reclaim: whoever calls must not be someone that reclaim waits for.
    pub fn new() -> Result<Self, NoMemory> {
        Ok(Self(Block::new(Slot::EMPTY)?))
    }

    /// Returns the record of a slot of this chunk.
    #[inline]
    fn at_mut(&mut self, slot: u32) -> Option<&mut Slot> {
        self.0.get_mut((slot % SLOTS_PER_CHUNK) as usize)
    }
}

#[derive(Clone, Copy)]
struct Ends {
    newest: u32,
    oldest: u32,
    len: u32,
}

impl Ends {
    const EMPTY: Self = Self {
        newest: NIL,
        oldest: NIL,
        len: 0,
    };
}

/// The pages of one kind, and the order in which they go.
///
/// It takes 32 bytes for each slot of the chunks that are there, and for ephemeral pages two more for
/// each that is to be remembered.
pub struct Order {
    chunks: Table<Option<Slots>>,
    /// By [`Queue`].
    queues: [Ends; 2],
    /// How many pages may be in the probation before they go first.
    share: u32,
    came_back: Filter,
    /// From which it follows which of the new pages is a probe.
    random: u32,
}

impl Order {
    /// Makes the order of persistent pages, in a window of so many chunks.
    ///
    /// May sleep.
    pub fn persistent(chunks: u32) -> Result<Self, NoMemory> {
        Self::new(chunks, 0)
    }

    /// Makes the order of ephemeral pages, in a window of so many chunks; `remembered` is of about how
    /// many pages to remember that they were got. A page that was got is in the guest's memory until
    /// it is put again: so it should be as many as that has pages.
    ///
    /// May sleep.
    pub fn ephemeral(chunks: u32, remembered: u32) -> Result<Self, NoMemory> {
        Self::new(chunks, remembered.max(1))
    }

    fn new(chunks: u32, remembered: u32) -> Result<Self, NoMemory> {
        // Above that, slots would not fit into the links of the queues.
        let chunks = chunks.min(MAX_CHUNKS);
        let mut table = Table::with_capacity(chunks as usize)?;
        for _ in 0..chunks {
            table.push(None).map_err(|_| NoMemory)?;
        }
        Ok(Self {
            chunks: table,
            queues: [Ends::EMPTY; 2],
            share: 0,
            came_back: Filter::new(remembered)?,
            random: 1,
        })
    }

    /// Takes a chunk in.
    ///
    /// Gives the memory back if there is no such chunk, or it is there already.
    pub fn add(&mut self, chunk: u32, slots: Slots) -> Result<(), Slots> {
        match self.chunks.get_mut(chunk as usize) {
            Some(place @ None) => {
                *place = Some(slots);
                Ok(())
            }
            _ => Err(slots),
        }
    }

    /// Takes a chunk out; to be dropped outside of the lock. Pages in it are forgotten.
    pub fn remove(&mut self, chunk: u32) -> Option<Slots> {
        // The slots of a chunk beyond would wrap to those of another.
        self.chunks.get(chunk as usize)?.as_ref()?;
        for slot in (first_slot(chunk)..).take(SIZE) {
            self.unlink(slot);
        }
        self.chunks.get_mut(chunk as usize)?.take()
    }

    /// Returns the number of pages.
    pub fn len(&self) -> u32 {
        let [probation, proven] = &self.queues;
        probation.len.wrapping_add(proven.len)
    }

    /// Returns whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes note of a page that has been put into a slot.
    ///
    /// Nothing if the slot is of no chunk that is there.
    pub fn insert(&mut self, slot: u32, page: Page) {
        self.insert_all(&[slot], |_| page);
    }

    /// Takes note of the pages that have been put into `slots`: `page(n)` into slot `n` of them.
    #[inline]
    pub fn insert_all(&mut self, slots: &[u32], page: impl Fn(usize) -> Page) {
        for (n, &slot) in slots.iter().enumerate() {
            let page = page(n);
            let proven = self.came_back.forget(page.tag, page.index) || self.is_probe();
            let queue = if proven {
                Queue::Proven
            } else {
                Queue::Probation
            };
            self.link(slot, queue, page);
        }
    }

    /// Takes note that the page in a slot has been got and taken, and returns it, if it is there.
    #[inline]
    pub fn got(&mut self, slot: u32) -> Option<Page> {
        let total = self.len();
        let record = self.get_mut(slot)?;
        let page = record.page;
        let (queue, newer, older) = record.take_out()?;
        let len = self.ends(queue).len;
        // It is at least one.
        let step = total.checked_div(len).unwrap_or(1);
        let share = match queue {
            Queue::Probation => self.share.saturating_add(step),
            Queue::Proven => self.share.saturating_sub(step),
        };
        let least = total / 8;
        self.share = share.min(total.saturating_sub(least)).max(least);
        self.came_back.remember(page.tag, page.index);
        self.join(queue, newer, older);
        Some(page)
    }

    /// Takes note that the page in a slot has been flushed.
    pub fn flushed(&mut self, slot: u32) {
        self.unlink(slot);
    }

    /// Returns the page in a slot, if it is there.
    pub fn page(&self, slot: u32) -> Option<Page> {
        let record = self.get(slot)?;
        (record.place() != Place::Out).then_some(record.page)
    }

    /// Takes the page out of the order that is to go first, and returns its slot with it.
    ///
    /// Whoever calls asks the page's shard to give it up. If it does, the slot is the caller's; if
    /// not, somebody else has got or flushed the page meanwhile, and frees the slot. The page of a
    /// move that fails is to be inserted again.
    pub fn pop(&mut self) -> Option<(u32, Page)> {
        let share = self.share.max(self.len() / 8);
        let [probation, proven] = &self.queues;
        let first = if probation.len > share || proven.len == 0 {
            probation.oldest
        } else {
            proven.oldest
        };
        let page = self.page(first)?;
        self.unlink(first);
        Some((first, page))
    }

    /// Writes the slots and the pages of a chunk down, from its slot number `from` on, as many as there
    /// are places for.
    ///
    /// Returns how many, and where to go on, if there may be more.
    pub fn pages_in(
        &self,
        chunk: u32,
        from: u32,
        places: &mut [(u32, Page)],
    ) -> (usize, Option<u32>) {
        let mut count = 0usize;
        if !matches!(self.chunks.get(chunk as usize), Some(Some(_))) {
            return (0, None);
        }
        for number in from..SLOTS_PER_CHUNK {
            let slot = first_slot(chunk).wrapping_add(number);
            let Some(page) = self.page(slot) else {
                continue;
            };
            let Some(place) = places.get_mut(count) else {
                return (count, Some(number));
            };
            *place = (slot, page);
            count = count.wrapping_add(1);
        }
        (count, None)
    }

    fn is_probe(&mut self) -> bool {
        if self.came_back.is_none() {
            return false;
        }
        // The numbers of Numerical Recipes; the upper bits are the better ones.
        self.random = self
            .random
            .wrapping_mul(1_664_525)
            .wrapping_add(1_013_904_223);
        (self.random >> 16) & PROBE.wrapping_sub(1) == 0
    }

    #[inline]
    fn get(&self, slot: u32) -> Option<&Slot> {
        let chunk = self.chunks.get(chunk_of(slot) as usize)?.as_ref()?;
        chunk.0.get((slot % SLOTS_PER_CHUNK) as usize)
    }

    #[inline]
    fn get_mut(&mut self, slot: u32) -> Option<&mut Slot> {
        let chunk = self.chunks.get_mut(chunk_of(slot) as usize)?.as_mut()?;
        chunk.at_mut(slot)
    }

    #[inline]
    fn ends(&self, queue: Queue) -> &Ends {
        // The compiler sees that this is in bounds.
        &self.queues[queue as usize]
    }

    #[inline]
    fn ends_mut(&mut self, queue: Queue) -> &mut Ends {
        &mut self.queues[queue as usize]
    }

    /// Makes a page the newest of a queue, in place of what was in its slot.
    #[inline(always)]
    fn link(&mut self, slot: u32, queue: Queue, page: Page) {
        self.unlink(slot);
        let older = self.ends(queue).newest;
        let Some(Some(chunk)) = self.chunks.get_mut(chunk_of(slot) as usize) else {
            return;
        };
        let Some(record) = chunk.at_mut(slot) else {
            return;
        };
        *record = Slot::new(page, older, Place::In(queue));
        // As good as always both are in the same chunk.
        let before = if chunk_of(older) == chunk_of(slot) {
            chunk.at_mut(older)
        } else {
            self.get_mut(older)
        };
        match before {
            Some(record) => record.newer = slot,
            None => self.ends_mut(queue).oldest = slot,
        }
        let ends = self.ends_mut(queue);
        ends.newest = slot;
        ends.len = ends.len.wrapping_add(1);
    }

    /// Takes a page out of its queue, if it is in one.
    #[inline]
    fn unlink(&mut self, slot: u32) {
        if let Some((queue, newer, older)) = self.get_mut(slot).and_then(Slot::take_out) {
            self.join(queue, newer, older);
        }
    }

    /// Makes those neighbours that one was between which has been taken out of a queue.
    #[inline(never)]
    fn join(&mut self, queue: Queue, newer: u32, older: u32) {
        match self.get_mut(newer) {
            Some(record) => record.set_older(older),
            None => self.ends_mut(queue).newest = older,
        }
        match self.get_mut(older) {
            Some(record) => record.newer = newer,
            None => self.ends_mut(queue).oldest = newer,
        }
        let ends = self.ends_mut(queue);
        ends.len = ends.len.wrapping_sub(1);
    }
}

/// Of which pages it is remembered that they were got.
///
/// A page is remembered as 16 bits in one of the four places of a word; where all are taken, those that
/// have been there for longest make room. Of 16,384 pages one is taken for another; that does less
/// than a probe does.
struct Filter(Table<u64>);

const MARK_BITS: u32 = 16;
const MARKS: u32 = u64::BITS / MARK_BITS;

impl Filter {
    fn new(pages: u32) -> Result<Self, NoMemory> {
        let len = match pages.div_ceil(MARKS) {
            0 => 0,
            words => (words as usize).next_power_of_two(),
        };
        Ok(Self(Table::filled(0, len)?))
    }

    /// Returns whether nothing is remembered, whatever happens.
    fn is_none(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the word of a page, and its mark, which is not zero.
    fn find(&mut self, tag: u64, index: u64) -> Option<(&mut u64, u64)> {
        let last = self.0.len().checked_sub(1)?;
        let hash = hash_of(tag, index);
        // CAST: Some of the bits are meant to be cut off.
        let mark = u64::from((hash >> 16) as u16).max(1);
        self.0
            .get_mut((hash >> 32) as usize & last)
            .map(|word| (word, mark))
    }

    fn remember(&mut self, tag: u64, index: u64) {
        let Some((word, mark)) = self.find(tag, index) else {
            return;
        };
        let vacant = Self::shift_of(*word, 0);
        match vacant {
            Some(shift) => *word |= mark << shift,
            None => *word = (*word << MARK_BITS) | mark,
        }
    }

    /// Returns whether a page is remembered, and forgets it.
    fn forget(&mut self, tag: u64, index: u64) -> bool {
        let Some((word, mark)) = self.find(tag, index) else {
            return false;
        };
        let found = Self::shift_of(*word, mark);
        if let Some(shift) = found {
            *word &= !(u64::from(u16::MAX) << shift);
        }
        found.is_some()
    }

    /// Returns where in a word a mark is: the lowest place of those that have it.
    fn shift_of(word: u64, mark: u64) -> Option<u32> {
        const LOWEST_BITS: u64 = u64::MAX / u16::MAX as u64;
        const HIGHEST_BITS: u64 = LOWEST_BITS << MARK_BITS.wrapping_sub(1);
        // The places with the mark are zero here. Only those turn from below their highest bit to above,
        // and those next to one that does.
        let other = word ^ mark.wrapping_mul(LOWEST_BITS);
        let found = other.wrapping_sub(LOWEST_BITS) & !other & HIGHEST_BITS;
        (found != 0).then(|| found.trailing_zeros() & !MARK_BITS.wrapping_sub(1))
    }
}
