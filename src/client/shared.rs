// SPDX-License-Identifier: GPL-2.0

//! Pools that several guests share: pages of volumes that nobody writes to.
//!
//! Only the device knows what is in such a pool: any guest may have put a page there, and the device
//! may forget it. So these pages are in no index. Each is put when it is evicted, and asked for
//! when it is read. That is right because they never change: a page is named by its file, its place in
//! that, and the [stamp](Volume) of what the volume has, and whoever names it so means the same bytes.

use kernel::{
    new_spinlock_irq,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Full,
            Relaxed, //
        },
        SpinLockIrq, //
    },
};
use virtio_tmem_abi::{
    pool_flags,
    Le32,
    Opcode,
    PoolCreate,
    Status, //
};
use zerocopy::IntoBytes;

use crate::bindings::page::PageRef;

use super::{
    carry::Batch,
    frame::MAX_PAGES,
    get::{
        Gets,
        NotNow, //
    },
    logic::wire::Operation,
    pages::Slot,
    pool::FIRST_SHARED,
    request::{
        Entry,
        Origin, //
    },
    staging::Fifo,
    Client,
    Pool, //
};

/// The most volumes that there are pools for at once.
pub(crate) const MAX_VOLUMES: usize = 8;

/// A volume with a pool that is shared.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Volume {
    /// Its place among those that there are.
    place: u8,
    /// In which life of its place the pool was joined.
    life: u32,
    /// What its content is known by: where that differs, so does this.
    stamp: u64,
}

impl Volume {
    /// Returns its pool.
    pub(crate) fn pool(self) -> Pool {
        Pool::Shared(self.place)
    }
}

/// A file, by what all guests know it by.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Handle {
    pub(crate) inode: u64,
    pub(crate) generation: u32,
}

/// One page that waits to be sent.
struct Waiting {
    slot: Slot,
    volume: Volume,
    file: Handle,
    index: u64,
}

/// What there is for pools that are shared.
#[pin_data]
pub(super) struct Shared {
    /// How many there can be.
    places: usize,
    /// Whether the device may have let the driver into each.
    joined: [Atomic<bool>; MAX_VOLUMES],
    /// Is another one for each whenever the device may have the driver in it no more.
    lives: [Atomic<u32>; MAX_VOLUMES],
    #[pin]
    fifo: SpinLockIrq<Fifo<Waiting>>,
    waiting: Atomic<usize>,
    /// Whether pages have waited for more to come.
    lingered: Atomic<bool>,
}

impl Shared {
    /// Makes room for pages of `capacity` slots to wait, where the device takes `max_pools` pools.
    ///
    /// May sleep.
    pub(super) fn new(max_pools: u32, capacity: usize) -> impl PinInit<Self, Error> {
        pin_init::pin_init_scope(move || {
            let fifo = Fifo::new(capacity)?;

            Ok(try_pin_init!(Self {
                // CAST: Bounded.
                places: max_pools.saturating_sub(FIRST_SHARED).min(MAX_VOLUMES as u32) as usize,
                joined: [const { Atomic::new(false) }; MAX_VOLUMES],
                lives: [const { Atomic::new(0) }; MAX_VOLUMES],
                fifo <- new_spinlock_irq!(fifo, "Shared::fifo"),
                waiting: Atomic::new(0),
                lingered: Atomic::new(false),
            }? Error))
        })
    }

    /// Returns whether there can be any pool.
    #[inline]
    pub(super) fn possible(&self) -> bool {
        self.places > 0
    }

    /// Returns whether there may be any pool.
    pub(super) fn any(&self) -> bool {
        self.joined.iter().any(|joined| joined.load(Relaxed))
    }

    /// Takes note that the device may have forgotten all that was joined. Any context.
    pub(super) fn begin_life(&self) {
        for life in &self.lives {
            life.fetch_add(1, Relaxed);
        }
    }

    /// Takes note that the device does not have the driver in one of the pools any more. Any context.
    pub(super) fn is_out(&self, place: u8) {
        if let Some(life) = self.lives.get(usize::from(place)) {
            life.fetch_add(1, Relaxed);
        }
    }

    fn life(&self, place: u8) -> u32 {
        self.lives
            .get(usize::from(place))
            .map_or(0, |life| life.load(Relaxed))
    }

