// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Moving pages to the tier below the store, and keeping it in order.
//!
//! A page that is on its way is pinned, and stays where it is until its record has been written, and
//! synced if it is a persistent one. Whoever gets it meanwhile finds it, and whoever puts over it or
//! flushes it does so: its record is of no use then. At the end one store of its entry says that it is
//! below, and its slot is free.

use std::{
    collections::BTreeMap,
    fmt, io,
    sync::{atomic::Ordering, Arc},
    time::Duration,
};

use virtio_tmem_abi::Key;

use super::{
    budget::entry_bytes,
    entry::{Body, PageState},
    id::{ObjectSlot, PageId},
    inner::{Inner, PoolSlot},
    pool::Pool,
    spans::SPAN_SIZE,
    walk::HOLD,
    PoolKind, Store, BATCH,
};
use crate::tier::{
    choice::{self, Figures, Step, TierUse},
    seal::{Binding, Sealer, SECRET},
    Arrival, Below, Clock, Gate, Place, Record, Tier, TierError, TierReport,
};

/// How long a get of an ephemeral page waits for the tier: about what reading it from a disk takes that
/// is busy. After that it is a miss.
const LATE: Duration = Duration::from_millis(100);

/// Pages that are moved at once.
const MOVED: usize = 2 * BATCH;

/// Pages that are looked at in search of so many.
const LOOKED: usize = 16 * HOLD;

/// Pages that are dropped at once.
const DROPPED: usize = HOLD;

/// What is below the store.
pub(super) struct Lower {
    pub(super) tier: Arc<dyn Tier>,
    pub(super) sealer: Sealer,
    pub(super) clock: Clock,
}

impl fmt::Debug for Lower {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Lower").field(&self.tier).finish()
    }
}

impl Lower {
    /// Uses a tier, with a secret of the store's memory, and a start that no process had before.
    ///
    /// # Errors
    ///
    /// The operating system's, where there is no thread left.
    pub(super) fn new(
        tier: Arc<dyn Tier>,
        (secret, start): ([u8; SECRET], u64),
    ) -> io::Result<Self> {
        Ok(Self {
            tier,
            sealer: Sealer::new(&secret, start),
            clock: Clock::start(LATE)?,
        })
    }
}

/// A page that is on its way to the tier, or from one place there to another. It is pinned.
struct Mover {
    id: PageId,
    /// What it consists of.
    body: Body,
    binding: Binding,
    kind: PoolKind,
}

impl Store {
    /// Says which pages of guests may be in the tier, by their numbers; of others, and of shared pools,
    /// those that may be forgotten. What is there already stays.
    pub fn set_tier_uses(&self, uses: BTreeMap<u32, TierUse>) {
        self.lock().uses = uses;
    }

    /// Returns how the tier is, if there is one.
    pub fn tier_report(&self) -> Option<TierReport> {
        self.lower.as_ref().map(|lower| lower.tier.report())
    }

    /// Returns whether [`Self::tend_tier`] may have something to do, since a page was evicted. It costs
    /// next to nothing.
    pub fn wants_tier(&self) -> bool {
        self.lower.is_some() && self.pressed.load(Ordering::Relaxed)
    }

    /// Does the next thing that is to be done about the tier, and returns whether there may be more. It
    /// waits for the tier as long as that takes; nobody else does meanwhile. To be called by one thread
    /// at a time.
    ///
    /// # Errors
    ///
    /// [`TierError`], and all pages are where they were. It is to be tried again, but not at once.
    pub fn tend_tier(&self) -> Result<bool, TierError> {
        let Some(lower) = &self.lower else {
            return Ok(false);
        };
        let crowded = lower.tier.is_crowded();
        let tier = lower.tier.report();
        let figures = self.lock().figures(&tier, crowded);
        match choice::next(&figures) {
            Step::Rest => Ok(false),
            Step::Move(kind) => {
                let movers = match kind {
                    PoolKind::Ephemeral => self.lock().cold_ephemeral(),
                    PoolKind::Persistent => self.cold_persistent(),
                };
                let any = !movers.is_empty();
                if any {
                    self.move_below(lower, movers)?;
                }
                Ok(any)
            }
            Step::Clean => self.clean(lower, lower.tier.crowded()),
            Step::Drop => Ok(self.drop_below()),
        }
    }

    /// Moves pages to the tier.
    fn move_below(&self, lower: &Lower, movers: Vec<Mover>) -> Result<(), TierError> {
        let mut numbers = Vec::with_capacity(movers.len());
        let records = movers.iter().map(|mover| {
            let Body::Slot { slot, len } = mover.body else {
                unreachable!("only pages in slots are moved");
            };
            // SAFETY: It was pinned when a key led to it, and this is what it was then.
            let contents = unsafe { self.arena.read(slot, len.into()) };
            let (bytes, number) = lower.sealer.seal(&mover.binding, contents);
            numbers.push(number);
            let owner = mover.id.index() as u32;
            Record { owner, bytes }
        });
        let records: Vec<_> = records.collect();
        let places = write(lower, &movers, &records).inspect_err(|_| self.let_go(&movers))?;
        let placed = places.iter().zip(numbers);
        let belows = placed.map(|(place, number)| Below::new(*place, number));
        self.settle(lower, &movers, &belows.collect::<Vec<_>>());
        Ok(())
    }

