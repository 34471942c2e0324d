// SPDX-License-Identifier: GPL-2.0

//! What is known of chunks, and what the host is told of them.

use kernel::{
    prelude::*,
    sync::atomic::{
        Relaxed,
        Release, //
    }, //
};
use virtio_tmem_abi::{
    Chunk as Granted,
    Le32,
    CHUNK_REPORTS,
    CHUNK_SHIFT, //
};

use crate::bindings::mapping::Mapping;

use super::{
    super::{
        frame::MAX_PAGES,
        logic::window::{
            first_slot,
            ChunkReport,
            Kind,
            Page,
            Slots,
            FIRST_CHUNK, //
        },
    },
    generation_at,
    Depot,
    Level,
    Window,
    LEAVING, //
};

/// Of how many chunks the report is written at once.
const TOLD_AT_ONCE: usize = 64;

/// Where the report begins.
const REPORT: usize = 1 << CHUNK_SHIFT;

impl Window {
    /// Returns how many chunks there are, those included that cannot be granted.
    pub(super) fn chunk_count(&self) -> u32 {
        // CAST: It was made for as many.
        self.chunks.len() as u32
    }

    /// Returns whether the memory is not there any more.
    pub(super) fn is_gone(&self) -> bool {
        self.source.header().is_none()
    }

    /// Returns whether there are no chunks.
    pub(super) fn is_empty(&self) -> bool {
        self.depot_levels()
            .all(|level| level.chunks == 0 && level.leaving == 0)
    }

    /// Returns whether a chunk can be granted.
    pub(super) fn is_chunk(&self, number: u32) -> bool {
        (FIRST_CHUNK..self.chunk_count()).contains(&number)
    }

    /// Returns what is known of a chunk's generation: see [`Chunk`](super::Chunk).
    pub(super) fn granted_of(&self, number: u32) -> u32 {
        self.chunk(first_slot(number))
            .map_or(0, |chunk| chunk.granted.load(Relaxed))
    }

    /// Says what is known of a chunk from now on.
    pub(super) fn set_granted(&self, number: u32, granted: u32) {
        if let Some(chunk) = self.chunk(first_slot(number)) {
            chunk.granted.store(granted, Release);
        }
    }

    /// Returns the generation that the header has for a chunk; [`None`]: the memory is gone.
    pub(super) fn generation_of(&self, number: u32) -> Option<u32> {
        self.source
            .with(|memory| memory.load32(generation_at(number)))
            .flatten()
    }

    /// Takes a chunk in that was granted. Fails if what was in it before is not cleared away.
    ///
    /// As long as any of its slots is in use, in a magazine, or in somebody's hands, it is not: see
    /// [`Self::remove()`]. With the lock of turns held.
    pub(super) fn add(
        &self,
        kind: Kind,
        number: u32,
        generation: u32,
        slots: Slots,
    ) -> Result<(), Slots> {
        if self.granted_of(number) != 0 {
            return Err(slots);
        }
        self.order(kind).lock().add(number, slots)?;
        if let Some(chunk) = self.chunk(first_slot(number)) {
            chunk.hits.store(0, Relaxed);
        }
        // Before somebody can take a slot of it.
        self.set_granted(number, generation);
        if self.depot.lock().grant(number, generation, kind).is_err() {
            pr_warn!("chunk {number} of the window is not used: it is there already\n");
        }
        Ok(())
    }

    /// Takes the slots of chunks that are to leave out of the magazines.
    pub(super) fn let_go(&self) {
        for own in self.magazines.iter() {
            for kind in Kind::ALL {
                let mut magazine = own.of(kind).lock();

                magazine.let_go(&mut self.depot.lock(), |_| ());
            }
        }
    }

    /// Has a chunk leave; returns whether it does now. With the lock of turns held.
    pub(super) fn has_leave(&self, depot: &mut Depot, number: u32) -> bool {
        let leaves = depot.withdraw(number).is_ok();

        if leaves {
            self.set_granted(number, self.granted_of(number) | LEAVING);
        }
        leaves
    }

    /// Has up to `count` chunks leave in which no slot is in use.
    pub(super) fn spare(&self, kind: Kind, count: u32) {
        let _turn = self.turn.lock();

        for _ in 0..count {
            let mut depot = self.depot.lock();
            let Some(number) = depot.cheapest(kind) else {
                break;
            };
            if depot.used(number) != 0 || !self.has_leave(&mut depot, number) {
                break;
            }
        }
    }

