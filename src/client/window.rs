// SPDX-License-Identifier: GPL-2.0

//! The window: slots of the host's memory that pages are copied to and from.
//!
//! ```text
//! put     take() ──► write() ──► the index, note()        open       finding it
//! get     the index ──► read()  ──► free()                tend       chunks there and back
//! flush   the index ──────────────► free()                chunks     what is known of them
//!                                                         magazines  free slots out and in
//!                                                         away       pages out of it: home, or to the store
//! ```
//!
//! Which page is in a slot is said by the index alone. What is here knows which slots may be used,
//! and when one was lost: see [`super::logic::window`], which also says who owns a slot, and in which
//! order locks are taken.

mod away;
mod chunks;
mod freed;
mod magazines;
mod near;
mod open;
mod tally;
mod tend;

use kernel::{
    cpu,
    new_mutex,
    new_spinlock_irq,
    prelude::*,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            Relaxed, //
        },
        Arc,
        Mutex,
        SpinLockIrq, //
    },
    time::msecs_to_jiffies, //
};
use virtio_tmem_abi::{
    EPOCH_NONE,
    GENERATIONS, //
};

use crate::{
    bindings::{
        mapping::Mapping,
        page::PageRef,
        thread, //
    },
    window::Source,
};

use super::{
    frame::MAX_PAGES,
    logic::window::{
        by_chunk,
        chunk_of,
        Depot,
        Each,
        Kind,
        Level,
        Magazine,
        Order,
        Page,
        Supply,
        SLOTS_PER_CHUNK, //
    },
    Client,
    Origin,
    Pool, //
};

pub(crate) use self::away::Moves;
pub(super) use self::freed::Freed;

use self::{
    near::Near,
    tally::Tally, //
};

/// How many slots there are for, or of, one operation.
pub(super) type Slots = [u32; MAX_PAGES];

/// The bytes of a slot.
const SLOT: usize = kernel::page::PAGE_SIZE;

/// Of swapped pages that are got, the age of those in one slot of so many stands for all: to look it up
/// takes a lock, which they need for nothing else.
const SAMPLE: u32 = 16;

/// The number of no chunk.
const NONE: u32 = u32::MAX;

/// The mark of a chunk that is to leave, in the place of its generation, which is even.
const LEAVING: u32 = 1;

impl Pool {
    /// Returns the kind of chunks that the pool's pages are in.
    pub(super) const fn kind(self) -> Kind {
        match self {
            Self::Frontswap => Kind::Persistent,
            Self::Cleancache | Self::Shared(_) => Kind::Ephemeral,
        }
    }
}

/// What is known of a chunk without a lock.
struct Chunk {
    /// The generation with which it was granted, with [`LEAVING`] if it is to leave; zero, or only
    /// the mark, where nothing in it can be got.
    granted: Atomic<u32>,
    /// Pages that were got from it since.
    hits: Atomic<u32>,
}

/// Chunks that were asked for.
#[derive(Clone, Copy)]
struct Asked {
    kind: Kind,
    count: u32,
    ticket: u64,
}

/// The window of a device.
#[pin_data]
pub(super) struct Window {
    source: Arc<Source>,
    chunks: KVVec<Chunk>,
    #[pin]
    depot: SpinLockIrq<Depot>,
    /// Of each processor, two: see [`Each`].
    magazines: KVec<Each<Pin<KBox<SpinLockIrq<Magazine>>>>>,
    orders: Each<Pin<KBox<SpinLockIrq<Order>>>>,
    tally: Tally,
    near: Near,
    /// Whether pages may be put here.
    open: Atomic<bool>,
    /// Whether there are chunks, of each kind.
    has: Each<Atomic<bool>>,
    /// Slots in use, of each kind.
    used: Each<Atomic<u32>>,
    #[pin]
    supplies: Mutex<Each<Supply>>,
    /// Held while chunks come, are to leave, go, or are found to be lost: that is done by several. Who
    /// holds it neither allocates nor asks the device, as some of them are waited for by reclaim.
    #[pin]
    turn: Mutex<()>,
    tickets: Atomic<u64>,
    /// Chunks that were asked for without an answer.
    #[pin]
    asked: Mutex<Option<Asked>>,
    /// The epoch in which it was opened last, with which it can be told whose it is.
    opened: Atomic<u64>,
    /// Slots that the device has asked for and that nothing was done about yet.
    recalled: Atomic<u64>,
    /// Pages on their way to the store whose slots come free soon.
    moving: Atomic<u32>,
    /// How many pages the store refused at last that are to leave, and when their like was sent to
    /// their swap areas, in jiffies.
    homeward: Atomic<usize>,
    homeward_at: Atomic<usize>,
    /// When to look after chunks, in jiffies.
    due: Atomic<usize>,
}

