// SPDX-License-Identifier: GPL-2.0

//! Puts and gets by way of the window: a copy and an entry of the index, and nobody to wait for.
//!
//! The device is not asked, so that none of this depends on whether it answers.

use kernel::sync::atomic::Relaxed;

use crate::bindings::{
    page::PageRef,
    trace, //
};

use super::{
    frame::MAX_PAGES,
    get::crc_of,
    logic::{index::Shard, window::Page},
    window::{
        self,
        Freed,
        Slots,
        Window, //
    },
    Client,
    Origin,
    Pool, //
};

/// How many swapped pages are copied at most while others wait for the lock of their shard.
const COPIED_AT_ONCE: usize = 4;

/// What came of pages that were looked for in the window.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Here {
    /// How many of the first were got.
    pub(crate) got: usize,
    /// Whether the next one was there, and is not any more.
    pub(crate) lost: bool,
}

impl Here {
    const NONE: Self = Self {
        got: 0,
        lost: false,
    };
}

impl<O: Origin> Client<O> {
    /// Returns the window, if the device has one that can be used.
    #[inline]
    pub(super) fn window(&self) -> Option<&Window> {
        self.window.as_ref().map(|window| &**window)
    }

    /// Returns whether the device has a window that can be used, with chunks or not yet.
    pub(crate) fn has_window(&self) -> bool {
        self.window().is_some()
    }

    /// Returns the window if pages of a pool can be put there now.
    #[inline]
    pub(super) fn window_for(&self, pool: Pool) -> Option<&Window> {
        self.window()
            .filter(|window| window.has(pool.kind()) && self.standing().may_put_here())
    }

    /// Returns whether pages of a pool can be put without the device. Any context.
    #[inline]
    pub(crate) fn puts_here(&self, pool: Pool) -> bool {
        self.window_for(pool).is_some()
    }

    /// Returns whether pages of a pool can be got: from the device, or without it. Any context.
    #[inline]
    pub(crate) fn gives(&self, pool: Pool) -> bool {
        self.running()
            || self.standing().may_get_here()
                && self
                    .window()
                    .is_some_and(|window| window.used(pool.kind()).load(Relaxed) > 0)
    }

    /// Puts the `count` pages at `index..` into the window, as far as there are slots, and returns
    /// how many of the first it was.
    ///
    /// They can be got from now on, and earlier ones in their places cannot. `pages` has to have so
    /// many. Any context.
    pub(crate) fn put_here(
        &self,
        pool: Pool,
        (tag, index): (u64, u64),
        count: usize,
        pages: impl Iterator<Item = PageRef>,
    ) -> usize {
        let Some(window) = self.window_for(pool) else {
            return 0;
        };
        let state = self.pool(pool);
        let kind = pool.kind();
        let wanted = count.min(MAX_PAGES);
        let mut slots: Slots = [0; MAX_PAGES];
        let Some(room) = slots.get_mut(..wanted).filter(|_| state.has_room()) else {
            return 0;
        };
        let taken = window.take(kind, room);
        if taken < wanted {
            window.tally().refuse(wanted - taken);
            self.want_chunks();
        }
        let Some(slots) = slots.get(..taken).filter(|slots| !slots.is_empty()) else {
            return 0;
        };
        let copied = window.write(slots, pages);
        if copied < taken {
            // A chunk was taken back: who looks after them sees that none of its slots is taken again.
            self.want_chunks();
        }
        let page = |n: usize| Page {
            tag,
            // CAST: To more bits.
            index: index.wrapping_add(n as u64),
            put_at: window::seconds(),
            crc: 0,
        };
        let Some(mut shard) = state.shard(tag).filter(|_| copied > 0) else {
            window.give_back(kind, slots);
            return 0;
        };
        let copies = slots.get(..copied).unwrap_or(&[]);
        let mut replaced = Freed::new(Some(window), pool);
        let put = insert(
            &mut shard,
            window,
            pool,
            (tag, index),
            copies,
            &mut replaced,
            page,
        );
        let short = shard.wants().any();
        drop(shard);
        drop(replaced);

        window.give_back(kind, slots.get(put..).unwrap_or(&[]));
        state.counters.no_memory.add(copied - put);
        self.count_puts(window, pool, (tag, index), put);
        if short {
            self.want_growth();
        }
        put
    }

    /// Counts pages that were put.
    fn count_puts(&self, window: &Window, pool: Pool, (tag, index): (u64, u64), put: usize) {
        window.tally().put(put);
        self.pool(pool).counters.window_puts.add(put);
        // CAST: There are at most 32.
        trace::put(pool.number(), tag, index, put as u32);
    }