    /// Says whether the device may have let the driver into a pool; returns what was said before.
    fn set_joined(&self, place: u8, joined: bool) -> bool {
        self.joined
            .get(usize::from(place))
            .is_some_and(|place| place.xchg(joined, Full))
    }

    /// Takes pages of one volume out that have waited longest.
    fn pop(&self, into: &mut [Option<Waiting>]) {
        let mut fifo = self.fifo.lock();
        let volume = fifo.first().map(|first| first.volume);
        let count = fifo.pop_while(into, |next| Some(next.volume) == volume);

        self.waiting.fetch_sub(count, Relaxed);
    }
}

impl<O: Origin> Client<O> {
    /// Returns how many volumes there can be that have pools which are shared.
    pub(crate) fn volume_places(&self) -> usize {
        self.shared.places
    }

    /// Joins the pool of a volume, in place of what has been in this place before.
    ///
    /// [`None`] if the device does not let the driver do so. May sleep, but not for longer than the
    /// device is given time for.
    pub(crate) fn join(&self, place: u8, uuid: [u8; 16], stamp: u64) -> Result<Option<Volume>> {
        let volume = Volume {
            place,
            life: self.shared.life(place),
            stamp,
        };
        let create = PoolCreate {
            flags: Le32::new(pool_flags::SHARED),
            page_shift: kernel::page::PAGE_SHIFT as u8,
            reserved: [0; 11],
            uuid,
        };

        if usize::from(place) >= self.shared.places || !self.running() {
            return Err(EAGAIN);
        }
        self.leave_volume(place);
        // It may be let in without ever being told so.
        self.shared.set_joined(place, true);
        match self.ask(Opcode::PoolCreate, volume.pool(), create.as_bytes())? {
            Status::Ok => {
                // There may be a window, so that there has been no use for it.
                self.want_growth();
                Ok(Some(volume))
            }
            // The epoch is taken over first.
            Status::StaleEpoch => Err(EAGAIN),
            _ => {
                self.shared.set_joined(place, false);
                Ok(None)
            }
        }
    }

    /// Leaves the pool of the volume in a place. May sleep, as [`Self::join`] may.
    pub(crate) fn leave_volume(&self, place: u8) {
        if self.shared.set_joined(place, false) && self.standing().answers() {
            // If it does not answer, it forgets at the next reset.
            let _ = self.ask(Opcode::PoolDestroy, Pool::Shared(place), &[]);
        }
    }

    /// Leaves all such pools. May sleep, as [`Self::join`] may.
    pub(super) fn leave_volumes(&self) {
        for place in (0u8..).take(self.shared.places) {
            self.leave_volume(place);
        }
    }

    /// Returns whether the pool of a volume is still the one that was joined. Any context.
    pub(crate) fn has_joined(&self, volume: Volume) -> bool {
        self.running() && volume.life == self.shared.life(volume.place)
    }

    /// Puts copies of `count` neighbouring pages, at most [`MAX_PAGES`], into the pool of a volume.
    ///
    /// Returns how many of the first that is. Any context; nothing waits, nothing is allocated.
    pub(crate) fn put_shared(
        &self,
        volume: Volume,
        file: Handle,
        index: u64,
        count: usize,
        pages: impl Iterator<Item = PageRef>,
    ) -> usize {
        let state = self.pool(volume.pool());
        let mut slots = [const { None }; MAX_PAGES];

        let admitted = state.admit(count.min(MAX_PAGES));
        let taken = self.take_slots(state, admitted, &mut slots);
        state.admitted(admitted, taken);
        if taken == 0 {
            return 0;
        }
        for (slot, page) in slots.iter_mut().flatten().zip(pages) {
            slot.copy_in(page);
        }

        let mut fifo = self.shared.fifo.lock();
        for (n, slot) in (0..).zip(slots.into_iter().flatten()) {
            fifo.push(Waiting {
                slot,
                volume,
                file,
                index: index.wrapping_add(n),
            });
        }
        // Before the lock is let go of: then somebody may take them out.
        let before = self.shared.waiting.fetch_add(taken, Relaxed);
        drop(fifo);
        self.staged(before, taken);
        taken
    }

