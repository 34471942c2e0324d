// SPDX-License-Identifier: GPL-2.0

//! Looking after chunks: what was taken back is lost, what is to go goes, and there is more where more
//! is needed.
//!
//! All of this is done by work that may sleep, and that nobody who puts or gets waits for.

use kernel::{
    prelude::*,
    sync::{
        atomic::{
            Full,
            Relaxed, //
        },
        lock::{
            mutex::MutexBackend,
            Guard, //
        },
    },
    time::msecs_to_jiffies, //
};
use virtio_tmem_abi::{
    Chunk as Granted,
    ChunkGrant,
    ChunkKind,
    Chunks,
    Le32,
    Le64,
    Opcode,
    Status,
    MAX_GRANT, //
};
use zerocopy::IntoBytes;

use crate::bindings::thread;

use super::{
    super::{
        logic::{
            window::{
                chunks_recalled,
                Kind,
                Slots,
                Step,
                FIRST_CHUNK, //
            },
            wire::{
                decode_chunks,
                Lie,
                RESPONSE_BYTES, //
            },
        },
        request::Origin,
        Client,
        Pool, //
    },
    away::Sent,
    Asked,
    Window,
    LEAVING, //
};

/// How often to look after chunks, in milliseconds.
const PERIOD: u32 = 1000;

/// How long swapped pages may take to their swap areas before they are asked for again, in
/// milliseconds.
const HOMEWARD: u32 = 30_000;

impl<O: Origin> Client<O> {
    /// Has chunks looked after soon. Any context.
    pub(in super::super) fn want_chunks(&self) {
        if self.window.as_ref().is_some() && !self.tending.xchg(true, Full) {
            self.bell.ring();
        }
    }

    /// Returns in how many jiffies to look after chunks, and whether that is now; for the thread
    /// itself.
    pub(in super::super) fn chunks_due(&self) -> Option<(usize, bool)> {
        let window = self.window().filter(|window| window.is_open())?;
        let period = msecs_to_jiffies(PERIOD);
        let now = thread::jiffies();
        let left = window.due.load(Relaxed).wrapping_sub(now) as isize;
        let due = left <= 0 || self.tending.load(Relaxed);

        if due {
            window.due.store(now.wrapping_add(period), Relaxed);
            return Some((period, true));
        }
        Some((left as usize, false))
    }

    /// Looks after chunks: what was taken back is lost, what is to go goes, and there is more where
    /// more is needed. May sleep, and enters reclaim.
    pub(in super::super) fn tend(&self) {
        let Some(window) = self.window() else {
            return;
        };

        let turn = window.turn.lock();
        // While the guest sleeps the memory is not there, which does not mean that it was taken.
        if !window.is_open() {
            return;
        }
        self.find_lost_in_turn(window, false, turn);
        if !self.standing().answers() {
            return;
        }
        if window.is_gone() {
            // What cannot be reached need not be lent.
            self.give_back(window);
            if window.is_empty() {
                self.close_window();
                pr_warn!(
                    "the device whose memory the window is was taken away: pages go by requests \
                     until the driver is bound anew\n"
                );
            }
            return;
        }
        self.heed_recall(window);
        self.empty_leaving(window);
        self.give_back(window);
        let mut again = false;
        // What was asked for without an answer is asked for once more first of all: it may be granted.
        if self.ask_for_asked(window).is_ok() {
            for kind in Kind::ALL {
                again |= self.supply(window, kind);
            }
        }
        window.tell();
        if again {
            self.want_chunks();
        }
    }

    /// Finds chunks that were taken back, or that all are, and forgets what was in them. May sleep, but
    /// not for long.
    pub(in super::super) fn find_lost(&self, window: &Window, all: bool) {
        self.find_lost_in_turn(window, all, window.turn.lock());
    }

    fn find_lost_in_turn(&self, window: &Window, all: bool, turn: Guard<'_, (), MutexBackend>) {
        let (mut chunks, mut pages) = (0, 0);
        let gone = window.is_gone();

        for number in FIRST_CHUNK..window.chunk_count() {
            let granted = window.granted_of(number);
            let generation = granted & !LEAVING;

            if generation != 0 && (all || window.generation_of(number) != Some(generation)) {
                // It may be leaving already.
                let _ = window.depot.lock().withdraw(number);
                // Where only the way to it is gone, the device has still to be told.
                let left = if gone && !all { generation } else { 0 };
                window.set_granted(number, left | LEAVING);
                chunks += 1;
            }
            let granted = window.granted_of(number);
            if granted == LEAVING || granted != 0 && gone {
                pages += self.forget_chunk(window, number);
            }
        }
        drop(turn);
        if chunks > 0 {
            window.let_go();
            window.look_again();
        }
        if pages > 0 {
            pr_err!(
                "the host has taken the window's memory of {pages} swap pages that only it had: \
                 reading one is an I/O error\n"
            );
        }
    }

