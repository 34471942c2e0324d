// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Where the contents of pages are: slots of many sizes, all slots of a span of one size.

use std::{io, num::NonZeroU32, sync::Arc};

use zerocopy::FromZeros;

use super::{
    arena::Arena,
    classes::{Class, ClassId, CLASSES, MAX_SLOTS, OWNER, RAW},
    id::{Link, PageId, SpanId},
    mapping::Table,
    spans::{Spans, SPAN_BITS, SPAN_SIZE},
    PageBytes, PAGE_SIZE,
};

/// A place for the contents of one page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slot {
    span: SpanId,
    class: ClassId,
    number: u8,
}

impl Slot {
    pub(super) fn class(self) -> ClassId {
        self.class
    }

    fn start(self) -> usize {
        let size = usize::from(CLASSES[usize::from(self.class)].size);
        self.span.index() * SPAN_SIZE + usize::from(self.number) * size
    }

    /// Returns whether it lies within `spans` spans, and has room for `len` bytes of a page.
    fn fits(self, spans: usize, len: u16) -> bool {
        let class = CLASSES.get(usize::from(self.class));
        let room = |class: &Class| {
            if self.class == RAW {
                usize::from(len) == PAGE_SIZE
            } else {
                len > 0 && usize::from(len) + OWNER <= usize::from(class.size)
            }
        };
        self.span.index() < spans
            && class.is_some_and(|class| u16::from(self.number) < class.slots && room(class))
    }

    /// Returns the slot in 48 bits.
    pub(super) fn to_bits(self) -> u64 {
        let span = self.span.index() as u64;
        (span << 16) | (u64::from(self.class) << 8) | u64::from(self.number)
    }

    /// Returns the slot of [`Self::to_bits`].
    pub(super) fn from_bits(bits: u64) -> Self {
        Self {
            // All ones would be no span. They lie past every arena all the same.
            span: SpanId::from_index(((bits >> 16) as u32).min(u32::MAX - 1) as usize),
            class: (bits >> 8) as u8,
            number: bits as u8,
        }
    }
}

impl Arena {
    /// Returns the address of the first `len` bytes of a slot's contents.
    pub(super) fn contents(&self, slot: Slot, len: usize) -> *mut u8 {
        let size = usize::from(CLASSES[usize::from(slot.class)].size);
        let before = if slot.class == RAW { 0 } else { OWNER };
        assert!(before + len <= size);
        self.addr(slot.start() + before, len)
    }

    /// Returns the first `len` bytes of a slot, to write to.
    ///
    /// # Safety
    ///
    /// The slot was allocated for the caller, and no key leads to its page yet.
    #[allow(clippy::mut_from_ref)]
    pub(super) unsafe fn fill(&self, slot: Slot, len: usize) -> &mut [u8] {
        // SAFETY: In bounds, and nobody else touches the slot until a key leads there.
        unsafe { std::slice::from_raw_parts_mut(self.contents(slot, len), len) }
    }

    /// Overwrites what is left of an older page behind the first `len` bytes of a slot.
    ///
    /// # Safety
    ///
    /// As of [`Self::fill`].
    pub(super) unsafe fn scrub_behind(&self, slot: Slot, len: usize) {
        let size = usize::from(CLASSES[usize::from(slot.class)].size);
        let before = if slot.class == RAW { 0 } else { OWNER };
        let rest = size - before - len;
        let addr = self.addr(slot.start() + before + len, rest);
        // SAFETY: In bounds, and nobody else touches the slot until a key leads there.
        unsafe { addr.write_bytes(0, rest) };
    }

    /// Returns a slot of class [`RAW`], to write to.
    ///
    /// # Safety
    ///
    /// As of [`Self::fill`].
    #[allow(clippy::mut_from_ref)]
    pub(super) unsafe fn fill_page(&self, slot: Slot) -> &mut PageBytes {
        let page = self.contents(slot, PAGE_SIZE).cast();
        // SAFETY: In bounds, and nobody else touches the slot until a key leads there.
        unsafe { &mut *page }
    }