    /// Sends pages that wait; returns in how many jiffies to look again. For the thread itself.
    pub(super) fn pump_shared(&self) -> Option<usize> {
        let shared = &self.shared;
        let waiting = shared.waiting.load(Relaxed);

        if waiting == 0 {
            shared.lingered.store(false, Relaxed);
            return None;
        }
        if self.lingers(waiting, &shared.lingered) {
            return Some(1);
        }
        while shared.waiting.load(Relaxed) > 0 && self.send_shared() {}
        (shared.waiting.load(Relaxed) > 0).then_some(1)
    }

    /// Sends one request with pages that wait; returns whether there was room for one.
    fn send_shared(&self) -> bool {
        // Any will do: requests about such a page may overtake each other.
        let queue = self.lanes.put(0);
        let mut waiting = [const { None }; MAX_PAGES];

        if !self.has_room(queue, 1) {
            return false;
        }
        let Some(blank) = self.requests.try_take(super::RESERVE) else {
            return false;
        };
        if let Some(room) = waiting.get_mut(..self.max_pages.load(Relaxed)) {
            self.shared.pop(room);
        }
        let first = waiting.first().and_then(Option::as_ref);
        let Some(volume) = first.map(|first| first.volume) else {
            self.requests.give(blank);
            return true;
        };
        if !self.has_joined(volume) {
            self.give_up_waiting(waiting);
            self.requests.give(blank);
            return true;
        }
        let mut batch = self.begin(blank, Operation::Put, volume.pool(), 0);
        batch.blank.record.stamp = volume.stamp;
        for page in waiting.into_iter().flatten() {
            // It fits: there is room for as many pages as are taken.
            let _ = batch
                .blank
                .push_key(entry(page.file, page.index, O::Page::default()));
            let frame = &mut batch.blank.request.frame;
            let _ = frame.attach(self.staging.pages(), page.slot);
        }
        batch.queue = Some(queue);
        self.send(batch);
        true
    }

    /// Forgets all pages that wait. Any context.
    pub(super) fn drop_shared(&self) {
        loop {
            let mut waiting = [const { None }; MAX_PAGES];

            self.shared.pop(&mut waiting);
            if waiting.iter().all(Option::is_none) {
                return;
            }
            self.give_up_waiting(waiting);
        }
    }

    /// Frees the slots of pages that will not be sent, and their credit.
    fn give_up_waiting(&self, waiting: [Option<Waiting>; MAX_PAGES]) {
        let mut count = 0;
        let slots = waiting.into_iter().flatten().map(|page| page.slot);

        self.staging.pages().give(slots.inspect(|_| count += 1));
        self.shared_pools.credits.settle(count);
    }

    /// Puts pages at `index..` of a file into a batch of gets, to be written to `pages`; returns how
    /// many there was room for. Does not sleep.
    pub(crate) fn push_shared_gets(
        &self,
        batch: &mut Batch<O>,
        file: Handle,
        index: u64,
        pages: impl Iterator<Item = (PageRef, O::Page)>,
    ) -> usize {
        let mut pushed = 0;

        for (page, mine) in pages.take(self.room(batch)) {
            let blank = &mut batch.blank;

            // It fits: see above.
            let _ = blank
                .push_key(entry(file, index.wrapping_add(pushed), mine))
                .and_then(|()| blank.push_page(page));
            pushed += 1;
        }
        // CAST: There are at most 32.
        pushed as usize
    }
}

impl<O: Origin> Gets<'_, O> {
    /// Begins a batch of gets from the pool of a volume; as
    /// [`begin_waiting()`](Self::begin_waiting). Sleeps.
    pub(crate) fn begin_shared(&mut self, volume: Volume) -> Result<Batch<O>, NotNow> {
        let mut batch = self.begin_waiting(volume.pool())?;

        batch.blank.record.stamp = volume.stamp;
        Ok(batch)
    }
}

/// Returns what is remembered of a page: where its own index would have a version is the generation
/// of the file.
fn entry<P>(file: Handle, index: u64, mine: P) -> Entry<P> {
    Entry {
        tag: 0,
        wire: file.inode,
        index,
        version: file.generation,
        crc: 0,
        supersedes: None,
        mine,
    }
}