    /// Forgets what was in a chunk that is lost; returns how many swapped pages it was.
    fn forget_chunk(&self, window: &Window, number: u32) -> u64 {
        let mut lost = 0;

        for pool in [Pool::Cleancache, Pool::Frontswap] {
            window.for_each_page(pool.kind(), number, |pages| {
                for &(slot, page) in pages {
                    let (tag, index) = (page.tag, page.index);
                    let gone = self
                        .pool(pool)
                        .shard(tag)
                        .is_some_and(|mut shard| match pool {
                            Pool::Cleancache => shard.erase_slot(tag, index, slot),
                            Pool::Frontswap => shard.lose_slot(tag, index, slot),
                            Pool::Shared(_) => false,
                        });

                    if gone {
                        window.free(pool.kind(), &[slot]);
                        lost += u64::from(pool == Pool::Frontswap);
                    }
                }
            });
        }
        lost
    }

    /// Chooses the chunks that the device has asked for.
    fn heed_recall(&self, window: &Window) {
        let slots = window.recalled.xchg(0, Full);
        if slots == 0 {
            return;
        }
        let turn = window.turn.lock();
        let leaving = window.level(Kind::Persistent).leaving;
        let mut left = chunks_recalled(slots, leaving);

        // Those first that it costs least.
        while left > 0 {
            let mut depot = window.depot.lock();
            let Some(number) = depot.cheapest(Kind::Persistent) else {
                break;
            };

            if !window.has_leave(&mut depot, number) {
                break;
            }
            left -= 1;
        }
        // Of all others all slots are in use.
        for number in (FIRST_CHUNK..window.chunk_count()).rev() {
            if left == 0 {
                break;
            }
            let mut depot = window.depot.lock();

            if depot.is_granted(number, Kind::Persistent) && window.has_leave(&mut depot, number) {
                left -= 1;
            }
        }
        drop(turn);
        window.let_go();
    }

    /// Moves what is in chunks that are to leave to the store, as far as it takes it.
    fn empty_leaving(&self, window: &Window) {
        let mut refused = 0;
        let mut busy = false;

        for number in FIRST_CHUNK..window.chunk_count() {
            let granted = window.granted_of(number);
            if granted & LEAVING == 0 || granted == LEAVING {
                continue;
            }
            window.for_each_page(Kind::Persistent, number, |pages| {
                if refused > 0 {
                    refused += pages.len();
                } else if !busy {
                    // Those that are on their way already are none that are refused.
                    match self.send_slots(window, pages) {
                        Sent::All => (),
                        Sent::Busy => busy = true,
                        Sent::Refused(more) => refused += more,
                    }
                }
            });
        }
        // They have a place of their own, which costs a write. Which pages go there is not said, so that
        // those here may be left; but each is not asked for anew while they are on their way.
        let now = thread::jiffies();
        let since = now.wrapping_sub(window.homeward_at.load(Relaxed));
        let before = window.homeward.xchg(refused, Relaxed);
        let more = if since > msecs_to_jiffies(HOMEWARD) {
            refused
        } else {
            refused.saturating_sub(before)
        };

        if more > 0 {
            window.homeward_at.store(now, Relaxed);
            // CAST: To more bits.
            O::shrink(more as u64);
        }
    }

    /// Gives chunks back that are to leave, and of which no slot is in use.
    fn give_back(&self, window: &Window) {
        let mut from = FIRST_CHUNK;

        if window.depot_levels().all(|level| level.leaving == 0) {
            return;
        }
        window.let_go();
        loop {
            let mut returned = [Granted::default(); MAX_GRANT as usize];
            let count = window.collect(&mut from, &mut returned);
            let returned = returned.get(..count).unwrap_or(&[]);

            // They are kept until the device has said that it has them: otherwise it is asked again.
            if returned.is_empty() || !self.return_chunks(returned) {
                break;
            }
            let _turn = window.turn.lock();
            for chunk in returned {
                window.remove(chunk.number.get());
            }
        }
        window.look_again();
    }

    /// Gives chunks back; returns whether the device has them.
    fn return_chunks(&self, chunks: &[Granted]) -> bool {
        chunks.is_empty()
            || self
                .ask_with(
                    Opcode::ChunkReturn,
                    Pool::Frontswap,
                    (chunks.len(), chunks.as_bytes()),
                    RESPONSE_BYTES,
                )
                .is_ok_and(|(status, ..)| status == Status::Ok)
    }