    /// Moves records together: those of some owners, as far as these are still where they are said to
    /// be. Returns whether that was of any use.
    fn clean(&self, lower: &Lower, places: Vec<(Place, u32)>) -> Result<bool, TierError> {
        let mut any = false;
        for places in places.chunks(MOVED) {
            let movers = self.lock().movers_at(places);
            if movers.is_empty() {
                continue;
            }
            let gate = Gate::new(None);
            let belows: Vec<_> = movers.iter().filter_map(Mover::below).collect();
            let arrivals = belows.iter().map(|below| {
                let arrival = Arrival::at(&gate);
                lower.tier.get(below.place, Arc::clone(&arrival));
                arrival
            });
            let arrivals: Vec<_> = arrivals.collect();
            gate.wait();
            let (mut read, mut lost, mut records) = (Vec::new(), Vec::new(), Vec::new());
            for (mover, arrival) in movers.into_iter().zip(arrivals) {
                match arrival.take() {
                    Ok(bytes) => {
                        let owner = mover.id.index() as u32;
                        records.push(Record { owner, bytes });
                        read.push(mover);
                    }
                    Err(_) => lost.push(mover),
                }
            }
            // Whoever asks for those is told.
            self.let_go(&lost);
            let placed = write(lower, &read, &records).inspect_err(|_| self.let_go(&read))?;
            let kept = read.iter().filter_map(Mover::below).zip(placed);
            let belows = kept.map(|(below, place)| Below { place, ..below });
            self.settle(lower, &read, &belows.collect::<Vec<_>>());
            any = true;
        }
        Ok(any)
    }

    /// Has pages be where they were written to, as far as they are still what they were.
    fn settle(&self, lower: &Lower, movers: &[Mover], belows: &[Below]) {
        let mut much = false;
        for (movers, belows) in movers.chunks(BATCH).zip(belows.chunks(BATCH)) {
            let mut inner = self.lock();
            for (mover, below) in movers.iter().zip(belows) {
                if !inner.settle(mover, *below) {
                    lower.tier.remove(below.place);
                }
                inner.unpin(mover.id);
            }
            much |= inner.much_to_release();
        }
        self.after_free(much);
    }

    fn let_go(&self, movers: &[Mover]) {
        for movers in movers.chunks(BATCH) {
            let mut inner = self.lock();
            for mover in movers {
                inner.unpin(mover.id);
            }
        }
    }

    /// Finds persistent pages that were not used since it passed them last, of guests who are short of
    /// credits and whose pages may be below.
    fn cold_persistent(&self) -> Vec<Mover> {
        let mut movers = Vec::new();
        // Twice around, as the first time may only find what was used.
        let mut left = LOOKED.max(2 * self.lock().index.places());
        while movers.len() < MOVED && left > 0 {
            left = left.saturating_sub(HOLD);
            self.lock().look_for_persistent(&mut movers);
        }
        movers
    }

    /// Drops ephemeral pages that are in the tier; false if there is none.
    fn drop_below(&self) -> bool {
        let mut inner = self.lock();
        for n in 0..DROPPED {
            let Some(victim) = inner.accounts.victim_below(&inner.index.pages) else {
                return n > 0;
            };
            inner.forget(victim, super::inner::Cause::Evicted);
        }
        true
    }
}

impl Mover {
    fn below(&self) -> Option<Below> {
        match self.body {
            Body::Below(below) => Some(below),
            _ => None,
        }
    }
}

/// Writes records of pages, and makes sure that they are there if there are persistent ones among them.
fn write(lower: &Lower, movers: &[Mover], records: &[Record]) -> Result<Vec<Place>, TierError> {
    let places = lower.tier.put(records)?;
    if movers
        .iter()
        .any(|mover| mover.kind == PoolKind::Persistent)
    {
        let synced = lower.tier.sync();
        synced.inspect_err(|_| places.iter().for_each(|place| lower.tier.remove(*place)))?;
    }
    Ok(places)
}

impl Inner {
    /// Returns what it depends on what is to be done about the tier.
    fn figures(&mut self, tier: &TierReport, crowded: bool) -> Figures {
        self.pressed.store(false, Ordering::Relaxed);
        let spans = self.slots.spans().used();
        let free = self.budget.span_limit().saturating_sub(spans) * SPAN_SIZE;
        Figures {
            capacity: self.budget.shareable() as u64,
            free: free as u64,
            entries: entry_bytes(self.contents.below_pages, 0),
            droppable: entry_bytes(self.accounts.ephemeral_below() as u64, 0),
            wanting: !self.wanting().is_empty(),
            tier_free: tier.free_bytes,
            tier_size: tier.size_bytes,
            crowded,
        }
    }