impl Window {
    /// Makes the window that is in `source`, without chunks. `remembered` is of about how many clean
    /// pages to remember that they were read.
    ///
    /// May sleep.
    pub(super) fn new(source: Arc<Source>, remembered: u32) -> Result<Arc<Self>> {
        let count = source.chunks();
        let mut chunks = KVVec::with_capacity(count as usize, GFP_KERNEL)?;
        for _ in 0..count {
            chunks.push(
                Chunk {
                    granted: Atomic::new(0),
                    hits: Atomic::new(0),
                },
                GFP_KERNEL,
            )?;
        }
        let magazine = || {
            KBox::pin_init(
                new_spinlock_irq!(Magazine::EMPTY, "Window::magazines"),
                GFP_KERNEL,
            )
        };
        let mut magazines = KVec::with_capacity(cpu::nr_cpu_ids() as usize, GFP_KERNEL)?;
        for _ in 0..cpu::nr_cpu_ids() {
            magazines.push(Each::new(magazine()?, magazine()?), GFP_KERNEL)?;
        }
        let ephemeral = Order::ephemeral(count, remembered).map_err(|_| ENOMEM)?;
        let persistent = Order::persistent(count).map_err(|_| ENOMEM)?;
        let depot = Depot::new(count).map_err(|_| ENOMEM)?;
        let near = Near::new(count.saturating_mul(SLOTS_PER_CHUNK))?;
        // CAST: There are at most 32.
        let supply = |kind| Supply::new(kind, MAX_PAGES as u32);

        Arc::pin_init(
            try_pin_init!(Self {
                source,
                chunks,
                depot <- new_spinlock_irq!(depot, "Window::depot"),
                magazines,
                orders: Each::new(
                    KBox::pin_init(new_spinlock_irq!(ephemeral, "Window::ephemeral"), GFP_KERNEL)?,
                    KBox::pin_init(new_spinlock_irq!(persistent, "Window::persistent"), GFP_KERNEL)?,
                ),
                tally: Tally::new(),
                near,
                open: Atomic::new(false),
                has: Each::new(Atomic::new(false), Atomic::new(false)),
                used: Each::new(Atomic::new(0), Atomic::new(0)),
                supplies <- new_mutex!(
                    Each::new(supply(Kind::Ephemeral), supply(Kind::Persistent)),
                    "Window::supplies"
                ),
                turn <- new_mutex!((), "Window::turn"),
                tickets: Atomic::new(0),
                asked <- new_mutex!(None, "Window::asked"),
                opened: Atomic::new(EPOCH_NONE),
                recalled: Atomic::new(0),
                moving: Atomic::new(0),
                homeward: Atomic::new(0),
                homeward_at: Atomic::new(thread::jiffies()),
                due: Atomic::new(thread::jiffies()),
            }? Error),
            GFP_KERNEL,
        )
    }

    /// Returns whether pages may be put here, if there are slots. Any context.
    #[inline]
    pub(super) fn is_open(&self) -> bool {
        self.open.load(Relaxed)
    }

    /// Returns how many slots of a kind are in use, for a file.
    pub(super) fn used(&self, kind: Kind) -> &Atomic<u32> {
        self.used.of(kind)
    }

    /// Returns the numbers of a kind. Any context.
    pub(super) fn level(&self, kind: Kind) -> Level {
        self.depot.lock().level(kind)
    }

    /// Returns whether there are chunks of a kind, so that its pages are put here. Any context.
    #[inline]
    pub(super) fn has(&self, kind: Kind) -> bool {
        self.is_open() && self.has.of(kind).load(Relaxed)
    }

    fn order(&self, kind: Kind) -> &SpinLockIrq<Order> {
        self.orders.of(kind)
    }

    /// Takes note of pages that the index says to be in these slots from now on.
    ///
    /// `page` tells of each. Called with the lock of the index's shard held. Any context.
    pub(super) fn note(&self, kind: Kind, slots: &[u32], page: impl Fn(usize) -> Page) {
        self.order(kind).lock().insert_all(slots, page);
        // CAST: There are at most 32.
        self.used(kind).add(slots.len() as u32, Relaxed);
    }

    /// Frees slots whose pages the index does not have any more.
    ///
    /// Any context; with the lock of the index's shard held, or not.
    pub(super) fn free(&self, kind: Kind, slots: &[u32]) {
        if slots.is_empty() {
            return;
        }
        let mut order = self.order(kind).lock();
        for &slot in slots {
            order.flushed(slot);
        }
        drop(order);
        self.unuse(kind, slots);
    }