    /// Does what is to be done about the chunks of a kind; returns whether to look again soon.
    fn supply(&self, window: &Window, kind: Kind) -> bool {
        let wanted = match kind {
            Kind::Ephemeral => self.wants.cleancache,
            Kind::Persistent => self.wants.frontswap,
        };
        if !wanted || !window.is_open() || !self.standing().may_put_here() {
            return false;
        }
        let level = window.level(kind);
        let step = window.supplies.lock().of_mut(kind).next(level, now());

        match step {
            Step::Rest => false,
            Step::Ask(count) => {
                let asked = Asked {
                    kind,
                    count,
                    ticket: window.tickets.fetch_add(1, Relaxed) + 1,
                };
                let got = self.ask_for_chunks(window, asked).unwrap_or(0);

                window
                    .supplies
                    .lock()
                    .of_mut(kind)
                    .answered(count, got, now());
                got > 0
            }
            Step::GiveBack(count) => {
                window.spare(kind, count);
                self.give_back(window);
                false
            }
            Step::MakeRoom(count) => {
                // Those that are on their way make room, too, and have this looked at again then.
                let count = count.saturating_sub(window.moving.load(Relaxed));

                self.move_to_store(window, count as usize);
                false
            }
        }
    }

    /// Asks once more for chunks that were asked for without an answer. Fails if there is none.
    ///
    /// By the ticket the device knows whether it has granted them, and of which kind.
    fn ask_for_asked(&self, window: &Window) -> Result {
        let asked = *window.asked.lock();

        asked.map_or(Ok(()), |asked| {
            self.ask_for_chunks(window, asked).map(|_| ())
        })
    }

    /// Asks for chunks; returns how many there are more.
    fn ask_for_chunks(&self, window: &Window, asked: Asked) -> Result<u32> {
        let Asked {
            kind,
            count,
            ticket,
        } = asked;
        let again = window.asked.lock().is_some();
        // Before: what is granted cannot be left where it is.
        let mut memory = KVec::with_capacity(count as usize, GFP_KERNEL)?;
        for _ in 0..count {
            let Ok(slots) = Slots::new() else { break };
            memory.push(slots, GFP_KERNEL)?;
        }
        // CAST: There are at most `MAX_GRANT`.
        let room = memory.len() as u32;
        if room == 0 || room < count && again {
            return Err(ENOMEM);
        }
        let (count, epoch) = (room, self.epoch());
        let grant = ChunkGrant {
            kind: Le32::new(
                match kind {
                    Kind::Ephemeral => ChunkKind::Ephemeral,
                    Kind::Persistent => ChunkKind::Persistent,
                }
                .to_wire(),
            ),
            count: Le32::new(count),
            ticket: Le64::new(ticket),
        };
        *window.asked.lock() = Some(Asked { count, ..asked });
        let (status, request, written) = self.ask_with(
            Opcode::ChunkGrant,
            Pool::Frontswap,
            (1, grant.as_bytes()),
            RESPONSE_BYTES + size_of::<Chunks>(),
        )?;
        *window.asked.lock() = None;
        if status != Status::Ok {
            return Ok(0);
        }
        let granted = decode_chunks(request.frame.answer(), written, count);
        let granted = granted
            .inspect_err(|lie| self.accuse(lie))
            .map_err(|_| EPROTO)?;
        let mut strange = [Granted::default(); MAX_GRANT as usize];
        let mut strangers = 0;
        let mut got = 0;
        let turn = window.turn.lock();

        // What was granted before another epoch was taken over was taken back with all else.
        if self.epoch() != epoch {
            return Ok(0);
        }
        for chunk in granted.chunks.iter().take(granted.count.get() as usize) {
            let (number, generation) = (chunk.number.get(), chunk.generation.get());

            if !window.is_chunk(number) || generation == 0 || generation % 2 != 0 {
                self.accuse(&Lie::Chunk(number));
                return Err(EPROTO);
            }
            let Some(slots) = memory.pop() else { break };
            if window.granted_of(number) & !LEAVING == generation {
                self.accuse(&Lie::Chunk(number));
                return Err(EPROTO);
            }
            match window.add(kind, number, generation, slots) {
                Ok(()) => got += 1,
                // It was taken back, and what was in it is still being cleared away.
                Err(slots) => {
                    drop(slots);
                    if let Some(place) = strange.get_mut(strangers) {
                        *place = *chunk;
                        strangers += 1;
                    }
                }
            }
        }
        drop(turn);
        // If the device does not hear of it, they are with the others that it takes back some time.
        let _ = self.return_chunks(strange.get(..strangers).unwrap_or(&[]));
        window.look_again();
        Ok(got)
    }
}

/// Returns the time in milliseconds, since some time; it wraps.
fn now() -> u32 {
    // CAST: It is meant to be cut off.
    (thread::jiffies().wrapping_mul(1000) / msecs_to_jiffies(1000).max(1) as usize) as u32
}