    /// Returns whether a guest's pages may be below.
    fn allows(&self, owner: u32, kind: PoolKind) -> bool {
        let of = self.uses.get(&owner).copied().unwrap_or_default();
        of.allows(kind)
    }

    /// Returns the guests whose persistent pages may be below, and who are short of credits.
    fn wanting(&self) -> Vec<u32> {
        let spare = choice::spare(self.budget.shareable() as u64) as usize / super::PAGE_SIZE;
        let room = self.room();
        let guests = self.guests.iter();
        let short = guests.filter(|(guest, pools)| {
            self.allows(**guest, PoolKind::Persistent) && self.room_of(room, pools.account) < spare
        });
        short.map(|(guest, _)| *guest).collect()
    }

    /// Pins a page that may be moved, and returns it.
    fn mover(&mut self, id: PageId) -> Option<Mover> {
        let page = &self.index.pages[id.index()];
        let object = ObjectSlot::from_link(page.object)?;
        let object = &self.index.objects[object.index()];
        let key = Key {
            object: object.id,
            index: page.index.get().into(),
            version: page.version().into(),
        };
        let pool: &Pool = self.pool(object.pool);
        let mover = Mover {
            id,
            body: page.body(),
            binding: pool.binding(&key),
            kind: pool.kind,
        };
        self.index.pages[id.index()].pin().then_some(mover)
    }

    /// Finds ephemeral pages that would be evicted soon, and whose guests are known to come back for
    /// them.
    fn cold_ephemeral(&mut self) -> Vec<Mover> {
        let mut found = Vec::new();
        for account in self.accounts.by_excess() {
            let coldest = self.accounts.coldest(account, &self.index.pages);
            let worth = |id: &PageId| {
                let page = &self.index.pages[id.index()];
                let in_slot = matches!(page.body(), Body::Slot { .. });
                let owner = || self.pool(self.pool_of_linked(*id)).owner;
                page.is_idle()
                    && page.is_used()
                    && in_slot
                    && self.allows(owner(), PoolKind::Ephemeral)
            };
            let here = coldest.take(HOLD).filter(worth);
            found.extend(here.take(MOVED - found.len()));
            if found.len() == MOVED {
                break;
            }
        }
        found.into_iter().filter_map(|id| self.mover(id)).collect()
    }

    /// Goes on with the search for cold persistent pages.
    fn look_for_persistent(&mut self, found: &mut Vec<Mover>) {
        let wanting = self.wanting();
        let places = self.index.places();
        let wants = |inner: &Self, slot: PoolSlot| {
            let pool = inner.pool(slot);
            pool.kind == PoolKind::Persistent && wanting.contains(&pool.owner)
        };
        for _ in 0..HOLD.min(places) {
            if found.len() >= MOVED {
                return;
            }
            let at = self.hand % places;
            self.hand = at + 1;
            let page = &self.index.pages[at];
            if !page.is_idle() || !matches!(page.body(), Body::Slot { .. }) {
                continue;
            }
            let id = PageId::from_index(at);
            if !wants(self, self.pool_of_linked(id)) {
                continue;
            }
            let page = &mut self.index.pages[at];
            if page.is_used() {
                page.set_used(false);
            } else {
                found.extend(self.mover(id));
            }
        }
    }

    /// Pins the pages of these owners that are at these places.
    fn movers_at(&mut self, places: &[(Place, u32)]) -> Vec<Mover> {
        let there = |inner: &Self, place: Place, owner: u32| {
            if owner as usize >= inner.index.places() {
                return None;
            }
            let page = &inner.index.pages[owner as usize];
            let below = match page.body() {
                Body::Below(below) if page.is_idle() => below,
                _ => return None,
            };
            (below.place == place).then(|| PageId::from_index(owner as usize))
        };
        let ids = places
            .iter()
            .filter_map(|(place, owner)| there(self, *place, *owner));
        let ids: Vec<_> = ids.collect();
        ids.into_iter().filter_map(|id| self.mover(id)).collect()
    }

    /// Has a page be below, or elsewhere there; false if it is not what it was any more, or somebody else
    /// copies it.
    fn settle(&mut self, mover: &Mover, below: Below) -> bool {
        let page = &self.index.pages[mover.id.index()];
        let alone = page.state() == PageState::Linked && page.pins() == 1;
        if !alone || page.body() != mover.body {
            return false;
        }
        let was_here = mover.below().is_none();
        self.replace_body(mover.id, Body::Below(below));
        if was_here {
            let pool = self.pool_of_linked(mover.id);
            self.pool_mut(pool).counters.pages_moved_below += 1;
        }
        true
    }
}
