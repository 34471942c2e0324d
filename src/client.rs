// SPDX-License-Identifier: GPL-2.0

//! The client: pages under keys, put to and got from the device.
//!
//! Those above name an object by a tag and a page by its index, and borrow the client pages to
//! copy from and to. The client decides whether the device is asked at all: its index says what the
//! device has, its credits what the device would take, and its [standing](Standing) what may be
//! done now. It knows nothing of where pages come from, or what happens to them afterwards.
//!
//! Each operation has a file of its own, and so has what all of them need:
//!
//! ```text
//! put     pages that wait: Batch ──► carry ──► virtqueue ──► carry ──► Origin
//! stage   pages that cannot: Staging ──► (thread) ──► carry ──► …
//! shared  the same for pages that other guests have, too, which are in no index
//! get     the index, then as the first; whoever gets polls for a while
//! again   … what did not come, by way of other memory
//! here    puts and gets without the device, by way of the window
//! flush   the index; the device learns of it from the thread
//! pools   creating, keeping and destroying them
//! carry   requests there and back        life    what the device's coming and going means
//! pump    the thread, and its watchdog   events  what the device says without being asked
//! window  slots of the host's memory, and the chunks that they are in
//! ```
//!
//! What is decided, and not done, is in [`logic`], without the kernel and tested on the host.

mod admission;
mod again;
mod carry;
mod counters;
mod credits;
mod events;
mod flight;
mod flush;
mod frame;
mod get;
mod here;
mod lanes;
mod life;
pub(crate) mod logic;
mod pages;
mod pool;
mod pools;
mod pump;
mod put;
mod request;
mod shared;
mod stage;
mod staging;
mod stored;
mod window;

use kernel::{
    new_mutex, new_spinlock_irq, new_work,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Full,
            Relaxed,
            Release, //
        },
        Arc,
        Mutex,
        SetOnce,
        SpinLockIrq, //
    },
    workqueue::{
        self,
        impl_has_work,
        Work, //
    },
};
use virtio_tmem_abi::{
    cap,
    Config,
    QUEUE_CONTROL,
    QUEUE_EVENT, //
};

use crate::{
    bindings::{
        shrinker::Shrink,
        thread::Bell,
        work::OwnedQueue, //
    },
    virtio::queue::{
        Handler,
        Queues,
        Spec,
        Stopped, //
    },
};

use self::{
    admission::Admission,
    again::Again,
    carry::Parked,
    flight::Flights,
    frame::PIECES,
    get::Polling,
    lanes::Lanes,
    life::Link,
    logic::{
        epoch::Epoch,
        standing, //
    },
    pool::PoolState,
    pools::Control,
    request::{
        Request,
        RequestPool, //
    },
    shared::Shared,
    staging::Staging,
    window::Window, //
};

pub(crate) use self::{
    carry::{
        Batch,
        Stop, //
    },
    frame::MAX_PAGES,
    get::{
        Gets,
        NotNow, //
    },
    here::Here,
    pool::Pool,
    request::{
        Answers,
        Origin,
        Outcome, //
    },
    shared::{
        Handle,
        Volume,
        MAX_VOLUMES, //
    },
    staging::StagingSize,
    window::Moves, //
};

/// How many requests may be in the virtqueues at once.
const REQUESTS: usize = 64;

/// How many requests are watched: those, and the one that asks again.
const IN_FLIGHT: usize = REQUESTS + 1;

/// The place of a request that is not watched.
const NO_PLACE: usize = usize::MAX;

/// How many requests staged puts and flushes leave to those who wait for theirs.
const RESERVE: usize = 16;

/// How many requests puts leave to gets.
const GET_RESERVE: usize = 4;