    /// Looks for chunks from `from` on that are to leave, and of which no slot is in use: as many as
    /// there are places for are to be returned; returns how many.
    ///
    /// Those that were taken back are not there any more after that.
    pub(super) fn collect(&self, from: &mut u32, returned: &mut [Granted]) -> usize {
        let mut places = returned.iter_mut();
        let mut count = 0;
        let _turn = self.turn.lock();

        while *from < self.chunk_count() && places.len() > 0 {
            let number = *from;
            let granted = self.granted_of(number);

            *from += 1;
            if granted & LEAVING == 0 {
                continue;
            }
            let empty = {
                let depot = self.depot.lock();

                depot.is_leaving(number) && depot.used(number) == 0
            };
            if !empty {
                continue;
            }
            if granted == LEAVING {
                self.remove(number);
            } else if let Some(place) = places.next() {
                *place = Granted {
                    number: Le32::new(number),
                    generation: Le32::new(granted & !LEAVING),
                };
                count += 1;
            }
        }
        count
    }

    /// Takes a chunk out that is to leave, and of which no slot is in use: all of them are in the
    /// depot, so that nothing names one any more. With the lock of turns held.
    pub(super) fn remove(&self, number: u32) {
        if self.depot.lock().collect(number).is_err() {
            return;
        }
        self.set_granted(number, 0);
        for kind in Kind::ALL {
            let slots = self.order(kind).lock().remove(number);
            drop(slots);
        }
    }

    /// Returns the numbers of both kinds.
    pub(super) fn depot_levels(&self) -> impl Iterator<Item = Level> {
        let depot = self.depot.lock();

        Kind::ALL.map(|kind| depot.level(kind)).into_iter()
    }

    /// Looks again whether there are chunks of either kind.
    pub(super) fn look_again(&self) {
        for kind in Kind::ALL {
            self.has
                .of(kind)
                .store(self.level(kind).chunks > 0, Relaxed);
        }
    }

    /// Calls `f` with the pages in a chunk, some at a time.
    pub(super) fn for_each_page(&self, kind: Kind, number: u32, mut f: impl FnMut(&[(u32, Page)])) {
        let mut next = Some(0);

        while let Some(from) = next {
            let mut pages = [(0, Page::default()); MAX_PAGES];
            let count;

            (count, next) = self.order(kind).lock().pages_in(number, from, &mut pages);
            if let Some(pages) = pages.get(..count).filter(|pages| !pages.is_empty()) {
                f(pages);
            }
        }
    }

    /// Writes down what the host may want to know.
    pub(super) fn tell(&self) {
        let free = Kind::ALL.map(|kind| self.level(kind).free);
        let near = self.near.told(self.used(Kind::Ephemeral).load(Relaxed));
        let report = self.tally.report(near).encode(free[0], free[1]);

        self.source.with(|memory| memory.write(REPORT, &report));
        // Some at a time: the memory cannot go, nor the processor do anything else, meanwhile.
        for first in (FIRST_CHUNK..self.chunk_count()).step_by(TOLD_AT_ONCE) {
            // CAST: There are 64.
            let end = (first + TOLD_AT_ONCE as u32).min(self.chunk_count());
            let mut used = [0; TOLD_AT_ONCE];

            if (first..end).all(|number| self.granted_of(number) == 0) {
                continue;
            }
            {
                let depot = self.depot.lock();

                for (number, used) in (first..end).zip(&mut used) {
                    *used = depot.used(number);
                }
            }
            self.source.with(|memory| {
                for (number, used) in (first..end).zip(used) {
                    self.tell_of(memory, number, used);
                }
            });
        }
    }

    /// Writes down what the host may want to know of a chunk.
    fn tell_of(&self, memory: &Mapping, number: u32, used: u32) {
        let chunk = self
            .chunk(first_slot(number))
            .filter(|chunk| chunk.granted.load(Relaxed) != 0);
        let Some(chunk) = chunk else {
            return;
        };
        let told = ChunkReport {
            // CAST: There are 512.
            used: used as u16,
            hits: chunk.hits.load(Relaxed),
        };
        // CAST: To more bits.
        let at = REPORT + CHUNK_REPORTS as usize + number as usize * 8;

        memory.write(at, &told.encode());
    }
}