    fn unuse(&self, kind: Kind, slots: &[u32]) {
        // CAST: There are at most 32.
        self.used(kind).fetch_sub(slots.len() as u32, Relaxed);
        self.give_back(kind, slots);
    }

    /// Takes note that so many clean pages make room for others, and returns their turn. Any context.
    pub(super) fn turn(&self, pages: u32) -> u32 {
        self.near.turn(pages)
    }

    /// Takes note of a clean page that makes room for another one in its turn. Any context.
    #[inline]
    pub(super) fn makes_room(&self, page: &Page, turn: u32) {
        self.near.replace(page.tag, page.index, turn);
    }

    /// Takes note of clean pages at `index..` that are read from elsewhere. Any context.
    pub(super) fn missed(&self, tag: u64, index: u64, count: u64) {
        let used = self.used(Kind::Ephemeral).load(Relaxed);

        for n in 0..count {
            self.near.miss(tag, index.wrapping_add(n), used);
        }
    }

    /// Takes note of slots that were taken over from clean pages. Any context.
    pub(super) fn replaced(&self, slots: &[u32]) {
        if !slots.is_empty() {
            // CAST: There are at most 32.
            self.used(Kind::Ephemeral)
                .fetch_sub(slots.len() as u32, Relaxed);
            self.tally.replaced.add(slots.len());
        }
    }

    /// Frees slots whose pages were taken, of which the first `found` were got, and calls `page` with
    /// what was noted of each. Any context.
    ///
    /// `page` is called with the lock of the order held.
    pub(super) fn got(
        &self,
        kind: Kind,
        slots: &[u32],
        found: usize,
        mut page: impl FnMut(usize, Page),
    ) {
        let now = seconds();
        let mut order = self.order(kind).lock();
        for (n, &slot) in slots.iter().enumerate() {
            let Some(noted) = order.got(slot) else {
                continue;
            };
            if n < found {
                self.tally.age(now.wrapping_sub(noted.put_at), 1);
                self.count_hit(slot);
            }
            page(n, noted);
        }
        drop(order);
        self.tally.hit(found);
        if found < slots.len() {
            self.tally.miss();
        }
        self.unuse(kind, slots);
    }

    /// Counts the page in a slot that was got and stays where it is; not yet in the [tally](Self::tally).
    ///
    /// Called with the lock of the index's shard held. Any context.
    #[inline]
    pub(super) fn looked_at(&self, kind: Kind, slot: u32) {
        self.count_hit(slot);
        if slot % SAMPLE == 0 {
            self.count_age(kind, slot);
        }
    }

    #[cold]
    fn count_age(&self, kind: Kind, slot: u32) {
        if let Some(page) = self.order(kind).lock().page(slot) {
            // CAST: To more bits.
            self.tally
                .age(seconds().wrapping_sub(page.put_at), SAMPLE as usize);
        }
    }

    #[inline]
    fn count_hit(&self, slot: u32) {
        if let Some(chunk) = self.chunk(slot) {
            chunk.hits.add(1, Relaxed);
        }
    }

    /// Takes note that the device wants persistent chunks with so many slots back. Any context.
    ///
    /// It says so again as long as it does: what it said before does not count any more.
    pub(super) fn recall(&self, slots: u64) {
        self.recalled.store(slots, Relaxed);
    }

    /// Returns what is counted for the host. Any context.
    #[inline]
    pub(super) fn tally(&self) -> &Tally {
        &self.tally
    }

    #[inline]
    fn chunk(&self, slot: u32) -> Option<&Chunk> {
        // CAST: To more bits.
        self.chunks.get(chunk_of(slot) as usize)
    }

    /// Copies pages to slots; returns how many of the first were copied.
    ///
    /// One more page may have been taken out of `pages`. Any context.
    pub(super) fn write(&self, slots: &[u32], pages: impl Iterator<Item = PageRef>) -> usize {
        let mut checked = NONE;

        self.with(|memory| {
            slots
                .iter()
                .zip(pages)
                .take_while(|(&slot, page)| {
                    let chunk = chunk_of(slot);

                    // A chunk that was taken back would be memory that was not granted.
                    if checked != chunk && !self.is_still_granted(memory, slot) {
                        return false;
                    }
                    checked = chunk;
                    memory.copy_in(offset(slot), *page)
                })
                .count()
        })
        .unwrap_or(0)
    }