/// What the client is told when it is made.
pub(crate) struct Limits {
    /// The most pages that each pool may have.
    pub(crate) max_pages: u64,
    /// How much memory to use for clean pages on their way.
    pub(crate) staging: StagingSize,
    /// How long the device may take to answer before it counts as silent, in milliseconds.
    pub(crate) timeout_ms: u32,
    /// How long it may take before it is given up, if it ever is, in milliseconds.
    pub(crate) give_up_ms: Option<u32>,
    /// For how long at most to look for the answer to a get, before an interrupt has to tell of it,
    /// in microseconds.
    pub(crate) poll_us: u32,
    /// Whether swapped pages are in their swap area, too.
    pub(crate) written_through: bool,
    /// Whether to use the device's window.
    pub(crate) window: bool,
    /// Whether to use pools that other guests have, too.
    pub(crate) shared: bool,
    /// Pages of memory by which to judge which clean pages are worth being put, if that is done.
    pub(crate) admission: Option<u64>,
}

/// Which pools there are to be.
#[derive(Clone, Copy)]
pub(crate) struct Wants {
    /// The one for swapped pages.
    pub(crate) frontswap: bool,
    /// The one for clean pages.
    pub(crate) cleancache: bool,
}

/// The client of one device.
#[pin_data]
pub(crate) struct Client<O: Origin> {
    queues: Arc<Queues<Self>>,
    queue_count: usize,
    #[pin]
    link: Mutex<Link<O>>,
    lanes: Lanes,
    wants: Wants,
    /// Whether the device keeps pools over a reset only if it is told to.
    keeps: bool,
    /// Whether swapped pages are in their swap area, too.
    written_through: bool,
    /// Whether the device has been told to keep the pools over the reset that it is in.
    kept: Atomic<bool>,
    /// Why not all is done that could be: see [`standing`].
    reasons: Atomic<u32>,
    epoch: Atomic<u64>,
    next_epoch: Atomic<u64>,
    #[pin]
    epochs: SpinLockIrq<Epoch>,
    /// Held while another epoch is taken over.
    #[pin]
    renewing: Mutex<()>,
    timeout_ms: u32,
    polling: Polling,
    /// Pages, or flushes, in one request.
    max_pages: Atomic<usize>,
    max_flushes: Atomic<usize>,
    /// How many requests certainly fit into a virtqueue.
    ring_requests: Atomic<usize>,
    said_declined: Atomic<bool>,
    #[pin]
    requests: RequestPool<O>,
    flights: Flights<O>,
    #[pin]
    parked: Parked<O>,
    #[pin]
    again: Again<O>,
    #[pin]
    control: Control<O>,
    #[pin]
    staging: Staging,
    #[pin]
    frontswap: PoolState,
    #[pin]
    cleancache: PoolState,
    /// All pools that are shared.
    #[pin]
    shared_pools: PoolState,
    #[pin]
    shared: Shared,
    admission: Option<Admission>,
    /// What the device's window is known by, if it has one that is to be used.
    identity: Option<[u8; 16]>,
    window: SetOnce<Arc<Window>>,
    /// Whether chunks of it are to be looked after now.
    tending: Atomic<bool>,
    bell: Bell,
    #[pin]
    pump: pump::State,
    /// For work that may wait for reclaim.
    growth: Arc<OwnedQueue>,
    /// For work that reclaim may wait for.
    urgent: Arc<OwnedQueue>,
    growing: Atomic<bool>,
    #[pin]
    grow: Work<Self, GROW>,
    #[pin]
    let_go: Work<Self, LET_GO>,
    #[pin]
    end: Work<Self, END>,
    #[pin]
    renew: Work<Self, RENEW>,
    #[pin]
    tend: Work<Self, TEND>,
}

/// Gives the index and the staging memory what they want.
const GROW: u64 = 0;
/// Lets those go on without an answer who can.
const LET_GO: u64 = 1;
/// Ends what there is with a device that is gone.
const END: u64 = 2;
/// Goes over to another epoch.
const RENEW: u64 = 3;
/// Looks after chunks of the window.
const TEND: u64 = 4;

impl_has_work! {
    impl{O: Origin} HasWork<Self, GROW> for Client<O> { self.grow }
    impl{O: Origin} HasWork<Self, LET_GO> for Client<O> { self.let_go }
    impl{O: Origin} HasWork<Self, END> for Client<O> { self.end }
    impl{O: Origin} HasWork<Self, RENEW> for Client<O> { self.renew }
    impl{O: Origin} HasWork<Self, TEND> for Client<O> { self.tend }
}

