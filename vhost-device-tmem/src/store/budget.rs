// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How the capacity is divided between contents of pages and what is needed to find them.

use super::{
    classes::{ClassId, CLASSES},
    entry::{Object, Page},
    slots::SPAN_OVERHEAD,
    spans::SPAN_SIZE,
    Compression, Config, StoreError, MIN_CAPACITY, PAGE_SIZE,
};

/// Entries by which the share of pages, and that of objects, grow and shrink. So many of either
/// are whole pages of memory.
pub(super) const STEP: usize = 1024;

/// A bucket, and the bits that say which entries are free, for each 64 entries.
const PER_64_ENTRIES: usize = 64 * size_of::<u32>() + 8 + 1;

/// What [`STEP`] pages need to be found, without their objects.
const PAGE_STEP: usize = STEP * size_of::<Page>() + STEP / 64 * PER_64_ENTRIES;

/// What [`STEP`] objects need.
const OBJECT_STEP: usize = STEP * size_of::<Object>() + STEP * size_of::<u32>();

const _: () = assert!(STEP * size_of::<Page>() % PAGE_SIZE == 0);
const _: () = assert!(STEP * size_of::<Object>() % PAGE_SIZE == 0);

/// Slots of a span for pages as they are.
const RAW_SLOTS: usize = SPAN_SIZE / PAGE_SIZE;

// What a page takes besides its contents, where it is stored as it is.
const _: () = assert!(PAGE_STEP.div_ceil(STEP) + SPAN_OVERHEAD.div_ceil(RAW_SLOTS) <= 64);
const _: () = assert!(OBJECT_STEP / STEP <= 64);

/// What is neither for pages nor grows with them: headers, records of pools, and the last page of
/// memory of each table, of which only a part is used.
const FIXED: usize = 16 * PAGE_SIZE;

/// What every page at least takes of the capacity, as far as the tables can ever be of use.
/// Address space is reserved for so many.
const LEAST_PER_PAGE: usize = 256;

/// The division of the capacity. What spans need besides their memory is set aside at once. The
/// shares of pages and objects are their entries; the spans have what these leave.
///
/// # Invariants
///
/// The metadata, what is lent, what is withheld and `span_limit()` spans are not more than the
/// capacity.
#[derive(Clone, Copy, Debug)]
pub(super) struct Budget {
    capacity: usize,
    max_spans: usize,
    max_pages: usize,
    /// Steps of entries for pages, now and at most so far: buckets stay.
    pages: usize,
    pages_peak: usize,
    objects: usize,
    /// Bytes that guests have for pages of their own.
    lent: usize,
    /// Bytes that nobody gets at the moment.
    withheld: usize,
    elastic: bool,
}

impl Budget {
    /// Divides `capacity` bytes, of which some are set aside at once. Where all pages take the same room, the share of the pages is
    /// fixed.
    pub(super) fn new(capacity: usize, compression: Compression) -> Self {
        let elastic = compression != Compression::None;
        let given = capacity;
        let capacity = capacity.saturating_sub(FIXED);
        let span = SPAN_SIZE + SPAN_OVERHEAD;
        let (max_spans, max_pages) = if elastic {
            (capacity / span, capacity / LEAST_PER_PAGE)
        } else {
            let spans = capacity / (span + RAW_SLOTS * PAGE_STEP.div_ceil(STEP));
            (spans, spans * RAW_SLOTS)
        };
        let max_pages = max_pages.min(u32::MAX as usize - STEP);
        let mut this = Self {
            capacity: given,
            max_spans: max_spans.min(u32::MAX as usize - 1),
            max_pages,
            pages: 0,
            pages_peak: 0,
            objects: 0,
            lent: 0,
            withheld: 0,
            elastic,
        };
        if !elastic {
            this.pages = max_pages;
            this.pages_peak = max_pages;
        }
        this
    }

