// SPDX-License-Identifier: GPL-2.0

//! Pages out of the window: to the store, or to where they would be without the device.
//!
//! A page that moves has a version, by which it is known where it goes, and can be got from its slot
//! meanwhile. If it was put anew before it has arrived, the version is not the index's any more, and
//! the move was in vain. The slot is that of whoever moves the page until the move is over.

use kernel::sync::atomic::Relaxed;
use virtio_tmem_abi::{
    Le32,
    SlotKey, //
};
use zerocopy::IntoBytes;

use super::{
    super::{
        logic::{
            drain,
            index::{
                Completed,
                Entry as Known,
                Inserted,
                Outcome as Put,
                Supersedes, //
            },
            window::{
                Kind,
                Page, //
            },
            wire::{
                self,
                Operation,
                Outcomes, //
            },
        },
        request::{
            Blank,
            Entry,
            Origin, //
        },
        Client,
        Pool,
        RESERVE, //
    },
    seconds,
    Window,
    MAX_PAGES, //
};

/// How many pages are drained at once.
const AT_ONCE: usize = drain::WINDOW;

/// A page on its way out of its slot.
#[derive(Clone, Copy)]
struct Move {
    tag: u64,
    index: u64,
    wire: u64,
    version: u32,
    slot: u32,
    supersedes: Supersedes,
}

impl Move {
    fn new((tag, index): (u64, u64), slot: u32, begun: Inserted) -> Self {
        Self {
            tag,
            index,
            wire: begun.wire,
            version: begun.version,
            slot,
            supersedes: begun.supersedes,
        }
    }
}

/// What came of sending pages to the store.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Sent {
    /// All of them are on their way, or are not there any more.
    All,
    /// There is no request to spare for some.
    Busy,
    /// The store does not take so many.
    Refused(usize),
}

/// Swapped pages on their way from the window to their swap area.
///
/// They are to be [ended](Client::end_moves) before it is dropped.
pub(crate) struct Moves {
    moves: [Option<Move>; AT_ONCE],
}

impl Moves {
    /// No pages.
    pub(crate) const fn new() -> Self {
        Self {
            moves: [None; AT_ONCE],
        }
    }

    fn push(&mut self, begun: Move) {
        if let Some(place) = self.moves.iter_mut().find(|place| place.is_none()) {
            *place = Some(begun);
        }
    }

    fn take(&mut self, tag: u64, index: u64, version: u32) -> Option<Move> {
        self.moves
            .iter_mut()
            .find(|place| {
                place.is_some_and(|m| (m.tag, m.index, m.version) == (tag, index, version))
            })?
            .take()
    }
}

impl<O: Origin> Client<O> {
    /// Begins to take pages back at `from..` of an object that nobody else has, at most `room`, and
    /// calls `f` with the index and the version of each, in their order.
    ///
    /// Those in the window are on their way from then on: see [`Self::end_moves`]. Returns where to go
    /// on, or [`None`] after the last page. Any context.
    pub(crate) fn take_back_from(
        &self,
        pool: Pool,
        tag: u64,
        from: u64,
        room: usize,
        moves: &mut Moves,
        mut f: impl FnMut(u64, u32),
    ) -> Option<u64> {
        let mut found = [(0, Known::Lost); AT_ONCE];
        let mut places = found.iter_mut().take(room);
        let mut shard = self.pool(pool).shard(tag)?;
        let mut count = 0;
        let next = shard.away_from(tag, from, |index, entry| match places.next() {
            Some(place) => {
                *place = (index, entry);
                count += 1;
                true
            }
            None => false,
        });

        for &(index, entry) in found.iter().take(count) {
            match entry {
                Known::Remote { version, .. } => f(index, version),
                Known::Window { slot, .. } => {
                    if let Some(begun) = shard.begin_move(tag, index, slot) {
                        moves.push(Move::new((tag, index), slot, begun));
                        f(index, begun.version);
                    }
                }
                _ => (),
            }
        }
        next
    }

    /// Returns whether a page is what the device has stored as this version of it, or what is on its
    /// way as such. Any context.
    pub(crate) fn is_away(&self, pool: Pool, tag: u64, index: u64, version: u32) -> bool {
        self.pool(pool)
            .shard(tag)
            .is_some_and(|shard| shard.is_away(tag, index, version))
    }

    /// Forgets a page that has been taken back in this version, if it still is that one, and returns
    /// whether it was. Any context.
    pub(crate) fn taken_back(
        &self,
        pool: Pool,
        (tag, index, version): (u64, u64, u32),
        moves: &mut Moves,
    ) -> bool {
        let Some(ended) = moves.take(tag, index, version) else {
            return self.flush_stored(pool, tag, index, version);
        };
        let moved = self.pool(pool).shard(tag).map(|mut shard| {
            shard.moved(tag, (ended.wire, index, version), ended.supersedes, None)
        });

        if let Some(window) = self.window() {
            window.free(pool.kind(), &[ended.slot]);
        }
        self.flush_later();
        moved == Some(Completed::Current)
    }

    /// Has those pages stay in the window that were on their way and have not been taken back. Any
    /// context.
    pub(crate) fn end_moves(&self, pool: Pool, moves: &mut Moves) {
        for ended in moves.moves.iter_mut().filter_map(Option::take) {
            self.stays(pool, ended);
        }
    }

    /// Has a page stay in the window that was on its way.
    fn stays(&self, pool: Pool, ended: Move) {
        let Some(window) = self.window() else {
            return;
        };
        let Move {
            tag,
            index,
            wire,
            version,
            slot,
            supersedes,
        } = ended;
        let Some(mut shard) = self.pool(pool).shard(tag) else {
            return;
        };
        let current = shard.is_current(tag, wire, index, version);

        shard.abandon(tag, wire, index, version, supersedes);
        if current {
            window.stays(pool.kind(), slot, tag, index);
        } else {
            window.free(pool.kind(), &[slot]);
        }
    }