    /// Returns the first `len` bytes of a slot, to read from.
    ///
    /// # Safety
    ///
    /// The caller has pinned the slot's page, and a key led there when it did.
    pub(super) unsafe fn read(&self, slot: Slot, len: usize) -> &[u8] {
        // SAFETY: In bounds, and the contents of a pinned page are neither freed nor moved.
        unsafe { std::slice::from_raw_parts(self.contents(slot, len), len) }
    }

    /// Returns a slot of class [`RAW`], to read from.
    ///
    /// # Safety
    ///
    /// As of [`Self::read`].
    pub(super) unsafe fn read_page(&self, slot: Slot) -> &PageBytes {
        let page = self.contents(slot, PAGE_SIZE).cast();
        // SAFETY: In bounds, and the contents of a pinned page are neither freed nor moved.
        unsafe { &*page }
    }
}

const WORDS: usize = MAX_SLOTS / 32;

const _: () = assert!(CLASSES.len() <= u128::BITS as usize);
const _: () = assert!(WORDS >= CLASSES[RAW as usize].slots as usize);

/// What is known of a span that is in use.
#[derive(Clone, Copy, Debug, FromZeros)]
#[repr(C)]
pub(super) struct Span {
    prev: Link,
    pub(super) next: Link,
    /// A bit for each slot in use; in class [`RAW`] a word for each slot, which is the link of the
    /// page in it.
    words: [u32; WORDS],
    /// Slots in use.
    used: u16,
    pub(super) class: ClassId,
    /// The place of its list in [`Bin::lists`], or [`NO_LIST`].
    list: u8,
}

/// What a span takes besides its memory, in bytes.
pub(super) const SPAN_OVERHEAD: usize = size_of::<Span>() + SPAN_BITS;

/// Spans of which more than half is in use.
pub(super) const DENSE: u8 = 0;
/// Spans of which at most half is in use.
pub(super) const SPARSE: u8 = 1;
/// Spans that are full.
pub(super) const NO_LIST: u8 = 2;

/// The spans of one class.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Bin {
    /// Those that have free slots.
    pub(super) lists: [Link; 2],
    /// Free slots of all spans.
    free: usize,
    fixed: Packing,
}

/// How many spans some slots need at least, counted up and down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Packing {
    /// Spans that are full.
    full: usize,
    /// Slots in one more.
    rest: u16,
}

impl Packing {
    fn add(&mut self, class: Class) {
        self.rest += 1;
        if self.rest == class.slots {
            *self = Self {
                full: self.full + 1,
                rest: 0,
            };
        }
    }

    fn remove(&mut self, class: Class) {
        if self.rest == 0 {
            *self = Self {
                full: self.full - 1,
                rest: class.slots,
            };
        }
        self.rest -= 1;
    }

    fn spans(self) -> usize {
        self.full + usize::from(self.rest > 0)
    }
}

/// A set of spans.
///
/// # Invariants
///
/// No word before `first` is other than zero.
#[derive(Debug)]
struct DirtySpans {
    words: Vec<u64>,
    first: usize,
}

impl DirtySpans {
    fn new(spans: usize) -> Self {
        Self {
            words: vec![0; spans.div_ceil(64)],
            first: 0,
        }
    }

    fn put(&mut self, span: SpanId) {
        let at = span.index() / 64;
        self.words[at] |= 1 << (span.index() % 64);
        self.first = self.first.min(at);
    }

    fn remove(&mut self, span: SpanId) {
        self.words[span.index() / 64] &= !(1 << (span.index() % 64));
    }

    fn take(&mut self) -> Option<SpanId> {
        while *self.words.get(self.first)? == 0 {
            self.first += 1;
        }
        let word = &mut self.words[self.first];
        let bit = word.trailing_zeros() as usize;
        *word &= *word - 1;
        Some(SpanId::from_index(self.first * 64 + bit))
    }
}

/// A slot that cannot be had, and whose it is if that is why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Taken(pub(super) Option<PageId>);