    /// As [`Self::new`], of what a configuration says.
    ///
    /// # Errors
    ///
    /// [`StoreError::TooSmall`].
    pub(super) fn of(config: &Config) -> Result<Self, StoreError> {
        let capacity = usize::try_from(config.capacity).ok();
        match capacity.filter(|_| config.capacity >= MIN_CAPACITY) {
            Some(capacity) => Ok(Self::new(capacity, config.compression)),
            None => Err(StoreError::TooSmall(config.capacity)),
        }
    }

    /// Returns the division with room for so many pages and objects at least, as far as there can
    /// be.
    pub(super) fn grown_to(mut self, pages: usize, objects: usize) -> Self {
        while self.pages < pages {
            let Some(grown) = self.grow_pages() else {
                break;
            };
            self = grown;
        }
        while self.objects < objects {
            let Some(grown) = self.grow_objects() else {
                break;
            };
            self = grown;
        }
        self
    }

    /// Returns the most spans there can ever be.
    pub(super) fn max_spans(&self) -> usize {
        self.max_spans
    }

    /// Returns the most pages there can ever be.
    pub(super) fn max_pages(&self) -> usize {
        self.max_pages
    }

    /// Returns the most spans that may take memory now.
    pub(super) fn span_limit(&self) -> usize {
        (self.left().saturating_sub(self.lent) / SPAN_SIZE).min(self.max_spans)
    }

    /// Returns the bytes that may be lent, or used for contents.
    fn left(&self) -> usize {
        let taken = self.metadata().saturating_add(self.withheld);
        self.capacity.saturating_sub(taken)
    }

    /// Returns the bytes that are not for contents.
    pub(super) fn metadata(&self) -> usize {
        FIXED
            + self.max_spans * SPAN_OVERHEAD
            + self.pages * size_of::<Page>()
            + self.pages_peak.div_ceil(64) * PER_64_ENTRIES
            + self.objects * OBJECT_STEP / STEP
    }

    /// Returns the most pages and the most objects that may be in use now.
    pub(super) fn entries(&self) -> (usize, usize) {
        (self.pages, self.objects)
    }

    /// Returns the division with room for more pages, [`None`] if there is none.
    pub(super) fn grow_pages(&self) -> Option<Self> {
        let pages = (self.pages + STEP).min(self.max_pages);
        (pages > self.pages).then_some(Self {
            pages,
            pages_peak: self.pages_peak.max(pages),
            ..*self
        })
    }

    /// Returns whether the share of the pages changes.
    pub(super) fn is_elastic(&self) -> bool {
        self.elastic
    }

    /// Returns the division with room for fewer pages by a step, [`None`] if it is fixed.
    pub(super) fn shrink_pages(&self) -> Option<Self> {
        // All steps but the last are whole ones.
        let pages = self.pages.saturating_sub(1) / STEP * STEP;
        (self.elastic && self.pages > 0).then_some(Self { pages, ..*self })
    }

    /// Returns the division with room for more objects, [`None`] if there can be one for every
    /// page.
    pub(super) fn grow_objects(&self) -> Option<Self> {
        let objects = (self.objects + STEP).min(self.max_pages);
        (objects > self.objects).then_some(Self { objects, ..*self })
    }

    /// Returns the bytes that are lent.
    pub(super) fn lent(&self) -> usize {
        self.lent
    }

    /// Returns the division with so many bytes more lent, [`None`] if there are not so many.
    pub(super) fn lend(&self, bytes: usize) -> Option<Self> {
        let lent = self.lent.checked_add(bytes)?;
        (lent <= self.left()).then_some(Self { lent, ..*self })
    }

    /// Returns by how many bytes more is lent than may be.
    pub(super) fn lent_too_much(&self) -> usize {
        self.lent.saturating_sub(self.left())
    }

    /// Returns the division where nobody gets so many bytes, also if they are used.
    pub(super) fn withholding(&self, bytes: usize) -> Self {
        let withheld = bytes.min(self.capacity);
        Self { withheld, ..*self }
    }

    /// Returns the bytes that nobody gets.
    pub(super) fn withheld(&self) -> usize {
        self.withheld
    }