impl<O: Origin> Client<O> {
    /// Makes a client of the device that has `config`, which it is yet to be
    /// [attached](Self::attach) to.
    ///
    /// `growth` is for work that may wait for reclaim, `urgent` for work that reclaim may wait for.
    /// May sleep.
    pub(crate) fn new(
        config: &Config,
        wants: Wants,
        limits: &Limits,
        growth: Arc<OwnedQueue>,
        urgent: Arc<OwnedQueue>,
    ) -> Result<Arc<Self>> {
        let lanes = Lanes::new(config.data_queues.get().into());
        let stopped = Stopped::new((0..lanes.queues()).map(|queue| Spec {
            name: c"virtio_tmem",
            interrupts: lanes.interrupts(queue),
            pieces: PIECES,
        }))?;
        let max_pages = (config.max_pages.get() as usize).clamp(1, MAX_PAGES);
        let max_flushes = (config.max_flushes.get() as usize).clamp(1, MAX_PAGES);
        let staging = limits.staging;
        let (timeout, give_up) = (limits.timeout_ms, limits.give_up_ms);
        let pages = limits.max_pages;
        let first = config.epoch.get();
        let shares = limits.shared && config.capabilities.get() & cap::SHARED != 0;
        let (max_pools, waiting) = if shares {
            (config.max_pools.get(), limits.staging.target())
        } else {
            (0, 0)
        };
        let has_window = limits.window && config.capabilities.get() & cap::WINDOW != 0;
        let identity = has_window.then_some(config.window);

        let client = Arc::pin_init(
            try_pin_init!(Self {
                queues: stopped.queues().clone(),
                queue_count: lanes.queues(),
                link <- new_mutex!(Link::Stopped(stopped), "Client::link"),
                lanes,
                wants,
                keeps: config.capabilities.get() & cap::KEEP != 0,
                written_through: limits.written_through,
                kept: Atomic::new(false),
                reasons: Atomic::new(standing::FRESH),
                epoch: Atomic::new(first),
                next_epoch: Atomic::new(first),
                epochs <- new_spinlock_irq!(Epoch::new(first), "Client::epochs"),
                renewing <- new_mutex!((), "Client::renewing"),
                timeout_ms: timeout,
                polling: Polling::new(limits.poll_us),
                max_pages: Atomic::new(max_pages),
                max_flushes: Atomic::new(max_flushes),
                ring_requests: Atomic::new(1),
                said_declined: Atomic::new(false),
                requests <- RequestPool::new(REQUESTS),
                flights: Flights::new(IN_FLIGHT)?,
                parked <- Parked::new(IN_FLIGHT),
                again <- Again::new(REQUESTS, REQUESTS),
                control <- Control::new(),
                staging <- Staging::new(staging, lanes.puts()),
                frontswap <- PoolState::new(pages),
                cleancache <- PoolState::new(pages),
                shared_pools <- PoolState::without_index(),
                shared <- Shared::new(max_pools, waiting),
                admission: limits.admission.map(Admission::new).transpose()?,
                identity,
                window: SetOnce::new(),
                tending: Atomic::new(false),
                bell: Bell::new(),
                pump <- pump::State::new(timeout, give_up),
                growth,
                urgent,
                growing: Atomic::new(false),
                grow <- new_work!("Client::grow"),
                let_go <- new_work!("Client::let_go"),
                end <- new_work!("Client::end"),
                renew <- new_work!("Client::renew"),
                tend <- new_work!("Client::tend"),
            }? Error),
            GFP_KERNEL,
        )?;

        client.grow_index();
        Ok(client)
    }

    fn pool(&self, pool: Pool) -> &PoolState {
        match pool {
            Pool::Frontswap => &self.frontswap,
            Pool::Cleancache => &self.cleancache,
            Pool::Shared(_) => &self.shared_pools,
        }
    }

    /// Returns the epoch to be named in requests.
    fn epoch(&self) -> u64 {
        self.epoch.load(Relaxed)
    }