/// The allocator of slots.
///
/// # Invariants
///
/// - Every span in use has a slot in use, and is in the list of its class that it belongs to.
/// - The owner of every slot in use is the page that it was allocated for, or moved with.
/// - Each bin's `free` is the number of free slots of the spans of its class, and `loose` says which
///   of them are not less than the slots of a span.
/// - `fixed_spans` is the sum of all classes' `fixed.spans()`.
/// - A span that takes memory and has other than zeros outside of slots in use is in `dirty`, but
///   for what a put leaves behind the contents that it copied, which are zeros.
#[derive(Debug)]
pub(super) struct Slots {
    pub(super) arena: Arc<Arena>,
    spans: Spans,
    pub(super) table: Table<Span>,
    pub(super) bins: [Bin; CLASSES.len()],
    fixed_spans: usize,
    /// The classes whose free slots are as many as those of a span, a bit for each.
    pub(super) loose: u128,
    /// Spans in which there may be something left of what was freed.
    dirty: DirtySpans,
}

impl Slots {
    /// Starts with all of the arena's `spans` spans free.
    ///
    /// # Errors
    ///
    /// The operating system's, where it has no address space left.
    pub(super) fn new(arena: Arc<Arena>, spans: usize) -> io::Result<Self> {
        let table = Table::new(spans)?;
        table.prefer_huge_pages();
        Ok(Self {
            spans: Spans::new(spans, arena.huge()),
            arena,
            table,
            bins: [Bin::default(); CLASSES.len()],
            fixed_spans: 0,
            loose: 0,
            dirty: DirtySpans::new(spans),
        })
    }

    /// Returns which spans are in use.
    pub(super) fn spans(&self) -> &Spans {
        &self.spans
    }

    /// As [`Self::spans`], to take spans out of use. None of those is released by this.
    pub(super) fn spans_mut(&mut self) -> &mut Spans {
        &mut self.spans
    }

    /// Takes a slot for a page, such that no more than `limit` spans take memory. It is counted as
    /// fixed.
    pub(super) fn alloc(&mut self, class: ClassId, page: PageId, limit: usize) -> Option<Slot> {
        let lists = self.bins[usize::from(class)].lists;
        let span = match SpanId::from_link(lists[0].or(lists[1])) {
            Some(span) => span,
            None => {
                let span = self
                    .spans
                    .alloc(limit, |chunk| self.arena.split_chunk(chunk))?;
                if self.spans.is_opened() {
                    self.arena.want(true);
                }
                self.begin(span, class);
                span
            }
        };
        let slot = self.take(span, page);
        self.fix(slot.class);
        Some(slot)
    }

    /// Takes a certain slot for the `len` bytes that a page has there. It is counted as fixed.
    ///
    /// # Errors
    ///
    /// [`Taken`] where the slot belongs to another page already, or cannot be one beside the others
    /// of its span.
    pub(super) fn claim(&mut self, slot: Slot, len: u16, page: PageId) -> Result<(), Taken> {
        if !slot.fits(self.spans.count(), len) {
            return Err(Taken(None));
        }
        if !self.spans.is_used(slot.span) {
            self.spans.claim(slot.span);
            self.begin(slot.span, slot.class);
        }
        if self.table[slot.span.index()].class != slot.class {
            return Err(Taken(None));
        }
        if self.slot_in_use(slot.span, slot.number.into()).is_some() {
            return Err(Taken(PageId::from_link(self.owner_link(slot))));
        }
        self.occupy(slot, page);
        self.fix(slot.class);
        Ok(())
    }

    /// Gives a slot back, which is counted as fixed.
    pub(super) fn free(&mut self, slot: Slot) {
        self.unfix(slot.class);
        self.drop_slot(slot);
    }

    /// Counts a slot as one that no eviction frees.
    pub(super) fn fix(&mut self, class: ClassId) {
        let fixed = &mut self.bins[usize::from(class)].fixed;
        self.fixed_spans -= fixed.spans();
        fixed.add(CLASSES[usize::from(class)]);
        self.fixed_spans += fixed.spans();
    }