    /// Returns the bytes that guests share, with what finds their pages.
    pub(super) fn shareable(&self) -> usize {
        self.capacity.saturating_sub(FIXED)
    }

    /// Returns the division with so many bytes more lent, also if there are not so many.
    pub(super) fn lent_anyway(&self, bytes: usize) -> Self {
        let lent = self.lent.saturating_add(bytes);
        Self { lent, ..*self }
    }

    /// Returns the division with so many bytes less lent.
    pub(super) fn returned(&self, bytes: usize) -> Self {
        let lent = self.lent.saturating_sub(bytes);
        Self { lent, ..*self }
    }

    /// Returns how many more pages could be stored as they are, where `room` of them would find a
    /// slot, and `vacant` an entry.
    pub(super) fn credits(&self, room: usize, vacant: usize) -> usize {
        if room <= vacant {
            return room;
        }
        // What is to be found takes of the room.
        let steps = (room - vacant).div_ceil(STEP);
        let spans = (steps * PAGE_STEP).div_ceil(SPAN_SIZE);
        let growth = steps * STEP;
        (room.saturating_sub(spans * RAW_SLOTS))
            .min(vacant + growth)
            .min(vacant + (self.max_pages - self.pages))
            .max(vacant.min(room))
    }

    /// Returns the pages by which the credits stay below the truth, for what is on its way.
    pub(super) fn reserve_pages(&self) -> usize {
        (self.max_spans * RAW_SLOTS / 64).min(64)
    }

    /// Returns how many pages there is room for as they are.
    pub(super) fn raw_pages(&self) -> usize {
        self.credits(self.span_limit() * RAW_SLOTS, self.pages)
    }

    /// Returns the capacity in bytes.
    pub(super) fn capacity(&self) -> usize {
        self.capacity
    }
}

/// Returns the bytes that pages and objects take, without the contents of pages.
pub(super) const fn entry_bytes(pages: u64, objects: u64) -> u64 {
    pages * (PAGE_STEP / STEP) as u64 + objects * (OBJECT_STEP / STEP) as u64
}

/// Returns the bytes that a slot takes.
pub(super) const fn slot_bytes(class: ClassId) -> u64 {
    let class = CLASSES[class as usize];
    class.size as u64 + SPAN_OVERHEAD as u64 / class.slots as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Compression; 3] = [Compression::None, Compression::Lz4, Compression::Zstd];

    #[test]
    fn a_full_store_stays_within_its_capacity() {
        for capacity in [100_000, 1 << 20, (1 << 30) + 12345] {
            for compression in ALL {
                let mut budget = Budget::new(capacity, compression);
                loop {
                    let contents = budget.span_limit() * SPAN_SIZE;
                    assert!(contents + budget.metadata() <= capacity.max(budget.metadata()));
                    match budget.grow_objects().or_else(|| budget.grow_pages()) {
                        Some(grown) => budget = grown,
                        None => break,
                    }
                }
                // Each page may have an object of its own.
                assert_eq!(budget.entries().0, budget.entries().1);
            }
        }
    }

    #[test]
    fn less_than_two_percent_is_lost_to_metadata() {
        for compression in ALL {
            let budget = Budget::new(1 << 30, compression);
            assert!(budget.raw_pages() > (1 << 30) / PAGE_SIZE * 98 / 100);
        }
    }

    #[test]
    fn a_share_shrinks_to_whole_steps() {
        let mut budget = Budget::new(1_100_000 + FIXED, Compression::Lz4);
        while let Some(grown) = budget.grow_pages() {
            budget = grown;
        }
        assert_eq!(budget.entries().0, 4296);
        let peak = budget.metadata();
        for pages in [4096, 3072, 2048, 1024, 0] {
            budget = budget.shrink_pages().unwrap();
            assert_eq!(budget.entries().0, pages);
        }
        assert!(budget.shrink_pages().is_none());
        assert!(budget.metadata() < peak);
        assert!(Budget::new(1 << 20, Compression::None)
            .shrink_pages()
            .is_none());
    }
}