    #[inline]
    fn is_still_granted(&self, memory: &Mapping, slot: u32) -> bool {
        let granted = self.granted(slot);

        granted != 0 && self.generation(memory, slot) == Some(granted)
    }

    /// Copies pages out of slots, the one from slot `n` to `to(n)`; returns how many of the first are
    /// what was put there.
    ///
    /// Any context.
    pub(super) fn read(
        &self,
        slots: &[u32],
        mut to: impl FnMut(usize) -> Option<PageRef>,
    ) -> usize {
        self.with(|memory| {
            let mut read = 0;

            for same in by_chunk(slots) {
                let found = self.read_same(memory, same, |n| to(read + n));

                read += found;
                if found < same.len() {
                    break;
                }
            }
            read
        })
        .unwrap_or(0)
    }

    /// Calls `f`, which must not sleep, with the memory; [`None`]: it is gone. Any context.
    #[inline]
    pub(super) fn with<R>(&self, f: impl FnOnce(&Mapping) -> R) -> Option<R> {
        self.source.with(f)
    }

    /// Copies the page in a slot; returns whether it is what was put there. Any context.
    #[inline]
    pub(super) fn read_one(&self, memory: &Mapping, slot: u32, to: PageRef) -> bool {
        self.read_same(memory, &[slot], |_| Some(to)) == 1
    }

    /// As [`Self::read`], for slots of one chunk.
    #[inline]
    fn read_same(
        &self,
        memory: &Mapping,
        slots: &[u32],
        mut to: impl FnMut(usize) -> Option<PageRef>,
    ) -> usize {
        let first = slots.first().copied().unwrap_or(u32::MAX);
        let granted = self.granted(first);
        if granted == 0 {
            return 0;
        }
        let copied = slots
            .iter()
            .enumerate()
            .take_while(|&(n, &slot)| to(n).is_some_and(|to| memory.copy_out(offset(slot), to)))
            .count();

        // In this order: what was copied are the pages if their chunk is still the same after that.
        if self.generation(memory, first) == Some(granted) {
            copied
        } else {
            0
        }
    }

    /// Returns the generation with which a slot's chunk was granted; zero for none.
    #[inline]
    fn granted(&self, slot: u32) -> u32 {
        self.chunk(slot)
            .map_or(0, |chunk| chunk.granted.load(Acquire) & !LEAVING)
    }

    /// Returns the generation that a slot's chunk has now.
    #[inline]
    fn generation(&self, memory: &Mapping, slot: u32) -> Option<u32> {
        memory.load32(generation_at(chunk_of(slot)))
    }

    /// Takes out of the order what is to go first; returns how many slots are in `gone`, and whose
    /// pages they have.
    pub(super) fn oldest(
        &self,
        kind: Kind,
        count: usize,
        gone: &mut [(u32, Page); MAX_PAGES],
    ) -> usize {
        let mut order = self.order(kind).lock();
        let mut found = 0;

        for place in gone.iter_mut().take(count) {
            let Some(oldest) = order.pop() else {
                break;
            };
            *place = oldest;
            found += 1;
        }
        found
    }
}

/// How much of the window one kind of pages has, in pages.
pub(crate) struct Share {
    /// Slots that are handed out.
    pub(crate) granted: u32,
    /// Slots of chunks that are to leave.
    pub(crate) leaving: u32,
    /// Slots that nobody has.
    pub(crate) free: u32,
    /// Slots with a page.
    pub(crate) used: u32,
}

impl<O: Origin> Client<O> {
    /// Returns how much of the window clean and swapped pages have, if there is one. Any context.
    pub(crate) fn window_shares(&self) -> Option<[Share; 2]> {
        let window = self.window()?;

        Some(Kind::ALL.map(|kind| {
            let level = window.level(kind);

            Share {
                granted: level.chunks.wrapping_mul(SLOTS_PER_CHUNK),
                leaving: level.leaving.wrapping_mul(SLOTS_PER_CHUNK),
                free: level.free,
                used: window.used(kind).load(Relaxed),
            }
        }))
    }
}

/// Returns where a slot begins.
#[inline]
const fn offset(slot: u32) -> usize {
    // CAST: To more bits.
    slot as usize * SLOT
}

/// Returns where the generation of a chunk is.
#[inline]
const fn generation_at(chunk: u32) -> usize {
    // CAST: To more bits.
    GENERATIONS as usize + chunk as usize * size_of::<u32>()
}

/// Returns the time, in seconds since some time.
pub(super) fn seconds() -> u32 {
    // CAST: It may wrap.
    (thread::jiffies() / msecs_to_jiffies(1000).max(1)) as u32
}