    /// Sends the swapped pages to the store that have been in the window for longest, about `count`.
    pub(super) fn move_to_store(&self, window: &Window, count: usize) {
        let mut left = count;

        // What comes back would be the last one to go.
        while left > 0 && self.running() && self.credits(Pool::Frontswap) > 0 {
            let mut oldest = [(0, Page::default()); MAX_PAGES];
            let found = window.oldest(Kind::Persistent, left.min(MAX_PAGES), &mut oldest);

            let oldest = oldest.get(..found).unwrap_or(&[]);
            if found == 0 || self.send_slots(window, oldest) != Sent::All {
                break;
            }
            left -= found.min(left);
        }
    }

    /// Takes a request for moves, if there is one to spare and pages may be put.
    fn blank_for_moves(&self) -> Option<Blank<O>> {
        let blank = self.requests.try_take(RESERVE)?;

        // In this order: who waits for all requests before the device is reset, having said so, waits
        // for this one, or has said so before this looks.
        if self.running() {
            return Some(blank);
        }
        self.requests.give(blank);
        None
    }

    /// Sends pages to the store by the numbers of their slots, whether they are in the order or not.
    pub(super) fn send_slots(&self, window: &Window, pages: &[(u32, Page)]) -> Sent {
        let pool = Pool::Frontswap;
        let state = &self.frontswap;
        let admitted = if self.running() {
            state.admit(pages.len())
        } else {
            0
        };
        let mut sent = 0;
        let mut busy = false;
        let mut batch = None;

        for (n, &(slot, page)) in pages.iter().enumerate() {
            let (tag, index) = (page.tag, page.index);
            let queue = self.put_queue(tag);
            let Some(generation) = window.valid(slot).filter(|_| n < admitted) else {
                window.stays(pool.kind(), slot, tag, index);
                continue;
            };
            // All about one object goes over one virtqueue.
            let open = match batch.take() {
                Some((q, open)) if q == queue && self.room(&open) > 0 => Some((q, open)),
                other => {
                    if let Some((_, full)) = other {
                        self.send(full);
                    }
                    self.blank_for_moves()
                        .map(|blank| (queue, self.begin(blank, Operation::PutSlot, pool, 0)))
                }
            };
            let Some((queue, mut open)) = open else {
                window.stays(pool.kind(), slot, tag, index);
                busy = true;
                continue;
            };
            let begun = state
                .shard(tag)
                .and_then(|mut shard| shard.begin_move(tag, index, slot));
            if let Some(begun) = begun {
                let key = SlotKey {
                    key: wire::key(begun.wire, index, begun.version),
                    slot: Le32::new(slot),
                    generation: Le32::new(generation),
                };
                let entry = Entry {
                    tag,
                    wire: begun.wire,
                    index,
                    version: begun.version,
                    crc: slot,
                    supersedes: Some(begun.supersedes),
                    mine: O::Page::default(),
                };

                // It fits: there is room.
                let _ = open.blank.push(key.as_bytes(), entry);
                open.queue = Some(queue);
                window.moving.add(1, Relaxed);
                sent += 1;
            }
            batch = Some((queue, open));
        }
        match batch {
            Some((_, open)) if open.len() > 0 => self.send(open),
            Some((_, open)) => self.cancel(open),
            None => (),
        }
        state.admitted(admitted, sent);
        if admitted < pages.len() {
            Sent::Refused(pages.len() - admitted)
        } else if busy {
            Sent::Busy
        } else {
            Sent::All
        }
    }

    /// Takes note of what became of pages that were sent to the store by the numbers of their slots.
    pub(in super::super) fn slots_sent(&self, blank: &Blank<O>, outcomes: Outcomes) {
        let record = &blank.record;
        let pool = record.pool;
        let state = self.pool(pool);

        for (n, entry) in record.entries().iter().enumerate() {
            let (Some(window), Some(supersedes)) = (self.window(), entry.supersedes) else {
                continue;
            };
            // It was noted there.
            let slot = entry.crc;
            let ended = Move {
                tag: entry.tag,
                index: entry.index,
                wire: entry.wire,
                version: entry.version,
                slot,
                supersedes,
            };

            if !outcomes.is_done(n) {
                self.stays(pool, ended);
                continue;
            }
            if let Some(mut shard) = state.shard(entry.tag) {
                let stored = Put::Stored { crc: 0 };

                shard.complete(entry.tag, entry.wire, entry.index, entry.version, stored);
            }
            window.free(pool.kind(), &[slot]);
        }
        state.credits.settle(record.len());
        state.counters.window_moved.add(outcomes.done());
        state.counters.refused.add(record.len() - outcomes.done());
        if let Some(window) = self.window() {
            // CAST: There are at most 32.
            let moving = record.len() as u32;
            let last = window.moving.fetch_sub(moving, Relaxed) == moving;

            window.tally().moved.add(outcomes.done());
            if last && outcomes.done() > 0 {
                // More may be to make room.
                self.want_chunks();
            }
        }
        self.flush_later();
    }
}

impl Window {
    /// Takes note that a page that was to move stays in its slot. Any context.
    fn stays(&self, kind: Kind, slot: u32, tag: u64, index: u64) {
        let mut order = self.order(kind).lock();

        if order.page(slot).is_none() {
            let page = Page {
                tag,
                index,
                put_at: seconds(),
                crc: 0,
            };
            order.insert(slot, page);
        }
    }

    /// Returns the generation of a slot's chunk, if what is there can be got.
    fn valid(&self, slot: u32) -> Option<u32> {
        let granted = self.granted(slot);

        (granted != 0).then_some(granted)
    }
}