    /// Returns the counters of a pool.
    pub(crate) fn counters(&self, pool: Pool) -> &counters::Counters {
        &self.pool(pool).counters
    }

    /// Returns how many pages of a pool the index has.
    pub(crate) fn pages(&self, pool: Pool) -> &Atomic<u64> {
        self.pool(pool).pages()
    }

    /// Returns how many pages wait to be sent, for a file.
    pub(crate) fn staged_pages(&self) -> &Atomic<usize> {
        &self.staging.waiting
    }

    /// Returns how many pages of staging memory there are, for a file.
    pub(crate) fn staging_pages(&self) -> &Atomic<usize> {
        self.staging.pages().held_counter()
    }

    /// Returns how many more pages of a pool the device would take.
    pub(crate) fn credits(&self, pool: Pool) -> i64 {
        self.pool(pool).credits.available()
    }

    /// Returns the virtqueues.
    pub(crate) fn queues(&self) -> &Queues<Self> {
        &self.queues
    }

    /// Returns how many of the pages at `index..index + n` the index has.
    ///
    /// Any context.
    pub(crate) fn present(&self, pool: Pool, tag: u64, index: u64, n: u64) -> u64 {
        let state = self.pool(pool);

        if state.pages().load(Relaxed) == 0 {
            return 0;
        }
        state
            .shard(tag)
            .map_or(0, |s| s.contains_range(tag, index, n))
    }

    /// Returns the marks of an object.
    ///
    /// Any context.
    pub(crate) fn marks(&self, pool: Pool, tag: u64) -> u8 {
        self.pool(pool).shard(tag).map_or(0, |s| s.flags(tag))
    }

    /// Adds marks to an object; they stay until the object is forgotten.
    ///
    /// Returns whether it has them now: they take memory that may not be there. Any context.
    pub(crate) fn mark(&self, pool: Pool, tag: u64, marks: u8) -> bool {
        let Some(mut shard) = self.pool(pool).shard(tag) else {
            return false;
        };
        let marks = shard.flags(tag) | marks;
        let marked = shard.set_flags(tag, marks).is_ok();

        drop(shard);
        if !marked {
            self.want_growth();
        }
        marked
    }

    /// Has the index and the staging memory grow soon.
    ///
    /// Any context.
    fn want_growth(&self) {
        if !self.growing.xchg(true, Full) {
            self.bell.ring();
        }
    }

    /// Gives the index the memory that it wants.
    ///
    /// May sleep, and enters reclaim.
    fn grow_index(&self) {
        for pool in self.pools() {
            let state = self.pool(pool);

            for n in 0..state.shard_count() {
                state.grow_shard(n);
            }
        }
    }
}

impl<O: Origin> workqueue::WorkItem<GROW> for Client<O> {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        this.growing.store(false, Release);
        this.grow_index();
        if this.stages() {
            // As far as there is memory.
            let _ = this.staging.grow();
        }
    }
}

impl<O: Origin> workqueue::WorkItem<LET_GO> for Client<O> {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        this.let_go();
    }
}

impl<O: Origin> workqueue::WorkItem<END> for Client<O> {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        this.end();
    }
}

impl<O: Origin> workqueue::WorkItem<RENEW> for Client<O> {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        Self::renew(&this);
    }
}

impl<O: Origin> workqueue::WorkItem<TEND> for Client<O> {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        this.tending.store(false, Release);
        this.tend();
        // There may be room in the window now, which takes their place.
        this.staging.trim(this.stages());
    }
}

impl<O: Origin> Handler for Client<O> {
    type Token = Request<O>;

    fn done(&self, queue: usize, request: KBox<Request<O>>, written: usize) {
        match queue as u16 {
            QUEUE_CONTROL => self.control.done(request, Some(written)),
            QUEUE_EVENT => self.event(request, written),
            _ => self.complete(queue, request, written),
        }
    }
}

impl<O: Origin> Shrink for Client<O> {
    fn count(&self) -> usize {
        self.staging.spare()
    }

    fn shrink(&self, count: usize) -> usize {
        self.staging.pages().shrink(count.min(self.staging.spare()))
    }
}
