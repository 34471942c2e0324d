// SPDX-License-Identifier: GPL-2.0

//! Finding and opening the window, and chunks there and back.
//!
//! All of this is done by work that may sleep, and that nobody who puts or gets waits for.

use kernel::{
    prelude::*,
    sync::{
        atomic::{
            Full,
            Relaxed,
            Release, //
        },
        lock::{
            mutex::MutexBackend,
            Guard, //
        },
        Arc, //
    },
    time::msecs_to_jiffies, //
};
use virtio_tmem_abi::{
    window_flags,
    Chunk as Granted,
    ChunkGrant,
    ChunkKind,
    Chunks,
    Le32,
    Le64,
    Opcode,
    Status,
    WindowOpen,
    CHUNK_REPORTS,
    CHUNK_SHIFT,
    EPOCH_NONE,
    MAX_GRANT, //
};
use zerocopy::IntoBytes;

use crate::{
    bindings::{
        mapping::Mapping,
        memory::total_pages,
        thread, //
    },
    window::{
        self,
        Source, //
    },
};

use super::{
    super::{
        frame::MAX_PAGES,
        logic::{
            window::{
                chunks_recalled,
                first_slot,
                ChunkReport,
                Kind,
                Page,
                Serves,
                Slots,
                Step,
                FIRST_CHUNK,
                SLOTS_PER_CHUNK, //
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
    generation_at,
    Asked,
    Window,
    LEAVING, //
};

/// How often to look after chunks, in milliseconds.
const PERIOD: u32 = 1000;

/// How long swapped pages may take to their swap areas before they are asked for again, in
/// milliseconds.
const HOMEWARD: u32 = 30_000;

/// Of how many chunks the report is written at once.
const TOLD_AT_ONCE: usize = 64;

/// Where the report begins.
const REPORT: usize = 1 << CHUNK_SHIFT;

impl<O: Origin> Client<O> {
    /// Opens the window, if the device has one; with `resume` what was granted before stays granted.
    ///
    /// Where it cannot be used a line says why, and all goes on without it. Fails only where nothing
    /// else could be asked either: there is another epoch, which is [`ESTALE`], or there are no
    /// virtqueues any more. May sleep, but not for longer than the device is given time for.
    pub(crate) fn open_window(&self, resume: bool) -> Result {
        let Some(identity) = &self.identity else {
            return Ok(());
        };
        let flags = if resume { window_flags::RESUME } else { 0 };
        let open = WindowOpen {
            flags: Le32::new(flags),
            reserved: [0; 12],
        };

        if let Some(window) = self.window() {
            // Before it is somebody's who grants chunks in generations that were those of others.
            self.find_lost(window, self.serves(window, identity) == Serves::Nobody);
        }
        match self.ask(Opcode::WindowOpen, Pool::Frontswap, open.as_bytes()) {
            Ok(Status::Ok) => (),
            Ok(Status::StaleEpoch) => return Err(ESTALE),
            Ok(status) => {
                pr_warn!(
                    "the host does not open its window ({status:?}), see its log: pages go by \
                     requests\n"
                );
                if let Some(window) = self.window() {
                    self.find_lost(window, false);
                }
                return Ok(());
            }
            Err(error) if error == ENODEV || self.is_gone() => return Err(error),
            Err(error) => {
                pr_warn!(
                    "the host's window is not opened ({error:?}): pages go by requests until the \
                     driver is bound anew\n"
                );
                return Ok(());
            }
        }
        if self.window.as_ref().is_none() {
            let Some(source) = window::find(identity) else {
                return Ok(());
            };
            if let Err(error) = self.begin_window(source) {
                pr_warn!("there is no memory for the window ({error:?}): pages go by requests\n");
                return Ok(());
            }
        }
        let Some(window) = self.window() else {
            return Ok(());
        };

        let serves = self.serves(window, identity);
        // All chunks were taken back, unless nobody has touched the window: so generations say nothing
        // of those that are granted from now on.
        let all = match serves {
            Serves::Now => !resume,
            Serves::Before => false,
            Serves::Nobody => true,
        };
        self.find_lost(window, all);
        if serves != Serves::Now {
            pr_warn!(
                "the window that QEMU has is not the one that the host has opened: pages go by \
                 requests; to have a window again, start QEMU anew with the file that the daemon made\n"
            );
            return Ok(());
        }
        if !resume {
            *window.asked.lock() = None;
        }
        window.opened.store(self.epoch(), Relaxed);
        window.open.store(true, Relaxed);
        self.want_chunks();
        Ok(())
    }

    /// Looks whose the window's memory is.
    fn serves(&self, window: &Window, identity: &[u8; 16]) -> Serves {
        let header = window.source.header();
        let opened = window.opened.load(Relaxed);

        Serves::of(
            header.as_ref(),
            kernel::page::PAGE_SHIFT as u8,
            identity,
            self.epoch(),
            (opened != EPOCH_NONE).then_some(opened),
        )
    }

    fn begin_window(&self, source: Arc<Source>) -> Result {
        // CAST: Clamped.
        let remembered = total_pages().clamp(1, 1 << 24) as u32;
        let window = Window::new(source, remembered)?;

        self.window.populate(window);
        Ok(())
    }

    /// Has what is in the window outlive a reset that follows. May sleep.
    pub(in super::super) fn keep_window(&self) {
        if self.window().is_some_and(Window::is_open) {
            // What has become of it is seen when it is open again.
            let _ = self.ask(Opcode::WindowKeep, Pool::Frontswap, &[]);
        }
    }

    /// Has nothing put into the window, nor chunks looked after, until it is opened again. May sleep,
    /// but not for long.
    pub(in super::super) fn close_window(&self) {
        if let Some(window) = self.window() {
            window.open.store(false, Relaxed);
            // Who has seen it open and looks for lost chunks is done after that.
            drop(window.turn.lock());
        }
    }

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

impl Window {
    fn chunk_count(&self) -> u32 {
        // CAST: It was made for as many.
        self.chunks.len() as u32
    }

    /// Returns whether the memory is not there any more.
    fn is_gone(&self) -> bool {
        self.source.header().is_none()
    }

    /// Returns whether there are no chunks.
    fn is_empty(&self) -> bool {
        self.depot_levels()
            .all(|level| level.chunks == 0 && level.leaving == 0)
    }

    fn is_chunk(&self, number: u32) -> bool {
        (FIRST_CHUNK..self.chunk_count()).contains(&number)
    }

    /// Returns what is known of a chunk's generation: see [`Chunk`](super::Chunk).
    fn granted_of(&self, number: u32) -> u32 {
        self.chunk(first_slot(number))
            .map_or(0, |chunk| chunk.granted.load(Relaxed))
    }

    fn set_granted(&self, number: u32, granted: u32) {
        if let Some(chunk) = self.chunk(first_slot(number)) {
            chunk.granted.store(granted, Release);
        }
    }

    fn generation_of(&self, number: u32) -> Option<u32> {
        self.source
            .with(|memory| memory.load32(generation_at(number)))
            .flatten()
    }

    /// Takes a chunk in that was granted. Fails if what was in it before is not cleared away.
    ///
    /// As long as any of its slots is in use, in a magazine, or in somebody's hands, it is not: see
    /// [`Self::remove()`]. With the lock of turns held.
    fn add(&self, kind: Kind, number: u32, generation: u32, slots: Slots) -> Result<(), Slots> {
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
    fn let_go(&self) {
        for own in self.magazines.iter() {
            for kind in Kind::ALL {
                let mut magazine = own.of(kind).lock();

                magazine.let_go(&mut self.depot.lock(), |_| ());
            }
        }
    }

    /// Has a chunk leave; returns whether it does now. With the lock of turns held.
    fn has_leave(&self, depot: &mut super::Depot, number: u32) -> bool {
        let leaves = depot.withdraw(number).is_ok();

        if leaves {
            self.set_granted(number, self.granted_of(number) | LEAVING);
        }
        leaves
    }

    /// Has up to `count` chunks leave in which no slot is in use.
    fn spare(&self, kind: Kind, count: u32) {
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
    fn collect(&self, from: &mut u32, returned: &mut [Granted]) -> usize {
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
    fn remove(&self, number: u32) {
        if self.depot.lock().collect(number).is_err() {
            return;
        }
        self.set_granted(number, 0);
        for kind in Kind::ALL {
            let slots = self.order(kind).lock().remove(number);
            drop(slots);
        }
    }

    fn depot_levels(&self) -> impl Iterator<Item = super::Level> {
        let depot = self.depot.lock();

        Kind::ALL.map(|kind| depot.level(kind)).into_iter()
    }

    /// Looks again whether there are chunks of either kind.
    fn look_again(&self) {
        for kind in Kind::ALL {
            self.has
                .of(kind)
                .store(self.level(kind).chunks > 0, Relaxed);
        }
    }

    /// Calls `f` with the pages in a chunk, some at a time.
    fn for_each_page(&self, kind: Kind, number: u32, mut f: impl FnMut(&[(u32, Page)])) {
        let mut from = 0;

        while from < SLOTS_PER_CHUNK {
            let mut pages = [(0, Page::default()); MAX_PAGES];
            let mut count = 0;
            let order = self.order(kind).lock();

            while from < SLOTS_PER_CHUNK && count < MAX_PAGES {
                let slot = first_slot(number).wrapping_add(from);

                if let (Some(page), Some(place)) = (order.page(slot), pages.get_mut(count)) {
                    *place = (slot, page);
                    count += 1;
                }
                from += 1;
            }
            drop(order);
            if let Some(pages) = pages.get(..count).filter(|pages| !pages.is_empty()) {
                f(pages);
            }
        }
    }

    /// Writes down what the host may want to know.
    fn tell(&self) {
        let free = Kind::ALL.map(|kind| self.level(kind).free);
        let report = self.report.lock().encode(free[0], free[1]);

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

/// Returns the time in milliseconds, since some time; it wraps.
fn now() -> u32 {
    // CAST: It is meant to be cut off.
    (thread::jiffies().wrapping_mul(1000) / msecs_to_jiffies(1000).max(1) as usize) as u32
}