    /// Counts a slot as one that an eviction may free.
    pub(super) fn unfix(&mut self, class: ClassId) {
        let fixed = &mut self.bins[usize::from(class)].fixed;
        self.fixed_spans -= fixed.spans();
        fixed.remove(CLASSES[usize::from(class)]);
        self.fixed_spans += fixed.spans();
    }

    /// Returns how many more pages would find a slot of class [`RAW`] in `limit` spans, were all
    /// evicted that can be.
    pub(super) fn room(&self, limit: usize) -> usize {
        let class = CLASSES[usize::from(RAW)];
        let in_last = match self.bins[usize::from(RAW)].fixed.rest {
            0 => 0,
            rest => class.slots - rest,
        };
        limit.saturating_sub(self.fixed_spans) * usize::from(class.slots) + usize::from(in_last)
    }

    /// Cuts a span into slots, all of them free.
    fn begin(&mut self, span: SpanId, class: ClassId) {
        self.table[span.index()] = Span {
            prev: None,
            next: None,
            words: [0; WORDS],
            used: 0,
            class,
            list: NO_LIST,
        };
        self.add_free(class, CLASSES[usize::from(class)].slots as isize);
    }

    /// Takes a free slot of a span that is in a list, or was just begun.
    pub(super) fn take(&mut self, span: SpanId, page: PageId) -> Slot {
        let Span { class, words, .. } = &self.table[span.index()];
        let number = if *class == RAW {
            words.iter().position(|owner| *owner == 0)
        } else {
            let word = words.iter().position(|word| *word != u32::MAX);
            word.map(|word| word * 32 + words[word].trailing_ones() as usize)
        };
        let slot = Slot {
            span,
            class: *class,
            number: number.expect("a span in a list has a free slot") as u8,
        };
        self.occupy(slot, page);
        slot
    }

    /// Makes a free slot be that of a page.
    fn occupy(&mut self, slot: Slot, page: PageId) {
        let owner = page.index() as u32 + 1;
        let number = usize::from(slot.number);
        let entry = &mut self.table[slot.span.index()];
        entry.used += 1;
        if slot.class == RAW {
            entry.words[number] = owner;
        } else {
            entry.words[number / 32] |= 1 << (number % 32);
            let addr = self.arena.addr(slot.start(), OWNER).cast::<u32>();
            // SAFETY: In bounds and aligned. An owner is only touched under the store's lock.
            unsafe { addr.write(owner) };
        }
        self.add_free(slot.class, -1);
        self.file(slot.span);
    }

    /// Returns a slot of a span, if it is in use.
    pub(super) fn slot_in_use(&self, span: SpanId, number: u16) -> Option<Slot> {
        let Span { class, words, .. } = &self.table[span.index()];
        let at = usize::from(number);
        let used = if *class == RAW {
            words[at] != 0
        } else {
            words[at / 32] & (1 << (at % 32)) != 0
        };
        used.then_some(Slot {
            span,
            class: *class,
            number: number as u8,
        })
    }

    /// Returns the link of the page that a slot in use was allocated for.
    pub(super) fn owner_link(&self, slot: Slot) -> Link {
        NonZeroU32::new(if slot.class == RAW {
            self.table[slot.span.index()].words[usize::from(slot.number)]
        } else {
            let addr = self.arena.addr(slot.start(), OWNER).cast::<u32>();
            // SAFETY: In bounds and aligned. An owner is only touched under the store's lock.
            unsafe { addr.read() }
        })
    }