    /// Puts copies of `count` neighbouring pages into the window in place of the staging memory; see
    /// [`Self::stage`].
    ///
    /// Where there is no free slot, pages that are less likely to be read again make room.
    pub(super) fn stage_here(
        &self,
        window: &Window,
        (tag, index): (u64, u64),
        count: usize,
        pages: impl Iterator<Item = PageRef>,
        checked: bool,
        refuse: impl FnOnce() -> bool,
    ) -> usize {
        let pool = Pool::Cleancache;
        let state = self.pool(pool);
        let kind = pool.kind();
        let wanted = count.min(MAX_PAGES);
        let mut slots: Slots = [0; MAX_PAGES];
        let mut crcs = [0; MAX_PAGES];

        let mut taken = 0;
        if state.has_room() {
            taken = slots
                .get_mut(..wanted)
                .map_or(0, |room| window.take(kind, room));
            if taken < wanted {
                self.want_chunks();
                let room = slots.get_mut(taken..wanted).unwrap_or(&mut []);
                taken += self.replace(window, room);
            }
        }
        let slots = slots.get(..taken).unwrap_or(&[]);
        let mut places = crcs.iter_mut();
        let pages = pages.inspect(|page| {
            if let (Some(place), true) = (places.next(), checked) {
                *place = crc_of(page.crc());
            }
        });
        let copied = window.write(slots, pages);
        if copied < taken {
            self.want_chunks();
        }
        let now = window::seconds();
        let page = |n: usize| Page {
            tag,
            // CAST: To more bits.
            index: index.wrapping_add(n as u64),
            put_at: now,
            crc: crcs.get(n).copied().unwrap_or(0),
        };

        let mut gone = Freed::new(Some(window), pool);
        let Some(mut shard) = state.shard(tag) else {
            window.give_back(kind, slots);
            return 0;
        };
        let put = if copied == 0 {
            0
        } else if refuse() {
            state.counters.unsafe_inode.add(copied);
            0
        } else {
            let copies = slots.get(..copied).unwrap_or(&[]);
            insert(
                &mut shard,
                window,
                pool,
                (tag, index),
                copies,
                &mut gone,
                page,
            )
        };
        if put < count {
            // CAST: To more bits.
            let (first, last) = (
                index.wrapping_add(put as u64),
                index.wrapping_add(count as u64).wrapping_sub(1),
            );
            // So few pages are gone through at once.
            let _ = shard.erase_range(tag, first, last, |entry| gone.entry(Some(entry)));
        }
        let short = shard.wants().any();
        drop(shard);
        drop(gone);

        window.give_back(kind, slots.get(put..).unwrap_or(&[]));
        self.count_puts(window, pool, (tag, index), put);
        if short {
            self.want_growth();
        }
        if put < count {
            window.tally().refuse(count - put);
            self.flush_later();
        }
        put
    }

    /// Erases the clean pages that are to go first, and calls `f` with the slot of each, which is the
    /// caller's; returns how many were looked at, at most `count`.
    fn erase_oldest(&self, window: &Window, count: usize, mut f: impl FnMut(u32, &Page)) -> usize {
        let mut gone = [(0, Page::default()); MAX_PAGES];
        let found = window.oldest(Pool::Cleancache.kind(), count, &mut gone);

        for &(slot, page) in gone.iter().take(found) {
            let erased = self
                .cleancache
                .shard(page.tag)
                .is_some_and(|mut shard| shard.erase_slot(page.tag, page.index, slot));

            // Otherwise somebody has got it, or flushed it, and frees the slot.
            if erased {
                f(slot, &page);
            }
        }
        found
    }

    /// Takes slots over from the clean pages that are to go first; returns how many.
    fn replace(&self, window: &Window, slots: &mut [u32]) -> usize {
        let count = slots.len();
        let mut taken = 0;
        // CAST: There are at most 32.
        let turn = window.turn(count as u32);

        self.erase_oldest(window, count, |slot, page| {
            window.makes_room(page, turn);
            if let Some(place) = slots.get_mut(taken) {
                *place = slot;
                taken += 1;
            }
        });
        window.replaced(slots.get(..taken).unwrap_or(&[]));
        self.cleancache.counters.window_replaced.add(taken);
        taken
    }

    /// Forgets the clean pages that are in the window, some at a time.
    ///
    /// For when none are put: what is put meanwhile may stay.
    pub(super) fn forget_here(&self) {
        let pool = Pool::Cleancache;
        let Some(window) = self.window() else {
            return;
        };
        // CAST: To more bits.
        let mut left = window.used(pool.kind()).load(Relaxed) as usize;

        while left > 0 {
            let mut freed = Freed::new(Some(window), pool);
            let found = self.erase_oldest(window, MAX_PAGES, |slot, _| freed.slot(slot));

            if found == 0 {
                break;
            }
            left = left.saturating_sub(found);
        }
    }

    /// Takes note of clean pages at `index..` that are read from elsewhere, for want of room perhaps.
    ///
    /// Any context.
    pub(crate) fn missed(&self, tag: u64, index: u64, count: u64) {
        if let Some(window) = self.window() {
            window.missed(tag, index, count);
        }
    }

    /// Gets the `count` pages at `index..`, as far as they are in the window: page `n` to `to(n)`.
    ///
    /// Clean pages are taken, swapped pages stay where they are. `to` is called for one page after the
    /// other, and perhaps once more for each that was got. Any context.
    pub(crate) fn get_here(
        &self,
        pool: Pool,
        (tag, index): (u64, u64),
        count: usize,
        mut to: impl FnMut(usize) -> Option<PageRef>,
    ) -> Here {
        let mut here = Here::NONE;
        let Some(window) = self
            .window()
            .filter(|window| window.used(pool.kind()).load(Relaxed) > 0)
        else {
            return here;
        };

        while here.got < count && !here.lost {
            let key = (tag, index.wrapping_add(here.got as u64));
            let left = count - here.got;
            let to = |n| to(here.got + n);
            let more = match pool {
                Pool::Cleancache => self.take_here(window, key, left, to),
                Pool::Frontswap => self.copy_here(window, key, left, to),
                Pool::Shared(_) => break,
            };

            if more.got == 0 && !more.lost {
                break;
            }
            here.got += more.got;
            here.lost = more.lost;
        }
        if here.got > 0 {
            self.pool(pool).counters.window_hits.add(here.got);
            // CAST: There are at most as many as a folio has.
            trace::get(pool.number(), tag, index, here.got as u32);
        }
        if here.lost {
            self.pool(pool).counters.window_lost.add(1);
            self.want_chunks();
        }
        here
    }

    /// Gets clean pages, some of them: none if the first is not there.
    fn take_here(
        &self,
        window: &Window,
        (tag, index): (u64, u64),
        count: usize,
        mut to: impl FnMut(usize) -> Option<PageRef>,
    ) -> Here {
        let state = &self.cleancache;
        let mut slots: Slots = [0; MAX_PAGES];
        let mut places = slots.iter_mut();
        let count = count.min(MAX_PAGES);
        // CAST: There are at most 32.
        let taken = state.shard(tag).map_or(0, |mut shard| {
            shard.take_slots(tag, index, count as u64, |slot| {
                if let Some(place) = places.next() {
                    *place = slot;
                }
            })
        }) as usize;
        // From here on they are this function's to free.
        let slots = slots.get(..taken).unwrap_or(&[]);
        if taken == 0 {
            return Here::NONE;
        }
        let read = window.read(slots, &mut to);
        let mut crcs = [0; MAX_PAGES];

        window.got(Pool::Cleancache.kind(), slots, read, |n, page| {
            if let Some(crc) = crcs.get_mut(n) {
                *crc = page.crc;
            }
        });
        // All who put or get wait for the lock that was held there.
        let bad = crcs
            .iter()
            .take(read)
            .enumerate()
            .position(|(n, &crc)| crc != 0 && to(n).map(|to| crc_of(to.crc())) != Some(crc));
        if bad.is_some() {
            state.counters.bad_crc.add(1);
        }
        let got = bad.unwrap_or(read);
        Here {
            got,
            lost: got < taken,
        }
    }

    /// Gets swapped pages, which stay where they are, some of them: none if the first is not there.
    ///
    /// They are copied with the lock held: while it is, nobody can free their slots.
    fn copy_here(
        &self,
        window: &Window,
        (tag, index): (u64, u64),
        count: usize,
        mut to: impl FnMut(usize) -> Option<PageRef>,
    ) -> Here {
        let kind = Pool::Frontswap.kind();
        let state = &self.frontswap;
        let mut here = Here::NONE;

        let _ = window.with(|memory| {
            let shard = state.shard(tag)?;
            // CAST: To as many bits.
            let count = count.min(COPIED_AT_ONCE) as u64;
            let _ = shard.slots_of(tag, index, count, |slot| {
                let Some(page) = to(here.got) else {
                    return false;
                };
                here.lost = !window.read_one(memory, slot, page);
                if !here.lost {
                    here.got += 1;
                    window.looked_at(kind, slot);
                }
                !here.lost
            });
            Some(())
        });
        window.tally().hit(here.got);
        if here.lost {
            window.tally().miss();
        }
        here
    }

    /// Gets one page out of a slot, for whoever has the shard's lock and has taken it out of the
    /// index.
    pub(super) fn take_slot(&self, pool: Pool, slot: u32, to: PageRef) -> bool {
        let Some(window) = self.window() else {
            return false;
        };
        let got = window.read(&[slot], |_| Some(to)) == 1;
        let mut crc = 0;

        window.got(pool.kind(), &[slot], got.into(), |_, page| crc = page.crc);
        let same = crc == 0 || crc_of(to.crc()) == crc;
        let counters = &self.pool(pool).counters;
        if got && same {
            counters.window_hits.add(1);
        } else {
            counters.window_lost.add(1);
        }
        got && same
    }
}

/// Inserts pages that have been copied to slots; returns how many of the first.
fn insert(
    shard: &mut Shard,
    window: &Window,
    pool: Pool,
    (tag, index): (u64, u64),
    slots: &[u32],
    replaced: &mut Freed<'_>,
    page: impl Fn(usize) -> Page,
) -> usize {
    // CAST: There are at most 32.
    let put = shard.insert_slots(tag, index, slots.len() as u64, |n, old| {
        replaced.entry(old);
        // CAST: It is below their number.
        slots.get(n as usize).copied().unwrap_or(u32::MAX)
    }) as usize;

    // Before the lock is let go of: then somebody may free them.
    window.note(pool.kind(), slots.get(..put).unwrap_or(&[]), page);
    put
}