    /// Overwrites what is left of freed contents in one span, and returns whether there was one.
    pub(super) fn scrub(&mut self) -> bool {
        let Some(span) = self.dirty.take() else {
            return false;
        };
        let start = span.index() * SPAN_SIZE;
        if !self.spans.is_used(span) {
            if self.spans.takes_memory(span) {
                let addr = self.arena.addr(start, SPAN_SIZE);
                // SAFETY: In bounds, and nobody else touches a free span while the lock is held.
                unsafe { addr.write_bytes(0, SPAN_SIZE) };
            }
            return true;
        }
        let Class { size, slots } = CLASSES[usize::from(self.table[span.index()].class)];
        for number in (0..slots).filter(|number| self.slot_in_use(span, *number).is_none()) {
            let at = start + usize::from(number) * usize::from(size);
            let addr = self.arena.addr(at, size.into());
            // SAFETY: In bounds, and nobody else touches a free slot while the lock is held.
            unsafe { addr.write_bytes(0, size.into()) };
        }
        true
    }

    /// Notes that something may be left of what was freed in a span.
    pub(super) fn soil(&mut self, span: SpanId) {
        self.dirty.put(span);
    }

    /// Notes that the memory of `count` spans has gone back, and with it all that was in them.
    pub(super) fn cleaned(&mut self, first: SpanId, count: usize) {
        for span in first.index()..(first.index() + count).min(self.spans.count()) {
            self.dirty.remove(SpanId::from_index(span));
        }
    }

    /// Frees a span that is in no list, whatever is in its slots.
    pub(super) fn forget_span(&mut self, span: SpanId) {
        self.dirty.put(span);
        let Span { class, used, .. } = self.table[span.index()];
        let slots = CLASSES[usize::from(class)].slots;
        self.add_free(class, -((slots - used) as isize));
        self.spans.free(span);
    }

    fn add_free(&mut self, class: ClassId, more: isize) {
        let bin = &mut self.bins[usize::from(class)];
        bin.free = bin.free.wrapping_add_signed(more);
        if bin.free >= usize::from(CLASSES[usize::from(class)].slots) {
            self.loose |= 1 << class;
        } else {
            self.loose &= !(1 << class);
        }
    }

    fn drop_slot(&mut self, slot: Slot) {
        let entry = &mut self.table[slot.span.index()];
        let number = usize::from(slot.number);
        if slot.class == RAW {
            debug_assert_ne!(entry.words[number], 0, "freed twice");
            entry.words[number] = 0;
        } else {
            debug_assert_ne!(entry.words[number / 32] & (1 << (number % 32)), 0);
            entry.words[number / 32] &= !(1 << (number % 32));
        }
        entry.used -= 1;
        let empty = entry.used == 0;
        self.dirty.put(slot.span);
        self.add_free(slot.class, 1);
        if empty {
            self.relist(slot.span, NO_LIST);
            self.forget_span(slot.span);
        } else {
            self.file(slot.span);
        }
    }

    /// Puts a span into the list that it belongs to.
    fn file(&mut self, span: SpanId) {
        let entry = &self.table[span.index()];
        let slots = CLASSES[usize::from(entry.class)].slots;
        let list = if entry.used == slots {
            NO_LIST
        } else if entry.used * 2 > slots {
            DENSE
        } else {
            SPARSE
        };
        self.relist(span, list);
    }

    /// Puts a span into a list of its class, or into none.
    pub(super) fn relist(&mut self, span: SpanId, list: u8) {
        let Span {
            prev,
            next,
            class,
            list: old,
            ..
        } = self.table[span.index()];
        if list == old {
            return;
        }
        let class = usize::from(class);
        if old != NO_LIST {
            match SpanId::from_link(prev) {
                Some(prev) => self.table[prev.index()].next = next,
                None => self.bins[class].lists[usize::from(old)] = next,
            }
            if let Some(next) = SpanId::from_link(next) {
                self.table[next.index()].prev = prev;
            }
        }
        let mut next = None;
        if list != NO_LIST {
            next = self.bins[class].lists[usize::from(list)];
            self.bins[class].lists[usize::from(list)] = span.link();
            if let Some(next) = SpanId::from_link(next) {
                self.table[next.index()].prev = span.link();
            }
        }
        let entry = &mut self.table[span.index()];
        entry.prev = None;
        entry.next = next;
        entry.list = list;
    }
}
